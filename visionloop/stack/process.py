"""Processes that outlive their starter: known by pid, start time and boot, ended together with their children."""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

PROC = Path("/proc")
LOOK_S = 0.05
KILL_PATIENCE_S = 10.0
DROPPED = (
    "VISIONLOOP_",
    "AIRFLOW_",
    "MLFLOW_",
    "RAY_",
    "AWS_",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
)
"""Variables of the caller that would bend a server: the stack sets its own."""


class Identity(BaseModel):
    """A process for ever: a pid alone may be given to somebody else later."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started_ticks: int
    """Clock ticks from boot to the start of the process."""
    boot: str
    """The kernel's id of this boot."""


def identity_of(pid: int) -> Identity | None:
    """The identity of a live process, None for a dead one or a zombie."""
    stat = _stat(pid)
    if stat is None or stat[0] in "ZX":
        return None
    return Identity(pid=pid, started_ticks=int(stat[19]), boot=boot_id())


def is_alive(identity: Identity | None) -> bool:
    """Whether this very process still runs."""
    return identity is not None and identity_of(identity.pid) == identity


def boot_id() -> str:
    """The kernel's id of this boot."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def family(identity: Identity) -> list[int]:
    """The live processes of the leader's session, the leader included: what it started, unless it left on purpose.

    A session's number is not given away while one member lives, so a member that is younger than the leader belongs to
    it; where the number has a new owner (same pid, another start), none is returned.
    """
    if boot_id() != identity.boot:
        return []
    owner = identity_of(identity.pid)
    if owner is not None and owner != identity:
        return []
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        stat = _stat(int(entry.name))
        if stat and stat[0] not in "ZX" and int(stat[3]) == identity.pid and int(stat[19]) >= identity.started_ticks:
            found.append(int(entry.name))
    return found


def start(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: int) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, output to the descriptor `log`. Raises OSError."""
    return subprocess.Popen(
        list(argv), env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )


def end(identity: Identity, *, patience_s: float, child: subprocess.Popen[bytes] | None = None) -> bool:
    """End the process and its session. Returns whether all are gone.

    The leader gets SIGTERM first and alone: it knows in which order to end what it started (all at once, Ray's parts
    wait for each other in vain). Who is left then gets SIGTERM too, and who is left after `patience_s` SIGKILL.
    """
    deadline = time.monotonic() + patience_s
    if is_alive(identity):
        _signal([identity.pid], signal.SIGTERM)
    while is_alive(identity) and time.monotonic() < deadline:
        _collect(child)
        time.sleep(LOOK_S)
    if is_alive(identity):
        _signal(family(identity), signal.SIGKILL)
    else:
        _signal(family(identity), signal.SIGTERM)
    if not _gone(identity, max(1.0, deadline - time.monotonic()), child):
        _signal(family(identity), signal.SIGKILL)
        return _gone(identity, KILL_PATIENCE_S, child)
    return True


def inherited_environment() -> dict[str, str]:
    """The caller's environment without what would bend a server."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(DROPPED)}
    local = "127.0.0.1,localhost"
    for key in ("no_proxy", "NO_PROXY"):
        kept[key] = f"{kept[key]},{local}" if kept.get(key) else local
    return kept


def memory_mb(pids: Iterable[int]) -> float:
    """Memory of the processes, shared pages counted once (proportional set size), in MB."""
    total_kb = 0
    for pid in pids:
        try:
            text = (PROC / str(pid) / "smaps_rollup").read_text()
        except OSError:
            continue  # it ended meanwhile
        total_kb += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return round(total_kb / 1024, 1)


def _gone(identity: Identity, patience_s: float, child: subprocess.Popen[bytes] | None) -> bool:
    """Wait for the session to be empty."""
    deadline = time.monotonic() + patience_s
    while True:
        if not family(identity):
            _collect(child)
            return True
        _collect(child)
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)


def _collect(child: subprocess.Popen[bytes] | None) -> None:
    """Take the exit status of an own child: a zombie would keep its number."""
    if child is not None:
        child.poll()


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it ended meanwhile


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the third on: 0 state, 1 parent, 2 group, 3 session, 19 start in ticks."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()  # the name before it may hold blanks and brackets
