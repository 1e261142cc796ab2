"""Class folders: `<class>/<file>`, read several at a time; `metadata.csv` may say more about each file."""

import csv
import io
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from visionloop.data.formats.delivery import TABLE, Context, Delivered, Files, payload, read_small
from visionloop.data.images import MAX_FILE_BYTES
from visionloop.errors import DataError

AHEAD_FILES = 64
AHEAD_BYTES = 64 << 20
"""Read ahead at most so much, since most of the time goes into waiting for the store."""
READERS = 16


class FolderReader:
    """One image a file; the first folder of its path is its label, unless `metadata.csv` has a column `label`."""

    format = "folder"

    def __init__(self, files: Files, context: Context, metadata: Mapping[str, str]) -> None:
        self._files, self._metadata = files, metadata
        self._names = payload(files)
        self._rows = _table(files, self._names)
        self.total = len(self._names)

    def __iter__(self) -> Iterator[Delivered]:
        with ThreadPoolExecutor(READERS, "read-batch") as pool:
            waiting: deque[tuple[str, Future[bytes] | None]] = deque()
            ahead = 0
            for name in self._names:
                size = self._files.sizes[name]
                while waiting and (len(waiting) >= AHEAD_FILES or ahead + size > AHEAD_BYTES):
                    done = waiting.popleft()
                    ahead -= self._files.sizes[done[0]]
                    yield self._delivered(*done)
                readable = size <= MAX_FILE_BYTES
                waiting.append((name, pool.submit(self._files.read, name) if readable else None))
                ahead += size
            yield from (self._delivered(*done) for done in waiting)

    def _delivered(self, name: str, content: "Future[bytes] | None") -> Delivered:
        row = dict(self._rows.get(name, {}))
        folder = name.partition("/")[0] if "/" in name else None
        size = self._files.sizes[name]
        return Delivered(
            path=name,
            label=row.pop("label", "") or folder,
            content=content.result() if content else None,
            size_bytes=size,
            metadata={**self._metadata, **row},
            refused="" if content else f"{size} bytes, at most {MAX_FILE_BYTES} are read",
        )


def _table(files: Files, names: list[str]) -> dict[str, dict[str, str]]:
    """`metadata.csv` by file. Raises DataError for one that names no file, an unknown file, or a file twice."""
    if TABLE not in files.sizes:
        return {}
    rows: dict[str, dict[str, str]] = {}
    for number, row in _lines(files):
        name = row.pop("file")
        if name not in files.sizes:
            raise DataError(f"{TABLE} of batch {files.batch}, line {number}: the file {name!r} was not delivered")
        if name in rows:
            raise DataError(f"{TABLE} of batch {files.batch}, line {number}: the file {name!r} stands there twice")
        rows[name] = row
    return rows


def _lines(files: Files) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        reader = csv.DictReader(io.StringIO(read_small(files, TABLE).decode("utf-8-sig"), newline=""), strict=True)
        if "file" not in (reader.fieldnames or []):
            raise DataError(f"{TABLE} of batch {files.batch}: expected a column `file`, found {reader.fieldnames}")
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{TABLE} of batch {files.batch}, line {reader.line_num}: not as wide as its heading")
            yield reader.line_num, {key: value for key, value in row.items() if value}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{TABLE} of batch {files.batch} is no CSV file in UTF-8: {error}") from None
