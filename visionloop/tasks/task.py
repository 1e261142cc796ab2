"""The Protocol of a task: how labels become targets, what the loss is, how outputs become answers."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class VisionTask(Protocol):
    """One implementation for each `task.kind` of a project file."""

    @property
    def outputs(self) -> int:
        """Width K of the model's output."""

    def targets(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """Labels of the dataset -> targets [N]. Raises DataError for a label that the project does not know."""

    def loss(self, output_BK: Tensor, target_B: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar; the mean over equal shards is the mean over the whole batch."""

    def correct(self, output_BK: Tensor, target_B: Tensor) -> Tensor:
        """How many of a batch's answers are right, a scalar."""

    def probabilities(self, output_BK: Tensor) -> Tensor:
        """What the served model answers, [B, K]."""
