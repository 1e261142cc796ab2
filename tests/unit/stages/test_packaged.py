"""A version's files are believed as far as record and signature go, whoever reads them; a record alone is none."""

import hashlib
from pathlib import Path

import pytest

from tests.unit.serving.lanes import World
from visionloop.errors import IntegrityError
from visionloop.packaging.signing import sign
from visionloop.records import Artifact, Candidate
from visionloop.serving.triton_config import GOLDEN_SHA256, parse, render
from visionloop.stores.packaged import CONFIG, GOLDEN, MODEL, read_packaged


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def candidate(world: World) -> Candidate:
    return world.stores.ledger.get(Candidate, world.candidate(1))


def forged(world: World, of: Candidate, name: str, data: bytes) -> Candidate:
    """The record that somebody writes who can write to the store: another file, with its right digest."""
    uri, sha256 = world.stores.objects.put(f"p/artifacts/candidate/forged/{name}", data), hashlib.sha256(data)
    artifact = Artifact(uri=uri, sha256=sha256.hexdigest(), size_bytes=len(data))
    changes = {"artifacts": of.artifacts | {name: artifact}}
    return of.model_copy(update=changes | ({"model_sha256": artifact.sha256} if name == MODEL else {}))


def test_what_was_packaged_here_is_read(world: World) -> None:
    files = read_packaged(candidate(world), world.stores, GOLDEN)
    assert files.keys() == {MODEL, CONFIG, GOLDEN}
    signed = parse(files[CONFIG].decode()).parameters[GOLDEN_SHA256].string_value
    assert signed == hashlib.sha256(files[GOLDEN]).hexdigest()
    assert read_packaged(candidate(world), world.stores).keys() == {MODEL, CONFIG}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (MODEL, "version 1 of p has no valid signature of this installation"),
        (CONFIG, "version 1 of p has no valid signature of this installation"),
        (GOLDEN, r"golden\.npz of version 1 of p: expected SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}: it was changed"),
    ],
)
def test_a_record_that_names_another_file_is_not_believed(world: World, name: str, says: str) -> None:
    with pytest.raises(IntegrityError, match=says):
        read_packaged(forged(world, candidate(world), name, b"other"), world.stores, GOLDEN)


def test_the_model_is_the_approved_one(world: World) -> None:
    of = candidate(world)
    other = of.model_copy(update={"model_sha256": "0" * 64})
    with pytest.raises(IntegrityError, match=r"version 1 of p: model\.onnx has SHA-256 [0-9a-f]{64}, approved is 0000"):
        read_packaged(other, world.stores)


def test_a_file_that_is_missing_is_named(world: World) -> None:
    of = candidate(world)
    without = of.model_copy(update={"artifacts": {MODEL: of.artifacts[MODEL]}})
    with pytest.raises(IntegrityError, match=r"has no config\.pbtxt, only model\.onnx"):
        read_packaged(without, world.stores)


def test_a_version_from_before_its_golden_samples_were_signed_is_read(world: World) -> None:
    of, config = candidate(world), render(world.project, 1).encode()
    model = world.stores.objects.get(world.stores.objects.key(of.artifacts[MODEL].uri))
    key = world.settings.signing_key
    assert key is not None
    old = forged(world, of, CONFIG, config).model_copy(update={"signature": sign({MODEL: model, CONFIG: config}, key)})
    assert read_packaged(old, world.stores, GOLDEN)[CONFIG] == config
    assert read_packaged(forged(world, old, GOLDEN, b"other"), world.stores, GOLDEN)[GOLDEN] == b"other"
