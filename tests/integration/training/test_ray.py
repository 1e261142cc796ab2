"""Training as Airflow starts it, on real servers, with kill -9 in the middle: what ends is what would have ended."""

import re
from dataclasses import dataclass

import pytest
import torch

from tests.integration.training.conftest import Cluster, until
from visionloop.project import Project
from visionloop.records import Candidate, Evaluation, GateDecision, Snapshot, TrainingRun
from visionloop.stages import package
from visionloop.training.checkpoints import Checkpoint
from visionloop.training.loop import EpochEnd, Recipe, Shard, train
from visionloop.training.samples import COLUMNS, Samples, read_samples

EPOCHS = 5
SEED = 7


@dataclass
class Story:
    """A training that was disturbed, and how it ended."""

    project: Project
    snapshot: Snapshot
    record: TrainingRun
    log: str


def samples(cluster: Cluster, project: Project, snapshot: Snapshot, split: str) -> Samples:
    batches = cluster.stores.datasets.batches(snapshot, split=split, columns=COLUMNS)  # type: ignore[arg-type]
    return read_samples(batches, project.task)


def batches_per_epoch(story: Story) -> int:
    return story.snapshot.splits["train"] // story.project.training.batch_size


@pytest.fixture(scope="module")
def story(cluster: Cluster) -> Story:
    """kill -9 of the training worker, once it has saved a checkpoint."""
    project = cluster.project("garments", epochs=EPOCHS, batch_size=32)
    snapshot = cluster.snapshot(project)
    job = cluster.submit(project, "train", snapshot=cluster.stores.ledger.uri(snapshot))
    until(lambda: cluster.checkpointed(project), "the first checkpoint", more=lambda: cluster.log(job))
    (worker,) = cluster.workers()
    worker.kill()
    assert not cluster.stores.ledger.all(TrainingRun, project.name), "the kill came too late"
    log = cluster.ended(job)
    record = cluster.record(project, job)
    assert isinstance(record, TrainingRun)
    return Story(project, snapshot, record, log)


def test_a_killed_worker_is_replaced_and_goes_on_from_the_checkpoint(story: Story) -> None:
    resumed = re.search(rf"going on after epoch (\d+) of {EPOCHS}", story.log)
    assert resumed and 1 <= int(resumed[1]) < EPOCHS
    ended = [int(number) for number in re.findall(rf"epoch (\d+)/{EPOCHS}: train_loss", story.log)]
    assert ended[-1] == EPOCHS and set(ended) == set(range(1, EPOCHS + 1))
    assert len(ended) <= EPOCHS + 1  # at most the epoch that was killed is trained again


def test_nothing_is_doubled_or_lost(cluster: Cluster, story: Story) -> None:
    record = story.record
    assert cluster.stores.ledger.all(TrainingRun, story.project.name) == [record]
    (run,) = cluster.runs(story.project)
    assert (run.info.run_id, run.info.status) == (record.mlflow_run_id, "FINISHED")
    assert cluster.curve(run.info.run_id, "train_loss") == list(range(1, EPOCHS + 1))
    assert (record.epochs, record.workers, record.device) == (EPOCHS, 1, "cpu")
    assert record.samples_seen == EPOCHS * batches_per_epoch(story) * 32


def test_the_weights_are_those_of_an_undisturbed_training(cluster: Cluster, story: Story) -> None:
    torch.set_num_threads(1)
    shard = Shard(*(samples(cluster, story.project, story.snapshot, split) for split in ("train", "validation")))
    ends: list[EpochEnd] = []
    last: list[Checkpoint] = []

    def report(end: EpochEnd) -> None:
        ends.append(end)
        last[:] = [end.capture()]

    train(shard, Recipe(story.project.task, story.project.training, SEED), report=report)
    values = ends[-1].state.history[-1].values
    assert story.record.metrics == pytest.approx(values, rel=1e-3)
    assert values["validation_accuracy"] > 0.6
    objects = cluster.stores.objects
    assert objects.get(objects.key(story.record.checkpoint_uri)) == last[0].weights


def test_submitted_again_it_is_the_same_record_at_once(cluster: Cluster, story: Story) -> None:
    """What Airflow does when its own process died after the job's end."""
    job = cluster.submit(story.project, "train", snapshot=story.record.snapshot)
    log = cluster.ended(job)
    assert cluster.record(story.project, job) == story.record
    assert "is recorded already" in log and "training small_cnn" not in log
    assert len(cluster.runs(story.project)) == 1


def test_a_killed_job_is_gone_on_with_by_the_next(cluster: Cluster, story: Story) -> None:
    """kill -9 of the job's own process, and the task's next try."""
    inputs = {"snapshot": story.record.snapshot, "seed": 8}
    first = cluster.submit(story.project, "train", **inputs)
    until(lambda: cluster.workers() and _epochs_told(cluster, first), "an epoch's end", more=lambda: cluster.log(first))
    (driver,) = cluster.drivers(first)
    driver.kill()
    cluster.ended(first, "FAILED")
    assert len(cluster.stores.ledger.all(TrainingRun, story.project.name)) == 1
    second = cluster.submit(story.project, "train", **inputs)
    log = cluster.ended(second)
    assert re.search(rf"going on after epoch \d+ of {EPOCHS}", log)
    record = cluster.record(story.project, second)
    assert isinstance(record, TrainingRun)
    assert record.samples_seen == EPOCHS * batches_per_epoch(story) * 32
    assert len(cluster.runs(story.project)) == 2
    assert cluster.curve(record.mlflow_run_id, "train_loss") == list(range(1, EPOCHS + 1))


def _epochs_told(cluster: Cluster, job: str) -> bool:
    return "epoch 2/" in cluster.log(job)


def test_evaluated_gated_and_packaged_there_is_one_version(cluster: Cluster, story: Story) -> None:
    """Two jobs at once package the same decision, and a third after them."""
    ledger, project = cluster.stores.ledger, story.project
    evaluating = cluster.submit(project, "evaluate", training_run=ledger.uri(story.record))
    cluster.ended(evaluating)
    evaluation = cluster.record(project, evaluating)
    assert isinstance(evaluation, Evaluation) and evaluation.champion is None
    gating = cluster.submit(project, "gate", evaluation=ledger.uri(evaluation))
    cluster.ended(gating)
    decision = cluster.record(project, gating)
    assert isinstance(decision, GateDecision) and decision.outcome == "passed", decision

    inputs = {"gate_decision": ledger.uri(decision)}
    jobs = [cluster.submit(project, "package", **inputs) for _ in range(2)]
    for job in jobs:
        cluster.ended(job)
    first, second = (cluster.record(project, job) for job in jobs)
    assert isinstance(first, Candidate) and first == second
    assert package.run(project, package.Inputs.model_validate(inputs), cluster.connect()) == first
    (version,) = cluster.stores.registry.versions(project.name)
    assert (version.version, version.candidate) == (first.version, ledger.uri(first))
    assert version.tags["visionloop.model_sha256"] == first.model_sha256
    challenger = cluster.stores.registry.challenger(project.name)
    assert challenger is not None and challenger.version == first.version
    assert first.parity.disagreements == 0 and first.parity.samples == evaluation.test_samples


def test_two_workers_see_what_one_sees(cluster: Cluster) -> None:
    """Step by step it is tested beside this; here rounding has 37 steps to grow, as it does from 1e-7 in one weight."""
    project = cluster.project("pair", epochs=1, batch_size=64, workers=2)
    snapshot = cluster.snapshot(project)
    job = cluster.submit(project, "train", snapshot=cluster.stores.ledger.uri(snapshot))
    cluster.ended(job)
    record = cluster.record(project, job)
    assert isinstance(record, TrainingRun)
    assert record.workers == 2
    assert record.samples_seen == (snapshot.splits["train"] // 64) * 64
    torch.set_num_threads(1)
    shard = Shard(*(samples(cluster, project, snapshot, split) for split in ("train", "validation")))
    ends: list[EpochEnd] = []
    train(shard, Recipe(project.task, project.training, SEED), report=ends.append)
    values = ends[-1].state.history[-1].values
    assert record.metrics["train_loss"] == pytest.approx(values["train_loss"], rel=0.005)
    assert record.metrics["validation_loss"] == pytest.approx(values["validation_loss"], rel=0.03)
    assert record.metrics["validation_accuracy"] == pytest.approx(values["validation_accuracy"], abs=0.03)
