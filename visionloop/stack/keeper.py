"""Keeps one service: starts it when what it needs is well, watches it, restarts it when it dies, gives up in time."""

import hashlib
import json
import logging
import os
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from visionloop.errors import StackError, VisionLoopError
from visionloop.stack.files import last_line, open_log
from visionloop.stack.probe import NoAnswer
from visionloop.stack.process import end, family, identity_of, is_alive, start
from visionloop.stack.service import Context, Launch, Service
from visionloop.stack.status import Kept, ServiceState, log_file

log = logging.getLogger(__name__)

HEALTH_S = 10.0
"""Between two questions to a running server."""
UNHEALTHY_AFTER = 3
"""Failed questions in a row before the status says so."""
RESTART_AFTER = 12
"""Failed questions in a row before the service is started again (two minutes: training makes slow answers)."""


@dataclass(frozen=True)
class Patience:
    """How often a service may die: at most `deaths` in `window_s`. The first new start is at once; from the second on
    there is a pause before it, which doubles from `first_s` to `longest_s`."""

    deaths: int = 5
    window_s: float = 300.0
    first_s: float = 0.5
    longest_s: float = 20.0
    watch_s: float = 0.5
    """Between two looks at the process."""
    complaint_s: float = 1.0
    """How long a complaint must last: a stub that Triton unloads looks dead for a moment."""


UNWELL = (NoAnswer, KeyError, TypeError, IndexError)
"""What a question to a server raises when the answer is missing or is not the expected one."""


class Board(Protocol):
    """Where the keepers post what becomes of their services, and wait for each other."""

    stopping: threading.Event
    rearm: threading.Event

    def post(self, name: str, **changes: object) -> None:
        """Change a service's entry and tell who waits."""

    def entry(self, name: str) -> Kept:
        """A service's entry."""

    def wait_for(self, names: tuple[str, ...]) -> bool:
        """Wait until all named services run; False when the stack stops first."""


class Stopping(Exception):
    """The stack ends: leave the work."""


@dataclass
class Keeper:
    """One service's keeper; `run` is the body of a thread."""

    service: Service
    ctx: Context
    board: Board
    adopted: Kept | None = None
    """What a supervisor that was killed left running."""
    patience: Patience = field(default_factory=Patience)
    child: subprocess.Popen[bytes] | None = None
    deaths: deque[float] = field(default_factory=deque)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def run(self) -> None:
        """Keep the service until the stack stops. A failed first start is posted and ends the keeper."""
        try:
            if not self.board.wait_for(self.service.needs):
                return
            if not self._adopt():
                self._begin()
            self._keep()
        except Stopping:
            return
        except (VisionLoopError, NoAnswer, OSError, subprocess.SubprocessError) as error:
            self._post("failed", reason=_reason(error))

    def end(self) -> None:
        """End the service's processes and clean up behind them."""
        leader = self.board.entry(self.service.name).leader
        self._post("stopping")
        if leader is not None and not end(leader, patience_s=self.service.stop_timeout_s, child=self.child):
            log.error("%s: processes %s do not end", self.service.name, family(leader))
        self.child = None
        self.service.cleanup(self.ctx)
        self.board.post(self.service.name, state="stopped", leader=None)

    def _keep(self) -> None:
        """Watch; after each death pause, then begin again; after too many, wait to be told."""
        while True:
            reason = self._watch()
            self._end_remains()
            log.warning("%s: %s", self.service.name, reason)
            while not self._revive(reason):
                reason = self.board.entry(self.service.name).reason

    def _revive(self, reason: str) -> bool:
        """One more start after a death; False when it failed too, its reason posted."""
        pause_s = self._count_death()
        if pause_s is None:
            told = f"given up after {len(self.deaths)} deaths in {self.patience.window_s:.0f} s"
            self._post("failed", reason=f"{told} (`visionloop up` tries again): {reason}")
            self._wait_for_rearm()
            pause_s = 0.0
        restarts = self.board.entry(self.service.name).restarts + 1
        self.board.post(self.service.name, state="restarting", reason=reason, restarts=restarts, leader=None)
        if self.board.stopping.wait(pause_s):
            raise Stopping
        try:
            self._begin(lenient=True)
        except (VisionLoopError, NoAnswer, OSError, subprocess.SubprocessError) as error:
            self._end_remains()
            self.board.post(self.service.name, reason=_reason(error))
            return False
        return True

    def _count_death(self) -> float | None:
        """The pause before the next start in seconds, None when the patience is used up."""
        now = time.monotonic()
        while self.deaths and now - self.deaths[0] > self.patience.window_s:
            self.deaths.popleft()
        self.deaths.append(now)
        if len(self.deaths) > self.patience.deaths:
            return None
        if len(self.deaths) == 1:
            return 0.0
        return min(self.patience.first_s * 2.0 ** (len(self.deaths) - 2), self.patience.longest_s)

    def _wait_for_rearm(self) -> None:
        """`visionloop up` on a running stack gives a service that was given up another chance."""
        self.board.rearm.clear()
        while not self.board.rearm.wait(self.patience.watch_s):
            if self.board.stopping.is_set():
                raise Stopping
        self.deaths.clear()

    def _begin(self, *, lenient: bool = False) -> None:
        """Prepare, start, wait until it is well, finish. Raises StackError with the reason.

        `lenient`: a log that cannot be written does not keep a service from its restart; its output is dropped.
        """
        self._post("starting")
        path = log_file(self.ctx.home, self.service.name)
        output = _open(path, self.service.name, lenient=lenient)
        try:
            position = os.fstat(output).st_size
            self.service.prepare(self.ctx, lambda launch: self._step(launch, output, path, position))
            self._start(self.service.launch(self.ctx), output)
        finally:
            os.close(output)
        self._wait_until_well(path, position)
        self.service.finish(self.ctx)
        self.board.post(self.service.name, state="running", reason="" if not lenient else self._last_reason())

    def _start(self, launch: Launch, output: int) -> None:
        if self.board.stopping.is_set():
            raise Stopping
        self.started = datetime.now(UTC)
        self.child = start(launch.argv, env=launch.env, cwd=launch.cwd, log=output)
        leader = identity_of(self.child.pid)
        fingerprint = _fingerprint(launch)
        self.board.post(self.service.name, leader=leader, fingerprint=fingerprint, started=self.started)

    def _step(self, launch: Launch, output: int, path: Path, position: int) -> None:
        """Run a command of the preparation to its end."""
        self._start(launch, output)
        assert self.child is not None
        while self.child.poll() is None:
            if self.board.stopping.wait(0.05):
                raise Stopping
        self.board.post(self.service.name, leader=None)
        if self.child.returncode:
            raise StackError(f"`{Path(launch.argv[0]).name}` {_ending(self.child, path, position)}")

    def _wait_until_well(self, path: Path, position: int) -> None:
        """Ask until the server is well; raises StackError when it ends or the time does."""
        deadline = time.monotonic() + self.service.start_timeout_s
        while True:
            if self.child is not None and self.child.poll() is not None:
                raise StackError(_ending(self.child, path, position))
            try:
                self.service.check(self.ctx, self.started)
                return
            except UNWELL as error:
                if time.monotonic() > deadline:
                    raise StackError(f"not well after {self.service.start_timeout_s:.0f} s: {error}") from None
            if self.board.stopping.wait(0.1):
                raise Stopping

    def _watch(self) -> str:
        """Return the reason when the service needs a new start."""
        failed, asked, since = 0, time.monotonic(), time.monotonic()
        complaint: str | None = None
        position = _size(log_file(self.ctx.home, self.service.name))
        while True:
            if self.board.stopping.wait(self.patience.watch_s):
                raise Stopping
            leader = self.board.entry(self.service.name).leader
            if leader is None or not is_alive(leader):
                return _ending(self.child, log_file(self.ctx.home, self.service.name), position)
            before, complaint = complaint, self.service.complaint(self.ctx, leader)
            since = since if complaint == before else time.monotonic()
            if complaint and time.monotonic() - since >= self.patience.complaint_s:
                return complaint
            if time.monotonic() - asked >= HEALTH_S:
                failed, asked = self._ask(failed), time.monotonic()
                if failed >= RESTART_AFTER:
                    return f"not well for {failed * HEALTH_S:.0f} s: {self._last_reason()}"

    def _ask(self, failed: int) -> int:
        """Ask the running server once; returns how often in a row it was not well, and posts a change."""
        try:
            self.service.check(self.ctx, self.started)
        except UNWELL as error:
            if failed + 1 >= UNHEALTHY_AFTER:
                self._post("unhealthy", reason=str(error))
            return failed + 1
        if failed >= UNHEALTHY_AFTER:
            self._post("running", reason="")
        return 0

    def _adopt(self) -> bool:
        """Take over what a killed supervisor left, if it is well and is what we would start; else end it."""
        kept = self.adopted
        if kept is None or kept.leader is None:
            return False
        self.board.post(self.service.name, leader=kept.leader, fingerprint=kept.fingerprint, started=kept.started)
        self.started = kept.started or self.started
        try:
            same = is_alive(kept.leader) and _fingerprint(self.service.launch(self.ctx)) == kept.fingerprint
            if same:
                self.service.check(self.ctx, self.started)
                self.board.post(self.service.name, state="running", restarts=kept.restarts, reason="")
                log.info("%s: adopted pid %d", self.service.name, kept.leader.pid)
                return True
        except (*UNWELL, VisionLoopError, OSError) as error:
            log.info("%s: not adopted: %s", self.service.name, error)
        self._end_remains()
        return False

    def _end_remains(self) -> None:
        """End what is left of a service before it starts again: children outlive a killed leader."""
        leader = self.board.entry(self.service.name).leader
        if leader is not None:
            end(leader, patience_s=min(3.0, self.service.stop_timeout_s), child=self.child)
        self.child = None
        self.service.cleanup(self.ctx)
        self.board.post(self.service.name, leader=None)

    def _post(self, state: ServiceState, *, reason: str | None = None) -> None:
        changes: dict[str, object] = {"state": state}
        if reason is not None:
            changes["reason"] = reason
        self.board.post(self.service.name, **changes)

    def _last_reason(self) -> str:
        return self.board.entry(self.service.name).reason


def _open(path: Path, service: str, *, lenient: bool) -> int:
    try:
        return open_log(path, f"{service} starts {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
    except OSError as error:
        if lenient:
            log.warning("%s: its log %s cannot be written (%s): output is dropped", service, path, error.strerror)
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        raise StackError(
            f"its log {path} cannot be written ({error.strerror}): free space on that disk, or set VISIONLOOP_HOME"
        ) from None


def _ending(child: subprocess.Popen[bytes] | None, path: Path, position: int) -> str:
    """How a process ended, with its last words."""
    code = child.poll() if child is not None else None
    how = "ended" if code is None else f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
    words = last_line(path, position)
    return f"{how}: {words}" if words else how


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return str(error)


def _fingerprint(launch: Launch) -> str:
    """Digest of the command and of the settings that visionloop made for it."""
    own = {
        k: v for k, v in launch.env.items() if k.startswith(("VISIONLOOP_", "AIRFLOW__", "RAY_", "AWS_", "PYTHONPATH"))
    }
    text = json.dumps([launch.argv, str(launch.cwd), sorted(own.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
