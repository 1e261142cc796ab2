"""Answers of a trained model in float32: the yardstick for the packaged one."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from visionloop.tasks.task import VisionTask
from visionloop.training.model import VisionModel

log = logging.getLogger(__name__)
BATCH = 500


@dataclass(frozen=True)
class Answers:
    """`probabilities` float32 [N, K], `embeddings` float32 [N, D]."""

    probabilities: NDArray[np.float32]
    embeddings: NDArray[np.float32]


Predictor = Callable[[NDArray[np.uint8]], Answers]
"""uint8 [N, H, W, C] -> Answers, whatever runs the model."""


def torch_predictor(model: VisionModel, task: VisionTask, device: str = "cpu") -> Predictor:
    """A Predictor that runs the PyTorch model."""
    model = model.to(device).to(memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def predict(images_NHWC: NDArray[np.uint8]) -> Answers:
        probabilities, embeddings = [], []
        for start in range(0, len(images_NHWC), BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(images_NHWC[start : start + BATCH])).to(device)
            logits, embedding = model(batch)
            probabilities.append(task.probabilities(logits).cpu().numpy())
            embeddings.append(embedding.float().cpu().numpy())
        return Answers(np.concatenate(probabilities), np.concatenate(embeddings))

    return predict
