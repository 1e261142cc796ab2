"""Deliver a folder as a batch: upload its files under the incoming prefix, then the marker that says it is complete."""

import hashlib
import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from visionloop import layout
from visionloop.errors import Conflict, DataError
from visionloop.project import Project
from visionloop.records import Frozen
from visionloop.stores import Stores

log = logging.getLogger(__name__)
UPLOADS = 16


class Inputs(Frozen):
    """What to deliver."""

    folder: Path
    batch: str | None = None
    """Name; by default the folder's name and a digest of its files, so the same folder is the same batch."""
    dry_run: bool = False


class Delivery(Frozen):
    """What was delivered; `already` when the same files were there before under this name."""

    batch: str
    files: int
    size_bytes: int
    digest: str
    already: bool = False


def run(project: Project, inputs: Inputs, stores: Stores) -> Delivery:
    """Upload and mark complete. Raises DataError for an empty folder or a batch of that name with other files."""
    files = _files(inputs.folder)
    digest = _digest(inputs.folder, files)
    batch = layout.checked(inputs.batch or _default_name(inputs.folder, digest))
    size_bytes = sum(path.stat().st_size for path in files)
    delivery = Delivery(batch=batch, files=len(files), size_bytes=size_bytes, digest=digest)
    if _known(project, delivery, stores):
        return delivery.model_copy(update={"already": True})
    if not inputs.dry_run:
        _upload(project, inputs.folder, files, batch, stores)
        _mark(project, delivery, stores)
    return delivery


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: expected class folders with images, or IDX files")
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path.relative_to(folder))]
    if not found:
        raise DataError(f"{folder} holds no file: expected class folders with images, or IDX files")
    return found


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts) or path.name == layout.READY


def _digest(folder: Path, files: list[Path]) -> str:
    """SHA-256 over names and contents, so that a delivery that differs in one byte is another one."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return whole.hexdigest()


def _default_name(folder: Path, digest: str) -> str:
    stem = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:40] or "batch"
    return f"{stem}-{digest[:8]}"


def _known(project: Project, delivery: Delivery, stores: Stores) -> bool:
    """Is this very batch complete already? Raises DataError when the name is taken by other files."""
    key = layout.ready(project.name, delivery.batch)
    if not stores.objects.exists(key):
        return False
    marker = stores.objects.get(key)
    if marker and json.loads(marker).get("digest") == delivery.digest:
        return True
    raise DataError(
        f"batch {delivery.batch} of {project.name} was delivered before with other files: give this one another name"
    )


def _upload(project: Project, folder: Path, files: list[Path], batch: str, stores: Stores) -> None:
    prefix = layout.incoming(project.name, batch)

    def send(path: Path) -> None:
        stores.objects.upload(path, prefix + path.relative_to(folder).as_posix())

    with ThreadPoolExecutor(UPLOADS) as pool:
        for done, _ in enumerate(pool.map(send, files), start=1):
            if done % 1000 == 0:
                log.info("delivered %d of %d files of batch %s", done, len(files), batch)


def _mark(project: Project, delivery: Delivery, stores: Stores) -> None:
    body = json.dumps({"files": delivery.files, "size_bytes": delivery.size_bytes, "digest": delivery.digest})
    try:
        stores.objects.put_new(layout.ready(project.name, delivery.batch), body.encode(), "application/json")
    except Conflict:
        _known(project, delivery, stores)
