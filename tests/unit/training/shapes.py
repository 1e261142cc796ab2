"""A learnable task of two seconds: a bright square whose corner is the class, on a noisy 28 x 28 image."""

from pathlib import Path

import numpy as np

from visionloop.project import ImageShape, Task, Training
from visionloop.training.loop import EpochEnd, Recipe
from visionloop.training.samples import Samples

CLASSES = ["top-left", "top-right", "bottom-left", "bottom-right"]
CORNERS = [(4, 4), (4, 16), (16, 4), (16, 16)]
TASK = Task(classes=CLASSES, image=ImageShape(height=28, width=28, channels=1))


def samples(count: int, seed: int = 0) -> Samples:
    """`count` images, the classes in turn."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 90, (count, 28, 28, 1), dtype=np.uint8)
    targets = np.arange(count, dtype=np.int64) % len(CLASSES)
    for image, target in zip(images, targets, strict=True):
        top, left = CORNERS[target] + random.integers(-2, 3, 2)
        image[top : top + 8, left : left + 8] += random.integers(60, 120, dtype=np.uint8)
    return Samples(images, targets)


def recipe(*, seed: int = 3, pretrained: Path | None = None, **training: object) -> Recipe:
    """A short training in float32."""
    values = {"epochs": 2, "batch_size": 32, "learning_rate": 2e-3, "precision": "fp32", "augment": [], **training}
    return Recipe(TASK, Training.model_validate(values), seed, pretrained)


def ignore(end: EpochEnd) -> None:
    """A report that nobody reads."""
