"""One at a time changes which version of a model a lane has: look whether it may, write, load."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager

from visionloop.errors import StoreError
from visionloop.settings import Settings

FOLDER = ".locks"
WAIT_SECONDS = 20.0
POLL_SECONDS = 0.02


@contextmanager
def lane_lock(settings: Settings, lane: str, model: str) -> Iterator[None]:
    """Hold the lock of this model in this lane; the kernel frees it with the process. Raises StoreError if it is kept.

    It lies in the model repository, which whoever loads must be able to write anyway.
    """
    settings.need("model_repository")
    assert settings.model_repository is not None
    folder = settings.model_repository / FOLDER
    folder.mkdir(exist_ok=True)
    with (folder / f"{lane}-{model}").open("w") as lock:
        deadline = time.monotonic() + WAIT_SECONDS
        while not _taken(lock.fileno()):
            if time.monotonic() > deadline:
                raise StoreError(f"another process is loading {model} into the {lane} lane, for {WAIT_SECONDS:g} s now")
            time.sleep(POLL_SECONDS)
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
