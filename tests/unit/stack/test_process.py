"""Processes: known for ever, ended with all that they started, never confused with who has their number now."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from visionloop.stack.process import (
    Identity,
    end,
    family,
    identity_of,
    inherited_environment,
    is_alive,
    memory_mb,
    start,
)

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
]
PARENT = [
    sys.executable,
    "-c",
    # A child of the same session in a group of its own, as Ray's workers and Airflow's tasks are.
    "import os, subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], process_group=0)\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(60)\n",
]


class Started:
    """Servers of a test, ended with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[subprocess.Popen[bytes]] = []

    def __call__(self, argv: list[str], *, says: bool = False) -> tuple[Identity, subprocess.Popen[bytes], str]:
        """Start one; `says`: wait for its first line and return it."""
        path = self.folder / f"{len(self.children)}.log"
        log = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        child = start(argv, env=dict(os.environ), cwd=self.folder, log=log)
        os.close(log)
        self.children.append(child)
        identity = identity_of(child.pid)
        assert identity is not None
        deadline = time.monotonic() + 20
        while says and not path.read_text().endswith("\n") and time.monotonic() < deadline:
            time.sleep(0.02)
        return identity, child, path.read_text().strip()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    found = Started(tmp_path)
    yield found
    for child in found.children:
        if child.poll() is None:
            child.kill()
            child.wait()


def test_a_live_process_is_itself_and_a_dead_one_is_nobody(started: Started) -> None:
    identity, child, _ = started(SLEEP)
    assert is_alive(identity)
    child.kill()
    assert not is_alive(identity) or child.wait() == -9  # a zombie counts as dead as soon as it is one
    child.wait()
    assert not is_alive(identity)
    assert not is_alive(None)


def test_a_zombie_is_dead(started: Started) -> None:
    identity, child, _ = started([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, but not collected
    assert not is_alive(identity)
    assert family(identity) == []


@pytest.mark.parametrize("change", [{"started_ticks": 7}, {"boot": "another"}])
def test_a_process_that_has_the_number_now_is_never_touched(started: Started, change: dict[str, object]) -> None:
    innocent, child, _ = started(SLEEP)
    stale = innocent.model_copy(update=change)
    assert not is_alive(stale)
    assert family(stale) == []
    assert end(stale, patience_s=0.1)
    assert child.poll() is None


def test_the_family_has_children_in_groups_of_their_own(started: Started) -> None:
    identity, _, line = started(PARENT, says=True)
    assert set(family(identity)) == {identity.pid, int(line)}


def test_end_takes_the_whole_family(started: Started) -> None:
    identity, child, line = started(PARENT, says=True)
    grandchild = identity_of(int(line))
    assert end(identity, patience_s=5, child=child)
    assert not is_alive(grandchild)
    assert child.returncode == -signal.SIGTERM


def test_the_family_of_a_killed_leader_is_found_and_ended(started: Started) -> None:
    identity, child, line = started(PARENT, says=True)
    child.kill()
    child.wait()
    assert family(identity) == [int(line)]
    assert end(identity, patience_s=5)
    assert identity_of(int(line)) is None


def test_who_ignores_the_first_signal_gets_the_second(started: Started) -> None:
    identity, child, _ = started(STUBBORN, says=True)
    begin = time.monotonic()
    assert end(identity, patience_s=0.3, child=child)
    assert 0.3 <= time.monotonic() - begin < 5
    assert child.returncode == -signal.SIGKILL


def test_ending_what_is_gone_is_harmless(started: Started) -> None:
    identity, child, _ = started(SLEEP)
    child.kill()
    child.wait()
    assert end(identity, patience_s=0.1)


def test_memory_is_that_of_the_processes_that_still_run() -> None:
    assert memory_mb([os.getpid()]) > 5
    assert memory_mb([2**22 + 1]) == 0


def test_settings_of_the_caller_do_not_reach_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "AWS_PROFILE", "MLFLOW_TRACKING_URI", "AIRFLOW_HOME", "PYTHONPATH", "VISIONLOOP_STORE"):
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setenv("NO_PROXY", "corp")
    found = inherited_environment()
    assert "elsewhere" not in found.values()
    assert found["NO_PROXY"] == "corp,127.0.0.1,localhost"
    assert found["PATH"] == os.environ["PATH"]
