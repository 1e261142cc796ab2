"""Single-label classification: class index, cross-entropy, softmax."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from visionloop.errors import DataError


@dataclass(frozen=True)
class Classification:
    """One of `classes`, in the order of the model's outputs."""

    classes: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """One output for each class."""
        return len(self.classes)

    def targets(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """Class names -> indices [N]."""
        index = {name: number for number, name in enumerate(self.classes)}
        unknown = sorted(set(labels) - index.keys())
        if unknown:
            raise DataError(
                f"the dataset has the labels {', '.join(unknown)}, which task.classes does not list: "
                "add them there, or take the batch out"
            )
        return np.fromiter((index[label] for label in labels), np.int64, len(labels))

    def loss(self, output_BK: Tensor, target_B: Tensor) -> Tensor:
        """Cross-entropy in float32, whatever the outputs' precision."""
        return F.cross_entropy(output_BK.float(), target_B)

    def correct(self, output_BK: Tensor, target_B: Tensor) -> Tensor:
        """Count of right class indices."""
        return (output_BK.argmax(1) == target_B).sum()

    def probabilities(self, output_BK: Tensor) -> Tensor:
        """Softmax in float32."""
        return output_BK.float().softmax(1)
