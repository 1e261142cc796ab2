"""Running stacks for the integration tests: real servers in a folder and on ports of their own, ended in any case.

Each folder of tests has the stack that it needs, ended with its last test: servers that nobody asks slow the others.
`s3_settings` is small, and shared by all: kill nothing in it.
"""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from visionloop import stack
from visionloop.settings import Settings, load_settings
from visionloop.stack.process import family, is_alive
from visionloop.stack.status import read_state

REPO = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def running_stack(only: Collection[str] | None = None, **chosen: int) -> Iterator[Settings]:
    """A stack of its own, with these settings; the folder's path is short: sockets have names of at most 107 bytes."""
    home = Path(tempfile.mkdtemp(prefix="vl-"))
    shutil.copytree(REPO / "projects", home / "projects")
    settings = Settings(home=home / "h", projects=home / "projects", **chosen)
    with contextlib.chdir(REPO):
        try:
            stack.up(settings, only=only)
            yield load_settings({"VISIONLOOP_HOME": str(settings.home), "VISIONLOOP_PROJECTS": str(settings.projects)})
        finally:
            kill_all(settings)
            stack.down(settings)
            shutil.rmtree(home, ignore_errors=True)


def kill_all(settings: Settings) -> None:
    """The data are thrown away: nobody waits for what the servers would still write. `down` is tested elsewhere."""
    state = read_state(settings.home)
    if state is None or not is_alive(state.supervisor):
        return
    assert state.supervisor is not None
    os.kill(state.supervisor.pid, signal.SIGTERM)  # first, so that it starts none of them again
    for leader in [entry.leader for entry in state.services.values() if entry.leader]:
        for pid in family(leader):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def s3_settings() -> Iterator[Settings]:
    """Settings of a running object store."""
    with running_stack(["s3"]) as settings:
        yield settings
