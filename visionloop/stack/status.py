"""What is known of the stack: the supervisor's own state file, and the answer to `visionloop status`."""

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from visionloop.errors import StackError
from visionloop.stack.files import read_json, write_private
from visionloop.stack.process import Identity

ServiceState = Literal["waiting", "starting", "running", "unhealthy", "restarting", "failed", "stopping", "stopped"]
Phase = Literal["starting", "up", "degraded", "stopping", "down", "failed", "unsupervised"]


class Kept(BaseModel):
    """A service as the supervisor keeps it."""

    name: str
    state: ServiceState = "waiting"
    leader: Identity | None = None
    fingerprint: str = ""
    """Digest of the command and its settings: a later supervisor adopts the process only if it would start the same."""
    started: datetime | None = None
    restarts: int = 0
    reason: str = ""
    """Why it is not running, or why it was restarted last."""


class StackState(BaseModel):
    """The content of `<home>/stack/state.json`."""

    schema_version: Literal[1] = 1
    phase: Phase = "starting"
    reason: str = ""
    supervisor: Identity | None = None
    repo: Path
    ports: dict[str, int] = {}
    services: dict[str, Kept] = {}


class ServiceStatus(BaseModel):
    """One service, as a person asks for it."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: ServiceState
    pid: int | None = None
    address: str = ""
    metrics: str = ""
    """URL that Prometheus reads, empty where there is none or it does not run."""
    version: str = ""
    """As the running server reports it; empty where it does not run."""
    rss_mb: float = 0.0
    """Memory of all its processes, shared pages counted once."""
    restarts: int = 0
    log: Path
    reason: str = ""


class StackStatus(BaseModel):
    """The whole stack."""

    model_config = ConfigDict(frozen=True)

    phase: Phase
    reason: str = ""
    home: Path
    services: list[ServiceStatus] = []

    @property
    def is_up(self) -> bool:
        """Whether every service runs and is well."""
        return self.phase == "up" and all(service.state == "running" for service in self.services)

    @property
    def rss_mb(self) -> float:
        """Memory of all services."""
        return round(sum(service.rss_mb for service in self.services), 1)


class Event(BaseModel):
    """A change that `up` and `down` report while they work."""

    model_config = ConfigDict(frozen=True)

    service: str
    state: ServiceState
    reason: str = ""
    seconds: float
    """Since the command began."""


class Check(BaseModel):
    """One finding of `visionloop doctor`."""

    model_config = ConfigDict(frozen=True)

    name: str
    ok: bool
    found: str
    advice: str = ""
    """What to do where it is not ok."""


def state_file(home: Path) -> Path:
    """Where the supervisor writes what it keeps."""
    return home / "stack" / "state.json"


def read_state(home: Path) -> StackState | None:
    """The last state; None where no stack ever ran. Raises StackError for a file that nobody wrote so."""
    raw = read_json(state_file(home))
    if raw is None:
        return None
    try:
        return StackState.model_validate(raw)
    except ValidationError as error:
        raise StackError(f"{state_file(home)} is not of this version ({error.error_count()} faults)") from None


def write_state(home: Path, state: StackState) -> None:
    """Replace the state file. Raises OSError."""
    write_private(state_file(home), state.model_dump_json(indent=1))


def log_file(home: Path, service: str) -> Path:
    """The log of a service; the supervisor's own is `supervisor`."""
    return home / "logs" / f"{service}.log"
