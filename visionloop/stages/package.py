"""Package: what passed the gate becomes a candidate: ONNX proven equal to the trained model, golden samples, config.

The candidate is registered once, whatever is killed when: the version is found again by the candidate's URI.
"""

import hashlib
import logging
from dataclasses import dataclass

import numpy as np

from visionloop import layout
from visionloop.errors import StageError
from visionloop.evaluation.samples import COLUMNS, TestSamples, read_test_samples
from visionloop.packaging import golden, parity
from visionloop.packaging.onnx import IR_VERSION, OPSET, export
from visionloop.packaging.runtime import onnx_predictor
from visionloop.project import Project
from visionloop.records import (
    Artifact,
    Candidate,
    Evaluation,
    Frozen,
    GateDecision,
    Parity,
    Snapshot,
    TrainingRun,
    record_id,
)
from visionloop.serving.triton_config import render
from visionloop.stores import Stores
from visionloop.stores.objects import get_verified
from visionloop.tasks import open_task
from visionloop.training.model import from_bytes
from visionloop.training.predict import torch_predictor

log = logging.getLogger(__name__)
SECTIONS = ("task", "serving")
PARITY_SAMPLES = 1_000
MODEL, CONFIG, GOLDEN = "model.onnx", "config.pbtxt", "golden.npz"


class Inputs(Frozen):
    """What to package."""

    gate_decision: str
    """URI of a gate decision that passed."""


@dataclass(frozen=True)
class Lineage:
    """The records behind a candidate, with their URIs by role."""

    uris: dict[str, str]
    decision: GateDecision
    evaluation: Evaluation
    training_run: TrainingRun
    snapshot: Snapshot


def run(project: Project, inputs: Inputs, stores: Stores) -> Candidate:
    """Package and register once for the same decision. Raises StageError for a rejection, or where parity fails."""
    config = project.config_digest(*SECTIONS)
    candidate_id = record_id("candidate", project.name, gate_decision=inputs.gate_decision, config=config)
    known = stores.ledger.find(Candidate, project.name, candidate_id)
    if known:
        log.info("candidate %s is recorded already", candidate_id)
        return known
    lineage = _lineage(inputs, stores)
    samples = _samples(project, lineage.snapshot, stores)
    model, answers, shown = _exported(project, lineage.training_run, samples, stores)
    artifacts = {
        MODEL: _put(project, candidate_id, MODEL, model, stores),
        GOLDEN: _put(project, candidate_id, GOLDEN, _golden(samples, answers), stores),
    }
    version = _registered(project, candidate_id, lineage, artifacts, stores)
    artifacts[CONFIG] = _put(project, candidate_id, CONFIG, render(project, version).encode(), stores)
    stores.registry.set_challenger(project.name, version)  # before the record, which ends the stage
    shape = project.task.image
    candidate = stores.ledger.put(
        Candidate(
            id=candidate_id,
            project=project.name,
            inputs=lineage.uris,
            input_digests=stores.ledger.digests(lineage.uris),
            config_digest=config,
            seed=lineage.training_run.seed,
            **lineage.uris,
            model_name=project.name,
            version=version,
            model_sha256=artifacts[MODEL].sha256,
            artifacts=artifacts,
            classes=project.task.classes,
            image_shape=(shape.height, shape.width, shape.channels),
            parity=shown,
        )
    )
    log.info("candidate %s is version %d of %s", candidate_id, version, project.name)
    return candidate


def _lineage(inputs: Inputs, stores: Stores) -> Lineage:
    decision = stores.ledger.get(GateDecision, inputs.gate_decision)
    if decision.outcome != "passed":
        raise StageError(f"gate decision {decision.id} is {decision.outcome}: {'; '.join(decision.reasons)}")
    evaluation = stores.ledger.get(Evaluation, decision.evaluation)
    training_run = stores.ledger.get(TrainingRun, evaluation.training_run)
    snapshot = stores.ledger.get(Snapshot, training_run.snapshot)
    uris = {
        "gate_decision": inputs.gate_decision,
        "evaluation": decision.evaluation,
        "training_run": evaluation.training_run,
        "snapshot": training_run.snapshot,
    }
    return Lineage(uris, decision, evaluation, training_run, snapshot)


def _samples(project: Project, snapshot: Snapshot, stores: Stores) -> TestSamples:
    """Real test samples, about PARITY_SAMPLES."""
    batches, count = [], 0
    for batch in stores.datasets.batches(snapshot, split="test", columns=list(COLUMNS)):
        batches.append(batch)
        count += batch.num_rows
        if count >= PARITY_SAMPLES:
            break
    if not count:
        raise StageError(f"snapshot {snapshot.tag} has no test sample to prove the packaged model on")
    return read_test_samples(batches, project.task)


def _exported(
    project: Project, training_run: TrainingRun, samples: TestSamples, stores: Stores
) -> tuple[bytes, np.ndarray[tuple[int, ...], np.dtype[np.float32]], Parity]:
    """The ONNX file, its probabilities [N, K] on the samples, and the proof that they are the trained model's."""
    weights = get_verified(stores.objects, training_run.checkpoint_uri, training_run.checkpoint_sha256)
    task = open_task(project.task)
    model = export(from_bytes(weights), task)
    trained = torch_predictor(from_bytes(weights), task)(samples.images).probabilities
    packaged = onnx_predictor(model)(samples.images).probabilities
    shown = parity.require(parity.compare(trained, packaged))
    log.info("parity on %d samples: at most %.2g apart", shown.samples, shown.max_abs_difference)
    return model, packaged, shown


def _golden(samples: TestSamples, answers: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    rows = golden.choose(samples.targets)
    return golden.pack(samples.images[rows], answers[rows], samples.targets[rows])


def _registered(
    project: Project, candidate_id: str, lineage: Lineage, artifacts: dict[str, Artifact], stores: Stores
) -> int:
    model = artifacts[MODEL]
    tags = {
        "visionloop.model_uri": model.uri,
        "visionloop.model_sha256": model.sha256,
        "visionloop.onnx": f"opset {OPSET}, IR {IR_VERSION}",
        "visionloop.training_run": lineage.training_run.id,
        "visionloop.evaluation": lineage.evaluation.id,
        "visionloop.gate_decision": lineage.decision.id,
        "visionloop.snapshot": lineage.snapshot.id,
    }
    registered = stores.registry.register(
        project.name,
        stores.objects.uri(layout.record(project.name, Candidate.kind, candidate_id)),
        source=model.uri.removesuffix(f"/{MODEL}"),
        run_id=lineage.training_run.mlflow_run_id,
        description="; ".join(lineage.decision.reasons)[:5000],
        tags=tags,
    )
    if registered.tags.get("visionloop.model_sha256") != model.sha256:
        # An earlier try was killed after it had registered, on a processor that rounds otherwise.
        stores.registry.tag(project.name, registered.version, tags)
    return registered.version


def _put(project: Project, candidate_id: str, name: str, data: bytes, stores: Stores) -> Artifact:
    uri = stores.objects.put(layout.artifact(project.name, Candidate.kind, candidate_id, name), data)
    return Artifact(uri=uri, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
