"""Running stacks for the integration tests: real servers in a folder and on ports of their own, ended in any case.

Each folder of tests has the stack that it needs, ended with its last test: servers that nobody asks slow the others.
`s3_settings` is small, and shared by all: kill nothing in it.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from visionloop import stack
from visionloop.settings import Settings, load_settings

REPO = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def running_stack(only: Collection[str] | None = None) -> Iterator[Settings]:
    """A stack of its own; the folder's path is short, since sockets have names of at most 107 bytes."""
    home = Path(tempfile.mkdtemp(prefix="vl-"))
    shutil.copytree(REPO / "projects", home / "projects")
    settings = Settings(home=home / "h", projects=home / "projects")
    with contextlib.chdir(REPO):
        try:
            stack.up(settings, only=only)
            yield load_settings({"VISIONLOOP_HOME": str(settings.home), "VISIONLOOP_PROJECTS": str(settings.projects)})
        finally:
            stack.down(settings)
            shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_settings() -> Iterator[Settings]:
    """Settings of a running object store."""
    with running_stack(["s3"]) as settings:
        yield settings
