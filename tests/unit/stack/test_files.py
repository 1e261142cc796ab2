"""Files of the stack: whole, private, and plain about a full disk."""

import errno
import os
import stat
from pathlib import Path

import pytest

from visionloop.errors import StackError
from visionloop.stack.files import last_line, open_log, read_json, secret, shorten_log, write_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_written_file_is_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.json"
    write_private(path, "one")
    write_private(path, "two")
    assert path.read_text() == "two"
    assert mode(path) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    write_private(path, "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_private(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "token"
    first = secret(path, lambda: "first")
    path.chmod(0o644)
    assert secret(path, lambda: "second") == first
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700


def test_a_log_is_appended_to_and_private(tmp_path: Path) -> None:
    for title in ("one", "two"):
        os.close(open_log(tmp_path / "logs" / "s3.log", title))
    assert (tmp_path / "logs" / "s3.log").read_text() == "--- one\n--- two\n"
    assert mode(tmp_path / "logs" / "s3.log") == 0o600


def test_a_full_disk_shows_when_the_log_is_opened(tmp_path: Path) -> None:
    (tmp_path / "s3.log").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        open_log(tmp_path / "s3.log", "s3")


@pytest.mark.parametrize(
    ("text", "since", "expected"),
    [
        ("--- s3 starts\nport is taken\n\n", 0, "port is taken"),
        ("old words\nnew words\n", 10, "new words"),
        ("old words\n", 10, ""),
        ("--- s3 starts\n", 0, ""),
        ("x" * 900, 0, "x" * 300),
    ],
)
def test_the_last_line_that_says_something(tmp_path: Path, text: str, since: int, expected: str) -> None:
    (tmp_path / "log").write_text(text)
    assert last_line(tmp_path / "log", since) == expected


def test_a_device_in_place_of_a_log_is_not_read_for_ever(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/zero")
    assert len(last_line(tmp_path / "log")) <= 300


def test_a_missing_log_has_no_last_line(tmp_path: Path) -> None:
    assert last_line(tmp_path / "none") == ""


@pytest.mark.parametrize(("size", "shortened"), [(100, False), (101, True)])
def test_a_long_log_is_moved_and_the_writer_goes_on(tmp_path: Path, size: int, shortened: bool) -> None:
    path = tmp_path / "ray.log"
    handle = open_log(path, "x" * (size - len("--- \n")))
    shorten_log(path, 100)
    os.write(handle, b"more\n")
    os.close(handle)
    assert path.read_text().endswith("more\n")
    assert (path.stat().st_size == len("more\n")) is shortened
    assert (tmp_path / "ray.log.1").exists() is shortened


def test_a_device_is_never_shortened(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    shorten_log(tmp_path / "log", 0)


def test_a_broken_state_file_says_what_to_do(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") is None
    (tmp_path / "state.json").write_text('{"phase": ')
    with pytest.raises(StackError, match=r"state.json is broken .*remove it"):
        read_json(tmp_path / "state.json")
