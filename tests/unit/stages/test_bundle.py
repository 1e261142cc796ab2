"""Bundle: the champion or a named version, approved, verified; and the command that writes it."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.unit.cli.conftest import Run, run  # noqa: F401
from tests.unit.stages.corners import TEXT, World, weak_onnx
from tests.unit.training.shapes import samples
from visionloop.errors import IntegrityError, NotFound
from visionloop.packaging import golden
from visionloop.packaging.runtime import onnx_predictor
from visionloop.records import Candidate, Release
from visionloop.stages import approve, bundle


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def champion(world: World, *, decision: str | None = "approved") -> Candidate:
    """A version that serves, with its golden answers."""
    shown = samples(8).images
    answers = golden.pack(shown, onnx_predictor(weak_onnx())(shown).probabilities, np.zeros(8, np.int64))
    made = world.champion(weak_onnx(), answers)
    if decision:
        said = {"decision": decision, "by": "visionloop", "mode": "automatic", "reason": "the gate is enough"}
        inputs = approve.Inputs.model_validate({"candidate": world.stores.ledger.uri(made), **said})
        approve.run(world.project, inputs, world.stores)
    return made


def bundled(world: World, version: int | None = None) -> tuple[Candidate, bytes]:
    made = bundle.run(world.project, bundle.Inputs(version=version), world.connect())
    return made.candidate, made.data


def released(world: World, candidate: Candidate, outcome: str) -> None:
    """The record of its release."""
    uri = world.stores.ledger.uri(candidate)
    values = {"id": f"r{candidate.version}", "project": "corners", "candidate": uri, "approval": "a", "steps": []}
    values |= {"version": candidate.version, "model_sha256": candidate.model_sha256, "previous_version": None}
    world.stores.ledger.put(Release.model_validate(values | {"outcome": outcome, "reason": "29 of 234 failed"}))


def test_the_champion_unless_a_version_is_named(world: World) -> None:
    first, second = champion(world), champion(world)
    assert bundled(world)[0] == second
    found, data = bundled(world, 1)
    assert found == first and data == bundled(world, 1)[1] and data != bundled(world)[1]


def test_no_champion_and_no_such_version(world: World) -> None:
    with pytest.raises(NotFound, match="corners has no champion yet"):
        bundled(world)
    champion(world)
    with pytest.raises(NotFound, match="no version 7: there are 1"):
        bundled(world, 7)


@pytest.mark.parametrize(
    ("decision", "words"), [(None, "nobody has decided about it"), ("rejected", "it is rejected by visionloop")]
)
def test_what_nobody_let_go_goes_nowhere(world: World, decision: str | None, words: str) -> None:
    champion(world, decision=decision)
    with pytest.raises(IntegrityError, match=f"version 1 of corners is not approved for bundling: {words}"):
        bundled(world)


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        ("promoted", ""),
        ("rolled_back", "version 1 of corners is bundled although it is rolled back: 29 of 234 failed"),
        ("rejected", "version 1 of corners is bundled although it is rejected: 29 of 234 failed"),
        (None, "version 1 of corners is bundled although it is unreleased: no release of it has ended"),
    ],
)
def test_what_was_not_promoted_is_bundled_with_a_warning(
    world: World, caplog: pytest.LogCaptureFixture, outcome: str | None, told: str
) -> None:
    made = champion(world)
    if outcome:
        released(world, made, outcome)
    data = bundled(world, 1)[1]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert json.loads(archive.read("corners-1/about.json"))["release"] == (outcome or "unreleased")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [told] * bool(told)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_a_changed_file_is_refused(world: World, name: str) -> None:
    made = champion(world)
    world.stores.objects.put(world.stores.objects.key(made.artifacts[name].uri), b"other")
    with pytest.raises(IntegrityError, match="it was changed"):
        bundled(world)


def test_a_version_that_is_not_signed_is_refused(world: World) -> None:
    made = champion(world)
    key = world.stores.objects.key(world.stores.ledger.uri(made))
    world.stores.objects.put(key, made.model_copy(update={"signature": ""}).model_dump_json().encode())
    with pytest.raises(IntegrityError, match="version 1 of corners is not signed"):
        bundled(world)


# --- the command


@pytest.fixture
def command(world: World, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:  # noqa: F811
    (tmp_path / "projects" / "corners").mkdir(parents=True)
    (tmp_path / "projects" / "corners" / "project.yaml").write_text(TEXT)
    monkeypatch.setenv("VISIONLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VISIONLOOP_PROJECTS", str(tmp_path / "projects"))
    monkeypatch.setattr("visionloop.stores.connect", lambda settings: world.connect())
    return run


def test_the_command_writes_the_file_and_says_its_digest(world: World, command: Run, tmp_path: Path) -> None:
    made, out = champion(world), tmp_path / "edge" / "corners.zip"
    shown = command(f"bundle corners --out {out}")
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert shown.code == 0 and f"SHA-256 {digest}" in shown.out
    assert "python -m zipfile -e corners.zip . && python corners-1/run.py --check" in shown.out
    assert out.stat().st_mode & 0o777 == 0o644 and zipfile.ZipFile(out).testzip() is None
    told = json.loads(command(f"bundle corners --out {out} --version 1 --json").out)
    assert (told["sha256"], told["version"], told["model_sha256"]) == (digest, 1, made.model_sha256)
    assert told["release"] == "unreleased"
    assert [path.name for path in out.parent.iterdir()] == ["corners.zip"]


def test_the_command_says_what_is_wrong(world: World, command: Run, tmp_path: Path) -> None:
    missing = command(f"bundle corners --out {tmp_path / 'x.zip'}")
    assert (missing.code, missing.out) == (1, "") and "no champion yet" in missing.err
    champion(world)
    blocked = command(f"bundle corners --out {tmp_path / 'projects/corners/project.yaml/x.zip'}")
    assert blocked.code == 1 and "cannot be written" in blocked.err and "--out" in blocked.err
    assert not list(tmp_path.glob("*.zip"))
