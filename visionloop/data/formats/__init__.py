"""How batches arrive: which format a delivery has, and the reader that streams it."""

from typing import Literal

from visionloop.data.formats.delivery import BatchReader, Context, Delivered, Files, described, payload
from visionloop.data.formats.folder import FolderReader
from visionloop.data.formats.idx import IdxReader, is_idx
from visionloop.errors import DataError

__all__ = ["BatchReader", "Context", "Delivered", "Files", "detect", "open_batch"]


def detect(files: Files) -> Literal["folder", "idx"]:
    """The format of a delivery, by its files' names. Raises DataError for a batch that is empty or mixes both."""
    names = payload(files)
    if not names:
        raise DataError(
            f"batch {files.batch} is empty: expected class folders with images (<class>/<file>), or IDX files "
            "(*-images-idx3-ubyte[.gz] with *-labels-idx1-ubyte[.gz])"
        )
    idx = [name for name in names if is_idx(name)]
    other = [name for name in names if not is_idx(name)]
    if idx and other:
        raise DataError(f"batch {files.batch} mixes IDX files ({idx[0]}) with others ({other[0]}): deliver them apart")
    return "idx" if idx else "folder"


def open_batch(files: Files, context: Context, wanted: Literal["auto", "folder", "idx"] = "auto") -> BatchReader:
    """The reader of a delivery. Raises DataError when it cannot be a batch, or is not of the format that is wanted."""
    found = detect(files)
    if wanted not in ("auto", found):
        raise DataError(
            f"batch {files.batch} has the format {found}, the project file's data.format asks for {wanted}: "
            "deliver it so, or set data.format to auto"
        )
    metadata = described(files)
    return IdxReader(files, context, metadata) if found == "idx" else FolderReader(files, context, metadata)
