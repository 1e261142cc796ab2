"""The whole loop through Airflow: the figures that the demo promises, and the records that it must leave."""

from visionloop.records import (
    Approval,
    Candidate,
    DriftReport,
    Evaluation,
    GateDecision,
    Release,
    RetrainState,
    Snapshot,
    TrainingRun,
    TriggerDecision,
    Validation,
)
from visionloop.stores import connect

from .conftest import Demo

PROJECT = "fashion"


def test_it_ends_well(demo: Demo) -> None:
    assert demo.returncode == 0, demo.output


def test_accuracy_falls_and_comes_back(demo: Demo) -> None:
    accuracy, served = demo.report["accuracy"], demo.report["served"]
    assert served["clean_v1"] >= 2_000
    assert accuracy["clean_v1"] >= 0.90
    assert accuracy["changed_before"] <= accuracy["clean_v1"] - 0.10
    assert accuracy["changed_after"] >= 0.85 * accuracy["clean_v1"]
    assert accuracy["clean_after"] >= accuracy["clean_v1"] - 0.03
    assert demo.report["failed_requests"] == 0


def test_drift_is_flagged_where_it_is(demo: Demo) -> None:
    assert not demo.report["drift"]["clean_window"]["drifted"]
    assert demo.report["drift"]["clean_window"]["windows"] >= 1
    assert demo.report["drift"]["changed_window"]["drifted"]


def test_two_releases_each_with_its_evidence(demo: Demo) -> None:
    first, second = demo.report["releases"]
    assert (first["version"], second["version"]) == (1, 2)
    assert first["model_sha256"] != second["model_sha256"]
    for release in (first, second):
        assert release["approval"]["by"] == "release-manager"
        assert release["approval"]["decision"] == "approved"
        assert release["canary"], "no canary step was recorded"
        assert all(step["outcome"] == "passed" for step in release["canary"])
        canary = [lane for step in release["canary"] for lane in step["lanes"] if lane["lane"] == "canary"]
        assert all(lane["requests"] > 0 for lane in canary)


def test_one_record_of_each_link_for_each_turn(demo: Demo) -> None:
    ledger = connect(demo.settings).ledger
    for kind in (Snapshot, TrainingRun, Evaluation, GateDecision, Candidate, Approval, Release):
        assert len(ledger.all(kind, PROJECT)) == 2, kind.kind
    for validation in ledger.all(Validation, PROJECT):
        assert validation.accepted + validation.quarantined == validation.delivered
    requests = [decision for decision in ledger.all(TriggerDecision, PROJECT) if decision.action == "retrain"]
    assert len(requests) == 1
    for release in ledger.all(Release, PROJECT):
        approval = ledger.get(Approval, release.approval)
        assert (release.decided_by, release.decided_at) == (approval.by, approval.created_at)
    assert any(report.drifted for report in ledger.all(DriftReport, PROJECT))


def test_the_request_is_answered_by_the_second_release(demo: Demo) -> None:
    stores = connect(demo.settings)
    state = stores.state.read(RetrainState, PROJECT, "retrain")
    second = stores.ledger.all(Release, PROJECT)[-1]
    assert state is not None
    assert state.request is None
    assert state.closed_by == stores.ledger.uri(second)


def test_the_registry_says_what_serves(demo: Demo) -> None:
    stores = connect(demo.settings)
    champion = stores.registry.champion(PROJECT)
    assert champion is not None
    assert champion.version == 2
    assert champion.candidate == stores.ledger.all(Release, PROJECT)[-1].candidate


def test_the_test_split_never_leaks(demo: Demo) -> None:
    """A sample of the first snapshot is in the same split of the second."""
    stores = connect(demo.settings)
    first, second = stores.ledger.all(Snapshot, PROJECT)
    before = stores.datasets.read(first, columns=["sample_id", "split"]).to_pydict()
    after = stores.datasets.read(second, columns=["sample_id", "split"]).to_pydict()
    later = dict(zip(after["sample_id"], after["split"], strict=True))
    assert len(later) > len(before["sample_id"]) > 0
    assert all(later[sample] == split for sample, split in zip(before["sample_id"], before["split"], strict=True))
