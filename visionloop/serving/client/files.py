"""Image files through the endpoint: read and fitted as the training data were, asked about many at a time."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from visionloop.data.images import MAX_FILE_BYTES, MAX_SIDE, ImageError, Pixels, decode, fit
from visionloop.errors import DataError
from visionloop.project import ImageShape
from visionloop.serving.client.call import AT_ONCE
from visionloop.serving.client.messages import Answer
from visionloop.serving.client.synchronous import Client

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
READERS = 4


@dataclass(frozen=True)
class Predicted:
    """What became of one file: the answer, or why it could not be read."""

    path: Path
    answer: Answer | None
    fault: str = ""


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Files as they are named; a folder stands for the images in it and below, sorted by their paths.

    Raises DataError for a folder without any.
    """
    found: list[Path] = []
    for path in paths:
        found += _images_in(path) if path.is_dir() else [path]
    if not found:
        raise DataError("no image was named: expected image files, or folders of them")
    return found


def predict_files(
    client: Client, paths: Iterable[Path], *, max_side: int = MAX_SIDE, session: str | None = None
) -> Iterator[Predicted]:
    """Yield what became of each file, in order, a few requests' worth at a time. Raises EndpointError."""
    shape, at_once = client.model.shape, client.model.images_per_request * AT_ONCE
    waiting = iter(paths)
    with ThreadPoolExecutor(READERS, "read-images") as pool:
        while part := list(islice(waiting, at_once)):
            read = list(pool.map(lambda path: _read(path, shape, max_side), part))
            images = [content for content in read if not isinstance(content, str)]
            answers = iter(client.predict(images, session=session) if images else [])
            for path, content in zip(part, read, strict=True):
                bad = isinstance(content, str)
                yield Predicted(path, None, str(content)) if bad else Predicted(path, next(answers))


def _images_in(folder: Path) -> list[Path]:
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise DataError(f"{folder} holds no image: expected files that end in {', '.join(sorted(SUFFIXES))}")
    return found


def _read(path: Path, shape: ImageShape, max_side: int) -> Pixels | str:
    """The image in the model's shape, or why there is none."""
    try:
        if not path.is_file():
            return "is no file" if path.exists() else "does not exist"
        if path.stat().st_size > MAX_FILE_BYTES:
            return f"too_large: {path.stat().st_size} bytes, at most {MAX_FILE_BYTES} are read"
        return fit(decode(path.read_bytes(), max_side=max_side, verify=True), shape)
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
