"""What a client knows of a model: from the project file, or from what the endpoint says of the model it serves."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from visionloop.errors import ConfigError, DataError
from visionloop.packaging.graph import INPUT, PROBABILITIES
from visionloop.project import ImageShape, Project
from visionloop.serving.triton_config import LABELS, TIMEOUT_MS

LARGEST_REQUEST_BYTES = (16 << 20) - (64 << 10)
"""Of images in one request: the endpoint refuses a body above 16 MiB, head and names included."""
PATIENCE_SECONDS = 30.0
"""A request's time-out where the project's own is not known."""


@dataclass(frozen=True)
class Model:
    """A model behind the endpoint."""

    name: str
    image: tuple[int, int, int]
    """Height, width, channels of the uint8 input."""
    labels: tuple[str, ...]
    """The classes' names, in the order of the probabilities."""
    max_batch_size: int
    """Images that the server takes in one request."""
    timeout_seconds: float = PATIENCE_SECONDS
    """Of one request, where a call has no deadline of its own."""

    @property
    def images_per_request(self) -> int:
        """As many as the server takes, and as fit into the endpoint's largest body. Raises DataError for 0."""
        height, width, channels = self.image
        fitting = LARGEST_REQUEST_BYTES // (height * width * channels)
        if fitting < 1:
            raise DataError(f"one image of {self.name} is larger than the endpoint's largest request, 16 MiB")
        return min(self.max_batch_size, fitting)

    @property
    def shape(self) -> ImageShape:
        """The size of its images, as project files have it. Raises ConfigError for one that no project may have."""
        height, width, channels = self.image
        try:
            return ImageShape.model_validate({"height": height, "width": width, "channels": channels})
        except ValidationError:
            raise ConfigError(
                f"{self.name} expects {self.expected}: image files are fitted to 8 to 1024 pixels a side, grey or RGB"
            ) from None

    @property
    def expected(self) -> str:
        """The images that it takes, in words."""
        return f"uint8 images [N, {', '.join(map(str, self.image))}]"


def of_project(project: Project) -> Model:
    """As the project file has it."""
    shape = project.task.image
    return Model(
        name=project.name,
        image=(shape.height, shape.width, shape.channels),
        labels=tuple(project.task.classes),
        max_batch_size=project.serving.max_batch_size,
        timeout_seconds=project.serving.timeout_ms / 1000,
    )


def of_config(config: Any, labels: Sequence[str] | None) -> Model:
    """As Triton describes it (ModelConfig). Labels: those given, else the config's own, else the classes' numbers.

    Raises ConfigError for a model that is not of this loop's making, for labels of another number than classes, and
    for a time-out that is none.
    """
    images = [list(tensor.dims) for tensor in config.input if tensor.name == INPUT]
    outputs = [list(tensor.dims) for tensor in config.output if tensor.name == PROBABILITIES]
    if [len(dims) for dims in images] != [3] or [len(dims) for dims in outputs] != [1] or config.max_batch_size < 1:
        raise ConfigError(
            f"{config.name} is no model of visionloop: expected an input `{INPUT}` [H, W, C] and an output "
            f"`{PROBABILITIES}` [K] in batches, found {images} and {outputs}, batches of {config.max_batch_size}"
        )
    height, width, channels = images[0]
    [classes] = outputs[0]
    names = tuple(labels) if labels is not None else _own_labels(config) or tuple(map(str, range(classes)))
    if len(names) != classes:
        raise ConfigError(f"{config.name} has {classes} classes, found {len(names)} labels: give one per class")
    return Model(config.name, (height, width, channels), names, config.max_batch_size, _own_timeout_seconds(config))


def _own_labels(config: Any) -> tuple[str, ...]:
    """Empty where the model was packaged without. Raises ConfigError for labels that are no list of texts."""
    if LABELS not in config.parameters:
        return ()
    text = config.parameters[LABELS].string_value
    try:
        labels = json.loads(text)
    except ValueError:
        labels = None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ConfigError(f"{config.name}: expected a JSON list of labels in `{LABELS}`, found {text[:80]!r}")
    return tuple(labels)


def _own_timeout_seconds(config: Any) -> float:
    """`PATIENCE_SECONDS` where the model was packaged without. Raises ConfigError for what is no number of ms."""
    if TIMEOUT_MS not in config.parameters:
        return PATIENCE_SECONDS
    text = config.parameters[TIMEOUT_MS].string_value
    if not re.fullmatch("[1-9][0-9]{0,9}", text):
        raise ConfigError(f"{config.name}: expected milliseconds, at least 1, in `{TIMEOUT_MS}`, found {text[:80]!r}")
    return int(text) / 1000
