"""The suite: each figure against its bar, on both sides of it, and enough samples to say so."""

import numpy as np
import pytest

from tests.unit.evaluation.contests import Reader, contest, scenario
from visionloop.evaluation.samples import TestSamples
from visionloop.evaluation.suite import Contest, describe, run_suite
from visionloop.records import ScenarioResult


def only(results: list[ScenarioResult]) -> ScenarioResult:
    (result,) = results
    return result


@pytest.mark.parametrize(("wrong", "outcome"), [(20, "passed"), (21, "failed")])
def test_an_absolute_bar(wrong: int, outcome: str) -> None:
    result = only(run_suite([scenario(at_least=0.8)], contest(wrong=range(wrong))))
    assert (result.outcome, result.bar_kind, result.bar) == (outcome, "at_least", 0.8)
    assert result.challenger.value == pytest.approx(1 - wrong / 100)
    assert result.champion is None and result.difference is None


@pytest.mark.parametrize(("count", "outcome"), [(29, "too_few"), (30, "passed")])
def test_too_few_samples_decide_nothing(count: int, outcome: str) -> None:
    result = only(run_suite([scenario(at_least=0.5)], contest(count)))
    assert (result.outcome, result.samples_needed, result.challenger.n) == (outcome, 30, count)


def test_too_few_also_where_no_bar_is_asked_or_the_figure_is_bad() -> None:
    assert only(run_suite([scenario()], contest(29))).outcome == "too_few"
    assert only(run_suite([scenario(at_least=0.5)], contest(29, wrong=range(29)))).outcome == "too_few"


@pytest.mark.parametrize(("wrong", "worst"), [([2, 6, 10], "c2"), ([2, 6, 10, 3, 7, 11, 15], "c3"), ([], "c0")])
def test_the_class_with_the_smallest_recall_is_named(wrong: list[int], worst: str) -> None:
    """Of 40 samples, ten of each class; of classes that are equal the first."""
    found = only(run_suite([scenario(metric="worst_class_recall")], contest(40, wrong=wrong)))
    assert found.worst_class == worst
    assert found.challenger.value == pytest.approx(1 - max(len(wrong) - 3, min(len(wrong), 3)) / 10)
    assert only(run_suite([scenario()], contest(40, wrong=wrong))).worst_class is None


def test_in_a_slice_it_is_the_worst_of_the_slice() -> None:
    sliced = scenario(metric="worst_class_recall", where={"label": "c1"}, min_samples=1)
    assert only(run_suite([sliced], contest(40, wrong=[2, 6]))).worst_class == "c1"


def test_without_a_bar_the_figure_is_only_told() -> None:
    result = only(run_suite([scenario(metric="f1_macro")], contest(wrong=range(100))))
    assert (result.outcome, result.bar_kind, result.bar, result.challenger.value) == ("passed", "none", None, 0.0)


# 1,000 samples, 50 of which only the champion has right and `better` only the challenger: the interval's low end is
# (better - 50 - 1.96 * sqrt(better + 50 - (better - 50)^2 / 1000)) / 1000, so 34 lose at most 0.034 and 30 more.
@pytest.mark.parametrize(
    ("better", "margin", "outcome"),
    [(34, 0.04, "passed"), (34, 0.03, "too_few"), (34, 0.016, "failed"), (34, 0.017, "too_few"), (80, 0.0, "passed")],
)
def test_a_bar_relative_to_the_champion(better: int, margin: float, outcome: str) -> None:
    match = contest(1000, wrong=range(50), champion_wrong=range(50, 50 + better))
    result = only(run_suite([scenario(not_worse_by=margin)], match))
    assert (result.outcome, result.bar_kind, result.margin) == (outcome, "not_worse_than_champion", margin)
    assert result.difference is not None and result.champion is not None and result.bar is not None
    assert result.difference.value == pytest.approx((better - 50) / 1000)
    assert result.bar == pytest.approx(result.champion.value - margin)


def test_the_samples_that_are_needed_are_enough() -> None:
    """As many more samples of the same kind decide what could not be decided."""

    def repeated(count: int) -> Contest:
        wrong = [at for at in range(count) if at % 20 == 0]
        champion = [at for at in range(count) if at % 25 == 1]
        return contest(count, wrong=wrong, champion_wrong=champion)

    bar = scenario(not_worse_by=0.02)
    few = only(run_suite([bar], repeated(400)))
    assert few.outcome == "too_few" and few.samples_needed > 400
    assert only(run_suite([bar], repeated(round(few.samples_needed * 1.15 / 100) * 100))).outcome == "passed"
    assert only(run_suite([bar], repeated(round(few.samples_needed * 0.80 / 100) * 100))).outcome == "too_few"


def test_two_bars_are_two_results_and_one_without_a_champion() -> None:
    both = scenario(at_least=0.9, not_worse_by=0.02)
    results = run_suite([both], contest(200, wrong=range(30), champion_wrong=range(30)))
    assert [(r.bar_kind, r.outcome) for r in results] == [
        ("at_least", "failed"),
        ("not_worse_than_champion", "passed"),
    ]
    assert [r.bar_kind for r in run_suite([both], contest(200))] == ["at_least"]
    assert [r.bar_kind for r in run_suite([scenario(not_worse_by=0.02)], contest(200))] == ["none"]


def test_a_slice_is_judged_on_its_own_samples() -> None:
    cameras = ["belt-1"] * 60 + ["belt-2"] * 40
    match = contest(wrong=range(60, 80), champion_wrong=range(60, 70), cameras=cameras)
    first, second = run_suite(
        [scenario(where={"camera": "belt-1"}, at_least=1.0), scenario(where={"camera": "belt-2"}, at_least=0.51)], match
    )
    assert (first.outcome, first.challenger.n, first.challenger.value) == ("passed", 60, 1.0)
    assert (second.outcome, second.challenger.n, second.challenger.value) == ("failed", 40, 0.5)
    assert second.difference is not None and second.difference.value == pytest.approx(-0.25)


def test_a_slice_that_nobody_is_in_has_too_few() -> None:
    result = only(run_suite([scenario(where={"camera": "belt-9"}, at_least=0.1)], contest(champion_wrong=())))
    assert (result.outcome, result.challenger.n, result.champion, result.difference) == ("too_few", 0, None, None)
    assert describe(result) == "too_few, no test sample is of this scenario (30 needed)"


class Shade:
    """A Predictor that says 1 for a bright image; corruption that darkens it costs it its answers."""

    def __call__(self, images: np.ndarray):  # type: ignore[no-untyped-def]
        from visionloop.training.predict import Answers

        bright = (images.mean(axis=(1, 2, 3)) > 60).astype(int)
        return Answers(np.eye(2, dtype=np.float32)[bright], np.zeros((len(images), 1), np.float32))


def test_a_corruption_is_answered_corrupted() -> None:
    images = np.full((40, 8, 8, 1), 150, np.uint8)
    images[:, ::2] = 10
    samples = TestSamples(images, np.ones(40, np.int64), {})
    match = Contest(samples, Shade(), Shade(), seed=0)
    clean, dark = run_suite([scenario(at_least=0.9), scenario(corruption="low_light", at_least=0.9)], match)
    assert (clean.outcome, clean.challenger.value) == ("passed", 1.0)
    assert (dark.outcome, dark.challenger.value) == ("failed", 0.0)
    assert dark.champion is not None and dark.champion.value == 0.0


def test_each_corruption_is_answered_once() -> None:
    match = contest(champion_wrong=())
    noise = {"corruption": "gaussian_noise"}
    run_suite(
        [
            scenario(),
            scenario(where={"label": "c1"}, corruption_severity=5),
            scenario(**noise),
            scenario(**noise, where={"label": "c1"}),
            scenario(**noise, corruption_severity=4),
        ],
        match,
    )
    assert isinstance(match.challenger, Reader) and isinstance(match.champion, Reader)
    assert (match.challenger.calls, match.champion.calls) == (3, 3)


def test_a_line_tells_figures_and_bars() -> None:
    passed, relative = run_suite(
        [scenario(at_least=0.8, not_worse_by=0.05)], contest(400, wrong=range(40), champion_wrong=range(40))
    )
    assert describe(passed).startswith("passed, accuracy 0.9000 [0.86")
    assert "on 400 samples, at least 0.8000 asked, champion +0.0000 [+0.0000, +0.0000]" in describe(passed)
    assert describe(relative).endswith("at most 0.0500 may be lost")
    few = only(run_suite([scenario(min_samples=401)], contest(400)))
    assert describe(few).endswith("401 samples needed")
