"""Measure INT8 against FP32 for ResNet-18: speed in process, and what it loses on a suite.

The network is trained briefly on Fashion-MNIST at 64 x 64 pixels in three channels, so that its figures mean something;
then both variants sit the same suite. Writes `.visionloop/bench/variants.json`; a measurement, not a test: exits 0
whether or not the goals hold. About four minutes on two cores.
"""

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from visionloop.data.images import to_array
from visionloop.demo import fashion
from visionloop.evaluation.samples import TestSamples, choose
from visionloop.packaging.cost import in_turns
from visionloop.packaging.graph import INPUT, PROBABILITIES
from visionloop.packaging.onnx import export
from visionloop.packaging.quantize import quantize
from visionloop.packaging.session import open_session
from visionloop.packaging.trials import Court, judge
from visionloop.project import ImageShape, Project
from visionloop.records import Evaluation, Trial
from visionloop.tasks import open_task
from visionloop.training.loop import Recipe, Shard, train
from visionloop.training.model import VisionModel
from visionloop.training.predict import torch_predictor
from visionloop.training.samples import Samples

TRAINED, VALIDATED, TESTED, CALIBRATED, BATCH = 8_000, 500, 3_000, 512, 64
SHAPE = ImageShape(height=64, width=64, channels=3)
GOALS = {"int8_speed": 1.8, "int8_points_lost": 0.5}
AT_LEAST = {"int8_speed"}
UNITS = {"speed": "x fp32", "lost": "points", "accuracy": "%", "second": "images/s", "size": "MB"}
PROJECT = {
    "project": "bench",
    "task": {"classes": [str(number) for number in range(10)], "image": SHAPE.model_dump()},
    "training": {"backbone": "resnet18", "epochs": 2, "batch_size": BATCH, "learning_rate": 2e-3, "augment": ["flip"]},
    "suite": {
        "scenarios": [
            {"name": "overall", "severity": "critical"},
            {"name": "worst-class", "metric": "worst_class_recall"},
            {"name": "noise", "corruption": "gaussian_noise", "corruption_severity": 2},
            {"name": "out-of-focus", "corruption": "defocus", "corruption_severity": 2},
        ]
    },
    "release": {"approval": "automatic"},
}


def main() -> None:
    """Train, export, quantize, judge, measure."""
    project, began = Project.model_validate(PROJECT), time.monotonic()
    tested, model = samples("test", 0, TESTED), trained(project)
    fp32 = export(model, open_task(project.task))
    shown = calibration()
    models = {"fp32": fp32, "int8": quantize(fp32, shown), "int8_8_bits": quantize(fp32, shown, seven_bits=False)}
    trials, right = judged(project, model, tested, models)
    figures = measured(models, tested.images[:BATCH], trials) | accuracies(tested.targets, right)
    report = {
        "measures": {name: entry(name, value) for name, value in figures.items()},
        "lost": {name: lost(trial) for name, trial in trials.items() if trial.changes},
        "seconds": round(time.monotonic() - began, 1),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "vnni": vnni()},
        "versions": {name: version(name) for name in ("onnxruntime", "torch", "timm")},
    }
    path = Path(".visionloop/bench/variants.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    show(report)


def samples(split: fashion.Split, start: int, stop: int) -> Samples:
    """Garments in the model's shape."""
    images, labels = fashion.clean(split, start, stop)
    return Samples(to_array(images[..., None], SHAPE), labels.astype(np.int64))


def trained(project: Project) -> VisionModel:
    """Two epochs."""
    shard = Shard(samples("train", 0, TRAINED), samples("train", TRAINED, TRAINED + VALIDATED))
    return train(shard, Recipe(project.task, project.training, seed=7), report=lambda end: None)


def calibration() -> NDArray[np.uint8]:
    """Training images, as the package stage draws them."""
    known = samples("train", 0, TRAINED)
    return known.images[choose(known.targets.astype(np.str_), CALIBRATED, seed=7)]


def judged(
    project: Project, model: VisionModel, tested: Samples, models: dict[str, bytes]
) -> tuple[dict[str, Trial], dict[str, NDArray[np.bool_]]]:
    """Both INT8 files beside FP32, each as the package stage tries it; and which answers [N] are right."""
    columns = {"label": tested.targets.astype(np.str_)}
    samples = TestSamples(tested.images, tested.targets, columns)
    answers = torch_predictor(model, open_task(project.task))(tested.images).probabilities
    about = {"id": "e", "project": "bench", "snapshot": "s", "training_run": "t", "champion": None, "page_uri": ""}
    evaluation = Evaluation.model_validate({**about, "seed": 7, "test_samples": TESTED, "scenarios": []})
    court = Court(project, evaluation, samples, answers, None)
    found, right = {}, {}
    for name in ("int8_8_bits", "int8"):
        pair, said = judge({"fp32": models["fp32"], "int8": models[name]}, court)
        found |= {"fp32": pair[0], name: pair[1]}
        right = {variant: shown.argmax(1) == tested.targets for variant, shown in said.items()}
    return found, right


def accuracies(targets: NDArray[np.int64], right: dict[str, NDArray[np.bool_]]) -> dict[str, float]:
    """Per cent of each variant on the clean samples, and of fp32 in its worst class."""
    worst = min(right["fp32"][targets == number].mean() for number in range(10))
    return {f"{name}_accuracy": 100 * hits.mean() for name, hits in right.items()} | {
        "worst_class_accuracy": 100 * worst
    }


def measured(models: dict[str, bytes], images: NDArray[np.uint8], trials: dict[str, Trial]) -> dict[str, float]:
    """Speeds by the wall clock, one thread, in turns; losses from the trials."""
    sessions = {name: open_session(models[name], threads=1) for name in ("fp32", "int8")}
    work = {
        name: lambda session=session: session.run([PROBABILITIES], {INPUT: images})
        for name, session in sessions.items()
    }
    seconds = in_turns(work, clock=time.perf_counter)
    base, int8, full = trials["fp32"], trials["int8"], trials["int8_8_bits"]
    assert base.seconds_per_1000_images and int8.seconds_per_1000_images
    return {
        "int8_speed": seconds["fp32"] / seconds["int8"],
        "int8_cpu_speed": base.seconds_per_1000_images / int8.seconds_per_1000_images,
        "fp32_images_a_second": BATCH / seconds["fp32"],
        "int8_images_a_second": BATCH / seconds["int8"],
        "int8_points_lost": max(lost(int8).values()),
        "int8_8_bits_points_lost": max(lost(full).values()),
        "fp32_size": base.size_bytes / 1e6,
        "int8_size": int8.size_bytes / 1e6,
    }


def lost(trial: Trial) -> dict[str, float]:
    """Points by scenario; below 0: won."""
    return {change.scenario: round(-100 * change.difference.value, 3) + 0.0 for change in trial.changes}


def entry(name: str, value: float) -> dict[str, object]:
    """A measure with its goal."""
    goal = GOALS.get(name)
    holds = None if goal is None else value >= goal if name in AT_LEAST else value <= goal
    unit = next(unit for word, unit in UNITS.items() if word in name)
    return {"value": round(value, 3) + 0.0, "goal": goal, "holds": holds, "unit": unit}


def vnni() -> bool | None:
    """Has the processor 8-bit dot products? None where the system does not say."""
    path = Path("/proc/cpuinfo")
    return "vnni" in path.read_text() if path.is_file() else None


def show(report: dict[str, dict[str, dict[str, object]]]) -> None:
    """The table that a person reads."""
    table = Table("measure", "value", "goal", "holds")
    for name, measure in report["measures"].items():
        holds = "" if measure["holds"] is None else str(measure["holds"])
        table.add_row(name, f"{measure['value']} {measure['unit']}", str(measure["goal"] or ""), holds)
    console = Console()
    console.print(table)
    for name, scenarios in report["lost"].items():
        console.print(
            f"{name} loses", ", ".join(f"{points:+.2f} in {scenario}" for scenario, points in scenarios.items())
        )


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()
