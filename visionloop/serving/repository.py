"""A lane's model repository on disk: `<lane>/<model>/config.pbtxt` and one version's folder.

What a lane should serve is always whole on disk, since Triton loads it again at its next start: the version's folder
comes first, `config.pbtxt` is replaced last, and the old version's folder goes only after the new one is loaded.
Triton would also run a backend or a `model.py` that lies in an entry, which no signature covers: an entry with any file
of another name is none.
"""

import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from visionloop import layout
from visionloop.atomic import PART_PREFIX, write_whole
from visionloop.errors import IntegrityError

CONFIG = "config.pbtxt"
MODEL = "model.onnx"
SIGNATURE = "model.sig"
VERSION = re.compile(r"specific\s*\{\s*versions:\s*(\d+)\s*\}")
FOLDER = re.compile(r"[1-9]\d*")
"""Name of a version's folder."""
ABANDONED_SECONDS = 3600.0
"""A write takes seconds: what it has begun so long ago was left by one that was killed."""


@dataclass(frozen=True)
class Entry:
    """One model in one lane's repository."""

    folder: Path
    """`<model_repository>/<lane>/<model>`."""

    def write(self, *, version: int, config: str, model: bytes, sha256: str, signature: str) -> None:
        """Make `version` the one that is loaded next; `signature` lies beside the model for who loads it later.

        Raises IntegrityError, with nothing changed, when the model is not the one vouched for, or is not all there is.
        """
        self.check()
        found = hashlib.sha256(model).hexdigest()
        if found != sha256:
            raise IntegrityError(f"{self.folder.name} version {version}: expected SHA-256 {sha256}, found {found}")
        self._write_version(version, model, sha256, signature)
        write_whole(self.folder / CONFIG, config, mode=0o644)

    def config(self) -> str | None:
        """The text of `config.pbtxt`, None where there is no entry."""
        try:
            return (self.folder / CONFIG).read_text()
        except FileNotFoundError:
            return None

    def version(self) -> int | None:
        """The version that the config names."""
        found = VERSION.search(self.config() or "")
        return int(found.group(1)) if found else None

    def prune(self) -> None:
        """Remove the folders of all versions but the one that the config names."""
        kept = str(self.version())
        for folder in self.folder.iterdir():
            if folder.is_dir() and folder.name != kept:
                shutil.rmtree(folder)

    def remove(self) -> None:
        """Remove the entry; the config goes first, so that a half-removed entry is none."""
        (self.folder / CONFIG).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def read(self) -> tuple[dict[str, bytes], str]:
        """What Triton would load, by name (model and config), and its signature, "" where there is none.

        Raises IntegrityError for an entry that is not whole, or holds anything else.
        """
        self.check()
        folder = self.folder / str(self.version())
        try:
            files = {MODEL: (folder / MODEL).read_bytes(), CONFIG: (self.folder / CONFIG).read_bytes()}
            signature = folder / SIGNATURE
            return files, signature.read_text() if signature.is_file() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise IntegrityError(f"the entry {self.folder} cannot be read: {error}") from None

    def check(self) -> None:
        """Raises IntegrityError for an entry in which anything lies but configuration, models and signatures."""
        strays = sorted(str(path.relative_to(self.folder)) for path in self._strays())
        if strays:
            raise IntegrityError(
                f"the entry {self.folder} holds {', '.join(strays)}, which no signature covers and Triton might run: "
                "find out who put it there, and take it away"
            )

    def _strays(self) -> Iterator[Path]:
        """A link is one wherever it leads: what it leads to may be another thing later."""
        if self.folder.is_symlink():
            yield self.folder
            return
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.is_dir() and not path.is_symlink() and FOLDER.fullmatch(path.name):
                yield from (part for part in path.iterdir() if not _is_file(part, MODEL, SIGNATURE))
            elif not _is_file(path, CONFIG):
                yield path

    def _write_version(self, version: int, model: bytes, sha256: str, signature: str) -> None:
        target = self.folder / str(version)
        path = target / MODEL
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            write_whole(target / SIGNATURE, signature, mode=0o644)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder.parent.parent)
        aside = Path(tempfile.mkdtemp(dir=self.folder.parent.parent, prefix=PART_PREFIX))
        try:
            (aside / MODEL).write_bytes(model)
            (aside / SIGNATURE).write_text(signature)
            aside.chmod(0o755)
            shutil.rmtree(target, ignore_errors=True)
            aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def entry(repository: Path, lane: str, model: str) -> Entry:
    """The entry of a model in a lane."""
    return Entry(repository / lane / layout.checked(model))


def sweep(folder: Path) -> None:
    """Remove what writes began in this folder, files and whole models, and were killed over long ago."""
    for path in folder.glob(f"{PART_PREFIX}*"):
        try:
            abandoned = time.time() - path.lstat().st_mtime > ABANDONED_SECONDS
        except FileNotFoundError:  # renamed, or swept by another process, at this moment
            continue
        if abandoned:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _is_file(path: Path, *names: str) -> bool:
    """A plain file of one of these names, or one that is still being written."""
    return path.is_file() and not path.is_symlink() and (path.name in names or path.name.startswith(PART_PREFIX))
