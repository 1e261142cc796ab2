"""Which setting of instances, threads and delay is chosen, and the page that shows why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.records import TunedPoint, Tuning
from visionloop.reports.tuning import render
from visionloop.serving.tuning import DELAYS_US, NOISE, Setting, choose, median_of, settings


def point(
    rate: float, p99: float, *, instances: int = 1, threads: int = 1, delay: int = 0, failures: int = 0
) -> TunedPoint:
    return TunedPoint(
        instances=instances,
        threads=threads,
        queue_delay_us=delay,
        images_per_second=rate,
        p50_ms=p99 / 2,
        p99_ms=p99,
        failures=failures,
    )


def test_settings_use_half_of_the_cores_or_all_and_never_more() -> None:
    shapes = {(one.instances, one.threads) for one in settings(4)}
    assert shapes == {(1, 2), (2, 1), (1, 4), (2, 2), (4, 1)}
    assert len(settings(4)) == len(shapes) * len(DELAYS_US) == len(set(settings(4)))
    assert settings(1) == [Setting(1, 1, delay) for delay in DELAYS_US]


@pytest.mark.parametrize(("p99", "holds"), [(50.0, True), (50.1, False)])
def test_the_target_is_kept(p99: float, holds: bool) -> None:
    fast, slow = point(900, p99, threads=2), point(100, 5)
    assert choose([slow, fast], 50) == (fast if holds else slow)


def test_none_holds_the_target() -> None:
    assert choose([point(900, 60), point(800, 51)], 50) is None


def test_a_setting_with_failures_is_no_choice() -> None:
    assert choose([point(900, 10, failures=1), point(10, 10)], 50) == point(10, 10)


@pytest.mark.parametrize(("rate", "frugal"), [(970, True), (969, False)])
def test_as_fast_but_for_noise_takes_what_needs_least(rate: float, frugal: bool) -> None:
    best, less = point(1000, 10, instances=2, delay=500), point(rate, 10)
    assert choose([best, less], 50) == (less if frugal else best)


def test_medians_count_and_every_failure() -> None:
    measured = [point(100, 30), point(300, 10, failures=1), point(290, 11, failures=2)]
    assert median_of(measured) == point(290, 11, failures=3).model_copy(update={"p50_ms": 5.5})


points = st.builds(
    point,
    st.floats(1, 1e5),
    st.floats(0.1, 1e3),
    instances=st.integers(1, 4),
    threads=st.integers(1, 4),
    delay=st.sampled_from(DELAYS_US),
    failures=st.sampled_from([0, 0, 0, 1]),
)


@given(st.lists(points, min_size=1, max_size=20), st.floats(0.1, 1e3))
def test_the_choice_holds_the_target_and_is_near_the_best(tried: list[TunedPoint], target: float) -> None:
    chosen = choose(tried, target)
    able = [one for one in tried if one.p99_ms <= target and not one.failures]
    assert (chosen is None) == (not able)
    if chosen:
        assert chosen in able
        assert chosen.images_per_second >= (1 - NOISE) * max(one.images_per_second for one in able)


@pytest.mark.parametrize("target", [50.0, 5.0])
def test_the_page_shows_every_setting_the_target_and_the_choice(target: float) -> None:
    tried = [point(900, 40, delay=500), point(100, 8), point(1200, 80, instances=2)]
    tuning = Tuning(
        id="t",
        project="<p>",
        version=3,
        model_sha256="0" * 64,
        target_p99_ms=target,
        concurrency=64,
        images_per_request=1,
        seconds=4,
        rounds=3,
        cores=2,
        points=tried,
        chosen=choose(tried, target),
        page_uri="",
    )
    page = render(tuning)
    assert page.count("<circle") == 3 + (target == 50)
    assert page.count("<tr") == 1 + 3
    assert "&lt;p&gt;" in page and "<p>" not in page.split("</h1>")[0]
    assert ("No setting holds the target of 5 ms" in page) == (target == 5)
    assert ("1 instance(s) × 1 thread(s), delay 500 µs" in page) == (target == 50)
