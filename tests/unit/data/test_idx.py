"""IDX files: a header is believed only when the bytes agree, and no bytes make the parser do more than refuse."""

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from visionloop.data.formats import Context, detect, open_batch
from visionloop.data.formats.delivery import LocalFiles
from visionloop.data.formats.idx import IdxReader
from visionloop.data.images import Pixels
from visionloop.errors import DataError

from .deliveries import idx, idx_batch, pixels

CONTEXT = Context(("a", "b"), 32)
IMAGES, LABELS = "images-idx3-ubyte.gz", "labels-idx1-ubyte"


def written(folder: Path, files: dict[str, bytes]) -> LocalFiles:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return LocalFiles(folder)


def read(folder: Path, files: dict[str, bytes]) -> list[tuple[str, str | None, Pixels]]:
    reader = open_batch(written(folder, files), CONTEXT)
    assert isinstance(reader, IdxReader)
    found = [(item.path, item.label, np.asarray(item.content)) for item in reader]
    assert len(found) == reader.total
    return found


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 12), st.integers(1, 12))),
    st.booleans(),
    st.booleans(),
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, images: Pixels, zip_images: bool, zip_labels: bool
) -> None:
    labels = (np.arange(len(images)) % 3).astype(np.uint8)
    files = {
        "t-images-idx3-ubyte" + ".gz" * zip_images: gzip.compress(idx(images)) if zip_images else idx(images),
        "t-labels-idx1-ubyte" + ".gz" * zip_labels: gzip.compress(idx(labels)) if zip_labels else idx(labels),
    }
    found = read(tmp_path_factory.mktemp("idx"), files)
    assert np.array_equal(np.stack([image for _, _, image in found]), images)
    assert [label for _, label, _ in found] == [("a", "b", "2")[label] for label in labels]
    assert len({path for path, _, _ in found}) == len(images)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_a_data_error_or_the_same_number_of_images(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    files = idx_batch(3)
    name = data.draw(st.sampled_from([IMAGES, LABELS]))
    damaged = bytearray(files[name][: data.draw(st.integers(0, len(files[name])))])
    for at in data.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=4)):
        if damaged:
            damaged[at] = data.draw(st.integers(0, 255))
    try:
        assert len(read(tmp_path_factory.mktemp("idx"), files | {name: bytes(damaged)})) == 3
    except DataError as error:
        assert name in str(error) or "images" in str(error)


def shaped(*sizes: int, data: bytes = b"") -> bytes:
    return bytes((0, 0, 8, len(sizes))) + b"".join(size.to_bytes(4, "big") for size in sizes) + data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({LABELS: None}, r"has the images images-idx3-ubyte\.gz but not their labels: expected the file labels-idx1-"),
        ({IMAGES: None}, r"has labels labels-idx1-ubyte but not their images images-idx3-ubyte"),
        ({LABELS: shaped(3, data=b"\0\1\0")}, r"has 4 images, labels-idx1-ubyte has 3 labels"),
        ({LABELS: shaped(4, data=b"\0\1\0")}, r"labels-idx1-ubyte is truncated: sizes \(4,\) make 12 bytes, it has 11"),
        ({LABELS: shaped(4, data=b"\0" * 5)}, r"labels-idx1-ubyte is longer than its header says"),
        ({LABELS: b"\0\0\x0d\1" + b"\0" * 20}, r"expected uint8 \(0x08\) in 1 dimensions, found type 0x0d"),
        ({LABELS: b"GIF89a"}, r"labels-idx1-ubyte is no IDX file: expected two zero bytes"),
        ({LABELS: b"\0\0\x08\1\0"}, r"truncated in its header"),
        ({LABELS: b""}, r"labels-idx1-ubyte is no IDX file"),
        ({IMAGES: b"\x1f\x8bnonsense"}, r"images-idx3-ubyte\.gz is corrupt"),
        ({IMAGES: gzip.compress(shaped(4, 8, 8, data=b"\0" * 255))}, r"header says 4 items, it holds 3"),
        ({IMAGES: gzip.compress(shaped(4, 8, 8, data=b"\0" * 257))}, r"longer than its header says \(4 items\)"),
        ({IMAGES: gzip.compress(idx(np.zeros((4, 8, 8), np.uint8)))[:-9]}, r"its gzip stream ends early"),
        ({IMAGES: gzip.compress(shaped(4, 100_000, 100_000))}, r"100000 x 100000 pixels, at most"),
        ({IMAGES: gzip.compress(shaped(4, 8, 0))}, r"8 x 0 pixels"),
        (
            {IMAGES: gzip.compress(shaped(0, 8, 8)), LABELS: shaped(0)},
            r"is empty: images-idx3-ubyte\.gz holds 0",
        ),
        ({"a/1.png": b"x"}, r"mixes IDX files \(images-idx3-ubyte\.gz\) with others \(a/1\.png\)"),
    ],
)
def test_each_fault_has_its_message(tmp_path: Path, change: dict[str, bytes | None], message: str) -> None:
    files = {name: data for name, data in (idx_batch(4) | change).items() if data is not None}
    (tmp_path / "b" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "b", files)


def test_a_header_allocates_nothing(tmp_path: Path) -> None:
    files = {IMAGES: gzip.compress(shaped(4_000_000_000, 28, 28, data=b"\0" * 1000)), LABELS: shaped(4_000_000_000)}
    tracemalloc.start()
    with pytest.raises(DataError, match="truncated"):
        read(tmp_path, files)
    files[LABELS + ".gz"] = gzip.compress(files.pop(LABELS))
    (tmp_path / LABELS).unlink()
    with pytest.raises(DataError, match="truncated: its header says 4000000000 items, it holds 1"):
        read(tmp_path, files)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_a_large_file_is_read_in_pieces(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 512, 512), np.uint8)  # 10 MiB, pieces of 4
    files = {IMAGES: gzip.compress(idx(images), 0), LABELS: idx(np.zeros(40, np.uint8))}
    reader = open_batch(written(tmp_path, files), CONTEXT)
    tracemalloc.start()
    count = sum(np.array_equal(item.content, images[number]) for number, item in enumerate(reader))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40
    assert peak < 9 << 20


def test_several_pairs_are_one_batch(tmp_path: Path) -> None:
    one, two = idx_batch(2), idx_batch(3, first=10)
    files = {f"x-{name}": data for name, data in one.items()} | {f"y-{name}": data for name, data in two.items()}
    found = read(tmp_path, files)
    assert [path for path, _, _ in found][1:3] == [f"x-{IMAGES}/00000001.png", f"y-{IMAGES}/00000000.png"]
    assert np.array_equal(found[2][2], pixels(10))


def test_detection(tmp_path: Path) -> None:
    assert detect(written(tmp_path / "i", idx_batch(1))) == "idx"
    with pytest.raises(DataError, match=r"has the format idx, the project file's data\.format asks for folder"):
        open_batch(LocalFiles(tmp_path / "i"), CONTEXT, "folder")
    assert open_batch(LocalFiles(tmp_path / "i"), CONTEXT, "idx").format == "idx"
