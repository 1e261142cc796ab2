"""The keeper on small real processes: starts, reasons of failure, restarts, giving up, adoption."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from visionloop.errors import ConfigError
from visionloop.settings import Settings
from visionloop.stack.keeper import Keeper, Patience
from visionloop.stack.probe import NoAnswer
from visionloop.stack.process import Identity, end, family, identity_of
from visionloop.stack.service import Context, Launch, Service
from visionloop.stack.status import Kept

SERVE = "import pathlib, time; pathlib.Path('ready').touch(); print('serving', flush=True); time.sleep(60)"
QUICK = Patience(deaths=2, window_s=60, first_s=0.01, longest_s=0.02, watch_s=0.02, complaint_s=0.1)
WAIT_S = 20.0


class OneBoard:
    """The board of one service."""

    def __init__(self) -> None:
        self.kept = Kept(name="web")
        self.history: list[tuple[str, str]] = []
        self.stopping, self.rearm = threading.Event(), threading.Event()

    def post(self, name: str, **changes: object) -> None:
        self.kept = self.kept.model_copy(update=changes)
        if (self.kept.state, self.kept.reason) not in self.history[-1:]:
            self.history.append((self.kept.state, self.kept.reason))

    def entry(self, name: str) -> Kept:
        return self.kept

    def wait_for(self, names: tuple[str, ...]) -> bool:
        return not self.stopping.is_set()

    def until(self, holds: Callable[[Kept], bool]) -> Kept:
        """Wait for a state."""
        deadline = time.monotonic() + WAIT_S
        while not holds(self.kept):
            assert time.monotonic() < deadline, self.history
            time.sleep(0.01)
        return self.kept


class Stage:
    """A keeper in a thread, its service's command a Python program."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ctx = Context(home=folder, repo=folder, settings=Settings(home=folder), ports={})
        self.board = OneBoard()
        self.keepers: list[Keeper] = []

    def service(self, program: str, **changes: object) -> Service:
        """A service that is well once the file `ready` is there."""

        def launch(ctx: Context) -> Launch:
            return Launch([sys.executable, "-c", program], ctx.environment(), ctx.home)

        def check(ctx: Context, started: datetime) -> None:
            if not (ctx.home / "ready").exists():
                raise NoAnswer("it is not ready")

        base = Service(name="web", launch=launch, check=check, version=lambda ctx: "1", stop_timeout_s=2)
        return replace(base, **changes)  # type: ignore[arg-type]

    def keep(self, service: Service, *, adopted: Kept | None = None, patience: Patience = QUICK) -> Keeper:
        """Let a keeper run."""
        keeper = Keeper(service, self.ctx, self.board, adopted=adopted, patience=patience)
        self.keepers.append(keeper)
        threading.Thread(target=keeper.run, daemon=True).start()
        return keeper


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    found = Stage(tmp_path)
    yield found
    found.board.stopping.set()
    if found.board.kept.leader:
        end(found.board.kept.leader, patience_s=0.2)


def leader_of(kept: Kept) -> Identity:
    assert kept.leader is not None
    return kept.leader


def test_a_service_starts_and_ends(stage: Stage) -> None:
    keeper = stage.keep(stage.service(SERVE))
    running = stage.board.until(lambda kept: kept.state == "running")
    assert "serving" in (stage.folder / "logs" / "web.log").read_text()
    assert leader_of(running) == identity_of(leader_of(running).pid)
    stage.board.stopping.set()
    keeper.end()
    assert stage.board.kept.state == "stopped"
    assert family(leader_of(running)) == []


@pytest.mark.parametrize(
    ("program", "changes", "reason"),
    [
        ("print('no such option'); raise SystemExit(3)", {}, "ended with status 3: no such option"),
        ("import os; os.kill(os.getpid(), 9)", {}, "was killed by signal 9"),
        ("import time; time.sleep(60)", {"start_timeout_s": 0.3}, "not well after 0 s: it is not ready"),
    ],
)
def test_a_failed_start_says_why(stage: Stage, program: str, changes: dict[str, object], reason: str) -> None:
    stage.keep(stage.service(program, **changes))
    assert stage.board.until(lambda kept: kept.state == "failed").reason == reason


def test_a_program_that_is_missing_says_which(stage: Stage) -> None:
    service = stage.service(SERVE, launch=lambda ctx: Launch(["/nowhere/weed"], {}, ctx.home))
    stage.keep(service)
    reason = stage.board.until(lambda kept: kept.state == "failed").reason
    assert reason == "No such file or directory: /nowhere/weed"


def test_a_failed_preparation_says_why(stage: Stage) -> None:
    failing = Launch([sys.executable, "-c", "print('database is locked'); raise SystemExit(1)"], {}, stage.folder)
    stage.keep(stage.service(SERVE, prepare=lambda ctx, step: step(failing)))
    reason = stage.board.until(lambda kept: kept.state == "failed").reason
    assert "ended with status 1: database is locked" in reason
    assert not (stage.folder / "ready").exists()


def test_a_setting_that_a_preparation_cannot_use_is_named(stage: Stage) -> None:
    def prepare(ctx: Context, step: object) -> None:
        raise ConfigError("the verifying key /gone.pem cannot be used")

    stage.keep(stage.service(SERVE, prepare=prepare))
    assert stage.board.until(lambda kept: kept.state == "failed").reason == "the verifying key /gone.pem cannot be used"


def test_a_log_on_a_full_disk_fails_the_first_start(stage: Stage) -> None:
    (stage.folder / "logs").mkdir()
    (stage.folder / "logs" / "web.log").symlink_to("/dev/full")
    stage.keep(stage.service(SERVE))
    reason = stage.board.until(lambda kept: kept.state == "failed").reason
    assert "web.log cannot be written (No space left on device)" in reason
    assert "VISIONLOOP_HOME" in reason


def test_a_log_on_a_full_disk_does_not_keep_a_service_from_its_restart(stage: Stage) -> None:
    stage.keep(stage.service(SERVE))
    first = leader_of(stage.board.until(lambda kept: kept.state == "running"))
    (stage.folder / "logs" / "web.log").unlink()
    (stage.folder / "logs" / "web.log").symlink_to("/dev/full")
    psutil.Process(first.pid).kill()
    kept = stage.board.until(lambda kept: kept.state == "running" and kept.restarts == 1)
    assert leader_of(kept) != first


def test_one_that_dies_is_started_again_and_the_reason_kept(stage: Stage) -> None:
    stage.keep(stage.service(SERVE))
    first = leader_of(stage.board.until(lambda kept: kept.state == "running"))
    psutil.Process(first.pid).kill()
    again = stage.board.until(lambda kept: kept.state == "running" and kept.restarts == 1)
    assert leader_of(again) != first
    assert again.reason == "was killed by signal 9"


def test_one_that_keeps_dying_is_given_up_and_gets_another_chance_on_demand(stage: Stage) -> None:
    fragile = (
        "import pathlib, sys, time; pathlib.Path('ready').touch(); time.sleep(60 * pathlib.Path('whole').exists())"
    )
    (stage.folder / "whole").touch()
    stage.keep(stage.service(fragile))
    first = leader_of(stage.board.until(lambda kept: kept.state == "running"))
    (stage.folder / "whole").unlink()
    (stage.folder / "ready").unlink()
    psutil.Process(first.pid).kill()
    given_up = stage.board.until(lambda kept: kept.state == "failed")
    assert given_up.reason.startswith("given up after 3 deaths in 60 s (`visionloop up` tries again): ")
    (stage.folder / "whole").touch()
    stage.board.rearm.set()
    stage.board.until(lambda kept: kept.state == "running")


def test_a_complaint_restarts_a_service_that_looks_well(stage: Stage) -> None:
    def complain(ctx: Context, leader: Identity) -> str | None:
        return "a model's process died" if stage.board.kept.restarts == 0 else None

    stage.keep(stage.service(SERVE, complaint=complain))
    assert stage.board.until(lambda k: k.state == "running" and k.restarts == 1).reason == "a model's process died"


def test_a_complaint_that_passes_restarts_nothing(stage: Stage) -> None:
    asked: list[float] = []

    def complain(ctx: Context, leader: Identity) -> str | None:
        asked.append(time.monotonic())
        return "unloading" if len(asked) == 1 else None

    stage.keep(stage.service(SERVE, complaint=complain))
    stage.board.until(lambda kept: len(asked) >= 4)
    assert stage.board.kept.restarts == 0


def test_children_of_a_dead_service_are_ended_before_it_starts_again(stage: Stage) -> None:
    program = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);" + SERVE
    stage.keep(stage.service(program))
    first = leader_of(stage.board.until(lambda kept: kept.state == "running"))
    children = [identity_of(child.pid) for child in psutil.Process(first.pid).children()]
    assert len(children) == 1
    psutil.Process(first.pid).kill()
    stage.board.until(lambda kept: kept.restarts == 1 and kept.state == "running")
    assert family(first) == []


def test_a_service_left_by_a_killed_supervisor_is_adopted(stage: Stage) -> None:
    service = stage.service(SERVE)
    stage.keep(service)
    kept = stage.board.until(lambda kept: kept.state == "running")
    stage.board.stopping.set()  # its keeper lets go without ending it
    stage.board = OneBoard()
    stage.keep(service, adopted=kept)
    assert leader_of(stage.board.until(lambda k: k.state == "running")) == kept.leader


@pytest.mark.parametrize("why", ["another command", "not well"])
def test_one_that_is_not_what_we_would_start_is_ended_instead(stage: Stage, why: str) -> None:
    stage.keep(stage.service(SERVE))
    kept = stage.board.until(lambda kept: kept.state == "running")
    stage.board.stopping.set()
    stage.board = OneBoard()
    (stage.folder / "ready").unlink()
    stage.keep(stage.service(SERVE + "  # new" if why == "another command" else SERVE), adopted=kept)
    assert leader_of(stage.board.until(lambda k: k.state == "running")) != kept.leader
    assert kept.leader is not None and family(kept.leader) == []


def test_a_recycled_number_is_not_adopted_and_not_ended(stage: Stage) -> None:
    own = identity_of(psutil.Process().pid)
    assert own is not None
    stale = Kept(name="web", state="running", leader=own.model_copy(update={"started_ticks": 1}))
    stage.keep(stage.service(SERVE), adopted=stale)
    assert leader_of(stage.board.until(lambda k: k.state == "running")).pid != own.pid


def test_the_end_of_the_stack_interrupts_a_start(stage: Stage) -> None:
    keeper = stage.keep(stage.service("import time; time.sleep(60)"))
    leader = leader_of(stage.board.until(lambda kept: kept.leader is not None))
    stage.board.stopping.set()
    keeper.end()
    assert family(leader) == []


def test_the_first_new_start_is_at_once_and_each_further_one_waits_twice_as_long(stage: Stage) -> None:
    patience = Patience(deaths=5, window_s=60, first_s=0.5, longest_s=3.0)
    keeper = Keeper(stage.service(SERVE), stage.ctx, stage.board, patience=patience)
    assert [keeper._count_death() for _ in range(6)] == [0.0, 0.5, 1.0, 2.0, 3.0, None]
