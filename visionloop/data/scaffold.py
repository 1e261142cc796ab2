"""A first project file from a folder of images: classes and sizes are read from the data, the rest is commented."""

import statistics
from collections import Counter
from pathlib import Path

import yaml

from visionloop import layout
from visionloop.data.formats import Context, open_batch
from visionloop.data.formats.delivery import Delivered, LocalFiles
from visionloop.data.images import ImageError, decode
from visionloop.errors import ConfigError, DataError

LOOKED_AT = 200
"""Images that are decoded to learn sizes and colours."""
LARGEST_SIDE = 224
SMALL_SIDE = 64
"""Up to this side the small network is the default; above it, a backbone of timm's."""

TEMPLATE = """\
# Made from {samples:,} images in {classes_found} classes. Every key that may stand here: `visionloop project schema`.
project: {name}
description: ""

task:
  kind: {task}
  classes: {classes}  # the order of the model's outputs: never reorder it after a release
  image: {{ height: {height}, width: {width}, channels: {channels} }}  # what the model sees; others are resized

data:
  splits: {{ train: 0.8, validation: 0.05, salt: {name} }}  # the rest is the frozen test split
  contract:
    min_samples: {min_samples}
    min_side: {min_side}
    max_side: {max_side}

training:
  backbone: {backbone}
  epochs: {epochs}
  batch_size: {batch_size}
  learning_rate: {learning_rate}

suite:
  scenarios:
    - {{ name: overall, metric: accuracy, severity: critical, at_least: 0.7, not_worse_by: 0.02 }}
    - {{ name: worst-class, metric: worst_class_recall, severity: major, at_least: 0.3 }}
    - {{ name: noise, metric: accuracy, severity: info, corruption: gaussian_noise, corruption_severity: 2 }}
    - {{ name: out-of-focus, metric: accuracy, severity: info, corruption: defocus, corruption_severity: 2 }}

release:
  approval: required
  approvers: {approvers}
  canary_percent: [10, 50]

monitoring:
  capture_percent: 100
  window_samples: 1000

schedule:
  data: 1m
  monitor: 10m
"""


def scaffold(name: str, *, task: str, folder: Path, approvers: list[str]) -> str:
    """The text of a project file. Raises ConfigError or DataError for what cannot become a project."""
    layout.checked(name)
    if task != "classification":
        raise ConfigError(f"task {task!r} is not known: expected classification")
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: expected class folders with images, or IDX files")
    numbers = tuple(f"class-{number}" for number in range(256))
    reader = open_batch(LocalFiles(folder), Context(classes=numbers, max_side=8192))
    labels: Counter[str] = Counter()
    shapes: list[tuple[int, int, int]] = []
    for delivered in reader:
        labels[delivered.label or ""] += 1
        if len(shapes) < LOOKED_AT:
            shapes += _shape(delivered)
    return _filled(name, task, approvers, labels, shapes, folder)


def _shape(delivered: Delivered) -> list[tuple[int, int, int]]:
    """The image's height, width and channels; nothing for what is no image."""
    content = delivered.content
    if content is None:
        return []
    try:
        pixels = decode(content) if isinstance(content, bytes) else content
    except ImageError:
        return []
    return [(pixels.shape[0], pixels.shape[1], pixels.shape[2] if pixels.ndim == 3 else 1)]


def _filled(
    name: str,
    task: str,
    approvers: list[str],
    labels: Counter[str],
    shapes: list[tuple[int, int, int]],
    folder: Path,
) -> str:
    classes = sorted((label for label in labels if label), key=_natural)
    if len(classes) < 2:
        raise DataError(f"{folder} has {len(classes)} class(es), expected at least two: one folder of images for each")
    if not shapes:
        raise DataError(f"{folder} holds no image that can be decoded among the first {LOOKED_AT}")
    heights, widths, channels = zip(*shapes, strict=True)
    side = max(statistics.median(heights), statistics.median(widths))
    scale = min(1.0, LARGEST_SIDE / side)
    small = side * scale <= SMALL_SIDE
    return TEMPLATE.format(
        name=name,
        task=task,
        samples=labels.total(),
        classes_found=len(classes),
        classes=_flow(classes),
        approvers=_flow(approvers),
        height=max(8, round(statistics.median(heights) * scale)),
        width=max(8, round(statistics.median(widths) * scale)),
        channels=3 if 3 in channels else 1,
        min_samples=max(1, labels.total() // 100),
        min_side=max(1, min(heights + widths) // 2),
        max_side=max(heights + widths) * 4,
        backbone="small_cnn" if small else "tf_efficientnet_lite0",
        epochs=10 if labels.total() < 10_000 else 4,
        batch_size=256 if small else 32,
        learning_rate=0.004 if small else 0.001,
    )


def _natural(label: str) -> tuple[int, str]:
    """`class-2` before `class-10`."""
    return len(label) if label.startswith("class-") else 0, label


def _flow(names: list[str]) -> str:
    return yaml.safe_dump(names, default_flow_style=True, width=10_000).strip()
