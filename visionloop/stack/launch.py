"""`up`, `down`, `status`: the commands of a terminal, which start the supervisor, tell it, and read what it wrote."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from visionloop.errors import StackError
from visionloop.settings import Settings, env_file
from visionloop.stack.addresses import addressed, check_given, given_by_user
from visionloop.stack.files import last_line, make_private_folder, open_log, write_private
from visionloop.stack.plan import Plan, plan_file
from visionloop.stack.probe import NoAnswer
from visionloop.stack.process import Identity, end, family, identity_of, is_alive, memory_mb
from visionloop.stack.refresh import refresh
from visionloop.stack.service import Context
from visionloop.stack.services import ALL, by_name, select, stop_order
from visionloop.stack.status import Event, Kept, Phase, ServiceStatus, StackState, StackStatus, log_file, read_state
from visionloop.stack.status import write_state as _write_state

OnEvent = Callable[[Event], None]
REPO_FOLDERS = ("dags", "plugins", "ray_jobs", "model_repository")
STOP_PATIENCE_S = 90.0
LOOK_S = 0.05
"""Between two looks at what the supervisor wrote."""


def _ignore(event: Event) -> None:
    return


def up(
    settings: Settings,
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    on_event: OnEvent = _ignore,
) -> StackStatus:
    """Start the stack, or what is missing of it; returns when every service is well.

    A stack that runs takes in what the project files say now: new projects, new approvers.
    Raises StackError with the service, the reason and its log; a stack that was down is down then.
    """
    began = time.monotonic()
    services = select(only, without)
    home = _writable(settings.home)
    with _one_at_a_time(home):
        state = read_state(home)
        if state is not None and is_alive(state.supervisor):
            _join(settings, state, [service.name for service in services], on_event, began)
            return status(settings)
        plan = _plan(settings, [service.name for service in services])
        supervisor = _start_supervisor(plan)
        try:
            _follow(home, supervisor, on_event, began)
        except KeyboardInterrupt:
            _stop(home, on_event, began)
            raise
    return status(settings)


def down(settings: Settings, *, on_event: OnEvent = _ignore) -> StackStatus:
    """End the stack, also one whose supervisor was killed. Data stay."""
    if (settings.home / "stack").is_dir():
        with _one_at_a_time(settings.home):
            _stop(settings.home, on_event, time.monotonic())
    return status(settings)


def status(settings: Settings) -> StackStatus:
    """What runs now; versions are asked of the servers."""
    state = read_state(settings.home)
    if state is None:
        return StackStatus(phase="down", home=settings.home)
    supervised = is_alive(state.supervisor)
    ctx = _context(settings, state)
    services = [_service_status(entry, ctx, supervised=supervised) for entry in state.services.values()]
    return StackStatus(
        phase=_phase(state, services, supervised), reason=state.reason, home=settings.home, services=services
    )


def log_path(settings: Settings, service: str) -> Path:
    """The log of a service (or of `supervisor`). Raises StackError for an unknown name."""
    names = ["supervisor", *(known.name for known in ALL)]
    if service not in names:
        raise StackError(f"there is no service {service!r}; there are: {', '.join(names)}")
    return log_file(settings.home, service)


def _plan(settings: Settings, names: list[str]) -> Plan:
    """What to run, checked. Raises StackError for settings that cannot be honoured."""
    repo, services = _repository(), by_name(names)
    given = given_by_user(settings, ALL, os.environ)
    check_given(given, services, settings.home)
    plan = Plan(repo=repo, settings=settings, services=names, given=given)
    make_private_folder(settings.home / "stack")
    write_private(plan_file(settings.home), plan.model_dump_json(indent=1))
    return plan


def _repository() -> Path:
    """The current folder, if it is the repository's. Raises StackError."""
    here = Path.cwd()
    missing = [name for name in REPO_FOLDERS if not (here / name).is_dir()]
    if missing:
        raise StackError(f"{here} is not visionloop's repository ({', '.join(missing)} missing): change to it first")
    return here


def _start_supervisor(plan: Plan) -> subprocess.Popen[bytes]:
    """Start the supervisor in a session of its own. Raises StackError where its log cannot be written."""
    home = plan.settings.home
    path = log_file(home, "supervisor")
    try:
        output = open_log(path, "supervisor starts")
    except OSError as error:
        raise StackError(
            f"the supervisor's log {path} cannot be written ({error.strerror}): free space, or set VISIONLOOP_HOME"
        ) from None
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "visionloop.stack.supervisor", str(home)],
            cwd=plan.repo,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        os.close(output)


def _follow(home: Path, supervisor: subprocess.Popen[bytes], on_event: OnEvent, began: float) -> None:
    """Report the supervisor's progress until all is up; raises StackError when it is not to be."""
    seen: dict[str, tuple[str, str]] = {}
    own = identity_of(supervisor.pid)
    while True:
        code = supervisor.poll()
        state = read_state(home)
        if state is not None and own is not None and state.supervisor == own:
            _report(state, seen, on_event, began)
            if state.phase == "up":
                return
            if code is not None and state.reason:
                raise StackError(state.reason)
        if code is not None:
            path = log_file(home, "supervisor")
            raise StackError(f"the supervisor ended with status {code}: {last_line(path)}; its log is {path}")
        time.sleep(LOOK_S)


def _join(settings: Settings, state: StackState, wanted: list[str], on_event: OnEvent, began: float) -> None:
    """`up` on a running stack: wait until it is well; a service that was given up gets another chance."""
    home = settings.home
    missing = [name for name in wanted if name not in state.services]
    if missing:
        raise StackError(f"the stack runs without {', '.join(missing)}: `visionloop down` first, then `visionloop up`")
    given_up = {name for name, entry in state.services.items() if entry.state == "failed"}
    if given_up and state.supervisor is not None:
        os.kill(state.supervisor.pid, signal.SIGHUP)
    running = [name for name, entry in state.services.items() if entry.state == "running"]
    since = refresh(by_name(running), _context(settings, state))
    seen: dict[str, tuple[str, str]] = {}
    deadline = began + max(service.start_timeout_s for service in by_name(state.services))
    while True:
        current = read_state(home)
        if current is None or not is_alive(current.supervisor):
            raise StackError("the stack went down meanwhile: `visionloop up` again")
        _report(current, seen, on_event, began)
        old = {name for name, time in since.items() if (current.services[name].started or time) <= time}
        ill = [entry for entry in current.services.values() if entry.state != "running" or entry.name in old]
        if not ill and current.phase == "up":
            return
        given_up -= {entry.name for entry in current.services.values() if entry.state != "failed"}
        failed = [entry for entry in ill if entry.state == "failed" and entry.name not in given_up]
        if failed or (ill and time.monotonic() > deadline):
            worst = (failed or ill)[0]
            raise StackError(f"{worst.name}: {worst.reason or worst.state}; its log is {log_file(home, worst.name)}")
        time.sleep(LOOK_S)


def _report(state: StackState, seen: dict[str, tuple[str, str]], on_event: OnEvent, began: float) -> None:
    for name, entry in state.services.items():
        now = (entry.state, entry.reason)
        if seen.get(name) != now:
            seen[name] = now
            seconds = round(time.monotonic() - began, 1)
            on_event(Event(service=name, state=entry.state, reason=entry.reason, seconds=seconds))


def _stop(home: Path, on_event: OnEvent, began: float) -> None:
    """End the supervisor, which ends the services; what a killed one left is ended here."""
    state = read_state(home)
    if state is None:
        return
    if is_alive(state.supervisor):
        assert state.supervisor is not None
        _ask_to_end(home, state.supervisor, on_event, began)
    _end_leftovers(home)
    env_file(home).unlink(missing_ok=True)


def _ask_to_end(home: Path, supervisor: Identity, on_event: OnEvent, began: float) -> None:
    os.kill(supervisor.pid, signal.SIGTERM)
    seen: dict[str, tuple[str, str]] = {}
    while is_alive(supervisor):
        state = read_state(home)
        if state is not None:
            _report(state, seen, on_event, began)
        if time.monotonic() - began > STOP_PATIENCE_S:
            os.kill(supervisor.pid, signal.SIGKILL)
            end(supervisor, patience_s=1.0)
            return
        time.sleep(LOOK_S)


def _end_leftovers(home: Path) -> None:
    """End services that no supervisor keeps, known by pid, start time and boot."""
    state = read_state(home)
    if state is None:
        return
    ctx = _context(Settings(home=home), state)
    for group in stop_order(by_name(state.services)):
        for service in group:
            leader = state.services[service.name].leader
            if leader is not None and family(leader):
                end(leader, patience_s=service.stop_timeout_s)
                service.cleanup(ctx)
    gone = {"state": "stopped", "leader": None}
    state.services = {name: entry.model_copy(update=gone) for name, entry in state.services.items()}
    state.phase, state.supervisor, state.reason = "down", None, ""
    _write_state(home, state)


def _service_status(entry: Kept, ctx: Context, *, supervised: bool) -> ServiceStatus:
    """One line of the status, from the entry and from the server itself."""
    service = by_name([entry.name])[0]
    runs = is_alive(entry.leader)
    state = entry.state if supervised or entry.state in ("failed", "stopped") else "running" if runs else "stopped"
    return ServiceStatus(
        name=entry.name,
        state=state,
        pid=entry.leader.pid if runs and entry.leader else None,
        address=_address(entry.name, ctx),
        metrics=service.metrics_url(ctx) if runs else "",
        version=_version(entry.name, ctx) if state in ("running", "unhealthy") else "",
        rss_mb=memory_mb(family(entry.leader)) if runs and entry.leader else 0.0,
        restarts=entry.restarts,
        log=log_file(ctx.home, service.name),
        reason=entry.reason,
    )


def _version(name: str, ctx: Context) -> str:
    try:
        return by_name([name])[0].version(ctx)
    except (NoAnswer, KeyError, TypeError, IndexError, OSError):
        return ""


def _address(name: str, ctx: Context) -> str:
    """The first address that the service offers."""
    fields = by_name([name])[0].addresses
    return next((str(getattr(ctx.settings, f)) for f, template in fields.items() if "127.0.0.1" in template), "")


def _phase(state: StackState, services: list[ServiceStatus], supervised: bool) -> Phase:
    if not supervised:
        alive = any(service.pid for service in services)
        return "unsupervised" if alive else "failed" if state.phase == "failed" else "down"
    if state.phase == "up" and any(service.state != "running" for service in services):
        return "degraded"
    return state.phase


def _context(settings: Settings, state: StackState) -> Context:
    """The context of a stack that was started earlier."""
    services = [s for s in by_name(state.services) if all(f"{s.name}.{port}" in state.ports for port in s.ports)]
    known = addressed(settings, services, {}, state.ports)
    return Context(home=settings.home, repo=state.repo, settings=known, ports=state.ports)


def _writable(home: Path) -> Path:
    """Make home's folders. Raises StackError where that cannot be done."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        make_private_folder(home / "stack")
        (home / "logs").mkdir(exist_ok=True)
        write_private(home / "stack" / "writable", "")
    except OSError as error:
        raise StackError(
            f"cannot write to {home} ({error.strerror}): choose another folder by VISIONLOOP_HOME"
        ) from None
    return home


@contextmanager
def _one_at_a_time(home: Path) -> Iterator[None]:
    """Two terminals that say `up` or `down` at once: the second waits for the first."""
    handle = os.open(home / "stack" / "command.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
