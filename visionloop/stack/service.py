"""What an embedded server is to the supervisor: its ports, its command, how to ask whether it is well."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from visionloop.settings import Settings, to_environ
from visionloop.stack.ports import LOOPBACK
from visionloop.stack.process import Identity, inherited_environment

Step = Callable[["Launch"], None]
"""Runs a command to its end with output to the service's log; raises StackError when it fails."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the kernel's shared memory, not a temporary file

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
"""For servers that only pass data on: pools of threads and memory arenas would cost a laptop dear. Not for training."""


@dataclass(frozen=True)
class Context:
    """All that a service needs to know of the stack it runs in."""

    home: Path
    repo: Path
    """Folder that holds dags/, plugins/, ray_jobs/, model_repository/."""
    settings: Settings
    """With the addresses of this stack's services."""
    ports: Mapping[str, int]
    """`service.port name` -> number."""

    def port(self, service: str, name: str = "http") -> int:
        """The port chosen for a service."""
        return self.ports[f"{service}.{name}"]

    def folder(self, *parts: str) -> Path:
        """A folder below home, made if need be."""
        path = self.home.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def secret_file(self, name: str) -> Path:
        """Where a generated credential lies (mode 0600, in a folder of mode 0700)."""
        return self.home / "stack" / "secrets" / name

    def environment(self, own: Mapping[str, str] | None = None) -> dict[str, str]:
        """The caller's environment, this environment's programs first, `VISIONLOOP_*`, and the service's own."""
        base = inherited_environment()
        base["PATH"] = f"{program('')}:{base.get('PATH', '/usr/bin:/bin')}"
        return {**base, "PYTHONUNBUFFERED": "1", **to_environ(self.settings), **(own or {})}


@dataclass(frozen=True)
class Launch:
    """A command: arguments, complete environment, working folder."""

    argv: list[str]
    env: dict[str, str]
    cwd: Path


def _nothing(ctx: Context) -> None:
    return


def no_step(ctx: Context, step: Step) -> None:
    """No preparation."""
    return


def _up_to_date(ctx: Context, step: Step) -> bool:
    return True


def _no_complaint(ctx: Context, leader: Identity) -> str | None:
    return None


@dataclass(frozen=True)
class Service:
    """One embedded server. The functions get the Context; they are called in the supervisor, never at import."""

    name: str
    launch: Callable[[Context], Launch]
    check: Callable[[Context, datetime], None]
    """Returns when the server is well; raises probe.NoAnswer with the reason. The time is its start, in UTC."""
    version: Callable[[Context], str]
    """Asked of the running server."""
    ports: Mapping[str, int | None] = field(default_factory=dict)
    """Name -> the usual port, None for any."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Field of Settings -> template over `{home}` and the port names."""
    metrics: str = ""
    """The port at which Prometheus reads `/metrics`, if there is one that may be shown to it."""
    needs: tuple[str, ...] = ()
    prepare: Callable[[Context, Step], None] = no_step
    """Before each start."""
    finish: Callable[[Context], None] = _nothing
    """Once it is well, before those that need it start."""
    complaint: Callable[[Context, Identity], str | None] = _no_complaint
    """Asked every second while it runs: a reason to restart it that its health does not show."""
    refresh: Callable[[Context, Step], bool] = _up_to_date
    """`up` on a running stack: take in what the project files say now; False: the supervisor restarts it for that."""
    cleanup: Callable[[Context], None] = _nothing
    """After its processes are gone."""
    start_timeout_s: float = 120.0
    stop_timeout_s: float = 10.0

    def metrics_url(self, ctx: Context) -> str:
        """What Prometheus reads; '' where there is nothing for it."""
        port = ctx.ports.get(f"{self.name}.{self.metrics}")
        return f"http://{LOOPBACK}:{port}/metrics" if self.metrics and port else ""

    def setting_of(self, port: str) -> str | None:
        """The field of Settings that fixes this port."""
        return next((f for f, template in self.addresses.items() if f"{{{port}}}" in template), None)


def program(name: str) -> str:
    """A program of this virtual environment (not resolved: a venv's python is a link)."""
    return str(Path(sys.executable).parent / name) if name else str(Path(sys.executable).parent)


def servers_folder() -> Path:
    """Where tools/unpack_servers.py put Triton and Envoy."""
    return Path(sys.prefix) / "opt"
