"""The train DAG on real servers: one of everything though its scheduler dies, and a rejection that is a green run."""

from dataclasses import dataclass

import pytest

from tests.integration.airflow.conftest import DAG, PROJECT, Loop, TrainRun
from visionloop.records import Candidate, Evaluation, GateDecision, TrainingRun


@dataclass(frozen=True)
class Made:
    """All that trainings have left behind."""

    training_runs: list[str]
    mlflow_runs: list[str]
    evaluations: list[str]
    candidates: list[str]
    versions: list[int]


def made(loop: Loop) -> Made:
    ledger = loop.stores.ledger
    return Made(
        training_runs=[found.id for found in ledger.all(TrainingRun, PROJECT)],
        mlflow_runs=loop.mlflow_runs(),
        evaluations=[found.id for found in ledger.all(Evaluation, PROJECT)],
        candidates=[found.id for found in ledger.all(Candidate, PROJECT)],
        versions=[found.version for found in loop.stores.registry.versions(PROJECT)],
    )


def jobs_of(loop: Loop, task: str, trained: TrainRun) -> dict[str, str]:
    """Clear and attempt of each job of the run's task -> its status."""
    found = loop.job_names(DAG, task, trained.run_id)
    return {"-".join(name.split("-")[-2:]): status for name, status in found.items()}


@pytest.fixture(scope="module")
def first(loop: Loop, trained: TrainRun) -> Made:
    """What there is after the run whose scheduler was killed."""
    return made(loop)


def test_a_killed_scheduler_costs_nothing_and_doubles_nothing(loop: Loop, trained: TrainRun, first: Made) -> None:
    assert trained.state == "success"
    assert trained.job_when_killed == "RUNNING"
    counts = {name: len(found) for name, found in vars(first).items()}
    assert counts == dict.fromkeys(counts, 1)
    assert first.versions == [1]
    for task in ("train", "evaluate", "package"):
        assert jobs_of(loop, task, trained) == {"c0-a1": "SUCCEEDED"}


def test_the_task_shows_its_progress_in_plain_text_and_leads_to_its_job(loop: Loop, trained: TrainRun) -> None:
    (job,) = loop.job_names(DAG, "train", trained.run_id)
    assert loop.job_link(DAG, trained.run_id, "train") == f"{loop.settings.ray_url}/#/jobs/{job}"
    log = loop.task_log(DAG, trained.run_id, "train")
    assert "epoch 2/2: train_loss" in log
    assert "\\u001b" not in log


@pytest.mark.parametrize("cleared", ["train", "package"])
def test_a_cleared_task_makes_nothing_new(loop: Loop, trained: TrainRun, first: Made, cleared: str) -> None:
    before = jobs_of(loop, cleared, trained)
    loop.airflow.clear(DAG, trained.run_id, [cleared])
    assert loop.ended(DAG, trained.run_id) == "success"
    assert set(loop.airflow.task_states(DAG, trained.run_id).values()) == {"success"}
    assert len(jobs_of(loop, cleared, trained)) == len(before) + 1
    assert made(loop) == first


def test_a_rejection_is_green_and_the_champion_stays(loop: Loop, trained: TrainRun, first: Made) -> None:
    loop.stores.registry.set_champion(PROJECT, 1)
    scenario = {"name": "overall", "at_least": 0.999, "severity": "critical"}
    with loop.changed_project(suite={"scenarios": [scenario]}):
        run = loop.run(DAG, {"snapshot": trained.snapshot})
        assert loop.ended(DAG, run) == "success"
    states = loop.airflow.task_states(DAG, run)
    assert (states["gate"], states["package"]) == ("success", "skipped")
    decision = loop.stores.ledger.latest(GateDecision, PROJECT)
    assert decision is not None
    assert decision.outcome == "rejected"
    assert any("0.999" in reason for reason in decision.reasons)
    assert decision.reasons[0] in loop.task_log(DAG, run, "gate")
    champion = loop.stores.registry.champion(PROJECT)
    assert champion is not None
    assert champion.version == 1
    after = made(loop)
    assert (after.versions, after.candidates) == (first.versions, first.candidates)
    assert after.training_runs == first.training_runs
