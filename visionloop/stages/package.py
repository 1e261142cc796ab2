"""Package: what passed the gate becomes a candidate: ONNX proven equal to the trained model, in its best variant.

Each variant (fp32, fp16, int8) sits the suite and faces the gate; the cheapest inside the project's margin is served.
The candidate is registered once, whatever is killed when: the version is found again by the candidate's URI.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visionloop import layout
from visionloop.errors import StageError
from visionloop.evaluation.samples import COLUMNS, TestSamples, choose, read_test_samples
from visionloop.packaging import golden, trials, variants
from visionloop.packaging.onnx import IR_VERSION, OPSET, export
from visionloop.packaging.runtime import onnx_predictor
from visionloop.packaging.signing import sign
from visionloop.project import Project
from visionloop.records import (
    Artifact,
    Calibration,
    Candidate,
    Evaluation,
    Frozen,
    GateDecision,
    Snapshot,
    TrainingRun,
    Variant,
    record_id,
)
from visionloop.reports.candidate import CandidatePage
from visionloop.reports.candidate import render as render_page
from visionloop.serving.triton_config import render
from visionloop.stores import Stores
from visionloop.stores.datasets import SplitName
from visionloop.stores.objects import get_verified
from visionloop.stores.packaged import CONFIG, GOLDEN, MODEL, read_packaged
from visionloop.tasks import open_task
from visionloop.training.model import from_bytes
from visionloop.training.predict import Predictor, torch_predictor
from visionloop.training.samples import read_samples

log = logging.getLogger(__name__)
SECTIONS = ("task", "suite", "gate", "packaging", "serving")
PAGE = "candidate.html"


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


@dataclass(frozen=True)
class Packed:
    """The model that is served, how it came to be chosen, and its answers [N, K] on the test samples."""

    model: bytes
    samples: TestSamples
    answers: NDArray[np.float32]
    variants: list[Variant]
    """fp32 first."""
    calibration: Calibration | None

    @property
    def chosen(self) -> Variant:
        """The one that is served."""
        return next(variant for variant in self.variants if variant.chosen)


def run(project: Project, inputs: Inputs, stores: Stores) -> Candidate:
    """Package and register once for the same decision. Raises StageError for a rejection, or where parity fails."""
    config = project.config_digest(*SECTIONS)
    candidate_id = record_id("candidate", project.name, gate_decision=inputs.gate_decision, config=config)
    known = stores.ledger.find(Candidate, project.name, candidate_id)
    if known:
        log.info("candidate %s is recorded already", candidate_id)
        return known
    lineage = _lineage(inputs, stores)
    packed = _packed(project, lineage, stores)
    artifacts = {
        MODEL: _put(project, candidate_id, MODEL, packed.model, stores),
        GOLDEN: _put(project, candidate_id, GOLDEN, _golden(packed), stores),
    }
    version = _registered(project, candidate_id, lineage, packed, artifacts, stores)
    config_pbtxt = render(project, version, golden_sha256=artifacts[GOLDEN].sha256).encode()
    artifacts[CONFIG] = _put(project, candidate_id, CONFIG, config_pbtxt, stores)
    key = Path(stores.settings.need("signing_key"))
    stores.registry.set_challenger(project.name, version)  # before the record, which ends the stage
    shape = project.task.image
    candidate = Candidate(
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
        signature=sign({MODEL: packed.model, CONFIG: config_pbtxt}, key),
        classes=project.task.classes,
        image_shape=(shape.height, shape.width, shape.channels),
        parity=packed.variants[0].parity,
        variant=packed.chosen.name,
        variants=packed.variants,
        calibration=packed.calibration,
        page_uri=stores.objects.uri(_key(project, candidate_id, PAGE)),
    )
    at_once = project.serving.instances * project.serving.threads
    page = render_page(CandidatePage(candidate, project.packaging, project.price, at_once))
    stores.objects.put(_key(project, candidate_id, PAGE), page.encode(), "text/html; charset=utf-8")
    log.info("candidate %s is version %d of %s, %s", candidate_id, version, project.name, candidate.variant)
    return stores.ledger.put(candidate)


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


def _packed(project: Project, lineage: Lineage, stores: Stores) -> Packed:
    """Export, prove, build the variants, try them, choose. Raises StageError when the gate lets none of them pass."""
    samples = _test_samples(project, lineage, stores)
    model, trained = _exported(project, lineage.training_run, samples, stores)
    images, calibration = _calibration(project, lineage, stores)
    models = trials.build(model, project, images)
    court = trials.Court(project, lineage.evaluation, samples, trained, _champion(lineage.evaluation, stores))
    tried, answers = trials.judge(models, court)
    chosen = variants.choose(tried, project.packaging)
    for variant in chosen:
        log.info("variant %s is %schosen: %s", variant.name, "" if variant.chosen else "not ", variant.reason)
    name = next((variant.name for variant in chosen if variant.chosen), None)
    if name is None:
        raise StageError("no variant may be served: " + "; ".join(f"{one.name}: {one.reason}" for one in chosen))
    return Packed(models[name], samples, answers[name], chosen, calibration)


def _test_samples(project: Project, lineage: Lineage, stores: Stores) -> TestSamples:
    """Those of the evaluation: the same limit and seed draw the same rows."""
    seed, limit = lineage.evaluation.seed or 0, project.suite.max_test_samples
    rows = _drawn(lineage.snapshot, "test", limit, seed, stores)
    if not rows:
        raise StageError(f"snapshot {lineage.snapshot.tag} has no test sample to prove the packaged model on")
    return read_test_samples(stores.datasets.pick(lineage.snapshot, rows, split="test", columns=COLUMNS), project.task)


def _calibration(project: Project, lineage: Lineage, stores: Stores) -> tuple[NDArray[np.uint8], Calibration | None]:
    """Training images for INT8, and which they were; none where the project asks for no INT8."""
    shape = project.task.image
    if "int8" not in project.packaging.variants:
        return np.empty((0, shape.height, shape.width, shape.channels), np.uint8), None
    seed = lineage.training_run.seed or 0
    rows = _drawn(lineage.snapshot, "train", project.packaging.calibration_samples, seed, stores)
    columns = ["sample_id", "label", "image"]
    batches = list(stores.datasets.pick(lineage.snapshot, rows, split="train", columns=columns))
    ids = sorted(name for batch in batches for name in batch.column("sample_id").to_pylist())
    digest = hashlib.sha256("".join(f"{name}\n" for name in ids).encode()).hexdigest()
    drawn = Calibration(samples=len(ids), seed=seed, sample_ids_sha256=digest)
    return read_samples(batches, project.task).images, drawn


def _drawn(snapshot: Snapshot, split: SplitName, limit: int, seed: int, stores: Stores) -> Sequence[int]:
    """Numbers of a stratified sample of a split's rows."""
    labels = stores.datasets.read(snapshot, split=split, columns=["label"])["label"]
    rows: list[int] = choose(np.array(labels.to_pylist(), np.str_), limit, seed=seed).tolist()
    return rows


def _champion(evaluation: Evaluation, stores: Stores) -> Predictor | None:
    """The one of the evaluation, whatever serves by now."""
    if evaluation.champion is None:
        return None
    candidate = stores.ledger.get(Candidate, evaluation.champion)
    return onnx_predictor(read_packaged(candidate, stores)[MODEL])


def _exported(
    project: Project, training_run: TrainingRun, samples: TestSamples, stores: Stores
) -> tuple[bytes, NDArray[np.float32]]:
    """The fp32 file, and the trained model's probabilities [N, K] that it has to give."""
    weights = get_verified(stores.objects, training_run.checkpoint_uri, training_run.checkpoint_sha256)
    task = open_task(project.task)
    trained = torch_predictor(from_bytes(weights), task)(samples.images).probabilities
    return export(from_bytes(weights), task), trained


def _golden(packed: Packed) -> bytes:
    rows = golden.choose(packed.samples.targets)
    return golden.pack(packed.samples.images[rows], packed.answers[rows], packed.samples.targets[rows])


def _registered(
    project: Project,
    candidate_id: str,
    lineage: Lineage,
    packed: Packed,
    artifacts: dict[str, Artifact],
    stores: Stores,
) -> int:
    model = artifacts[MODEL]
    tags = {
        "visionloop.model_uri": model.uri,
        "visionloop.model_sha256": model.sha256,
        "visionloop.onnx": f"opset {OPSET}, IR {IR_VERSION}",
        "visionloop.variant": packed.chosen.name,
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
    uri = stores.objects.put(_key(project, candidate_id, name), data)
    return Artifact(uri=uri, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def _key(project: Project, candidate_id: str, name: str) -> str:
    return layout.artifact(project.name, Candidate.kind, candidate_id, name)
