"""A version's files as they were packaged: what its record and this installation's signature vouch for, or nothing."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from visionloop.errors import IntegrityError
from visionloop.packaging.signing import verify
from visionloop.records import Candidate
from visionloop.serving.triton_config import GOLDEN_SHA256, parse
from visionloop.stores import Stores
from visionloop.stores.objects import get_artifact

MODEL, CONFIG, GOLDEN = "model.onnx", "config.pbtxt", "golden.npz"


def read_packaged(candidate: Candidate, stores: Stores, *more: str) -> dict[str, bytes]:
    """The version's model, configuration, and `more` of its files. Whoever runs or judges a model reads it here.

    Raises IntegrityError for a file that is not the record's, and for a version that is not signed by this
    installation.
    """
    files = {name: get_artifact(stores.objects, candidate, name) for name in (MODEL, CONFIG, *more)}
    found = candidate.artifacts[MODEL].sha256
    if found != candidate.model_sha256:
        raise IntegrityError(f"{_what(candidate)}: {MODEL} has SHA-256 {found}, approved is {candidate.model_sha256}")
    check_signed(candidate, files, stores)
    return files


def check_signed(candidate: Candidate, files: Mapping[str, bytes], stores: Stores) -> None:
    """Raises IntegrityError when these files, model and configuration among them, are not what was signed together."""
    what = _what(candidate)
    key = Path(stores.settings.need("verify_key"))
    verify({name: files[name] for name in (MODEL, CONFIG)}, candidate.signature, key, what=what)
    signed = parse(files[CONFIG].decode()).parameters
    if GOLDEN in files and GOLDEN_SHA256 in signed:
        expected, found = signed[GOLDEN_SHA256].string_value, hashlib.sha256(files[GOLDEN]).hexdigest()
        if found != expected:
            raise IntegrityError(f"{GOLDEN} of {what}: expected SHA-256 {expected}, found {found}: it was changed")


def _what(candidate: Candidate) -> str:
    return f"version {candidate.version} of {candidate.project}"
