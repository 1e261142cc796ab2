"""Example data: real images of garments (Fashion-MNIST, MIT licence), cut into batches, clean or by a changed camera.

`python -m visionloop.demo.fashion fetch` finds or fetches the set (`make` does it); `... batch FOLDER --stop 1000`
writes a batch that `visionloop deliver` takes. Import `clean` and `through_changed_camera` for arrays.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from visionloop.data.cameras import changed_camera
from visionloop.data.images import Pixels, encode_png
from visionloop.errors import DataError

FILES = {"train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", 60_000)}
FILES["test"] = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", 10_000)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
SIDE = 28

Split = Literal["train", "test"]


def locate() -> Path:
    """The folder with the four IDX files. Raises DataError that says how to get them."""
    places = (DEBIAN, downloaded() / "FashionMNIST" / "raw")
    for place in places:
        if all((place / name).is_file() for names in FILES.values() for name in names[:2]):
            return place
    raise DataError(
        f"Fashion-MNIST is not at {' or '.join(map(str, places))}: run "
        f"`python -m visionloop.demo.fashion fetch`, or install the Debian package {PACKAGE}"
    )


def clean(split: Split, start: int, stop: int) -> tuple[Pixels, Pixels]:
    """Images `start` to `stop` of a split as uint8 NHW, and their labels as positions in CLASSES (uint8 N)."""
    images, labels, count = FILES[split]
    if not 0 <= start < stop <= count:
        raise DataError(f"expected 0 <= start < stop <= {count} in the {split} images, found {start} to {stop}")
    folder = locate()
    pixels = _read(folder / images, 16 + start * SIDE * SIDE, (stop - start) * SIDE * SIDE)
    return pixels.reshape(-1, SIDE, SIDE), _read(folder / labels, 8 + start, stop - start)


def through_changed_camera(images: Pixels, seed: int) -> Pixels:
    """The same garments after the camera changed: out of focus, in low light."""
    return changed_camera(images, seed=seed)


def write_idx(folder: Path, images: Pixels, labels: Pixels, *, metadata: dict[str, str] | None = None) -> Path:
    """Write a batch as IDX files; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(int(size).to_bytes(4, "big") for size in images.shape)
    _pack(folder / "images-idx3-ubyte.gz", b"\0\0\x08\x03" + sizes + images.tobytes())
    _pack(folder / "labels-idx1-ubyte.gz", b"\0\0\x08\x01" + sizes[:4] + labels.astype(np.uint8).tobytes())
    return _describe(folder, metadata)


def write_folders(folder: Path, images: Pixels, labels: Pixels, *, metadata: dict[str, str] | None = None) -> Path:
    """Write a batch as class folders with one PNG an image; returns the folder."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        (folder / CLASSES[label] / f"{number:06d}.png").write_bytes(encode_png(pixels))
    return _describe(folder, metadata)


def downloaded() -> Path:
    """Where the set is put when Debian's package is not there: beside the unpacked servers."""
    return Path(sys.prefix) / "opt" / "fashion-mnist"


def fetch() -> Path:
    """Find the set, else install Debian's package (as root), else let torchvision download it."""
    try:
        return locate()
    except DataError:
        pass
    if shutil.which("apt-get") and subprocess.run(["id", "-u"], capture_output=True).stdout.strip() == b"0":
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", PACKAGE]):
            subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if DEBIAN.is_dir():
            return locate()
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(downloaded()), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"Fashion-MNIST cannot be had: no package {PACKAGE}, and the download failed: {error}"
        ) from None
    return locate()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="find or fetch the images")
    batch = commands.add_parser("batch", help="write a batch into a folder")
    batch.add_argument("folder", type=Path)
    batch.add_argument("--split", choices=tuple(FILES), default="train")
    batch.add_argument("--start", type=int, default=0)
    batch.add_argument("--stop", type=int, required=True)
    batch.add_argument("--format", choices=("idx", "folder"), default="idx")
    batch.add_argument("--changed-camera", type=int, metavar="SEED", help="through the changed camera")
    batch.add_argument("--camera", default="belt-1", help="name of the camera, kept as metadata")
    arguments = parser.parse_args(argv)
    try:
        print(fetch() if arguments.command == "fetch" else _batch(arguments))
    except DataError as error:
        print(f"fashion: {error}", file=sys.stderr)
        return 1
    return 0


def _batch(arguments: argparse.Namespace) -> Path:
    images, labels = clean(arguments.split, arguments.start, arguments.stop)
    if arguments.changed_camera is not None:
        images = through_changed_camera(images, arguments.changed_camera)
    write = write_idx if arguments.format == "idx" else write_folders
    return write(arguments.folder, images, labels, metadata={"camera": arguments.camera})


def _read(path: Path, skip: int, count: int) -> Pixels:
    with gzip.open(path) as stream:
        stream.seek(skip)
        data = stream.read(count)
    if len(data) != count:
        raise DataError(f"{path} is truncated: delete it, then run `python -m visionloop.demo.fashion fetch`")
    return np.frombuffer(data, np.uint8)


def _pack(path: Path, data: bytes) -> None:
    """Gzip without a time in it, so that the same batch has the same bytes."""
    path.write_bytes(gzip.compress(data, compresslevel=1, mtime=0))


def _describe(folder: Path, metadata: dict[str, str] | None) -> Path:
    (folder / "batch.json").write_text(json.dumps({"metadata": metadata or {}}))
    return folder


if __name__ == "__main__":
    sys.exit(main())
