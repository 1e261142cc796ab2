"""Small files of the stack: replaced as a whole, so that nobody reads half of one, and for the owner's eyes only."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from visionloop.atomic import write_whole
from visionloop.errors import StackError

PRIVATE = 0o600
TAIL_BYTES = 16_384
"""How much of a log is looked at: a device in its place would be read for ever."""


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text`, mode 0600. Raises OSError."""
    write_whole(path, text, mode=PRIVATE)


def secret(path: Path, make: Callable[[], str]) -> str:
    """Return the text of `path`, which `make` gives the first time; the mode is 0600 even if somebody widened it."""
    if not path.exists():
        make_private_folder(path.parent)
        write_private(path, make())
    path.chmod(PRIVATE)
    return path.read_text()


def make_private_folder(path: Path) -> None:
    """Make a folder that only the owner enters."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where there is none. Raises StackError for a broken one."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise StackError(f"{path} is broken ({error}): end what still runs, remove it, then `visionloop up`") from None


def open_log(path: Path, title: str) -> int:
    """Open a log for appending and write its first line, so that a full disk shows now. Returns the descriptor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    try:
        os.write(handle, f"--- {title}\n".encode())
    except OSError:
        os.close(handle)
        raise
    return handle


def last_line(path: Path, since: int = 0) -> str:
    """The last line that says something among what was written to `path` after byte `since`; '' where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(since, file.tell() - TAIL_BYTES, 0))
            lines = file.read(TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ""
    spoken = [line.strip() for line in lines if line.strip() and not line.startswith("---")]
    return spoken[-1][:300] if spoken else ""


def shorten_log(path: Path, limit_bytes: int) -> None:
    """Move a log above the limit to `<name>.1` and empty it; the writers append, so they go on at its new end."""
    try:
        if path.is_file() and path.stat().st_size > limit_bytes:
            path.with_name(path.name + ".1").write_bytes(path.read_bytes())
            os.truncate(path, 0)
    except OSError:
        return  # a full disk: the log stays as it is, and the next round tries again
