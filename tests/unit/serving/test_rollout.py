"""When a step of the canary is good enough: both sides of each threshold, the first fault, and no worse evidence."""

import re
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.project import Release as Policy
from visionloop.records import LaneEvidence
from visionloop.serving.rollout import LATENCY_NOISE_MS, is_hopeless, judge, most_probes

POLICY = Policy(
    approval="automatic", step_requests=100, max_error_rate=0.02, max_disagreement=0.05, max_latency_ratio=3.0
)


def lane(name: str = "canary", **changes: float) -> LaneEvidence:
    """A lane that is well."""
    well = {"requests": 200, "errors": 0, "probes": 100, "disagreements": 0, "latency_p50_ms": 5, "latency_p95_ms": 10}
    return LaneEvidence.model_validate({"lane": name, **well, **changes})


STABLE = lane("stable", latency_p95_ms=20)


def test_a_canary_that_is_well_passes_and_the_reason_has_its_figures() -> None:
    found = judge(lane(errors=1, disagreements=2), STABLE, POLICY)
    assert found.outcome == "passed"
    assert found.reason == ("200 requests, 1 errors, 2 of 100 probes answered otherwise, p95 10.0 ms against 20.0 ms")
    assert "against" not in judge(lane(), None, POLICY).reason


@pytest.mark.parametrize(
    ("at_the_edge", "beyond", "says"),
    [
        ({"errors": 4}, {"errors": 5}, "failed 5 of 200 requests, allowed 2.0%"),
        ({"probes": 100}, {"probes": 99}, "answered 99 probes, expected 100"),
        ({"disagreements": 5}, {"disagreements": 6}, "6 of 100 answers of the canary differ .* allowed 5.0%"),
        ({"latency_p95_ms": 60.0}, {"latency_p95_ms": 60.1}, "p95 of the canary is 60.1 ms, .* allowed 60.0 ms"),
    ],
)
def test_each_threshold_has_two_sides(at_the_edge: dict[str, float], beyond: dict[str, float], says: str) -> None:
    assert judge(lane(**at_the_edge), STABLE, POLICY).outcome == "passed"
    found = judge(lane(**beyond), STABLE, POLICY)
    assert found.outcome == "failed"
    assert re.search(says, found.reason), found.reason


@pytest.mark.parametrize(("p95", "outcome"), [(2 + LATENCY_NOISE_MS, "passed"), (2.1 + LATENCY_NOISE_MS, "failed")])
def test_noise_is_no_latency(p95: float, outcome: str) -> None:
    """Three times 2 ms is less than what a shared machine adds by itself."""
    assert judge(lane(latency_p95_ms=p95), lane("stable", latency_p95_ms=2), POLICY).outcome == outcome


@pytest.mark.parametrize(("probes", "outcome"), [(19, "passed"), (20, "failed")])
def test_too_few_answers_of_the_stable_lane_have_no_p95(probes: int, outcome: str) -> None:
    assert judge(lane(latency_p95_ms=500), lane("stable", probes=probes), POLICY).outcome == outcome


def test_at_the_first_release_there_is_no_latency_to_compare_with() -> None:
    assert judge(lane(latency_p95_ms=5_000), None, POLICY).outcome == "passed"


def test_the_first_fault_is_the_reason() -> None:
    faults = {"errors": 50, "probes": 40, "disagreements": 30, "latency_p95_ms": 900.0}
    says = ("failed 50 of 200", "answered 40 probes", "30 of 100 answers", "p95 of the canary")
    for expected in says:
        if expected.startswith("30"):
            faults.pop("probes", None)
        assert expected in judge(lane(**faults), STABLE, POLICY).reason
        faults.pop(next(iter(faults)))


def test_a_canary_that_nobody_asked_has_failed() -> None:
    assert judge(lane(requests=0, probes=0), None, POLICY).outcome == "failed"


counts = st.integers(0, 300)
evidence = st.builds(
    lambda extra, errors, probes, wrong, p95: lane(
        requests=probes + errors + extra,
        errors=errors,
        probes=probes,
        disagreements=min(wrong, probes),
        latency_p95_ms=p95,
    ),
    counts, st.integers(0, 10), counts, st.integers(0, 20), st.floats(0, 200),
)  # fmt: skip


@given(evidence, st.none() | st.builds(lambda p95: lane("stable", latency_p95_ms=p95), st.floats(0, 200)), st.data())
def test_worse_evidence_never_passes_where_better_failed(
    canary: LaneEvidence, stable: LaneEvidence | None, data: st.DataObject
) -> None:
    worse = canary.model_copy(
        update={
            "errors": canary.errors + data.draw(st.integers(0, 3)),
            "disagreements": canary.disagreements + data.draw(st.integers(0, 3)),
            "latency_p95_ms": canary.latency_p95_ms + data.draw(st.floats(0, 50)),
        }
    )
    if judge(canary, stable, POLICY).outcome == "failed":
        assert judge(worse, stable, POLICY).outcome == "failed"
    assert judge(canary, stable, POLICY) == judge(canary, stable, POLICY)


@given(evidence)
def test_what_passes_is_within_every_bound(canary: LaneEvidence) -> None:
    if judge(canary, STABLE, POLICY).outcome == "passed":
        assert canary.probes >= POLICY.step_requests
        assert canary.errors <= 0.02 * canary.requests
        assert canary.disagreements <= 0.05 * canary.probes
        assert canary.latency_p95_ms <= 60.0


@pytest.mark.parametrize(("errors", "hopeless"), [(3, False), (4, True)])
def test_hopeless_is_above_what_a_full_step_may_have(errors: int, hopeless: bool) -> None:
    assert is_hopeless(errors, POLICY) is hopeless


@given(st.integers(1, 100))
def test_enough_probes_are_sent_for_the_share_to_be_reached(percent: int) -> None:
    expected = POLICY.step_requests * 100 / percent
    assert 3 * expected <= most_probes(percent, POLICY) <= ceil(3 * expected) + 100
