"""What every format yields, and what a reader asks of the place where the batch lies."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from visionloop.data.images import Pixels
from visionloop.errors import DataError

DESCRIPTION = "batch.json"
TABLE = "metadata.csv"
LARGEST_DESCRIPTION_BYTES = 64 << 20


class Files(Protocol):
    """The files of one batch, wherever they lie. Names are relative paths with `/`."""

    batch: str
    sizes: Mapping[str, int]
    """Name -> bytes of every file, in the order of their names."""

    def read(self, name: str) -> bytes:
        """The whole file. Raises NotFound."""

    def open(self, name: str) -> BinaryIO:
        """A stream that outlives an outage of the store; the caller closes it."""


@dataclass(frozen=True)
class Context:
    """What the project says about images and labels."""

    classes: tuple[str, ...]
    max_side: int


@dataclass(frozen=True)
class Delivered:
    """One delivered image: the bytes of its file, or its pixels where the format has no files per image."""

    path: str
    """Unique in the batch."""
    label: str | None
    content: bytes | Pixels | None
    """None: the file was not read, because of `refused`."""
    size_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""
    """Why the file was not even read."""


class BatchReader(Protocol):
    """Streams a batch in a fixed order, never whole in memory."""

    format: str
    total: int
    """How many images it will yield."""

    def __iter__(self) -> Iterator[Delivered]:
        """Yield every delivered image. Raises DataError where the batch as a whole cannot be read."""


class LocalFiles:
    """A batch in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.batch = folder, folder.name
        paths = (path for path in folder.rglob("*") if path.is_file())
        found = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
        self.sizes: Mapping[str, int] = dict(sorted(found.items()))

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def open(self, name: str) -> BinaryIO:
        return (self.folder / name).open("rb")


def payload(files: Files) -> list[str]:
    """Names of the files that are images or labels: neither descriptions nor what file browsers leave behind."""
    return [name for name in files.sizes if name not in (DESCRIPTION, TABLE) and not _litter(name)]


def read_small(files: Files, name: str) -> bytes:
    """A file that people write, whole. Raises DataError for one that is too large to be that."""
    if files.sizes[name] > LARGEST_DESCRIPTION_BYTES:
        raise DataError(
            f"{name} of batch {files.batch} has {files.sizes[name]:,} bytes, allowed {LARGEST_DESCRIPTION_BYTES:,}"
        )
    return files.read(name)


def described(files: Files) -> dict[str, str]:
    """The metadata that `batch.json` gives to every sample. Raises DataError when it is something else."""
    if DESCRIPTION not in files.sizes:
        return {}
    try:
        found = json.loads(read_small(files, DESCRIPTION))["metadata"]
        return {str(key): str(value) for key, value in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{DESCRIPTION} of batch {files.batch}: expected {{"metadata": {{"name": "value"}}}}, found '
            f"{type(error).__name__}: {error}"
        ) from None


def _litter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith((".", "__MACOSX")) for part in parts) or parts[-1] in ("_SUCCESS", "Thumbs.db")
