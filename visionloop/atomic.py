"""Files that others read while they are written: replaced as a whole, or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART_PREFIX = ".part-"
"""Begins the name of a file that is still being written, beside the one that it will be."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` (mode 0600) that becomes `path` when the block ends well, and vanishes when it doesn't."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=PART_PREFIX, dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace `path` by `text`: written aside, flushed to the disk, renamed. Raises OSError."""
    with whole_file(path) as part:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(mode)
