"""A signature holds for exactly the files that were signed, by the key that signed them."""

import json
from pathlib import Path

import pytest

from tests.unit.stages.made import signing_keys
from visionloop.errors import ConfigError, IntegrityError
from visionloop.packaging.signing import sign, verify

FILES = {"model.onnx": b"weights" * 1000, "config.pbtxt": b"name: 'p'"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Private and public."""
    return signing_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def signature(keys: tuple[Path, Path]) -> str:
    return sign(FILES, keys[0])


def test_what_was_signed_verifies(keys: tuple[Path, Path], signature: str) -> None:
    verify(FILES, signature, keys[1], what="version 1")
    assert json.loads(signature)["mediaType"].startswith("application/vnd.dev.sigstore.bundle")
    assert "PRIVATE" not in signature


@pytest.mark.parametrize(
    "files",
    [
        {**FILES, "model.onnx": b"weights" * 999 + b"weightz"},
        {**FILES, "config.pbtxt": b"name: 'q'"},
        {"model.onnx": FILES["model.onnx"]},
        {**FILES, "more.txt": b""},
        {"model.onnx": FILES["config.pbtxt"], "config.pbtxt": FILES["model.onnx"]},
        {},
    ],
    ids=["weights", "config", "missing", "added", "swapped", "none"],
)
def test_any_other_file_does_not(keys: tuple[Path, Path], signature: str, files: dict[str, bytes]) -> None:
    with pytest.raises(IntegrityError, match="version 1 has no valid signature of this installation: "):
        verify(files, signature, keys[1], what="version 1")


def test_another_key_is_not_believed(signature: str, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="no valid signature"):
        verify(FILES, signature, signing_keys(tmp_path)[1], what="version 1")


def test_a_forger_who_names_our_key_is_not_believed(keys: tuple[Path, Path], signature: str, tmp_path: Path) -> None:
    forged = json.loads(sign({**FILES, "model.onnx": b"evil"}, signing_keys(tmp_path)[0]))
    forged["verificationMaterial"] = json.loads(signature)["verificationMaterial"]
    with pytest.raises(IntegrityError, match="no valid signature"):
        verify({**FILES, "model.onnx": b"evil"}, json.dumps(forged), keys[1], what="version 1")


@pytest.mark.parametrize("broken", ["{}", "no JSON", '{"verificationMaterial": 1}', "[]", "null"])
def test_garbage_is_no_signature(keys: tuple[Path, Path], broken: str) -> None:
    with pytest.raises(IntegrityError, match="no valid signature"):
        verify(FILES, broken, keys[1], what="version 1")


def test_nothing_unsigned_is_believed(keys: tuple[Path, Path]) -> None:
    with pytest.raises(IntegrityError, match="version 1 is not signed"):
        verify(FILES, "", keys[1], what="version 1")


def test_keys_that_cannot_be_read_are_named(keys: tuple[Path, Path], signature: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"signing key .*gone\.pem cannot be used"):
        sign(FILES, tmp_path / "gone.pem")
    with pytest.raises(ConfigError, match=r"verifying key .*gone\.pem cannot be used"):
        verify(FILES, signature, tmp_path / "gone.pem", what="version 1")
    (tmp_path / "bad.pem").write_text("no key")
    with pytest.raises(ConfigError, match="cannot be used"):
        sign(FILES, tmp_path / "bad.pem")
    with pytest.raises(ConfigError, match="cannot be used"):
        verify(FILES, signature, tmp_path / "bad.pem", what="version 1")
