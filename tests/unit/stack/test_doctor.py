"""The doctor's findings: each fault comes with what to do."""

import contextlib
import socket
from pathlib import Path

import pytest

from visionloop.settings import Settings
from visionloop.stack import doctor as diagnose
from visionloop.stack.doctor import check_disk, check_home, check_ports, check_python, check_servers
from visionloop.stack.ports import is_free
from visionloop.stack.services import ALL


def test_every_bad_finding_has_advice_and_good_ones_have_none(tmp_path: Path) -> None:
    findings = diagnose(Settings(home=tmp_path / "home"))
    assert {f.name for f in findings} >= {"python", "servers", "home", "disk", "memory", "ports", "example data"}
    assert all(bool(f.advice) is not f.ok for f in findings), findings
    assert not (tmp_path / "home").exists()  # looking changes nothing


@pytest.mark.parametrize(("version", "ok"), [((3, 10), False), ((3, 11), True), ((3, 12), True), ((3, 13), False)])
def test_python_versions(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], ok: bool) -> None:
    monkeypatch.setattr("sys.version_info", (*version, 0))
    assert check_python().ok is ok


def test_servers_that_are_not_unpacked_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    found = check_servers()
    assert not found.ok
    assert "Triton" in found.found and "Envoy" in found.found and "SeaweedFS" not in found.found
    assert found.advice == "run `make install`"


def test_a_home_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert check_home(tmp_path / "new" / "home").ok
    found = check_home(tmp_path / "file" / "home")
    assert not found.ok and "VISIONLOOP_HOME" in found.advice


@pytest.mark.parametrize(("free_gb", "ok"), [(4.9, False), (5.0, True)])
def test_room_on_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_gb: float, ok: bool) -> None:
    usage = type("Usage", (), {"free": free_gb * 2**30})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert check_disk(tmp_path).ok is ok


def test_a_taken_port_is_named_with_its_owner_and_is_no_fault(tmp_path: Path) -> None:
    service, port = next((s.name, p) for s in ALL for p in s.ports.values() if p is not None)
    with contextlib.ExitStack() as held:
        if is_free(port):  # else somebody has it already
            held.enter_context(socket.create_server(("127.0.0.1", port)))
        (found,) = check_ports(Settings(home=tmp_path))
    assert found.ok
    assert f"{port} ({service}: " in found.found
