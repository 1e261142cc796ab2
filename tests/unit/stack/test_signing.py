"""The installation's keys, made once by whoever asks first; and entries of a lane that they do not vouch for."""

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.stages.made import signing_keys
from visionloop.packaging.signing import sign
from visionloop.serving.repository import CONFIG, MODEL, SIGNATURE, Entry
from visionloop.settings import Settings
from visionloop.stack.service import Context
from visionloop.stack.signing import make_keys, put_aside_unverified


def context(home: Path) -> Context:
    return Context(home=home, repo=home, settings=Settings(home=home), ports={})


def test_the_keys_are_one_pair_however_many_ask(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: make_keys(context(tmp_path)), range(16)))
    [public] = found
    private = public.with_name("signing-key.pem")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (public, private)] == [0o600, 0o600]
    before = public.read_text(), private.read_text()
    make_keys(context(tmp_path))
    assert (public.read_text(), private.read_text()) == before
    public.unlink()
    make_keys(context(tmp_path))
    assert public.read_text() == before[0]


@pytest.fixture
def lane(tmp_path: Path) -> Path:
    """A lane with two models that this installation signed; its key lies beside."""
    private, _ = signing_keys(tmp_path)
    for name in ("one", "two"):
        config, model = f"name: '{name}' version_policy {{ specific {{ versions: 3 }} }}", name.encode()
        signature = sign({MODEL: model, CONFIG: config.encode()}, private)
        sha256 = hashlib.sha256(model).hexdigest()
        Entry(tmp_path / "models" / "stable" / name).write(
            version=3, config=config, model=model, sha256=sha256, signature=signature
        )
    return tmp_path / "models" / "stable"


def names(lane: Path) -> list[str]:
    return sorted(path.name for path in lane.iterdir())


def test_what_is_signed_stays(lane: Path, tmp_path: Path) -> None:
    assert put_aside_unverified(lane, tmp_path / "verify-key.pem") == []
    assert names(lane) == ["one", "two"]


@pytest.mark.parametrize("part", [f"3/{MODEL}", f"3/{SIGNATURE}", CONFIG])
@pytest.mark.parametrize("deed", ["changed", "removed"])
def test_what_was_changed_is_put_aside_and_kept(lane: Path, tmp_path: Path, part: str, deed: str) -> None:
    path = lane / "two" / part
    path.write_bytes(path.read_bytes() + b" ") if deed == "changed" else path.unlink()
    if part == f"3/{SIGNATURE}" and deed == "changed":
        path.write_text("{}")
    [aside] = put_aside_unverified(lane, tmp_path / "verify-key.pem")
    assert names(lane) == ["one"]
    assert aside.parent == tmp_path / "models" / "refused"
    assert any(aside.iterdir())
    assert put_aside_unverified(lane, tmp_path / "verify-key.pem") == []


@pytest.mark.parametrize("stray", ["two/model.py", "two/3/libtriton_onnxruntime.so", "two/.cache/x"])
def test_an_entry_with_a_file_that_triton_might_run_is_put_aside(lane: Path, tmp_path: Path, stray: str) -> None:
    (lane / stray).parent.mkdir(exist_ok=True)
    (lane / stray).write_text("import os")
    [aside] = put_aside_unverified(lane, tmp_path / "verify-key.pem")
    assert names(lane) == ["one"]
    assert (aside / Path(stray).relative_to("two")).read_text() == "import os"


def test_hidden_folders_files_and_links_beside_the_entries_are_put_aside(lane: Path, tmp_path: Path) -> None:
    (lane / "two").rename(lane / ".two")  # Triton loads it by this name
    (lane / "notes.txt").write_text("mine")
    (lane / "one").rename(tmp_path / "elsewhere")
    (lane / "one").symlink_to(tmp_path / "elsewhere")
    assert len(put_aside_unverified(lane, tmp_path / "verify-key.pem")) == 3
    assert names(lane) == []
    assert (tmp_path / "elsewhere" / CONFIG).exists()


def test_what_killed_writes_left_goes_and_takes_no_entry_along(lane: Path, tmp_path: Path) -> None:
    left = [lane / "one" / ".part-a", lane / "one" / "3" / ".part-b", lane.parent / ".part-c" / MODEL]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
        os.utime(path, (0, 0))
    os.utime(lane.parent / ".part-c", (0, 0))
    fresh = lane / "two" / ".part-d"
    fresh.write_text("at work")
    assert put_aside_unverified(lane, tmp_path / "verify-key.pem") == []
    assert [path for path in left if path.exists()] == []
    assert fresh.exists()


def test_another_installations_models_are_put_aside(lane: Path, tmp_path: Path) -> None:
    _, other = signing_keys(tmp_path / "other")
    assert len(put_aside_unverified(lane, other)) == 2
    assert names(lane) == []
