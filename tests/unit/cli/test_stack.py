"""`status | logs | doctor | up | down` and everything else where no server runs: one clear line, never a traceback."""

import json
import socket
from pathlib import Path

import pytest

from .conftest import Run


def test_status_of_nothing(run: Run, home: Path) -> None:
    shown = run("status")
    assert shown.code == 0
    assert "down" in shown.out
    found = json.loads(run("status --json").out)
    assert (found["phase"], found["services"], found["home"]) == ("down", [], str(home))
    assert not home.exists()


def test_status_of_a_stack_that_died(run: Run, home: Path) -> None:
    """Its state says `up`; nobody lives: exit code 1, since something that should run does not."""
    (home / "stack").mkdir(parents=True)
    kept = {"name": "s3", "state": "running", "leader": None}
    state = {"phase": "up", "repo": "/", "services": {"s3": kept}}
    (home / "stack" / "state.json").write_text(json.dumps(state))
    shown = run("status --json")
    assert shown.code == 1
    assert json.loads(shown.out)["services"][0]["state"] != "running"


def test_a_reason_is_shown_as_it_is(run: Run, home: Path) -> None:
    """Last words of a server often begin with a bracket, which Rich takes for markup."""
    (home / "stack").mkdir(parents=True)
    kept = {"name": "s3", "state": "failed", "leader": None, "reason": "ended: [error] [/] no space"}
    state = {"phase": "failed", "repo": "/", "services": {"s3": kept}, "reason": "s3: [warn] [/x]"}
    (home / "stack" / "state.json").write_text(json.dumps(state))
    shown = run("status")
    assert shown.code == 1
    assert "ended: [error] [/] no space" in shown.out
    assert "s3: [warn] [/x]" in shown.out


def test_a_state_file_that_nobody_wrote(run: Run, home: Path) -> None:
    (home / "stack").mkdir(parents=True)
    (home / "stack" / "state.json").write_text('{"phase": 3}')
    shown = run("status")
    assert shown.code == 1
    assert len(shown.err.splitlines()) == 1
    assert "state.json" in shown.err


def test_the_home_can_be_given(run: Run, tmp_path: Path) -> None:
    assert json.loads(run(f"--home {tmp_path / 'other'} status --json").out)["home"] == str(tmp_path / "other")


def test_down_of_nothing_is_harmless(run: Run, home: Path) -> None:
    assert run("down").code == 0
    assert not home.exists()


def test_logs(run: Run, home: Path) -> None:
    (home / "logs").mkdir(parents=True)
    (home / "logs" / "ray.log").write_text("".join(f"line {number}\n" for number in range(5)))
    assert run("logs ray --lines 2").out == "line 3\nline 4\n"
    assert run("logs ray -n 0").out == ""
    missing = run("logs envoy")
    assert (missing.code, "has not logged yet" in missing.err) == (1, True)
    unknown = run("logs ry")
    assert unknown.code == 1
    assert "ray" in unknown.err


def test_doctor_as_json(run: Run) -> None:
    found = run("doctor --json")
    checks = json.loads(found.out)
    assert {"python", "disk", "memory"} <= {check["name"] for check in checks}
    assert found.code == int(not all(check["ok"] for check in checks))


def test_doctor_of_a_bad_home_says_what_to_do(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shown = run(f"--home {tmp_path / 'file' / 'home'} doctor")
    assert shown.code == 1
    assert "FAIL home" in shown.out
    assert "ok   python" in shown.out
    assert "VISIONLOOP_HOME" in shown.out


def test_up_into_a_folder_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shown = run(f"--home {tmp_path / 'file' / 'home'} up")
    assert shown.code == 1
    assert len(shown.err.splitlines()) == 1
    assert "cannot write to" in shown.err


def test_up_of_an_unknown_service(run: Run) -> None:
    shown = run("up --only s4")
    assert shown.code == 1
    assert "s3" in shown.err


def test_a_setting_that_does_not_exist(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONLOOP_STROE", "s3://x")
    shown = run("status")
    assert shown.code == 1
    assert "VISIONLOOP_STROE" in shown.err


@pytest.mark.parametrize("command", ["approve p --reason x", "reject p --reason x", "rollback p --reason x --yes"])
@pytest.mark.parametrize("where", ["never started", "gone"])
def test_servers_that_are_down_are_one_line(
    run: Run, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, where: str
) -> None:
    if where == "gone":
        port = closed_port()
        monkeypatch.setattr("visionloop.stores.objects.TRIES", 1)
        monkeypatch.setenv("VISIONLOOP_STORE", "s3://bucket")
        monkeypatch.setenv("VISIONLOOP_S3_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        (tmp_path / "users.json").write_text('{"admin": "a", "ann": "b"}')
        monkeypatch.setenv("VISIONLOOP_AIRFLOW_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("VISIONLOOP_AIRFLOW_USERS", str(tmp_path / "users.json"))
    shown = run(command)
    assert shown.code == 1
    assert len(shown.err.splitlines()) == 1
    assert ("cannot be reached" if where == "gone" else "`visionloop up`") in shown.err


def test_delivering_to_a_store_that_is_down(
    run: Run, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "1.png").write_bytes(b"x")
    monkeypatch.setattr("visionloop.stores.objects.TRIES", 1)
    monkeypatch.setenv("VISIONLOOP_STORE", "s3://bucket")
    monkeypatch.setenv("VISIONLOOP_S3_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    shown = run(f"deliver p {tmp_path / 'photos'}")
    assert shown.code == 1
    assert shown.err.startswith("error: S3 at http://127.0.0.1:")


def closed_port() -> int:
    """Nobody listens there."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
