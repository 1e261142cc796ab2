"""project.yaml -> a typed, validated `Project`: the one file that a team writes, and every field that it may have.

Light on purpose (pydantic and yaml): DAG files parse it. Errors give file, line, what was expected, what was found,
and the nearest key.
"""

import difflib
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from visionloop import layout
from visionloop.errors import ConfigError
from visionloop.records import digest

PRESETS = ("@once", "@continuous", "@hourly", "@daily", "@weekly", "@monthly", "@quarterly", "@yearly")
_CRON_PART = r"(?:\*|\d+(?:-\d+)?|[A-Z]{3}(?:-[A-Z]{3})?)(?:/\d+)?"
CRON_FIELD = re.compile(rf"{_CRON_PART}(?:,{_CRON_PART})*")
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=layout.NAME.pattern, max_length=64)]


class Section(BaseModel):
    """A part of the project file: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ImageShape(Section):
    """Size in pixels and channels (1 grey, 3 RGB) of what the model sees; other sizes are resized on the way in."""

    height: int = Field(ge=8, le=1024)
    """Pixels."""
    width: int = Field(ge=8, le=1024)
    """Pixels."""
    channels: Literal[1, 3] = 3
    """1 grey, 3 RGB."""


class Task(Section):
    """What the model answers."""

    kind: Literal["classification"] = "classification"
    """What sort of answer; classification gives one class and its probability."""
    classes: list[str] = Field(min_length=2, max_length=10_000)
    """Names in the order of the model's outputs; never reorder them once a model is released."""
    image: ImageShape

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: list[str]) -> list[str]:
        twice = sorted({name for name in classes if classes.count(name) > 1})
        if twice:
            raise ValueError(f"class names must differ, these stand more than once: {', '.join(twice)}")
        return classes


class Splits(Section):
    """Shares of the samples; what is left of train and validation is the frozen test split."""

    train: float = Field(0.8, gt=0.0, lt=1.0)
    """Share of the samples, 0 to 1."""
    validation: float = Field(0.05, gt=0.0, lt=1.0)
    """Share of the samples, 0 to 1; it chooses nothing but shows over-fitting."""
    salt: str = ""
    """Part of the hash that assigns a sample; changing it moves samples between splits, so never do."""
    group_by: str | None = None
    """Metadata column whose equal values stay in one split (a patient, a camera, a scene); unset: each sample alone."""

    @model_validator(mode="after")
    def _leaves_a_test_split(self) -> "Splits":
        if self.train + self.validation >= 1.0:
            raise ValueError(f"train {self.train} + validation {self.validation} leave no test split: sum below 1")
        return self


class Contract(Section):
    """What a batch must be. `error` checks refuse the batch; the others quarantine single samples."""

    min_samples: int = Field(1, ge=1)
    """A smaller batch is refused."""
    min_side: int = Field(8, ge=1)
    """Pixels; a smaller image is quarantined."""
    max_side: int = Field(8192, ge=1)
    """Pixels; a larger image is quarantined before it is decoded."""
    brightness: tuple[float, float] = (0.0, 255.0)
    """Allowed range of the mean grey value, 0 to 255."""
    max_class_share: Share = 1.0
    """A batch in which one class has a larger share is refused."""
    max_quarantine_share: Share = 0.2
    """A batch of which more would be quarantined is refused whole."""


class Data(Section):
    """How batches arrive and what is made of them."""

    format: Literal["auto", "folder", "idx"] = "auto"
    """`auto` looks at the files: class folders or IDX."""
    splits: Splits = Splits()
    contract: Contract = Contract()


class Training(Section):
    """How a model is trained."""

    start: Literal["every_snapshot", "when_requested"] = "when_requested"
    """`when_requested`: the first snapshot, then only for a retrain request with samples newer than the champion's."""
    backbone: str = "small_cnn"
    """`small_cnn` (157k parameters, for small images) or the name of a timm model."""
    pretrained: Path | None = None
    """A safetensors file of weights for the backbone, relative to the project file."""
    epochs: int = Field(3, ge=1, le=10_000)
    """Passes over the training split."""
    batch_size: int = Field(256, ge=1)
    """Global: divided among the workers."""
    learning_rate: float = Field(4e-3, gt=0.0)
    """Highest rate of the one-cycle schedule."""
    weight_decay: float = Field(0.01, ge=0.0)
    """AdamW's."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 where the processor has it, else fp32."""
    channels_last: bool = True
    """Memory format NHWC, which is faster on processors with vector units; results are the same."""
    augment: list[Literal["flip", "shift", "erase"]] = ["flip", "shift"]
    """What is done to training images at random: mirrored, moved by up to 1/14 of the side, a square greyed."""
    workers: int = Field(1, ge=1, le=1024)
    """Processes that share each batch."""
    cpus_per_worker: float = Field(1.0, gt=0.0)
    """Cores that Ray reserves for each."""
    gpus_per_worker: float = Field(0.0, ge=0.0)
    """GPUs that Ray reserves for each; 0: it trains on the CPU."""
    max_failures: int = Field(2, ge=0)
    """How often Ray restarts the workers from the last checkpoint before the run fails."""
    checkpoint_every_epochs: int = Field(1, ge=1)
    """After how many epochs a checkpoint is written."""
    seed: int = 0
    """Of initial weights, order and augmentation."""

    @model_validator(mode="after")
    def _batch_divides(self) -> "Training":
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by workers {self.workers}")
        return self


class Scenario(Section):
    """A slice of the test samples or a corruption of them, with a metric and a bar."""

    name: Name
    """Unique in the suite."""
    metric: Literal["accuracy", "f1_macro", "worst_class_recall"] = "accuracy"
    """What is measured, each from 0 to 1."""
    severity: Literal["critical", "major", "info"] = "major"
    """`critical`: may never fail; `major`: see `gate`; `info`: is only shown."""
    where: dict[str, str] = {}
    """Only samples whose columns (`label`, `batch`, or a metadata column) have these values; empty: all."""
    corruption: Literal["none", "gaussian_noise", "defocus", "low_light"] = "none"
    """What is done to the samples before they are scored."""
    corruption_severity: int = Field(3, ge=1, le=5)
    """From 1, weak, to 5, strong."""
    at_least: Share | None = None
    """Absolute bar: the challenger's figure may not lie below it (the figure, not its interval)."""
    not_worse_by: Share | None = None
    """Bar relative to the champion: the loss may not be larger than this, with 95 % confidence."""
    min_samples: int = Field(30, ge=1)
    """With fewer samples the outcome is `too_few`, which is never a pass for a critical scenario."""


class Suite(Section):
    """The scenarios that a challenger must stand."""

    scenarios: list[Scenario] = Field(min_length=1)
    max_test_samples: int = Field(10_000, ge=100)
    """A stratified, seeded sample of the test split when there are more."""

    @field_validator("scenarios")
    @classmethod
    def _distinct(cls, scenarios: list[Scenario]) -> list[Scenario]:
        names = [scenario.name for scenario in scenarios]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"scenario names must differ, these stand more than once: {', '.join(twice)}")
        return scenarios


class Gate(Section):
    """What the gate asks beyond the scenarios' own bars."""

    max_failed_major: int = Field(0, ge=0)
    """How many `major` scenarios may fail. A critical one never may."""
    must_improve: bool = True
    """With a champion: better on at least one critical or major scenario, with 95 % confidence."""


class Packaging(Section):
    """Which variants of a model are built, and what one may lose to be the one that is served."""

    variants: list[Literal["fp32", "fp16", "int8"]] = ["fp32", "int8"]
    """`fp32` is always built, named or not; the cheapest that passes the gate and loses no more than `max_loss` is
    served. `int8` is for CPUs, `fp16` for GPUs."""
    max_loss: Share = 0.005
    """Most that a variant may lose against fp32 on any critical or major scenario, in the scenario's metric (0.005 is
    half a point; the figure, not its interval)."""
    calibration_samples: int = Field(512, ge=16, le=10_000)
    """Training samples, stratified by class, that show int8 the ranges of its activations."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What the lanes compute on; what a variant costs is measured on the same kind, else nothing but fp32 is served."""

    @field_validator("variants")
    @classmethod
    def _distinct(cls, variants: list[str]) -> list[str]:
        if len(set(variants)) < len(variants):
            raise ValueError(f"variants must differ, some stand more than once: {', '.join(variants)}")
        return variants


class Serving(Section):
    """How Triton runs the model."""

    max_batch_size: int = Field(64, ge=1, le=1024)
    """Images that Triton runs together, and the most of one request."""
    instances: int = Field(1, ge=1, le=64)
    """Copies of the model in each lane."""
    threads: int = Field(1, ge=1, le=64)
    """intra_op_thread_count of each instance."""
    queue_delay_us: int = Field(0, ge=0)
    """How long Triton waits for a batch to fill, in microseconds."""
    timeout_ms: int = Field(10_000, ge=1)
    """Envoy's time-out of a request."""
    max_in_flight: int = Field(1024, ge=1, le=16_384)
    """Requests that are under way to each lane at most, over HTTP and over gRPC each; further ones get 503."""


class Price(Section):
    """What the machine costs that a lane runs on, so that a release says what 1,000 inferences cost."""

    per_hour: float = Field(gt=0.0)
    """Of one machine with `serving.instances` of the model in it, in `currency`."""
    currency: str = Field("USD", pattern="^[A-Z]{3}$")
    """ISO 4217."""


class Release(Section):
    """Who lets a candidate go, and in which steps it takes over."""

    approval: Literal["required", "automatic"] = "required"
    """`required`: one of the approvers decides; `automatic`: the gate is enough, and is recorded as such."""
    approvers: list[str] = []
    """Airflow users who may decide."""
    approval_timeout_hours: float = Field(72.0, gt=0.0)
    """Nobody decided: rejected."""
    shadow_images: int = Field(1_000, ge=0, le=100_000)
    """Images that the candidate answers before any client sees an answer: what clients ask meanwhile, then captured
    ones, the newest first; 0: no shadow."""
    shadow_seconds: float = Field(60.0, ge=0.0, le=86_400.0)
    """Longest that live traffic is waited for; 0: captured images only."""
    max_changed: Share = 0.5
    """Share of captured images that may be answered with another label than the champion's."""
    max_unsure: Share = 0.2
    """How much larger the share of answers with a confidence below 0.5 may be than the champion's."""
    canary_percent: list[int] = [10, 50]
    """Envoy's weights of the canary lane, one step each."""
    step_requests: int = Field(200, ge=20)
    """Probes that the canary must have answered at each step, beside the live traffic."""
    max_error_rate: Share = 0.01
    """How much larger the share of failed requests may be in the canary than in the stable lane."""
    max_disagreement: Share = 0.01
    """Share of answers that may differ from those recorded offline for the lane's own model."""
    max_latency_ratio: float = Field(2.0, gt=1.0)
    """A request is slow when it takes longer than this times the stable lane's p95."""
    max_memory_mib: int = Field(2_048, ge=1)
    """MiB that the candidate may add to its lane, loaded and answering requests of the largest size."""
    max_memory_growth_mib: int = Field(32, ge=1)
    """MiB by which its memory may go on growing while it answers; more is a leak."""
    max_slow_share: Share = 0.05
    """How much larger the share of slow requests may be in the canary than in the stable lane."""
    false_alarm_rate: float = Field(0.05, gt=0.0, lt=1.0)
    """Chance that a canary which is as good as allowed is rolled back, however often it is looked at."""
    miss_rate: float = Field(0.05, gt=0.0, lt=1.0)
    """Chance that a canary which is worse than allowed is promoted."""
    max_probes: int = Field(10_000, ge=100)
    """A canary that is neither shown to be good nor bad by then is rolled back."""

    @model_validator(mode="after")
    def _somebody_decides(self) -> "Release":
        if self.approval == "required" and not self.approvers:
            raise ValueError("approval is required, so name at least one Airflow user under approvers")
        if not self.canary_percent or any(not 0 < percent <= 100 for percent in self.canary_percent):
            raise ValueError("canary_percent needs at least one step, each from 1 to 100")
        return self


class Monitoring(Section):
    """What is captured, when that is drift, and when drift is worth a retraining."""

    capture_percent: float = Field(100.0, ge=0.0, le=100.0)
    """Share of the requests that Envoy hands to the capture service."""
    capture_images: Share = 1.0
    """Share of the captured requests whose images are kept."""
    window_samples: int = Field(1_000, ge=100)
    """A window closes when it has this many captured samples."""
    drift_share: Share = 0.3
    """Share of drifted columns in a view that makes the view drifted."""
    significance: float = Field(0.05, gt=0.0, lt=1.0)
    """Of each view's tests together (Bonferroni)."""
    min_views: int = Field(2, ge=1, le=3)
    """A window is drifted when at least this many of the three views (image, embedding, prediction) are."""
    cooldown_minutes: float = Field(60.0, ge=0.0)
    """No new retrain request for this long after the last release."""


class Schedule(Section):
    """When the DAGs start by themselves, and how often a task is tried again."""

    data: str | None = "@hourly"
    """Cron expression, Airflow preset, or a period such as `30s`, `10m`; null: by hand."""
    monitor: str | None = "@hourly"
    """The same, for the monitor."""
    retries: int = Field(2, ge=0)
    """Of a task that failed, by Airflow."""
    retry_delay_seconds: float = Field(15.0, ge=0.0)
    """Between two tries."""
    pool: str = "default_pool"
    """Airflow's pool that the tasks run in; any but the default one is made in Airflow first."""

    @field_validator("data", "monitor")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is None or value in PRESETS or period_seconds(value):
            return value
        fields = value.upper().split()
        if len(fields) == 5 and all(CRON_FIELD.fullmatch(field) for field in fields):
            return value
        raise ValueError(
            f"expected a cron expression, a preset ({', '.join(PRESETS)}), or a period such as 30s, 10m, 2h"
        )


class Project(Section):
    """One model line: its data, task, training, suite, release and monitoring policy."""

    project: Name
    """Name in the object store, the registry, Triton and Airflow."""
    description: str = ""
    """One line for people."""
    task: Task
    data: Data = Data()
    training: Training = Training()
    suite: Suite
    gate: Gate = Gate()
    packaging: Packaging = Packaging()
    serving: Serving = Serving()
    price: Price | None = None
    """null: releases tell seconds, and no money."""
    release: Release
    monitoring: Monitoring = Monitoring()
    schedule: Schedule = Schedule()

    @field_validator("project")
    @classmethod
    def _is_a_path_segment(cls, value: str) -> str:
        if ".." in value:
            raise ValueError("a project's name has no two dots in a row")
        return value

    @property
    def name(self) -> str:
        """The project's name, which is the model's name in the registry and in Triton too."""
        return self.project

    def config_digest(self, *sections: str) -> str:
        """SHA-256 of these sections (`"task"`, `"training"`, ...): what decided a record, and nothing else."""
        return digest({name: getattr(self, name).model_dump(mode="json") for name in sections})


def period_seconds(text: str) -> float | None:
    """Seconds of a period such as `30s`, `10m`, `2h`; None when the text is something else."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        return float(text[:-1]) * unit if unit and 0 < float(text[:-1]) < math.inf else None
    except ValueError:
        return None


def project_file(projects: Path, name: str) -> Path:
    """Where the project's file lies; raises ConfigError with the names that exist."""
    path = projects / layout.checked(name) / "project.yaml"
    if not path.is_file():
        known = sorted(found.parent.name for found in projects.glob("*/project.yaml"))
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"no project {name}: {path} does not exist (known: {', '.join(known) or 'none'}){hint}")
    return path


def load_project(path: Path) -> Project:
    """Read and check a project file. Raises ConfigError with one line per fault."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    return parse_project(text, path)


@lru_cache(maxsize=256)
def parse_project(text: str, path: Path) -> Project:
    """Check the text of a project file; `path` only names it in errors."""
    try:
        root = yaml.compose(text, Loader=_LOADER)
        value = yaml.load(text, Loader=_LOADER)  # noqa: S506 (a safe loader, in C where there is one)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{path}:{line}: this is no YAML: {getattr(error, 'problem', error)}") from None
    twice = _doubled(root)
    if twice is not None:
        raise ConfigError(f"{path}:{twice.start_mark.line + 1}: key `{twice.value}` stands twice, expected it once")
    if not isinstance(value, dict):
        raise ConfigError(f"{path}:1: expected a mapping with the key `project`, found {_shown(value)}")
    try:
        return Project.model_validate(value)
    except ValidationError as error:
        faults = [_explained(fault, root, path) for fault in error.errors()]
        raise ConfigError("\n".join(faults)) from None


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _doubled(node: yaml.Node | None) -> yaml.ScalarNode | None:
    """The first key that stands twice in one mapping: YAML would silently take the last."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    return key
                seen.add(key.value)
            if (found := _doubled(value)) is not None:
                return found
    if isinstance(node, yaml.SequenceNode):
        return next((found for item in node.value if (found := _doubled(item)) is not None), None)
    return None


def _explained(fault: ErrorDetails, root: yaml.Node | None, path: Path) -> str:
    place = fault["loc"]
    line = _line(root, place)
    dotted = ".".join(map(str, place)) or "the file"
    if fault["type"] == "extra_forbidden":
        known = _keys_at(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        return f"{path}:{line}: found unknown key `{dotted}`, expected one of {', '.join(known)}{hint}"
    if fault["type"] == "missing":
        return f"{path}:{line}: expected the key `{dotted}`, found nothing"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{path}:{line}: {dotted}: {message}, found {_shown(fault['input'])}"


def _line(node: yaml.Node | None, place: tuple[int | str, ...]) -> int:
    """1-based line of the deepest part of `place` that the file has."""
    line = 1
    for part in place:
        key, node = _child(node, part)
        if key is None:
            break
        line = key.start_mark.line + 1
    return line


def _child(node: yaml.Node | None, part: int | str) -> tuple[yaml.Node | None, yaml.Node | None]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None, None


def _keys_at(place: tuple[int | str, ...]) -> list[str]:
    kind: Any = Project
    for part in place:
        if isinstance(part, str):
            kind = kind.model_fields[part].annotation
        kind = next(iter(_models(kind)), None)
        if kind is None:
            return []
    return sorted(kind.model_fields)


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for argument in getattr(kind, "__args__", ()):
        yield from _models(argument)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
