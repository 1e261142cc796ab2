"""The process that keeps the stack: `python -m visionloop.stack.supervisor HOME`, begun by `visionloop up`.

It reads `<home>/stack/plan.json`, chooses ports, starts the services, and stays until SIGTERM. What it knows lies in
state.json at every moment: when it is killed, the services go on and the next `up` adopts them.
"""

import fcntl
import logging
import os
import shutil
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from visionloop.errors import StackError, VisionLoopError
from visionloop.settings import Settings, env_file
from visionloop.stack.addresses import addressed, choose_ports, publish
from visionloop.stack.files import shorten_log
from visionloop.stack.keeper import Keeper
from visionloop.stack.plan import Plan, plan_file
from visionloop.stack.ports import Claims
from visionloop.stack.process import end, family, identity_of, is_alive
from visionloop.stack.service import Context
from visionloop.stack.services import by_name, stop_order
from visionloop.stack.status import Kept, Phase, StackState, log_file, read_state, write_state

log = logging.getLogger("visionloop.stack.supervisor")

ROUND_S = 15.0
LOG_LIMIT_BYTES = 64 * 1024 * 1024
LEAST_FREE_BYTES = 256 * 1024 * 1024


class Supervisor:
    """The board that the keepers share, and the life of the stack around them."""

    def __init__(self, plan: Plan, before: StackState | None) -> None:
        self.plan = plan
        self.before = before
        self.home = plan.settings.home
        self.services = by_name(plan.services)
        self.stopping = threading.Event()
        self.rearm = threading.Event()
        self.changed = threading.Condition()
        self.claims = Claims()
        self.keepers: list[Keeper] = []
        self.state = StackState(repo=plan.repo, supervisor=identity_of(os.getpid()))
        self.state.services = {service.name: Kept(name=service.name) for service in self.services}

    def post(self, name: str, **changes: object) -> None:
        """Change a service's entry and tell who waits."""
        with self.changed:
            self.state.services[name] = self.state.services[name].model_copy(update=changes)
            self._save()
            self.changed.notify_all()

    def entry(self, name: str) -> Kept:
        """A service's entry."""
        with self.changed:
            return self.state.services[name]

    def wait_for(self, names: tuple[str, ...]) -> bool:
        """Wait until all named services that belong to the stack run; False when the stack stops first."""
        with self.changed:
            self.changed.wait_for(lambda: self.stopping.is_set() or self._all_run(names))
        return not self.stopping.is_set()

    def stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Begin the end; a signal handler, so it takes no lock."""
        self.stopping.set()

    def live(self) -> int:
        """Start all, stay, end all. Returns the exit status."""
        try:
            self._settle()
            threads = [threading.Thread(target=keeper.run, name=keeper.service.name) for keeper in self.keepers]
            for thread in threads:
                thread.start()
            failure = self._wait_until_up()
            if not failure:
                self._phase("up")
                self._stay()
        except (VisionLoopError, OSError) as error:
            failure, threads = str(error), []
        self._end(threads, failure)
        return 1 if failure else 0

    def _settle(self) -> None:
        """Choose ports and addresses, tell them to everybody, end what is no longer wanted."""
        old = self.before.services if self.before else {}
        kept = {name: entry for name, entry in old.items() if entry.leader and family(entry.leader)}
        for name in set(kept) - set(self.plan.services):
            _end_leftover(kept[name], self._context({}, self.plan.settings))
        adoptable = [
            service for service in self.services if service.name in kept and is_alive(kept[service.name].leader)
        ]
        ports_before = self.before.ports if self.before else {}
        inherited = {k: v for k, v in ports_before.items() if k.split(".")[0] in {s.name for s in adoptable}}
        for port in inherited.values():
            self.claims.take(port)
        fresh = [service for service in self.services if service not in adoptable]
        self.state.ports = inherited | choose_ports(fresh, self.plan.given, ports_before, self.claims)
        settings = addressed(self.plan.settings, self.services, self.plan.given, self.state.ports)
        publish(settings)
        ctx = self._context(self.state.ports, settings)
        self.keepers = [Keeper(service, ctx, self, adopted=kept.get(service.name)) for service in self.services]
        self._phase("starting")

    def _wait_until_up(self) -> str:
        """Wait until all run; returns '' or the reason of the first that failed."""
        names = tuple(self.state.services)
        while True:
            with self.changed:
                failed = [entry for entry in self.state.services.values() if entry.state == "failed"]
                if failed:
                    return f"{failed[0].name}: {failed[0].reason}; its log is {log_file(self.home, failed[0].name)}"
                if self.stopping.is_set():
                    return "stopped before all services were up"
                if self._all_run(names):
                    return ""
                self.changed.wait(0.5)

    def _stay(self) -> None:
        """Until the end: keep the logs short and say when the disk runs full."""
        while not self.stopping.wait(ROUND_S):
            for name in [*self.state.services, "supervisor"]:
                shorten_log(log_file(self.home, name), LOG_LIMIT_BYTES)
            free = shutil.disk_usage(self.home).free
            low = f"the disk of {self.home} is nearly full ({free // 2**20} MB left)" if free < LEAST_FREE_BYTES else ""
            if low != self.state.reason:
                self._phase("up", low)

    def _end(self, threads: list[threading.Thread], failure: str) -> None:
        """End all services, the dependent ones first, and write how it went."""
        self._phase("stopping", failure)
        self.stopping.set()
        with self.changed:
            self.changed.notify_all()
        for thread in threads:
            thread.join()
        failures = {name: entry for name, entry in self.state.services.items() if entry.state == "failed"}
        keepers = {keeper.service.name: keeper for keeper in self.keepers}
        for group in stop_order(self.services):
            with ThreadPoolExecutor(max_workers=len(group)) as pool:
                list(pool.map(lambda service: keepers[service.name].end(), [s for s in group if s.name in keepers]))
        env_file(self.home).unlink(missing_ok=True)
        for name, entry in failures.items():
            self.post(name, state="failed", reason=entry.reason)
        self._phase("failed" if failure else "down", failure)

    def _all_run(self, names: tuple[str, ...]) -> bool:
        own = [self.state.services[name] for name in names if name in self.state.services]
        return all(entry.state in ("running", "unhealthy") for entry in own)

    def _phase(self, phase: Phase, reason: str = "") -> None:
        with self.changed:
            self.state.phase, self.state.reason = phase, reason
            self._save()
        log.info("%s%s", phase, f": {reason}" if reason else "")

    def _save(self) -> None:
        try:
            write_state(self.home, self.state)
        except OSError as error:  # a full disk must not end the servers; the next change writes all of it
            log.warning("the state cannot be written: %s", error)

    def _context(self, ports: dict[str, int], settings: Settings) -> Context:
        return Context(home=self.home, repo=self.plan.repo, settings=settings, ports=ports)


def _end_leftover(entry: Kept, ctx: Context) -> None:
    """End a service of an earlier stack that this one does not have."""
    services = by_name([entry.name])
    assert entry.leader is not None
    end(entry.leader, patience_s=services[0].stop_timeout_s if services else 10.0)
    for service in services:
        service.cleanup(ctx)


def hold_lock(home: Path) -> int:
    """Hold the supervisor's lock until this process ends; raises StackError where another one has it."""
    handle = os.open(home / "stack" / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StackError(f"another supervisor runs for {home}") from None
    return handle


def main(home: Path) -> int:
    """Run the supervisor of `home`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    hold_lock(home)
    supervisor = Supervisor(Plan.model_validate_json(plan_file(home).read_text()), read_state(home))
    signal.signal(signal.SIGTERM, supervisor.stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, lambda *_: supervisor.rearm.set())
    return supervisor.live()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
