"""Classification: labels to indices, mean loss, softmax."""

import math

import pytest
import torch

from visionloop.errors import DataError
from visionloop.project import ImageShape, Task
from visionloop.tasks import open_task

TASK = open_task(Task(classes=["b", "a", "c"], image=ImageShape(height=8, width=8, channels=1)))


def test_targets_follow_the_order_of_the_project() -> None:
    assert TASK.targets(["a", "b", "c", "a"]).tolist() == [1, 0, 2, 1]
    assert TASK.outputs == 3
    assert TASK.targets([]).shape == (0,)


def test_an_unknown_label_is_named() -> None:
    with pytest.raises(DataError, match=r"labels d, e, which task.classes"):
        TASK.targets(["a", "e", "d"])


def test_the_loss_is_the_mean_cross_entropy() -> None:
    output = torch.tensor([[0.0, 0.0, 0.0], [math.log(2.0), 0.0, 0.0]])
    assert TASK.loss(output, torch.tensor([1, 0])).item() == pytest.approx((math.log(3) + math.log(2)) / 2)
    assert TASK.loss(output.to(torch.bfloat16), torch.tensor([1, 0])).dtype == torch.float32


def test_answers() -> None:
    output = torch.tensor([[math.log(2.0), 0.0, 0.0], [0.0, 9.0, 0.0]])
    assert TASK.probabilities(output)[0].tolist() == pytest.approx([0.5, 0.25, 0.25])
    assert TASK.correct(output, torch.tensor([0, 2])).item() == 1
