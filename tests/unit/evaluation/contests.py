"""Contests of models whose answers are written into the images: pixel 0 is the class, pixel 1 who gets it wrong."""

from collections.abc import Collection

import numpy as np

from visionloop.evaluation.samples import TestSamples
from visionloop.evaluation.suite import Contest
from visionloop.project import Scenario
from visionloop.training.predict import Answers

CHALLENGER, CHAMPION = 1, 2
"""Bits of pixel 1: set where that model is wrong."""


class Reader:
    """A Predictor that reads the class from the image, and errs where its bit is set; counts its calls."""

    def __init__(self, bit: int, classes: int = 4) -> None:
        self.bit, self.classes, self.calls = bit, classes, 0

    def __call__(self, images: np.ndarray) -> Answers:
        self.calls += 1
        wrong = (images[:, 0, 1, 0] & self.bit) > 0
        answered = (images[:, 0, 0, 0] + wrong) % self.classes
        return Answers(np.eye(self.classes, dtype=np.float32)[answered], np.zeros((len(images), 1), np.float32))


def contest(
    count: int = 100,
    *,
    wrong: Collection[int] = (),
    champion_wrong: Collection[int] | None = None,
    cameras: Collection[str] | None = None,
) -> Contest:
    """`count` samples, the classes in turn; `wrong` are the numbers that the challenger gets wrong."""
    images = np.zeros((count, 8, 8, 1), np.uint8)
    targets = np.arange(count) % 4
    images[:, 0, 0, 0] = targets
    images[list(wrong), 0, 1, 0] |= CHALLENGER
    images[list(champion_wrong or ()), 0, 1, 0] |= CHAMPION
    columns = {"label": np.array([f"c{target}" for target in targets], np.str_)}
    if cameras is not None:
        columns["camera"] = np.array(list(cameras), np.str_)
    champion = None if champion_wrong is None else Reader(CHAMPION)
    return Contest(TestSamples(images, targets, columns), Reader(CHALLENGER), champion, seed=1)


def scenario(**values: object) -> Scenario:
    """A scenario over all samples unless told otherwise."""
    return Scenario.model_validate({"name": "all", **values})
