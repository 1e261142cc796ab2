"""Class folders: labels from folders or from metadata.csv, litter left out, odd deliveries refused by name."""

from pathlib import Path

import pytest

from visionloop.data.formats import Context, open_batch
from visionloop.data.formats import folder as folder_format
from visionloop.data.formats.delivery import Delivered, LocalFiles
from visionloop.errors import DataError

from .deliveries import folder_batch, png

CONTEXT = Context(("a", "b"), 32)


def read(folder: Path, files: dict[str, bytes]) -> list[Delivered]:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    reader = open_batch(LocalFiles(folder), CONTEXT)
    found = list(reader)
    assert reader.total == len(found) and reader.format == "folder"
    return found


def test_every_file_is_delivered_in_order_and_litter_is_not(tmp_path: Path) -> None:
    litter = {"_SUCCESS": b"", "a/.DS_Store": b"x", "a/Thumbs.db": b"x", "__MACOSX/a/1.png": b"x", "batch.json": b""}
    litter["batch.json"] = b'{"metadata": {"camera": "belt-1", "shift": 2}}'
    found = read(tmp_path, folder_batch(100) | litter | {"loose.png": png(500), "a/deep/x.txt": b"text"})
    assert [item.path for item in found] == sorted([*folder_batch(100), "loose.png", "a/deep/x.txt"])
    by_path = {item.path: item for item in found}
    assert by_path["b/001.png"].label == "b" and by_path["b/001.png"].content == png(1)
    assert by_path["loose.png"].label is None
    assert by_path["a/deep/x.txt"].label == "a"
    assert by_path["b/001.png"].metadata == {"camera": "belt-1", "shift": "2"}
    assert by_path["b/001.png"].size_bytes == len(png(1))


def test_metadata_csv_says_more(tmp_path: Path) -> None:
    table = "file,patient,label\r\na/000.png,p1,\r\nb/001.png,p2,a\r\n"
    files = folder_batch(3) | {"metadata.csv": table.encode(), "batch.json": b'{"metadata": {"site": "x"}}'}
    found = {item.path: item for item in read(tmp_path, files)}
    assert found["a/000.png"].metadata == {"site": "x", "patient": "p1"}
    assert (found["a/000.png"].label, found["b/001.png"].label) == ("a", "a")
    assert found["a/002.png"].metadata == {"site": "x"}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("metadata.csv", b"name\nx\n", r"expected a column `file`, found \['name'\]"),
        ("metadata.csv", b"file,g\na/9.png,1\n", r"line 2: the file 'a/9.png' was not delivered"),
        ("metadata.csv", b"file,g\na/000.png,1\na/000.png,2\n", r"line 3: the file 'a/000.png' stands there twice"),
        ("metadata.csv", b"file,g\na/000.png\n", r"line 2: not as wide as its heading"),
        ("metadata.csv", b"file\n\xff\xfe\n", r"is no CSV file in UTF-8"),
        ("batch.json", b"{", r'batch.json of batch .*expected \{"metadata"'),
        ("batch.json", b"[]", r"expected"),
        ("batch.json", b'{"metadata": 3}', r"expected"),
    ],
)
def test_descriptions_that_are_wrong(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, folder_batch(1) | {name: data})


def test_an_empty_batch(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"batch .* is empty: expected class folders with images"):
        read(tmp_path, {"_SUCCESS": b"", "batch.json": b"{}"})


def test_a_file_too_large_to_read_is_delivered_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_format, "MAX_FILE_BYTES", 1000)
    found = read(tmp_path, {"a/1.png": b"x" * 1000, "a/2.png": b"x" * 1001})
    assert found[0].content is not None and not found[0].refused
    assert found[1].content is None and found[1].refused == "1001 bytes, at most 1000 are read"


def test_reads_ahead_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_format, "AHEAD_BYTES", 2500)
    ahead: list[int] = []

    class Counting(LocalFiles):
        started = 0

        def read(self, name: str) -> bytes:
            self.started += 1
            return super().read(name)

    for number in range(30):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{number:02d}").write_bytes(b"x" * 1000)
    files = Counting(tmp_path)
    for done, _ in enumerate(open_batch(files, CONTEXT)):
        ahead.append(files.started - done)
    assert max(ahead) <= 3
