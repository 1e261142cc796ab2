"""Evaluate: champion and challenger on the same test samples, scenario by scenario, as a record and as a page."""

import logging
from dataclasses import dataclass

import numpy as np

from visionloop import layout
from visionloop.errors import StageError
from visionloop.evaluation.gate import decide
from visionloop.evaluation.samples import COLUMNS, TestSamples, choose, read_test_samples
from visionloop.evaluation.suite import Contest, run_suite
from visionloop.packaging.runtime import onnx_predictor
from visionloop.project import Project
from visionloop.records import Candidate, Evaluation, Frozen, Snapshot, TrainingRun, id_of, record_id
from visionloop.reports.evaluation import Answered, EvaluationPage, render
from visionloop.stores import Stores
from visionloop.stores.objects import get_verified
from visionloop.stores.packaged import MODEL, read_packaged
from visionloop.stores.registry import Metric
from visionloop.tasks import open_task
from visionloop.training.model import from_bytes
from visionloop.training.predict import Predictor, torch_predictor

log = logging.getLogger(__name__)
PAGE = "evaluation.html"
SECTIONS = ("task", "suite")


class Inputs(Frozen):
    """What to evaluate; the champion is the registry's."""

    training_run: str
    """URI of the training run."""


@dataclass(frozen=True)
class Opponent:
    """The champion of the day."""

    uri: str
    candidate: Candidate
    predict: Predictor


def run(project: Project, inputs: Inputs, stores: Stores) -> Evaluation:
    """Evaluate once for the same training run and suite; the champion of that time is part of the record."""
    config = project.config_digest(*SECTIONS)
    evaluation_id = record_id("evaluation", project.name, training_run=inputs.training_run, config=config)
    known = stores.ledger.find(Evaluation, project.name, evaluation_id)
    if known:
        log.info("evaluation %s is recorded already", evaluation_id)
        return known
    training_run = stores.ledger.get(TrainingRun, inputs.training_run)
    snapshot = stores.ledger.get(Snapshot, training_run.snapshot)
    opponent = _champion(project, stores)
    seed = int(evaluation_id[:8], 16)
    samples = _test_samples(project, snapshot, stores, seed)
    champion = opponent.predict if opponent else None
    contest = Contest(samples, _challenger(project, training_run, stores), champion, seed)
    evaluation = _record(project, inputs, training_run, opponent, evaluation_id, config, contest, stores)
    page = render(_page(project, evaluation, opponent, contest))
    stores.objects.put(_page_key(project, evaluation_id), page.encode(), "text/html; charset=utf-8")
    _log(evaluation, training_run, page, stores)
    return stores.ledger.put(evaluation)


def _champion(project: Project, stores: Stores) -> Opponent | None:
    version = stores.registry.champion(project.name)
    if version is None:
        log.info("%s has no champion yet: the challenger is measured alone", project.name)
        return None
    candidate = stores.ledger.get(Candidate, version.candidate)
    if candidate.classes != project.task.classes:
        raise StageError(
            f"champion {candidate.id} answers {len(candidate.classes)} classes that are not those of task.classes: "
            "they cannot be compared on the same samples; keep the classes, or begin a new project"
        )
    model = read_packaged(candidate, stores)[MODEL]
    log.info("champion is version %d, candidate %s", version.version, candidate.id)
    return Opponent(version.candidate, candidate, onnx_predictor(model))


def _challenger(project: Project, training_run: TrainingRun, stores: Stores) -> Predictor:
    weights = get_verified(stores.objects, training_run.checkpoint_uri, training_run.checkpoint_sha256)
    return torch_predictor(from_bytes(weights), open_task(project.task))


def _test_samples(project: Project, snapshot: Snapshot, stores: Stores, seed: int) -> TestSamples:
    """At most `suite.max_test_samples`, stratified by class."""
    labels = stores.datasets.read(snapshot, split="test", columns=["label"])["label"]
    rows = choose(np.array(labels.to_pylist(), np.str_), project.suite.max_test_samples, seed=seed)
    if not len(rows):
        raise StageError(f"snapshot {snapshot.tag} has no test sample: deliver more data")
    return read_test_samples(stores.datasets.pick(snapshot, rows.tolist(), split="test", columns=COLUMNS), project.task)


def _record(
    project: Project,
    inputs: Inputs,
    training_run: TrainingRun,
    opponent: Opponent | None,
    evaluation_id: str,
    config: str,
    contest: Contest,
    stores: Stores,
) -> Evaluation:
    uris = {"training_run": inputs.training_run, "snapshot": training_run.snapshot}
    uris |= {"champion": opponent.uri} if opponent else {}
    return Evaluation(
        id=evaluation_id,
        project=project.name,
        inputs=uris,
        input_digests=stores.ledger.digests(uris),
        config_digest=config,
        seed=contest.seed,
        snapshot=training_run.snapshot,
        training_run=inputs.training_run,
        champion=opponent.uri if opponent else None,
        test_samples=len(contest.samples),
        scenarios=run_suite(project.suite.scenarios, contest),
        page_uri=stores.objects.uri(_page_key(project, evaluation_id)),
    )


def _page(project: Project, evaluation: Evaluation, opponent: Opponent | None, contest: Contest) -> EvaluationPage:
    verdict, reasons = decide(evaluation, project.gate)
    challenger, champion = contest.answered("none", 0)
    samples = contest.samples
    return EvaluationPage(
        evaluation=evaluation,
        verdict=verdict,
        reasons=reasons,
        classes=project.task.classes,
        challenger_name=f"training run {id_of(evaluation.training_run)}",
        champion_name=f"version {opponent.candidate.version}" if opponent else None,
        answered=Answered(samples.images, samples.targets, challenger, champion, samples.columns["sample_id"]),
    )


def _log(evaluation: Evaluation, training_run: TrainingRun, page: str, stores: Stores) -> None:
    """The page and the figures into the training's MLflow run."""
    at_ms = int(evaluation.created_at.timestamp() * 1000)
    figures = {f"test_{r.name}_{r.metric}": r.challenger.value for r in evaluation.scenarios if r.challenger.n}
    run_id = training_run.mlflow_run_id
    points = [Metric(name, value, training_run.epochs, at_ms) for name, value in figures.items()]
    stores.registry.log_metrics(run_id, points)
    stores.registry.log_text(run_id, PAGE, page)
    stores.registry.log_text(run_id, "evaluation.json", evaluation.model_dump_json(indent=1))


def _page_key(project: Project, evaluation_id: str) -> str:
    return layout.artifact(project.name, Evaluation.kind, evaluation_id, PAGE)
