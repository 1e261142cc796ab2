"""Puts each variant of a model through the suite and the gate, on the same samples and against the same champion."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionloop.evaluation.changes import changes, sit
from visionloop.evaluation.gate import decide
from visionloop.evaluation.samples import TestSamples
from visionloop.evaluation.suite import Classes, Contest, run_suite
from visionloop.packaging import parity
from visionloop.packaging.cost import measure
from visionloop.packaging.half import halve
from visionloop.packaging.quantize import quantize
from visionloop.packaging.runtime import onnx_predictor
from visionloop.packaging.variants import BASE
from visionloop.project import Project
from visionloop.records import Evaluation, Trial
from visionloop.training.predict import Answers, Predictor

COST_BATCH = 64
CHAMPION = "champion"
Probabilities = NDArray[np.float32]


@dataclass(frozen=True)
class Court:
    """What all variants are judged on: the evaluation that the gate let pass, its samples, its champion."""

    project: Project
    evaluation: Evaluation
    samples: TestSamples
    trained: Probabilities
    """PyTorch's, [N, K], on the samples."""
    champion: Predictor | None

    @property
    def seed(self) -> int:
        """The evaluation's, so that corruptions and resamples are the same."""
        return self.evaluation.seed or 0


def build(model: bytes, project: Project, calibration_NHWC: NDArray[np.uint8]) -> dict[str, bytes]:
    """The fp32 file and the variants that the project asks for, by name."""
    wanted = project.packaging.variants
    made = {BASE: model}
    if "fp16" in wanted:
        made["fp16"] = halve(model)
    if "int8" in wanted:
        made["int8"] = quantize(model, calibration_NHWC)
    return made


def judge(models: Mapping[str, bytes], court: Court) -> tuple[list[Trial], dict[str, Probabilities]]:
    """A trial of each model, and its probabilities [N, K] on the clean samples.

    Raises StageError when the fp32 file is not the trained model; of the others the suite says what they lose.
    """
    images = court.samples.images
    predictors = {name: _remembering(onnx_predictor(model), images) for name, model in models.items()}
    parity.require(parity.compare(court.trained, predictors[BASE](images).probabilities))
    clean = {name: predict(images).probabilities for name, predict in predictors.items()}
    costs = measure(models, images[: _batch(court.project)], device=court.project.packaging.device)
    rivals = {CHAMPION: court.champion} if court.champion else {}
    answers = sit(court.project.suite.scenarios, court.samples, {**predictors, **rivals}, seed=court.seed)
    slices = court.samples.slices(court.project.suite.scenarios)
    trials = []
    for name, model in models.items():
        outcome, reasons = _gate(court, predictors[name], answers[name], answers.get(CHAMPION))
        against = _contest(court, predictors[name], answers[name], predictors[BASE], answers[BASE])
        found = {
            "name": name,
            "sha256": hashlib.sha256(model).hexdigest(),
            "size_bytes": len(model),
            "seconds_per_1000_images": costs[name],
            "parity": parity.report(court.trained, clean[name], slices),
            "changes": changes(court.project.suite.scenarios, against) if name != BASE else [],
            "gate": outcome,
            "gate_reasons": reasons,
        }
        trials.append(Trial.model_validate(found))
    return trials, clean


Given = Mapping[tuple[str, int], Classes]


def _gate(court: Court, predict: Predictor, mine: Given, theirs: Given | None) -> tuple[str, list[str]]:
    """What the gate says to this variant's figures."""
    contest = _contest(court, predict, mine, court.champion, theirs)
    scenarios = run_suite(court.project.suite.scenarios, contest)
    judged = court.evaluation.model_copy(update={"scenarios": scenarios, "test_samples": len(court.samples)})
    return decide(judged, court.project.gate)


def _contest(court: Court, predict: Predictor, mine: Given, rival: Predictor | None, theirs: Given | None) -> Contest:
    known = {key: (answered, theirs[key] if theirs is not None else None) for key, answered in mine.items()}
    return Contest(court.samples, predict, rival, court.seed, known)


def _remembering(predict: Predictor, images: NDArray[np.uint8]) -> Predictor:
    """The same predictor, which answers these very images once only: parity and suite both ask."""
    known: list[Answers] = []

    def answer(images_NHWC: NDArray[np.uint8]) -> Answers:
        if images_NHWC is not images:
            return predict(images_NHWC)
        if not known:
            known.append(predict(images))
        return known[0]

    return answer


def _batch(project: Project) -> int:
    return min(COST_BATCH, project.serving.max_batch_size)
