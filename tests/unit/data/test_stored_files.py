"""A batch in the object store: what others may have put there under whatever names and sizes."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from visionloop import layout
from visionloop.data.formats.delivery import LARGEST_DESCRIPTION_BYTES, described
from visionloop.errors import DataError
from visionloop.stores.batches import StoredFiles
from visionloop.stores.objects import ObjectInfo

PREFIX = layout.incoming("p", "b")


class Listing:
    """An object store as S3 may be: any key at all."""

    def __init__(self, *names: str, size_bytes: int = 3) -> None:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        self.listed = [ObjectInfo(key=PREFIX + name, size_bytes=size_bytes, modified=at) for name in names]

    def scan(self, prefix: str) -> list[ObjectInfo]:
        """All of it."""
        return self.listed

    def download(self, key: str, path: Path) -> None:
        """As the real ones: folders are made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(key.encode())

    def get(self, key: str) -> bytes:
        """Never of what is too large."""
        raise AssertionError(f"{key} was read")


def stored(objects: Any, folder: Path) -> StoredFiles:
    return StoredFiles(objects, "p", "b", folder)


@pytest.mark.parametrize("name", ["../../evil", "a/../../../evil", "{tmp}/evil", "/{tmp}/evil", "images-idx3-ubyte"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    name, folder = name.format(tmp=tmp_path), tmp_path / "work" / "incoming"
    with stored(Listing(name), folder).open(name) as stream:
        assert stream.read() == (PREFIX + name).encode()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.parent for path in written] == [folder]


def test_two_names_are_two_files(tmp_path: Path) -> None:
    files = stored(Listing("a", "b"), tmp_path)
    assert files.open("a").read() != files.open("b").read() == files.open("b").read()


def test_a_description_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    files = stored(Listing("batch.json", size_bytes=LARGEST_DESCRIPTION_BYTES + 1), tmp_path)
    with pytest.raises(DataError, match=r"batch\.json of batch b has 67,108,865 bytes, allowed 67,108,864"):
        described(files)


def test_a_marker_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    stored(Listing(layout.READY, size_bytes=1 << 32), tmp_path).check_complete()
