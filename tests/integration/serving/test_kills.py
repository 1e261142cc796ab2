"""Whatever is killed, at whatever step of a release: it goes on or is rolled back, nobody notices, all agree after it.

The servers are the supervisor's, which starts again what is killed. The release task is killed by an exception that
nothing catches, right after a change that it made; another process goes on.
"""

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
import pytest

from tests.integration.conftest import running_stack
from visionloop import stack
from visionloop.errors import VisionLoopError
from visionloop.records import Release
from visionloop.serving.client.retry import MOST_TRIES
from visionloop.settings import Settings
from visionloop.stack.triton import STUB
from visionloop.stages import release
from visionloop.stages.release.doctor import examine
from visionloop.stores import Stores

from .conftest import Shared, make_project
from .world import Traffic, World

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 90.0
CHANGES = {
    "the canary has loaded": ("canary", "load"),
    "the canary has got its first traffic": ("routes", "set"),
    "the stable lane has loaded": ("stable", "load"),
}
"""What a release changes, in its order: who is asked, for what."""


class Killed(BaseException):
    """The release task is gone."""


@dataclass
class Strikes:
    """Kills somebody right after each of the changes, once each, however many releases that takes."""

    servers: "Servers"
    victim: str
    left: list[str] = field(default_factory=lambda: list(CHANGES))

    def on(self, stores: Stores) -> Stores:
        """Stores through which the changes are seen."""
        for name, method in dict.fromkeys(CHANGES.values()):
            self._watch(getattr(stores, name), name, method)
        return stores

    def _watch(self, store: object, name: str, method: str) -> None:
        made = type(store).__dict__[method].__get__(store)

        def call(*arguments, **options):
            result = made(*arguments, **options)
            if self.left and CHANGES[self.left[0]] == (name, method) and options.get("canary") != 0:
                self.left.pop(0)
                self.servers.wait()
                self.servers.kill(self.victim)
            return result

        setattr(store, method, call)


@pytest.fixture
def alone() -> Iterator[Shared]:
    """A stack of each test's own: a supervisor gives up a server that died six times in five minutes."""
    with running_stack(["s3", "triton", "envoy"]) as settings:
        folder = settings.home / "made"
        folder.mkdir()
        yield Shared(settings, folder)


@pytest.mark.parametrize("victims", [["release", "canary", "stable", "envoy"], ["canary's model", "stable's model"]])
def test_whoever_is_killed_at_any_step_the_release_ends_well(alone: Shared, victims: list[str]) -> None:
    servers = Servers(alone.settings)
    for victim in victims:
        here = World(alone, make_project(alone, victim.replace("'s ", "-") + "-dies"))
        here.release(1)
        # Other clients than ours are refused while nobody listens; ours tries again.
        with Traffic(here, most_tries=MOST_TRIES if victim == "envoy" else 1) as traffic:
            kill_at_each_step(here, servers, victim)
        log.info("%s killed: the slowest request took %.0f ms", victim, traffic.slowest_ms)
        assert sum(traffic.seen.values()) > 100
        assert traffic.failures == [], (victim, len(traffic.failures), traffic.failures[:3])


def kill_at_each_step(here: World, servers: "Servers", victim: str) -> None:
    """Release one version after the other until the victim has died after each of the changes."""
    strikes, version = Strikes(servers, victim), 1
    while strikes.left:
        version += 1
        before = len(strikes.left)
        done = released(here, version, strikes)
        servers.wait()
        assert len(strikes.left) < before
        assert done.outcome in ("promoted", "rolled_back", "rejected"), done
        wait_until(lambda: examine(here.project, here.stores) == [], "doctor finds a difference")
        serving = here.registry.aliases[here.project.name]
        assert serving == (version if done.outcome == "promoted" else done.previous_version)
        answered = Counter({("stable", serving): 10})
        # gRPC's own connections may need another second to find an endpoint that is back.
        wait_until(lambda answered=answered: here.versions(10) == answered, f"version {serving} does not answer")


def released(here: World, version: int, strikes: Strikes) -> Release:
    """Run the stages as Airflow does: again, in a new process, where one failed or was killed."""
    inputs, ends = here.inputs(here.candidate(version, bias=0.1 * (version % 2))), time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            for stage in (release.preflight, release.shadow, release.canary, release.promote):
                done = stage(here.project, inputs, strikes.on(here.connect()))
            assert isinstance(done, Release)
            return done
        except (VisionLoopError, Killed) as error:
            assert time.monotonic() < ends, f"{error!r} is not over after {PATIENCE_SECONDS:.0f} s"
            time.sleep(0.5)


@dataclass
class Servers:
    """The supervisor's."""

    settings: Settings
    dead: set[int | None] = field(default_factory=set)
    """Processes of services that were killed, or whose model's process was: none of them is to be seen again."""

    def kill(self, victim: str) -> None:
        """SIGKILL, to a server or to the process of its model."""
        if victim == "release":
            raise Killed
        lane, _, model = victim.partition("'s ")
        pid = self._pids()[lane if lane == "envoy" else f"triton-{lane}"]
        stubs = [child.pid for child in psutil.Process(pid).children() if child.name().startswith(STUB)]
        self.dead.add(pid)
        for target in stubs if model else [pid]:
            os.kill(target, signal.SIGKILL)

    def wait(self) -> None:
        """Until all are well that the supervisor started in place of those that were killed."""
        wait_until(self._are_well, "a server that was killed is not back")

    def _are_well(self) -> bool:
        return stack.status(self.settings).is_up and not {None, *self.dead} & set(self._pids().values())

    def _pids(self) -> dict[str, int | None]:
        return {service.name: service.pid for service in stack.status(self.settings).services}


def wait_until(holds: Callable[[], bool], otherwise: str) -> None:
    ends = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            if holds():
                return
        except VisionLoopError as error:
            otherwise = f"{otherwise}: {error}"
        assert time.monotonic() < ends, otherwise[:2000]
        time.sleep(0.2)
