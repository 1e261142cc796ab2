"""Train: a snapshot in, a training run out. How it is executed (in this process, by Ray) is an argument.

Everything that can be lost lies in the object store at each epoch's end, so a stage that is killed and run again goes
on there, in the same MLflow run.
"""

import importlib.metadata
import json
import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from visionloop import layout
from visionloop.errors import StageError, StoreError, VisionLoopError
from visionloop.project import Project, project_file
from visionloop.records import Frozen, Snapshot, TrainingRun, code_revision, record_id
from visionloop.stores import Stores
from visionloop.stores.datasets import SplitName
from visionloop.stores.registry import DatasetUse, Metric
from visionloop.training.checkpoints import Checkpoint, Checkpoints, EpochMetrics
from visionloop.training.loop import EpochEnd, Recipe, Shard, train
from visionloop.training.samples import COLUMNS, Samples, read_samples

log = logging.getLogger(__name__)
SECTIONS = ("task", "training")
ENVIRONMENT = ("torch", "timm", "numpy", "ray", "pylance", "mlflow", "safetensors")


class Inputs(Frozen):
    """What to train on, and why."""

    snapshot: str
    """URI of the snapshot."""
    retrain_request: str | None = None
    """URI of the trigger decision that asked for it."""
    seed: int | None = None
    """Unset: the project's."""


@dataclass(frozen=True)
class Order:
    """One training as the executing processes get it; small, and the same in all of them."""

    project: Project
    snapshot: Snapshot
    run: str
    """Id of the training run's record."""
    mlflow_run: str
    seed: int
    pretrained: Path | None


@dataclass(frozen=True)
class Place:
    """Which worker of how many this process is, and where it computes."""

    rank: int = 0
    workers: int = 1
    device: str = "cpu"


Execute = Callable[[Order, Stores], None]
"""Trains until the last epoch's checkpoint lies in the object store."""


def train_locally(order: Order, stores: Stores) -> None:
    """Train in this process, alone, on the first GPU if there is one."""
    work(order, stores, Place(device="cuda:0" if torch.cuda.is_available() else "cpu"))


def run(project: Project, inputs: Inputs, stores: Stores, *, execute: Execute = train_locally) -> TrainingRun:
    """Train once for the same snapshot, request, seed and configuration; a second call returns the first's record."""
    seed = project.training.seed if inputs.seed is None else inputs.seed
    config = project.config_digest(*SECTIONS)
    made_from = {"snapshot": inputs.snapshot, "retrain_request": inputs.retrain_request, "seed": seed}
    run_id = record_id("training_run", project.name, **made_from, config=config)
    known = stores.ledger.find(TrainingRun, project.name, run_id)
    if known:
        log.info("training run %s is recorded already", run_id)
        return known
    snapshot = stores.ledger.get(Snapshot, inputs.snapshot)
    order = _order(project, snapshot, run_id, seed, stores)
    final = _finished(order, stores) or _executed(order, stores, execute)
    _log_metrics(order, stores, final.state.history)
    record = _record(project, inputs, snapshot, order, config, final, stores)
    stores.registry.finish(order.mlflow_run)
    return stores.ledger.put(record)


def work(order: Order, stores: Stores, place: Place, *, tell: Callable[[EpochEnd], None] | None = None) -> None:
    """One worker's part of a training; `tell` is called at each epoch's end, after the checkpoint is safe."""
    checkpoints = _checkpoints(order, stores)
    resume = checkpoints.last()
    training, task = order.project.training, order.project.task
    shard = Shard(
        train=_samples(order, stores, "train"),
        validation=_samples(order, stores, "validation"),
        rank=place.rank,
        workers=place.workers,
        device=place.device,
    )

    def report(end: EpochEnd) -> None:
        due = end.state.epoch % training.checkpoint_every_epochs == 0 or end.state.epoch == end.state.epochs
        if place.rank == 0 and due:
            checkpoints.save(end.capture())
        if place.rank == 0:
            _log_early(order, stores, end.state.history[-1:])
        if tell:
            tell(end)

    train(shard, Recipe(task, training, order.seed, order.pretrained), report=report, resume=resume)


def _order(project: Project, snapshot: Snapshot, run_id: str, seed: int, stores: Stores) -> Order:
    tags = {"visionloop.snapshot": snapshot.id, "visionloop.code_revision": code_revision()}
    name = f"train-{snapshot.tag}"
    mlflow_run = stores.registry.run(project.name, run_id, name=name, tags=tags)
    stores.registry.log_params(mlflow_run, _parameters(project, seed))
    stores.registry.log_dataset(mlflow_run, _dataset(project, snapshot))
    stores.registry.log_text(mlflow_run, "environment.txt", _environment())
    return Order(project, snapshot, run_id, mlflow_run, seed, _pretrained(project, stores))


def _executed(order: Order, stores: Stores, execute: Execute) -> Checkpoint:
    try:
        execute(order, stores)
        final = _finished(order, stores)
        if final is None:
            raise StageError(
                f"training run {order.run} ended without the checkpoint of epoch {order.project.training.epochs}: "
                "see the log above, and run it again to go on from the last one"
            )
    except VisionLoopError:
        _mark_failed(order, stores)
        raise
    return final


def _mark_failed(order: Order, stores: Stores) -> None:
    """So that nobody waits for the run in MLflow; running the stage again sets it to running again."""
    try:
        stores.registry.finish(order.mlflow_run, "FAILED")
    except StoreError as error:
        log.warning("MLflow goes on showing run %s as running: %s", order.mlflow_run, error)


def _finished(order: Order, stores: Stores) -> Checkpoint | None:
    last = _checkpoints(order, stores).last()
    return last if last and last.state.epoch == order.project.training.epochs else None


def _checkpoints(order: Order, stores: Stores) -> Checkpoints:
    return Checkpoints(stores.objects, layout.checkpoints(order.project.name, order.run))


def _samples(order: Order, stores: Stores, split: SplitName) -> Samples:
    return read_samples(stores.datasets.batches(order.snapshot, split=split, columns=COLUMNS), order.project.task)


def _log_early(order: Order, stores: Stores, history: list[EpochMetrics]) -> None:
    """Curves while the training runs. MLflow away costs nothing: they are logged again, once, at the end."""
    try:
        _log_metrics(order, stores, history)
    except StoreError as error:
        log.warning("the curves will be logged at the end: %s", error)


def _log_metrics(order: Order, stores: Stores, history: list[EpochMetrics]) -> None:
    points = [
        Metric(name, value, entry.epoch, entry.at_ms) for entry in history for name, value in entry.values.items()
    ]
    stores.registry.log_metrics(order.mlflow_run, points)


def _record(
    project: Project,
    inputs: Inputs,
    snapshot: Snapshot,
    order: Order,
    config: str,
    final: Checkpoint,
    stores: Stores,
) -> TrainingRun:
    state, request = final.state, inputs.retrain_request
    uris = {"snapshot": inputs.snapshot, **({"retrain_request": request} if request else {})}
    return TrainingRun(
        id=order.run,
        project=project.name,
        inputs=uris,
        input_digests=stores.ledger.digests(uris),
        config_digest=config,
        seed=order.seed,
        snapshot=inputs.snapshot,
        retrain_request=request,
        mlflow_run_id=order.mlflow_run,
        checkpoint_uri=_checkpoints(order, stores).uri(state.epoch),
        checkpoint_sha256=state.weights_sha256,
        epochs=state.epoch,
        samples_seen=state.samples_seen,
        workers=project.training.workers,
        device=state.device,
        precision=state.precision,
        seconds=round(state.seconds, 3),
        metrics=state.history[-1].values,
    )


def _parameters(project: Project, seed: int) -> dict[str, object]:
    training = project.training.model_dump(mode="json")
    return {**training, "seed": seed, "classes": len(project.task.classes), "image": project.task.image}


def _dataset(project: Project, snapshot: Snapshot) -> DatasetUse:
    profile = {"samples": snapshot.samples, "splits": snapshot.splits, "batches": snapshot.batches}
    digest = f"v{snapshot.version}"
    return DatasetUse(project.name, snapshot.dataset_uri, digest, json.dumps(profile))


def _environment() -> str:
    """What computed: code, interpreter, machine, libraries."""
    lines = [f"code {code_revision()}", f"python {platform.python_version()}", f"machine {platform.platform()}"]
    capability = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    lines.append(f"processor {platform.processor() or platform.machine()} {capability}")
    for name in ENVIRONMENT:
        try:
            lines.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{name} is not installed")
    return "\n".join(lines) + "\n"


def _pretrained(project: Project, stores: Stores) -> Path | None:
    path = project.training.pretrained
    return path and project_file(stores.settings.projects, project.name).parent / path
