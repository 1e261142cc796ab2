"""Files of API keys: what is read, what is refused, and that no refusal shows a key."""

import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visionloop.errors import ConfigError
from visionloop.serving.keys import OWN, add_key, read_key, read_keys, remove_key

KEY = "0123456789abcdef"
SECRET = "s3cret-s3cret-s3cret"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_lines_comments_and_blanks(file: Path) -> None:
    write(file, f"# who calls us\n\nvisionloop: {KEY}\n belt-3 :{SECRET}  \n")
    assert read_keys(file) == {"visionloop": KEY, "belt-3": SECRET}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"visionloop: {KEY}\nbelt {SECRET}\n", r"keys:2: expected `client: key`"),
        (f"visionloop: {KEY}\nbelt:\n", r"keys:2: expected"),
        (f"Belt: {SECRET}\n", r"keys:1: expected"),
        (f"belt: {SECRET} x\n", r"keys:1: expected"),
        (f"belt: {SECRET[:15]}\n", r"at least 16 characters"),
        (f"visionloop: {KEY}\nbelt: {SECRET}:\n", r"keys:2: expected"),
        (f"visionloop: {KEY}\nbelt: {SECRET}\ndoor: {SECRET}\n", r"keys:3: .* twice"),
        (f"visionloop: {KEY}\nbelt: {SECRET}\nbelt: {SECRET}x\n", r"keys:3: .* twice"),
        (f"belt: {SECRET}\n", "no key for visionloop"),
        ("", "no key for visionloop"),
        (f"visionloop: {SECRET}é\n", "not ASCII"),
    ],
)
def test_a_broken_file_is_said_by_line_and_not_shown(file: Path, text: str, fault: str) -> None:
    write(file, text)
    with pytest.raises(ConfigError, match=fault) as caught:
        read_keys(file)
    assert "s3cret" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_sixteen_characters_are_enough(file: Path) -> None:
    assert read_keys(write(file, f"visionloop: {SECRET[:16]}\n")) == {OWN: SECRET[:16]}


@pytest.mark.parametrize(
    ("mode", "fine"), [(0o600, True), (0o400, True), (0o440, True), (0o640, True), (0o660, False), (0o604, False)]
)
def test_others_must_not_read_it(file: Path, mode: int, fine: bool) -> None:
    """A Secret that a pod mounts with a group is 0440."""
    write(file, f"visionloop: {KEY}\n", mode)
    if fine:
        assert read_keys(file) == {OWN: KEY}
    else:
        with pytest.raises(ConfigError, match=rf"has mode {mode:04o}: `chmod 600` it"):
            read_keys(file)


def test_a_clients_own_file_is_just_its_key(file: Path) -> None:
    assert read_key(write(file, f"{SECRET}\n", 0o644)) == SECRET
    assert read_key(write(file, f"belt: {SECRET}\nvisionloop: {KEY}\n")) == KEY
    with pytest.raises(ConfigError, match="no key for visionloop"):
        read_key(write(file, f"belt: {SECRET}\n"))
    with pytest.raises(ConfigError, match="No such file"):
        read_key(file.with_name("none"))


def test_keys_are_made_and_taken_away(file: Path) -> None:
    belt = add_key(file, "belt-3")
    assert len(belt) >= 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    keys = read_keys(file)
    assert keys == {"visionloop": keys[OWN], "belt-3": belt}
    door = add_key(file, "door")
    assert len({belt, door, keys[OWN]}) == 3
    remove_key(file, "belt-3")
    assert set(read_keys(file)) == {OWN, "door"}


def test_what_cannot_be_made_or_taken_away_is_said(file: Path) -> None:
    key = add_key(file, "belt")
    before = file.read_text()
    for call, name, fault in (
        (add_key, "belt", "belt has a key"),
        (add_key, "Belt 3", "expected a client's name .* found 'Belt 3'"),
        (add_key, "a: b\nc", "expected a client's name"),
        (remove_key, "door", r"door has no key .*known: belt, visionloop"),
        (remove_key, OWN, "own probes need"),
    ):
        with pytest.raises(ConfigError, match=fault) as caught:
            call(file, name)
        assert key not in str(caught.value)
    assert file.read_text() == before


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60).map(lambda text: text.replace("\r", "")))
def test_whatever_the_file_says_it_is_read_or_refused(file: Path, text: str) -> None:
    write(file, text.encode("utf-8", "replace").decode())
    for read in (read_keys, read_key):
        try:
            read(file)
        except ConfigError:
            continue
