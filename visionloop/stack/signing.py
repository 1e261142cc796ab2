"""The installation's signing key, made once; and what is in a lane's repository without its signature is put aside."""

import logging
import shutil
import threading
import uuid
from pathlib import Path

from visionloop.errors import IntegrityError
from visionloop.stack.files import secret, write_private
from visionloop.stack.service import Context

log = logging.getLogger(__name__)

PRIVATE, PUBLIC = "signing-key.pem", "verify-key.pem"
SIGNING = {"signing_key": "{home}/stack/secrets/" + PRIVATE}
VERIFYING = {"verify_key": "{home}/stack/secrets/" + PUBLIC}
"""Settings that name them."""
_making = threading.Lock()


def make_keys(ctx: Context) -> Path:
    """Make the pair of keys where there is none; returns the public one's file. Several services ask for it at once."""
    from visionloop.packaging.signing import new_key, public_of

    with _making:
        public = public_of(secret(ctx.secret_file(PRIVATE), new_key))
        path = ctx.secret_file(PUBLIC)
        if not path.is_file() or path.read_text() != public:
            write_private(path, public)
        return path


def put_aside_unverified(repository: Path, key: Path) -> list[Path]:
    """Move what is not an entry that this installation signed out of a lane, before Triton loads all that lies there.

    Returns where it is now. What killed writes left long ago goes.
    """
    from visionloop.serving.repository import sweep

    moved = []
    sweep(repository.parent)
    for folder in sorted(repository.iterdir()):
        try:
            _verify_entry(folder, key)
        except IntegrityError as error:
            aside = repository.with_name("refused") / f"{repository.name}-{folder.name}-{uuid.uuid4().hex[:8]}"
            aside.parent.mkdir(exist_ok=True)
            shutil.move(folder, aside)
            log.error("%s: it is not served, and lies in %s now", error, aside)
            moved.append(aside)
    return moved


def _verify_entry(folder: Path, key: Path) -> None:
    """Raises IntegrityError for what is no entry, or not signed."""
    from visionloop.packaging.signing import verify
    from visionloop.serving.repository import Entry, sweep

    if not folder.is_dir() or folder.name.startswith("."):
        raise IntegrityError(f"{folder} is no entry")
    if not folder.is_symlink():
        for part in (folder, *(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())):
            sweep(part)
    files, signature = Entry(folder).read()
    verify(files, signature, key, what=f"{folder.name} in {folder.parent.name}")
