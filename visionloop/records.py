"""The frozen outputs of the stages: JSON in, JSON out, written once, named by URI: between tasks, and in other records.

A record's id is a digest of what it was made from (`record_id`), so the same inputs give the same record, and a
stage that is run twice finds its first answer. Times are UTC; every URI points into the project's object store.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field


@lru_cache(maxsize=1)
def code_revision() -> str:
    """The image's `CODE_REVISION`, else git's revision of this tree, else the package's version."""
    from visionloop import __version__

    baked = os.environ.get("CODE_REVISION")
    if baked:
        return baked
    root = Path(__file__).resolve().parent.parent
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    return found.stdout.strip() or __version__


class Frozen(BaseModel):
    """A part of a record: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(Frozen):
    """What every record carries."""

    kind: ClassVar[str]
    schema_version: Literal[1] = 1
    id: str
    project: str
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    inputs: dict[str, str] = {}
    """Role -> URI of each record or object that this one was made from."""
    input_digests: dict[str, str] = {}
    """Role -> SHA-256 of that input's bytes."""
    config_digest: str = ""
    """SHA-256 of the part of the project file that decided the result."""
    code_revision: str = Field(default_factory=code_revision)
    seed: int | None = None


def id_of(uri: str) -> str:
    """The id in the URI of a record."""
    return uri.rsplit("/", 1)[-1].removesuffix(".json")


class Ingest(Record):
    """One batch read from the incoming prefix into a table: a row per delivered file, decodable or not."""

    kind: ClassVar[str] = "ingest"
    batch: str
    format: str
    table_uri: str
    delivered: int
    decoded: int
    undecodable: dict[str, int] = {}
    """Reason -> count of files that are no image."""


class Check(Frozen):
    """One expectation of the contract, as Great Expectations judged it."""

    name: str
    severity: Literal["error", "quarantine", "warn"]
    passed: bool
    observed: str
    expected: str
    failed_samples: int = 0


class Validation(Record):
    """The contract's verdict on a batch. accepted + quarantined = delivered; a refused batch accepts nothing."""

    kind: ClassVar[str] = "validation"
    batch: str
    outcome: Literal["accepted", "refused"]
    delivered: int
    accepted: int
    quarantined: int
    reasons: dict[str, int] = {}
    """Reason -> count of quarantined samples."""
    checks: list[Check] = []
    verdict_uri: str
    """Table of `sample_id`, `accepted`, `reason`."""
    report_uri: str
    """Great Expectations' page."""


class Snapshot(Record):
    """An immutable version of the project's dataset."""

    kind: ClassVar[str] = "snapshot"
    dataset_uri: str
    version: int
    """Lance version."""
    tag: str
    batches: list[str]
    """All batches in it, oldest first."""
    samples: int
    added: int
    """Samples that the newest batch brought (those known before are not counted again)."""
    splits: dict[str, int]
    classes: dict[str, int]


class TrainingRun(Record):
    """A trained model, before anybody judged it."""

    kind: ClassVar[str] = "training_run"
    snapshot: str
    retrain_request: str | None = None
    """URI of the trigger decision that asked for it."""
    mlflow_run_id: str
    checkpoint_uri: str
    checkpoint_sha256: str
    epochs: int
    samples_seen: int
    workers: int
    device: str
    precision: str
    seconds: float
    metrics: dict[str, float]


class Interval(Frozen):
    """A figure with its 95 % confidence interval and the number of samples behind it."""

    value: float
    low: float
    high: float
    n: int


class ScenarioResult(Frozen):
    """One scenario of the suite, for challenger and champion on the same samples."""

    name: str
    metric: str
    severity: Literal["critical", "major", "info"]
    bar: float | None
    bar_kind: Literal["at_least", "not_worse_than_champion", "none"]
    margin: float = 0.0
    """How far below the champion the challenger may be (same unit as the metric)."""
    challenger: Interval
    champion: Interval | None = None
    difference: Interval | None = None
    """Challenger minus champion on the same samples (paired)."""
    outcome: Literal["passed", "failed", "too_few"]
    samples_needed: int = 0
    worst_class: str | None = None
    """The class whose recall the challenger's `worst_class_recall` is."""


class Evaluation(Record):
    """Champion and challenger on the frozen test split, scenario by scenario."""

    kind: ClassVar[str] = "evaluation"
    snapshot: str
    training_run: str
    champion: str | None
    """The champion's candidate, None at the first release."""
    test_samples: int
    scenarios: list[ScenarioResult]
    page_uri: str


class GateDecision(Record):
    """May this model be packaged? With reasons, the most important first."""

    kind: ClassVar[str] = "gate_decision"
    evaluation: str
    outcome: Literal["passed", "rejected"]
    reasons: list[str]


class Artifact(Frozen):
    """A file that a record vouches for."""

    uri: str
    sha256: str
    size_bytes: int


class SliceParity(Frozen):
    """How many decisions differ on a slice of the samples."""

    name: str
    """`column=value`, several joined by commas."""
    samples: int
    disagreements: int


class Parity(Frozen):
    """ONNX against PyTorch on real samples: differences of probabilities, and how many decisions differ."""

    samples: int
    max_abs_difference: float
    p99_abs_difference: float
    disagreements: int
    quantiles: dict[str, float] = {}
    """`p50`, `p99`, `p999` of each sample's largest difference."""
    slices: list[SliceParity] = []
    """Each class, and each slice of the suite."""


class Calibration(Frozen):
    """The training samples that showed INT8 its ranges: the same seed on the same snapshot finds them again."""

    samples: int
    seed: int
    sample_ids_sha256: str
    """SHA-256 of their ids, ascending, one a line."""


class Change(Frozen):
    """What a variant gains (or loses, below 0) against fp32 on one scenario."""

    scenario: str
    metric: str
    severity: Literal["critical", "major", "info"]
    difference: Interval
    """Variant minus fp32 on the same samples (paired)."""
    judged: bool
    """False for `info` scenarios and those with too few samples: they speak against no variant."""


class Trial(Frozen):
    """One variant of a packaged model, measured: what it costs, what it loses, what the gate says to it."""

    name: Literal["fp32", "fp16", "int8"]
    sha256: str
    size_bytes: int
    seconds_per_1000_images: float | None
    """On one thread of a CPU, or of a GPU; None: not measured, there was none."""
    parity: Parity
    """This variant against PyTorch."""
    changes: list[Change]
    gate: Literal["passed", "rejected"]
    gate_reasons: list[str]


class Variant(Trial):
    """A trial and what became of it."""

    chosen: bool
    reason: str


class Candidate(Record):
    """A packaged model that passed the gate and awaits approval."""

    kind: ClassVar[str] = "candidate"
    training_run: str
    evaluation: str
    gate_decision: str
    snapshot: str
    model_name: str
    """Name in the registry and in Triton."""
    version: int
    """Version in the registry and in Triton."""
    model_sha256: str
    """Digest of `model.onnx`: what an approval and a release are about."""
    artifacts: dict[str, Artifact]
    """`model.onnx`, `config.pbtxt`, `golden.npz` (images and the answers expected for them)."""
    signature: str = ""
    """Of `model.onnx` and `config.pbtxt` together, by the installation's key: a Sigstore bundle, as JSON."""
    classes: list[str]
    image_shape: tuple[int, int, int]
    """Height, width, channels of the uint8 input."""
    parity: Parity
    """Of the fp32 export: the proof that the graph is the trained model."""
    variant: Literal["fp32", "fp16", "int8"] = "fp32"
    """Which variant `model.onnx` is."""
    variants: list[Variant] = []
    """All that were built, fp32 first; empty in records from before there were variants."""
    calibration: Calibration | None = None
    page_uri: str | None = None
    """The page with the table of variants."""


class Approval(Record):
    """Who let a candidate go, or did not, and why."""

    kind: ClassVar[str] = "approval"
    candidate: str
    model_sha256: str
    decision: Literal["approved", "rejected"]
    mode: Literal["human", "automatic"]
    by: str
    reason: str


LaneName = Literal["stable", "canary"]


class LaneEvidence(Frozen):
    """What one lane did during a step of the canary."""

    lane: LaneName
    requests: int = 0
    """All that were sent its way, live traffic and probes."""
    errors: int = 0
    """Requests that it failed, also those that the other lane then answered."""
    probes: int = 0
    """Of its requests, those that the loop sent itself: their answers are known offline."""
    disagreements: int = 0
    """Probes whose answers differ from the ones recorded offline for that lane's model."""
    not_finite: int = 0
    """Errors that the endpoint took for answers: probes answered with NaN or infinity."""
    slow: int = 0
    """Probes that took longer than the rollout's `slow_ms`."""
    latency_p50_ms: float = 0.0
    latency_p95_ms: float = 0.0
    """Of the newest probes, as their sender saw them."""


class CanaryStep(Frozen):
    """One weight of the rollout and what it showed."""

    canary_percent: int
    lanes: list[LaneEvidence]
    outcome: Literal["open", "passed", "failed"]
    """`open`: it is being filled, or the release ended before it was decided."""
    reason: str


class ShadowEvidence(Frozen):
    """What the candidate answered to traffic that the champion had answered, before any client saw it."""

    source: Literal["mirrored", "replayed", "none"]
    """`mirrored`: live requests, sent to both; `replayed`: captured ones, asked again, as well; `none`: no traffic."""
    images: int
    mirrored: int = 0
    """Of those, of live requests."""
    failed: int
    """Images without an answer, or with one that is no probabilities."""
    not_finite: int = 0
    """Of those, answered with NaN or infinity."""
    compared: int
    """Images with a sound answer of both."""
    changed: int
    """Of those, answered with another label than the champion's."""
    unsure: int
    """Of those, answered with a confidence below 0.5."""
    champion_unsure: int


class Cost(Frozen):
    """What 1,000 inferences (images) cost, measured before the canary: `visionloop.serving.cost` has the formula."""

    batch_images: int
    """Images of each run of the model that was timed."""
    instances: int
    """Copies of the model that share the machine."""
    seconds_per_1000: float
    """Seconds that one instance computes."""
    champion_seconds_per_1000: float | None
    """Of the version that served, measured in turns with the candidate; None: none served."""
    price_per_hour: float | None
    """As the project file had it; None: it had none, so no money is told."""
    currency: str | None
    per_1000: float | None
    """In the currency, at full use of the machine."""
    champion_per_1000: float | None

    @property
    def ratio(self) -> float | None:
        """Candidate over champion: below 1 it is cheaper."""
        champion = self.champion_seconds_per_1000
        return self.seconds_per_1000 / champion if champion else None


class MemoryReading(Frozen):
    """What the canary lane held in memory at one moment of a release."""

    requests: int
    """That the candidate had answered or failed since it was loaded, live ones and the loop's own."""
    server_bytes: int
    """Resident, of the server's process."""
    model_bytes: int
    """Resident, of the processes that serve this model alone; 0 where the server's own process does."""
    processes: int
    """How many these are."""
    server_started: int = 0
    """When the server's process began, in clock ticks of its machine: another number is another process. 0: not known,
    as in records from before it was read."""
    others: int = 0
    """Other projects' models in the lane, the most that were seen since its server began: one whose process died, which
    is why the server ends soon, is listed no more when its release is over."""


class Order(Frozen):
    """What somebody wants of the release in progress."""

    verb: Literal["pause", "resume", "promote"]
    by: str
    reason: str
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class LiveAnswers(Frozen):
    """Captured answers to clients since the canary began, of both lanes; images, and those that were unsure."""

    since: datetime
    canary: int = 0
    canary_unsure: int = 0
    stable: int = 0
    stable_unsure: int = 0


class Release(Record):
    """An approved candidate's way through the canary, and where it ended."""

    kind: ClassVar[str] = "release"
    candidate: str
    approval: str
    decided_by: str = ""
    decided_at: datetime | None = None
    decision_reason: str = ""
    """Who let it go or did not, when and why, as the approval's record has it."""
    version: int
    model_sha256: str
    previous_version: int | None
    cost: Cost | None = None
    """None: it was not measured, as in records from before there were costs."""
    shadow: ShadowEvidence | None = None
    steps: list[CanaryStep]
    memory: list[MemoryReading] = []
    """The first one before the candidate was loaded, the second right after, the others while it answered."""
    live: LiveAnswers | None = None
    """None: there was no canary, or records from before this was looked at."""
    orders: list[Order] = []
    """What people asked of it on its way."""
    outcome: Literal["promoted", "rolled_back", "rejected"]
    reason: str


class TunedPoint(Frozen):
    """One setting of `serving`, measured in a closed loop."""

    instances: int
    threads: int
    queue_delay_us: int
    images_per_second: float
    p50_ms: float
    p99_ms: float
    failures: int
    """Requests that were not answered."""


class Tuning(Record):
    """How a version is served best on the machine of its lanes: every setting that was tried, and the choice."""

    kind: ClassVar[str] = "tuning"
    version: int
    model_sha256: str
    target_p99_ms: float
    concurrency: int
    """Requests under way at once."""
    images_per_request: int
    seconds: float
    """Of each measurement."""
    rounds: int
    """Measurements of each setting; their medians are told."""
    cores: int
    points: list[TunedPoint]
    chosen: TunedPoint | None
    """None: no setting held the target."""
    page_uri: str
    """HTML: the curve and the table."""


class Window(Record):
    """Recent production traffic of one model version."""

    kind: ClassVar[str] = "window"
    candidate: str
    version: int
    first_at: datetime
    last_at: datetime
    samples: int
    table_uri: str
    """Parquet: request id, time, lane, image, probabilities, image properties, embedding."""
    captures: list[str]
    """Keys of the capture files that it holds, so that no capture counts twice."""


class DriftView(Frozen):
    """One way of looking at the change between reference and window."""

    name: Literal["image", "embedding", "prediction"]
    columns: int
    drifted_columns: int
    share: float
    threshold: float
    drifted: bool
    scores: dict[str, float]
    """Column -> score of the test that was used."""
    detail: str


class DriftReport(Record):
    """Reference against window, in several views."""

    kind: ClassVar[str] = "drift_report"
    window: str
    candidate: str
    reference_samples: int
    window_samples: int
    views: list[DriftView]
    drifted: bool
    html_uri: str
    json_uri: str


class TriggerDecision(Record):
    """Does the loop have to turn? With reasons; `retrain` is the retrain request."""

    kind: ClassVar[str] = "trigger_decision"
    drift_report: str
    candidate: str
    action: Literal["none", "retrain"]
    reasons: list[str]


class TrackedRun(Frozen):
    """State document `run-<record>`: which MLflow run belongs to a record, if several were created for it."""

    run_id: str


class RetrainState(Frozen):
    """State document `retrain`: the one open retrain request of a project, if any."""

    request: str | None = None
    """URI of the `TriggerDecision` that is open."""
    opened_at: datetime | None = None
    closed_at: datetime | None = None
    closed_by: str | None = None
    """URI of the release that answered the last request."""


class Ending(Frozen):
    """How a release ends, before all is done for it."""

    outcome: Literal["promoted", "rolled_back", "rejected"]
    reason: str


class WayBack(Frozen):
    """A rollback that began: who wants which version back, and why."""

    to_version: int
    by: str
    reason: str


class RolloutState(Frozen):
    """State document `rollout`: how far the release in progress has come, so that another process can go on."""

    candidate: str | None = None
    """URI of the candidate that is being rolled out, None when nothing is in progress."""
    approval: str | None = None
    phase: Literal["idle", "preflight", "shadow", "canary", "promoting"] = "idle"
    canary_percent: int = 0
    slow_ms: float | None = None
    """A probe above this is slow; None: there is no stable lane to compare with, or it was not measured yet."""
    cost: Cost | None = None
    shadow: ShadowEvidence | None = None
    steps: list[CanaryStep] = []
    live: LiveAnswers | None = None
    memory: list[MemoryReading] = []
    """As in the release's record."""
    orders: list[Order] = []
    ending: Ending | None = None
    """Set: it goes no further, and whoever comes next brings this end about."""
    way_back: WayBack | None = None
    """Set while nothing is in progress but a rollback."""
    updated_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """When it was changed, or somebody looked after it."""

    @property
    def paused(self) -> bool:
        """Was the last order to pause?"""
        return bool(self.orders) and self.orders[-1].verb == "pause"


RECORD_TYPES: dict[str, type[Record]] = {
    record.kind: record
    for record in (
        Ingest,
        Validation,
        Snapshot,
        TrainingRun,
        Evaluation,
        GateDecision,
        Candidate,
        Approval,
        Release,
        Window,
        DriftReport,
        TriggerDecision,
    )
}


def record_id(kind: str, project: str, /, **made_from: Any) -> str:
    """16 hex digits that name a record by what it is made from (JSON-able values; order of keys is irrelevant)."""
    return digest({"kind": kind, "project": project, **made_from})[:16]


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form (sorted keys, no white space)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_jsonable)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _jsonable(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
