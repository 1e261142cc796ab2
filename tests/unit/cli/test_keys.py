"""`endpoint-key`: a key is printed once, names are listed, keys never."""

import json
import stat
from pathlib import Path

import pytest

from visionloop.serving.keys import read_keys

from .conftest import Run


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VISIONLOOP_ENDPOINT_KEYS", str(tmp_path / "secrets" / "keys"))
    return tmp_path / "secrets" / "keys"


def test_a_key_is_printed_once_and_kept_in_a_private_file(run: Run, file: Path) -> None:
    made = run("endpoint-key add belt-3")
    assert made.code == 0
    assert made.out == read_keys(file)["belt-3"] + "\n"
    assert "next `visionloop up`" in made.err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    listed = run("endpoint-key list")
    assert listed.out.split() == ["belt-3", "visionloop"]
    assert run("endpoint-key list --json").out == '["belt-3", "visionloop"]\n'


def test_a_client_that_lost_its_key_is_gone(run: Run, file: Path) -> None:
    run("endpoint-key add belt-3")
    assert run("endpoint-key remove belt-3").code == 0
    assert run("endpoint-key list").out.split() == ["visionloop"]
    again = run("endpoint-key remove belt-3")
    assert (again.code, again.out) == (1, "")
    assert "belt-3 has no key" in again.err


def test_as_json(run: Run, file: Path) -> None:
    added = run("endpoint-key add belt-3 --json")
    assert json.loads(added.out) == {"client": "belt-3", "key": read_keys(file)["belt-3"]}
    assert "next `visionloop up`" in added.err
    assert json.loads(run("endpoint-key remove belt-3 --json").out) == {"removed": "belt-3"}
    assert "belt-3" not in read_keys(file)


@pytest.mark.parametrize("command", ["add belt-3", "list", "remove belt-3"])
def test_without_the_setting_it_says_what_to_set(run: Run, home: Path, command: str) -> None:
    shown = run(f"endpoint-key {command}")
    assert (shown.code, shown.out) == (1, "")
    assert "VISIONLOOP_ENDPOINT_KEYS is not set" in shown.err
    assert f"export VISIONLOOP_ENDPOINT_KEYS={home}/endpoint-keys" in shown.err
