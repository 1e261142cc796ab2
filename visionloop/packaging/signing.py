"""Signs what is loaded and verifies it before each load: OpenSSF Model Signing with the installation's own key.

A signature is a Sigstore bundle (https://github.com/sigstore/model-transparency) over a manifest of the SHA-256 of
every file; one that was changed, left out or added does not verify, and neither does another key's signature.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from visionloop.errors import ConfigError, IntegrityError

FOLDER = "model"
"""What the manifest calls the files together."""
UNVERIFIED = (ValueError, LookupError, TypeError, AttributeError, InvalidSignature)
"""What the library raises for a signature that is another's, broken, or none."""


def new_key() -> str:
    """A new private key on the curve P-256, as PEM."""
    private = serialization.PrivateFormat.PKCS8
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()).decode()


def public_of(private_pem: str) -> str:
    """The public half, as PEM."""
    key = serialization.load_pem_private_key(private_pem.encode(), password=None)
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, public).decode()


def sign(files: Mapping[str, bytes], key: Path) -> str:
    """The signature of these files by name. Raises ConfigError for a key that cannot be read."""
    from model_signing import signing

    with tempfile.TemporaryDirectory(prefix="visionloop-sign-") as folder:
        model = _written(files, Path(folder))
        signature = Path(folder) / "signature"
        try:
            signing.Config().use_elliptic_key_signer(private_key=key).sign(model, signature)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the signing key {key} cannot be used: {error}") from None
        return signature.read_text()


def verify(files: Mapping[str, bytes], signature: str, key: Path, *, what: str) -> None:
    """Return when the signature is this key's and of exactly these files; else IntegrityError that begins with `what`.

    Raises ConfigError for a public key that cannot be read.
    """
    from model_signing import verifying

    if not signature:
        raise IntegrityError(f"{what} is not signed, and nothing unsigned is loaded: package it again")
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the verifying key {key} cannot be used: {error}") from None
    with tempfile.TemporaryDirectory(prefix="visionloop-verify-") as folder:
        (Path(folder) / "signature").write_text(signature)
        try:
            verifier.verify(_written(files, Path(folder)), Path(folder) / "signature")
        except UNVERIFIED as error:
            reason = " ".join(str(error).split())[:200]
            raise IntegrityError(f"{what} has no valid signature of this installation: {reason}") from None


def _written(files: Mapping[str, bytes], folder: Path) -> Path:
    target = folder / FOLDER
    target.mkdir()
    for name, data in files.items():
        assert Path(name).name == name, name
        (target / name).write_bytes(data)
    return target
