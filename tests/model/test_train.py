"""Train: one run in the book however often it is killed, the same weights at the end, and all of it in the record."""

import hashlib
from pathlib import Path

import pytest
import torch

from tests.unit.stages.corners import World, a_project
from visionloop.errors import NotFound, StageError, StoreError
from visionloop.project import Project
from visionloop.records import Snapshot, TrainingRun, TriggerDecision
from visionloop.stages import train
from visionloop.stages.train import Order, Place, train_locally, work
from visionloop.stores import Stores
from visionloop.training.loop import EpochEnd
from visionloop.training.model import from_bytes

EPOCHS = 3


class Killed(BaseException):
    """kill -9, as far as a test in the same process can have it: nothing catches it."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path, images=100)
    made.project = a_project("epochs: 2", f"epochs: {EPOCHS}")
    return made


@pytest.fixture
def snapshot(world: World) -> Snapshot:
    return world.snapshot()


def inputs(world: World, snapshot: Snapshot, **values: object) -> train.Inputs:
    return train.Inputs.model_validate({"snapshot": world.stores.ledger.uri(snapshot), **values})


def trained(world: World, snapshot: Snapshot, project: Project | None = None, **values: object) -> TrainingRun:
    return train.run(project or world.project, inputs(world, snapshot, **values), world.connect())


class Dying:
    """Executes in this process, and is killed at the end of an epoch (after its checkpoint)."""

    def __init__(self, after: int) -> None:
        self.after, self.epochs = after, []

    def __call__(self, order: Order, stores: Stores) -> None:
        def tell(end: EpochEnd) -> None:
            self.epochs.append(end.state.epoch)
            if end.state.epoch == self.after:
                raise Killed

        work(order, stores, Place(), tell=tell)


def test_a_run_is_recorded_with_all_that_made_it(world: World, snapshot: Snapshot) -> None:
    found = trained(world, snapshot)
    uri = world.stores.ledger.uri(snapshot)
    weights = world.stores.objects.get(world.stores.objects.key(found.checkpoint_uri))
    assert hashlib.sha256(weights).hexdigest() == found.checkpoint_sha256
    assert from_bytes(weights).architecture.outputs == 4
    # 60 training samples are one whole batch of 32.
    assert (found.epochs, found.samples_seen, found.workers) == (EPOCHS, EPOCHS * 32, 1)
    assert (found.device, found.precision, found.seed) == ("cpu", "fp32", 0)
    assert found.snapshot == found.inputs["snapshot"] == uri and found.retrain_request is None
    body = world.stores.objects.get(world.stores.objects.key(uri))
    assert found.input_digests == {"snapshot": hashlib.sha256(body).hexdigest()}
    assert 0 < found.metrics["train_loss"] < 2.0 and found.seconds > 0


def test_mlflow_has_the_run_once_with_parameters_curves_and_data(world: World, snapshot: Snapshot) -> None:
    found = trained(world, snapshot)
    ((run_id, run),) = world.registry.runs.items()
    assert (run_id, run.record, run.status) == (found.mlflow_run_id, found.id, "FINISHED")
    assert run.params["epochs"] == str(EPOCHS) and run.params["seed"] == "0" and run.params["classes"] == "4"
    assert sorted(point.step for point in run.points if point.key == "train_loss") == [1, 2, 3]
    assert [(use.source, use.digest) for use in run.datasets] == [(snapshot.dataset_uri, f"v{snapshot.version}")]
    assert f"torch=={torch.__version__.partition('+')[0]}" in run.files["environment.txt"]
    assert run.tags["visionloop.snapshot"] == snapshot.id


def test_run_again_it_is_the_same_record_and_nothing_is_trained(world: World, snapshot: Snapshot) -> None:
    def never(order: Order, stores: Stores) -> None:
        raise AssertionError("it was trained already")

    first = trained(world, snapshot)
    assert train.run(world.project, inputs(world, snapshot), world.connect(), execute=never) == first
    assert world.stores.ledger.all(TrainingRun, "corners") == [first]


def test_what_decides_the_weights_decides_the_id(world: World, snapshot: Snapshot) -> None:
    first = trained(world, snapshot)
    seeded = trained(world, snapshot, seed=9)
    slower = trained(world, snapshot, a_project("epochs: 2", "epochs: 1"))
    other_suite = trained(world, snapshot, world.project.model_copy(update={"suite": a_project().suite}))
    assert len({first.id, seeded.id, slower.id}) == 3 and other_suite == first
    assert seeded.seed == 9 and seeded.checkpoint_sha256 != first.checkpoint_sha256


def test_a_retrain_request_is_part_of_the_lineage(world: World, snapshot: Snapshot) -> None:
    decision = TriggerDecision.model_validate(
        {"id": "d1", "project": "corners", "drift_report": "r", "candidate": "c", "action": "retrain", "reasons": ["x"]}
    )
    request = world.stores.ledger.uri(world.stores.ledger.put(decision))
    asked, unasked = trained(world, snapshot, retrain_request=request), trained(world, snapshot)
    assert asked.retrain_request == asked.inputs["retrain_request"] == request
    assert set(asked.input_digests) == {"snapshot", "retrain_request"} and asked.id != unasked.id


@pytest.mark.parametrize("after", [1, EPOCHS])
def test_killed_after_a_checkpoint_it_goes_on_there(world: World, snapshot: Snapshot, after: int) -> None:
    elsewhere = World(world.settings.home / "elsewhere", images=100)
    whole = trained(elsewhere, elsewhere.snapshot(), world.project, seed=5)
    first, second = Dying(after), Dying(after=0)
    with pytest.raises(Killed):
        train.run(world.project, inputs(world, snapshot, seed=5), world.connect(), execute=first)
    assert world.stores.ledger.all(TrainingRun, "corners") == []
    found = train.run(world.project, inputs(world, snapshot, seed=5), world.connect(), execute=second)
    assert first.epochs + second.epochs == [1, 2, 3]
    assert found.checkpoint_sha256 == whole.checkpoint_sha256
    assert (found.epochs, found.samples_seen) == (whole.epochs, whole.samples_seen)
    (run,) = world.registry.runs.values()
    assert run.status == "FINISHED"
    assert sorted(point.step for point in run.points if point.key == "train_loss") == [1, 2, 3]


@pytest.mark.parametrize("at", ["run", "log_params", "finish"])
def test_killed_around_the_training_there_is_one_run(
    world: World, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    stores = world.connect()
    real = getattr(world.registry, at)

    def killed(*arguments: object, **options: object) -> None:
        real(*arguments, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(world.registry, at, killed)
        with pytest.raises(Killed):
            train.run(world.project, inputs(world, snapshot), stores)
    found = trained(world, snapshot)
    assert [run.status for run in world.registry.runs.values()] == ["FINISHED"]
    assert world.stores.ledger.all(TrainingRun, "corners") == [found]


def test_mlflow_away_at_the_beginning_is_one_clear_error(world: World, snapshot: Snapshot) -> None:
    world.registry.down = True
    with pytest.raises(StoreError, match="MLflow at memory cannot be reached"):
        trained(world, snapshot)
    assert list(world.stores.objects.scan("corners/checkpoints/")) == []
    world.registry.down = False
    assert trained(world, snapshot).epochs == EPOCHS


def test_mlflow_away_meanwhile_costs_no_epoch(world: World, snapshot: Snapshot) -> None:
    """The curves are logged again at the end."""

    def flickering(order: Order, stores: Stores) -> None:
        world.registry.down = True
        train_locally(order, stores)
        world.registry.down = False

    found = train.run(world.project, inputs(world, snapshot), world.connect(), execute=flickering)
    run = world.registry.runs[found.mlflow_run_id]
    assert sorted(point.step for point in run.points if point.key == "train_loss") == [1, 2, 3]


def test_mlflow_away_at_the_end_loses_nothing(world: World, snapshot: Snapshot) -> None:
    def last(order: Order, stores: Stores) -> None:
        train_locally(order, stores)
        world.registry.down = True

    with pytest.raises(StoreError, match="MLflow"):
        train.run(world.project, inputs(world, snapshot), world.connect(), execute=last)
    assert world.stores.ledger.all(TrainingRun, "corners") == []
    world.registry.down = False
    again = Dying(after=0)
    assert train.run(world.project, inputs(world, snapshot), world.connect(), execute=again).epochs == EPOCHS
    assert again.epochs == []


def test_a_failure_is_told_even_where_mlflow_is_away_too(world: World, snapshot: Snapshot) -> None:
    def failing(order: Order, stores: Stores) -> None:
        world.registry.down = True
        raise StageError("the loss became nan")

    with pytest.raises(StageError, match="nan"):
        train.run(world.project, inputs(world, snapshot), world.connect(), execute=failing)


def test_an_execution_that_ends_early_is_a_fault(world: World, snapshot: Snapshot) -> None:
    with pytest.raises(StageError, match=r"ended without the checkpoint of epoch 3.*run it again"):
        train.run(world.project, inputs(world, snapshot), world.connect(), execute=lambda order, stores: None)
    assert world.stores.ledger.all(TrainingRun, "corners") == []


def test_a_training_that_fails_is_failed_in_the_book_until_it_is_run_again(world: World, snapshot: Snapshot) -> None:
    def failing(order: Order, stores: Stores) -> None:
        raise StageError("the loss became nan")

    with pytest.raises(StageError, match="nan"):
        train.run(world.project, inputs(world, snapshot), world.connect(), execute=failing)
    (run,) = world.registry.runs.values()
    assert run.status == "FAILED"
    assert trained(world, snapshot).mlflow_run_id in world.registry.runs and run.status == "FINISHED"


def test_checkpoints_are_as_rare_as_the_project_says_and_the_last_is_there(world: World, snapshot: Snapshot) -> None:
    project = a_project("epochs: 2", "epochs: 5, checkpoint_every_epochs: 2")
    first, second = Dying(3), Dying(after=0)
    with pytest.raises(Killed):
        train.run(project, inputs(world, snapshot), world.connect(), execute=first)
    found = train.run(project, inputs(world, snapshot), world.connect(), execute=second)
    assert (first.epochs, second.epochs) == ([1, 2, 3], [3, 4, 5])
    assert found.checkpoint_uri.endswith("epoch-000005/weights.safetensors")


def test_a_snapshot_that_does_not_exist(world: World) -> None:
    with pytest.raises(NotFound):
        train.run(
            world.project,
            train.Inputs(snapshot=world.stores.objects.uri("corners/records/snapshot/none.json")),
            world.connect(),
        )
    assert world.registry.runs == {}
