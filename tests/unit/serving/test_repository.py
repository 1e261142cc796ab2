"""A lane's folder: whatever moment a process is killed at, Triton finds one whole version there."""

import hashlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visionloop.errors import ConfigError, IntegrityError
from visionloop.serving.repository import ABANDONED_SECONDS, CONFIG, MODEL, SIGNATURE, Entry, entry


def config(version: int) -> str:
    return f"name: 'm'\nversion_policy {{ specific {{ versions: {version} }} }}\n"


def write(at: Entry, version: int, model: bytes = b"model") -> None:
    at.write(
        version=version, config=config(version), model=model, sha256=hashlib.sha256(model).hexdigest(), signature="s"
    )


def files(at: Entry) -> dict[str, bytes]:
    return {str(p.relative_to(at.folder)): p.read_bytes() for p in at.folder.rglob("*") if p.is_file()}


@pytest.fixture
def empty(tmp_path: Path) -> Entry:
    return entry(tmp_path / "repository", "canary", "m")


def test_an_entry_is_a_folder_of_the_lane(empty: Entry, tmp_path: Path) -> None:
    assert (empty.version(), empty.config()) == (None, None)
    write(empty, 3, b"three")
    assert empty.folder == tmp_path / "repository" / "canary" / "m"
    assert files(empty) == {CONFIG: config(3).encode(), f"3/{MODEL}": b"three", f"3/{SIGNATURE}": b"s"}
    assert empty.version() == 3


def test_the_old_version_stays_until_it_is_pruned(empty: Entry) -> None:
    write(empty, 3, b"three")
    write(empty, 4, b"four")
    both = {f"{version}/{name}" for version in (3, 4) for name in (MODEL, SIGNATURE)}
    assert set(files(empty)) == {CONFIG, *both}
    assert empty.version() == 4
    empty.prune()
    assert set(files(empty)) == {CONFIG, f"4/{MODEL}", f"4/{SIGNATURE}"}


def test_the_same_version_with_other_bytes_is_replaced(empty: Entry) -> None:
    write(empty, 3, b"old")
    write(empty, 3, b"new")
    assert files(empty)[f"3/{MODEL}"] == b"new"


def test_the_same_bytes_are_not_written_again(empty: Entry) -> None:
    """Triton watches times: an unchanged model is not loaded twice."""
    write(empty, 3)
    before = (empty.folder / "3" / MODEL).stat()
    write(empty, 3)
    assert (empty.folder / "3" / MODEL).stat().st_ino == before.st_ino


def test_a_model_that_nobody_vouches_for_changes_nothing(empty: Entry) -> None:
    write(empty, 3)
    before = files(empty)
    with pytest.raises(IntegrityError, match=r"m version 4: expected SHA-256 abc, found [0-9a-f]{64}"):
        empty.write(version=4, config=config(4), model=b"other", sha256="abc", signature="s")
    assert files(empty) == before


def test_a_kill_before_the_config_leaves_the_old_version_whole(empty: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    write(empty, 3, b"three")
    real = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if target.name == CONFIG:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        write(empty, 4, b"four")
    assert empty.version() == 3
    assert files(empty)[f"3/{MODEL}"] == b"three"
    monkeypatch.undo()
    write(empty, 4, b"four")
    empty.prune()
    assert empty.version() == 4
    assert files(empty)[f"4/{MODEL}"] == b"four"


@pytest.mark.parametrize(
    "stray",
    [
        *("model.py", "libtriton_onnxruntime.so", "3/model.py", "3/libtriton_onnxruntime.so", "labels.txt", "3/x/y"),
        *(".hidden/model.py", "warmup/black", "03/model.onnx", "0/model.onnx", "configs/other.pbtxt", ".env"),
    ],
)
def test_an_entry_with_anything_else_in_it_is_none(empty: Entry, stray: str) -> None:
    write(empty, 3)
    before = files(empty)
    path = empty.folder / stray
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("import os")
    for attempt in (empty.check, empty.read, lambda: write(empty, 4)):
        with pytest.raises(IntegrityError, match=r"the entry .*/canary/m holds .*, which no signature covers"):
            attempt()
    path.unlink()
    assert files(empty) == before


@pytest.mark.parametrize("part", [f"3/{MODEL}", f"3/{SIGNATURE}", CONFIG, "3", ""])
def test_a_link_is_no_part_of_an_entry(empty: Entry, tmp_path: Path, part: str) -> None:
    write(empty, 3)
    path = empty.folder / part if part else empty.folder
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="which no signature covers"):
        empty.read()


def test_two_versions_and_what_is_being_written_are_no_strays(empty: Entry) -> None:
    write(empty, 3)
    write(empty, 4)
    for name in (".part-a", "3/.part-b"):
        (empty.folder / name).write_text("half")
    empty.check()
    assert empty.read()[1] == "s"


def test_what_a_killed_write_left_long_ago_goes_with_the_next_one(empty: Entry) -> None:
    write(empty, 3)
    left = empty.folder.parent.parent / ".part-abc"
    left.mkdir()
    (left / MODEL).write_bytes(b"a whole model")
    write(empty, 5)
    assert left.exists()  # it may be another process's, at work
    os.utime(left, (0, time.time() - ABANDONED_SECONDS - 1))
    write(empty, 6)
    assert not left.exists()
    assert empty.version() == 6


def test_a_removed_entry_is_gone_and_may_be_removed_twice(empty: Entry) -> None:
    write(empty, 3)
    empty.remove()
    empty.remove()
    assert not empty.folder.exists()
    assert empty.version() is None


@pytest.mark.parametrize("name", ["../m", "a/b", "", "M"])
def test_a_model_cannot_leave_its_lane(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a name"):
        entry(tmp_path, "stable", name)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["write", "prune", "remove"]), st.integers(1, 4)), max_size=8))
def test_what_the_config_names_is_always_there(tmp_path: Path, steps: list[tuple[str, int]]) -> None:
    at = entry(tmp_path, "stable", "m")
    at.remove()
    for step, version in steps:
        if step == "write":
            write(at, version, str(version).encode())
        elif at.folder.exists():
            getattr(at, step)()
        named = at.version()
        assert named is None or (at.folder / str(named) / MODEL).read_bytes() == str(named).encode()
