"""The trigger: one request at a time however many monitors run, the same decision when run again."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.unit.monitoring.world import add_release, make_project, make_stores
from visionloop import layout
from visionloop.errors import NotFound
from visionloop.project import Project
from visionloop.records import DriftReport, DriftView, RetrainState, Snapshot, TriggerDecision
from visionloop.stages.trigger import Inputs, run
from visionloop.stores import Stores

LONG_AGO = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture
def project() -> Project:
    return make_project()


@pytest.fixture
def stores(project: Project, tmp_path: Path) -> Stores:
    made = make_stores(tmp_path)
    add_release(project, made, 1, a_snapshot(), at=LONG_AGO)
    return made


def a_snapshot() -> Snapshot:
    return Snapshot(
        id="s",
        project="p",
        dataset_uri="d",
        version=1,
        tag="t",
        batches=["b"],
        samples=1,
        added=1,
        splits={},
        classes={},
    )


def add_report(stores: Stores, name: str, *, drifted: bool = True, candidate: str = "candidate-1") -> str:
    view = DriftView(
        name="image", columns=1, drifted_columns=1, share=1.0, threshold=0.3, drifted=drifted, scores={}, detail="d"
    )
    report = DriftReport(
        id=name,
        project="p",
        window="w",
        candidate=candidate,
        reference_samples=600,
        window_samples=400,
        views=[view],
        drifted=drifted,
        html_uri="h",
        json_uri="j",
    )
    return stores.ledger.uri(stores.ledger.put(report))


def state(stores: Stores) -> RetrainState | None:
    return stores.state.read(RetrainState, "p", "retrain")


def test_drift_opens_a_request_that_names_the_decision(project: Project, stores: Stores) -> None:
    decision = run(project, Inputs(drift_report=add_report(stores, "r1")), stores)
    assert decision.action == "retrain"
    opened = state(stores)
    assert opened
    assert opened.request == stores.ledger.uri(decision)
    assert stores.ledger.get(TriggerDecision, opened.request) == decision


def test_run_again_gives_the_same_decision(project: Project, stores: Stores) -> None:
    uri = add_report(stores, "r1")
    first = run(project, Inputs(drift_report=uri), stores)
    before = state(stores)
    assert run(project, Inputs(drift_report=uri), stores) == first
    assert state(stores) == before


def test_no_drift_opens_nothing(project: Project, stores: Stores) -> None:
    decision = run(project, Inputs(drift_report=add_report(stores, "r1", drifted=False)), stores)
    assert decision.action == "none"
    assert decision.reasons[0].startswith("no drift")
    found = state(stores)
    assert found is None or found.request is None


def test_a_second_report_waits_for_the_open_request(project: Project, stores: Stores) -> None:
    first = run(project, Inputs(drift_report=add_report(stores, "r1")), stores)
    second = run(project, Inputs(drift_report=add_report(stores, "r2")), stores)
    assert second.action == "none"
    assert second.reasons[0] == f"retrain request {first.id} is open already"
    opened = state(stores)
    assert opened
    assert opened.request == stores.ledger.uri(first)


def test_after_the_request_was_answered_the_cooldown_counts(project: Project, stores: Stores) -> None:
    now = datetime.now(UTC)
    for minutes, action in ((5, "none"), (11, "retrain")):
        opened = now - timedelta(minutes=minutes)
        stores.state.update(
            RetrainState, "p", "retrain", lambda _, at=opened: RetrainState(opened_at=at, closed_at=now)
        )
        decision = run(project, Inputs(drift_report=add_report(stores, f"r{minutes}")), stores)
        assert decision.action == action


def test_a_report_about_a_model_that_no_longer_serves(project: Project, stores: Stores) -> None:
    add_release(project, stores, 2, a_snapshot(), at=LONG_AGO + timedelta(hours=1))
    decision = run(project, Inputs(drift_report=add_report(stores, "r1")), stores)
    assert decision.action == "none"
    assert decision.reasons[0] == "the report is about candidate candidate-1, meanwhile candidate-2 serves"


def test_killed_between_state_and_record(project: Project, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = add_report(stores, "r1")

    def killed(record: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stores.ledger, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            run(project, Inputs(drift_report=uri), stores)
    opened = state(stores)
    decision = run(project, Inputs(drift_report=uri), stores)
    assert decision.action == "retrain"
    assert decision.reasons[0].startswith("image view changed")
    assert state(stores) == opened
    assert opened
    assert opened.request == stores.ledger.uri(decision)


def test_a_report_that_does_not_exist(project: Project, stores: Stores) -> None:
    with pytest.raises(NotFound):
        run(project, Inputs(drift_report=stores.objects.uri(layout.record("p", "drift_report", "x"))), stores)


@pytest.mark.parametrize("reports", [["same"] * 8, [f"r{number}" for number in range(8)]])
def test_concurrent_monitors_open_one_request(stores: Stores, tmp_path: Path, reports: list[str]) -> None:
    start = threading.Barrier(len(reports))
    uris = [add_report(stores, name) for name in reports]

    def decide(uri: str) -> None:
        own = make_stores(tmp_path)
        start.wait()
        run(make_project(), Inputs(drift_report=uri), own)

    with ThreadPoolExecutor(len(uris)) as monitors:
        list(monitors.map(decide, uris))
    decisions = stores.ledger.all(TriggerDecision, "p")
    assert len(decisions) == len(set(reports))
    asked = [decision for decision in decisions if decision.action == "retrain"]
    assert len(asked) == 1
    opened = state(stores)
    assert opened
    assert opened.request == stores.ledger.uri(asked[0])
