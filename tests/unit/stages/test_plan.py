"""The plan stage reads the ledger and the retrain request as the other stages write them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.unit.monitoring.world import add_release, make_project, make_stores
from tests.unit.stages.made import training_run
from visionloop.project import Project
from visionloop.records import RetrainState, Snapshot
from visionloop.stages.plan import Inputs, run
from visionloop.stores import Stores

AT = datetime(2026, 1, 1, tzinfo=UTC)
REQUEST = "file:///x/p/records/trigger_decision/ab12.json"


@pytest.fixture
def project() -> Project:
    return make_project()


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return make_stores(tmp_path)


def add_snapshot(stores: Stores, version: int) -> Snapshot:
    return stores.ledger.put(
        Snapshot(
            id=f"s{version}",
            project="p",
            created_at=AT + timedelta(hours=version),
            dataset_uri="d",
            version=version,
            tag=f"tag-{version}",
            batches=["b"],
            samples=100 * version,
            added=100,
            splits={},
            classes={},
        )
    )


def add_run(stores: Stores, snapshot: str) -> None:
    run_id = f"run-{snapshot.rsplit('/', 1)[-1].removesuffix('.json')}"
    stores.ledger.put(training_run(run_id, snapshot=snapshot))


def test_the_loops_first_two_turns(project: Project, stores: Stores) -> None:
    assert not run(project, Inputs(), stores).go

    first = add_snapshot(stores, 1)
    plan = run(project, Inputs(), stores)
    assert (plan.go, plan.snapshot, plan.retrain_request) == (True, stores.ledger.uri(first), None)

    add_run(stores, stores.ledger.uri(first))
    assert not run(project, Inputs(), stores).go, "trained, perhaps waiting for approval"

    add_release(project, stores, 1, first)
    second = add_snapshot(stores, 2)
    assert not run(project, Inputs(), stores).go, "new samples, but nothing asks"

    stores.state.update(RetrainState, "p", "retrain", lambda _: RetrainState(request=REQUEST, opened_at=AT))
    plan = run(project, Inputs(), stores)
    assert (plan.go, plan.snapshot, plan.retrain_request) == (True, stores.ledger.uri(second), REQUEST)

    add_run(stores, stores.ledger.uri(second))
    assert "was trained already" in run(project, Inputs(), stores).reason


def test_a_request_before_its_labels_waits(project: Project, stores: Stores) -> None:
    first = add_snapshot(stores, 1)
    add_run(stores, stores.ledger.uri(first))
    add_release(project, stores, 1, first)
    stores.state.update(RetrainState, "p", "retrain", lambda _: RetrainState(request=REQUEST, opened_at=AT))
    plan = run(project, Inputs(), stores)
    assert not plan.go
    assert plan.reason.endswith("request ab12 is open; waiting for labelled samples newer than snapshot tag-1")
