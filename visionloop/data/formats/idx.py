"""IDX files, as MNIST has them: a header that is believed only after it was held against the bytes, then pixels.

Format: http://yann.lecun.com/exdb/mnist/ (two zero bytes, type 0x08 = uint8, number of dimensions, big-endian sizes).
"""

import gzip
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import Protocol

import numpy as np

from visionloop.data.formats.delivery import Context, Delivered, Files, payload
from visionloop.data.images import Pixels
from visionloop.errors import DataError

NAME = re.compile(r"^(?P<stem>.*)(?P<what>images|labels)(?P<dot>[-.])idx(?P<rank>[13])-ubyte(?P<gz>\.gz)?$")
UINT8 = 0x08
MAX_PIXELS = 64 << 20
"""Of one image; the bound on what a header can make this program allocate."""
CHUNK_BYTES = 4 << 20


def is_idx(name: str) -> bool:
    """Is it called like an IDX file of images or labels?"""
    return bool(NAME.match(name))


class Readable(Protocol):
    """A file, packed or not."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, none at the end."""


class IdxReader:
    """Pairs of image and label files; labels are positions in the project's classes."""

    format = "idx"

    def __init__(self, files: Files, context: Context, metadata: Mapping[str, str]) -> None:
        self._files, self._context, self._metadata = files, context, metadata
        self._pairs = pairs(files)
        self.total = sum(self._checked(images, labels) for images, labels in self._pairs)
        if not self.total:
            raise DataError(f"batch {files.batch} is empty: {self._pairs[0][0]} holds 0 images")

    def __iter__(self) -> Iterator[Delivered]:
        for images, labels in self._pairs:
            yield from self._pair(images, labels)

    def _pair(self, images: str, labels: str) -> Iterator[Delivered]:
        with ExitStack() as stack:
            pictures = stack.enter_context(opened(self._files, images, rank=3))
            names = stack.enter_context(opened(self._files, labels, rank=1))
            number = 0
            for chunk in pictures.chunks():
                for pixels, label in zip(chunk, names.take(len(chunk)), strict=True):
                    yield self._delivered(f"{images}/{number:08d}.png", pixels, int(label))
                    number += 1
            pictures.finish()
            names.finish()

    def _delivered(self, path: str, pixels: Pixels, label: int) -> Delivered:
        classes = self._context.classes
        name = classes[label] if label < len(classes) else str(label)
        return Delivered(path, name, pixels, pixels.nbytes, self._metadata)

    def _checked(self, images: str, labels: str) -> int:
        """Number of images of a pair, from both headers. Raises DataError when they disagree."""
        with opened(self._files, images, rank=3) as pictures, opened(self._files, labels, rank=1) as names:
            if pictures.count != names.count:
                raise DataError(
                    f"batch {self._files.batch}: {images} has {pictures.count} images, {labels} has {names.count} "
                    "labels; expected the same number"
                )
            return pictures.count


class IdxStream:
    """One IDX file, read forwards. `shape` is the header's: (count, height, width) or (count,)."""

    def __init__(self, stream: Readable, name: str, shape: tuple[int, ...]) -> None:
        self._stream, self._name = stream, name
        self.shape, self.count = shape, shape[0]
        self._item = int(np.prod(shape[1:], dtype=np.int64))
        self._read = 0

    def chunks(self) -> Iterator[Pixels]:
        """All items, about CHUNK_BYTES at a time."""
        step = max(1, CHUNK_BYTES // max(1, self._item))
        while self._read < self.count:
            yield self.take(min(step, self.count - self._read))

    def take(self, count: int) -> Pixels:
        """The next `count` items: uint8 of shape (count, *shape[1:]). Raises DataError where the file ends early."""
        data = _exactly(self._stream, count * self._item, self._name)
        if len(data) < count * self._item:
            whole = self._read + len(data) // max(1, self._item)
            raise DataError(f"{self._name} is truncated: its header says {self.count} items, it holds {whole}")
        self._read += count
        return np.frombuffer(data, np.uint8).reshape(count, *self.shape[1:])

    def finish(self) -> None:
        """Raises DataError when the file goes on after its last item."""
        if _exactly(self._stream, 1, self._name):
            raise DataError(f"{self._name} is longer than its header says ({self.count} items): it is damaged")


def pairs(files: Files) -> list[tuple[str, str]]:
    """Image file and label file of each pair. Raises DataError that names the file that is missing."""
    found = {name: match for name in payload(files) if (match := NAME.match(name))}
    matched = [(name, _partner(name, match, files)) for name, match in found.items() if match["what"] == "images"]
    used = {labels for _, labels in matched}
    for name, match in found.items():
        if match["what"] == "labels" and name not in used:
            raise DataError(f"batch {files.batch} has labels {name} but not their images {_called(match, 'images')}")
    return matched


@contextmanager
def opened(files: Files, name: str, *, rank: int) -> Iterator[IdxStream]:
    """Open an IDX file and check its header against the bytes there are. Raises DataError."""
    with ExitStack() as stack:
        raw = stack.enter_context(closing(files.open(name)))
        packed = name.endswith(".gz")
        stream: Readable = gzip.GzipFile(fileobj=raw) if packed else raw
        shape = _header(stream, name, rank)
        if not packed:
            _measured(name, shape, files.sizes[name])
        yield IdxStream(stream, name, shape)


def _header(stream: Readable, name: str, rank: int) -> tuple[int, ...]:
    head = _exactly(stream, 4, name)
    if len(head) < 4 or head[:2] != b"\0\0":
        raise DataError(f"{name} is no IDX file: expected two zero bytes at its start, found {head!r}")
    if (head[2], head[3]) != (UINT8, rank):
        raise DataError(
            f"{name}: expected uint8 (0x08) in {rank} dimensions, found type 0x{head[2]:02x} in {head[3]} dimensions"
        )
    sizes = _exactly(stream, 4 * rank, name)
    if len(sizes) < 4 * rank:
        raise DataError(f"{name} is truncated in its header")
    shape = struct.unpack(f">{rank}I", sizes)
    pixels = int(np.prod(shape[1:], dtype=object))
    if rank == 3 and shape[0] and not 0 < pixels <= MAX_PIXELS:
        raise DataError(f"{name} says that an image has {shape[1]} x {shape[2]} pixels, at most {MAX_PIXELS} are read")
    return shape


def _measured(name: str, shape: tuple[int, ...], size_bytes: int) -> None:
    expected = 4 + 4 * len(shape) + int(np.prod(shape, dtype=object))
    if size_bytes != expected:
        what = "truncated" if size_bytes < expected else "longer than its header says"
        raise DataError(f"{name} is {what}: sizes {shape} make {expected} bytes, it has {size_bytes}")


def _exactly(stream: Readable, count: int, name: str) -> bytes:
    """Up to `count` bytes, fewer only at the end of the file; never asks for more than a chunk at once."""
    parts = []
    try:
        while count and (part := stream.read(min(count, CHUNK_BYTES))):
            parts.append(part)
            count -= len(part)
    except EOFError:
        raise DataError(f"{name} is truncated: its gzip stream ends early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name} is corrupt: {error}") from None
    return b"".join(parts)


def _partner(images: str, match: re.Match[str], files: Files) -> str:
    wanted = _called(match, "labels")
    for name in (wanted, wanted.removesuffix(".gz") if match["gz"] else wanted + ".gz"):
        if name in files.sizes:
            return name
    raise DataError(f"batch {files.batch} has the images {images} but not their labels: expected the file {wanted}")


def _called(match: re.Match[str], what: str) -> str:
    rank = 3 if what == "images" else 1
    return f"{match['stem']}{what}{match['dot']}idx{rank}-ubyte{match['gz'] or ''}"
