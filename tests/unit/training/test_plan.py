"""The training plan: when to go, when to wait, and that a person reads what is waited for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.records import Snapshot
from visionloop.training.plan import PlanEvidence, decide_training

REQUEST = "s3://b/p/records/trigger_decision/ab12.json"


def snapshot(version: int, samples: int | None = None) -> Snapshot:
    return Snapshot(
        id=f"s{version}",
        project="p",
        dataset_uri="d",
        version=version,
        tag=f"tag-{version}",
        batches=["b"],
        samples=version * 100 if samples is None else samples,
        added=100,
        splits={},
        classes={},
    )


def evidence(latest: Snapshot | None, champion: Snapshot | None = None, **more: Any) -> PlanEvidence:
    uri = f"s3://b/{latest.id}.json" if latest else None
    return PlanEvidence(latest=latest, latest_uri=uri, champion_snapshot=champion, **more)


def test_nothing_to_train_on() -> None:
    plan = decide_training(evidence(None), "when_requested")
    assert (plan.go, plan.reason) == (False, "there is no snapshot yet: waiting for the first batch")


@pytest.mark.parametrize("start", ["when_requested", "every_snapshot"])
def test_the_first_snapshot_is_trained_once(start: Any) -> None:
    plan = decide_training(evidence(snapshot(1)), start)
    assert (plan.go, plan.snapshot, plan.retrain_request) == (True, "s3://b/s1.json", None)
    again = decide_training(evidence(snapshot(1), trained_snapshots=frozenset({"s1"})), start)
    assert not again.go
    assert again.reason == "snapshot tag-1 was trained already: waiting for labelled samples newer than snapshot tag-1"


def test_without_a_champion_a_rejected_first_model_does_not_end_the_loop() -> None:
    assert decide_training(evidence(snapshot(2), trained_snapshots=frozenset({"s1"})), "when_requested").go


def test_every_snapshot_is_trained_without_a_request() -> None:
    new = evidence(snapshot(2), snapshot(1), trained_snapshots=frozenset({"s1"}))
    assert decide_training(new, "every_snapshot").go
    waiting = decide_training(new, "when_requested")
    assert not waiting.go
    assert waiting.reason == "snapshot tag-2 has 200 samples, but nothing asks for a retraining"


def test_a_request_without_newer_samples_waits_and_says_for_what() -> None:
    known = evidence(snapshot(1), snapshot(1), trained_snapshots=frozenset({"s1"}), open_request=REQUEST)
    plan = decide_training(known, "when_requested")
    assert not plan.go
    assert plan.reason.endswith("request ab12 is open; waiting for labelled samples newer than snapshot tag-1")


def test_a_request_with_newer_samples_goes() -> None:
    known = evidence(snapshot(2), snapshot(1), trained_snapshots=frozenset({"s1"}), open_request=REQUEST)
    plan = decide_training(known, "when_requested")
    assert (plan.go, plan.snapshot, plan.retrain_request) == (True, "s3://b/s2.json", REQUEST)
    assert plan.reason == (
        "request ab12 is open, and snapshot tag-2 has 100 samples that the champion's snapshot tag-1 has not"
    )


@pytest.mark.parametrize(("samples", "goes"), [(100, False), (101, True)])
def test_a_new_version_without_a_new_sample_is_not_newer(samples: int, goes: bool) -> None:
    known = evidence(snapshot(2, samples), snapshot(1), open_request=REQUEST)
    assert decide_training(known, "when_requested").go is goes


def test_a_rejected_training_is_not_repeated_on_the_same_snapshot() -> None:
    known = evidence(snapshot(2), snapshot(1), trained_snapshots=frozenset({"s1", "s2"}), open_request=REQUEST)
    plan = decide_training(known, "when_requested")
    assert not plan.go
    assert "snapshot tag-2 was trained already" in plan.reason
    assert "request ab12 is open" in plan.reason


@given(
    latest=st.integers(1, 5),
    champion=st.none() | st.integers(1, 5),
    trained=st.frozensets(st.integers(1, 5)),
    asked=st.booleans(),
    start=st.sampled_from(["every_snapshot", "when_requested"]),
)
def test_no_snapshot_is_trained_twice_and_every_plan_has_a_reason(
    latest: int, champion: int | None, trained: frozenset[int], asked: bool, start: Any
) -> None:
    plan = decide_training(
        evidence(
            snapshot(latest),
            snapshot(champion) if champion else None,
            trained_snapshots=frozenset(f"s{number}" for number in trained),
            open_request=REQUEST if asked else None,
        ),
        start,
    )
    assert plan.reason
    assert (plan.snapshot is not None) is plan.go
    if plan.go:
        assert latest not in trained
        assert start == "every_snapshot" or champion is None or (asked and latest > champion)
