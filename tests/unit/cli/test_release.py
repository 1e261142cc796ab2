"""`approve | reject | rollback`: who decides, what will be done, what became of it, and why not."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.unit.airflow.test_rest import Server
from tests.unit.serving.lanes import World
from visionloop.records import Release
from visionloop.stages import release

from .conftest import Run

# --- approve and reject


@pytest.fixture
def airflow(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An API server that answers as Airflow does, over HTTP; one release of `p` waits."""
    answers = Server()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = httpx.Request(self.command, f"http://here{self.path}", headers=dict(self.headers), content=body)
            found = answers(request)
            self.send_response(found.status_code)
            self.send_header("Content-Length", str(len(found.content)))
            self.end_headers()
            self.wfile.write(found.content)

        do_GET = do_POST = do_PATCH = _answer

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    (tmp_path / "users.json").write_text(json.dumps({"admin": "a", "ann": "b", "bob": "c"}))
    monkeypatch.setenv("VISIONLOOP_AIRFLOW_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("VISIONLOOP_AIRFLOW_USERS", str(tmp_path / "users.json"))
    yield answers
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("command", "choice"), [("approve", "Approve"), ("reject", "Reject")])
def test_the_first_approver_decides_with_a_reason(run: Run, airflow: Server, command: str, choice: str) -> None:
    shown = run(f"{command} p --reason", "better in the dark")
    assert (shown.code, shown.out) == (
        0,
        f"{choice.lower()}{'ed' if choice == 'Reject' else 'd'} Release p version 3?\n",
    )
    user, body = airflow.answered
    assert user == "ann"
    assert body == {"chosen_options": [choice], "params_input": {"reason": "better in the dark"}}


def test_where_nobody_approves_nothing_is_answered(run: Run, project: Path) -> None:
    project.write_text(
        project.read_text().replace("{approval: required, approvers: [ann, bob]}", "{approval: automatic}")
    )
    shown = run("approve p --reason x")
    assert (shown.code, shown.err.partition(":")[0]) == (1, "error")
    assert "p names no approvers: with `approval: automatic` nothing waits for an answer" in shown.err


@pytest.mark.parametrize(("command", "decision"), [("approve", "approved"), ("reject", "rejected")])
def test_a_decision_as_json(run: Run, airflow: Server, command: str, decision: str) -> None:
    shown = run(f"{command} p --reason fine --as bob --json")
    assert shown.code == 0
    told = {"project": "p", "subject": "Release p version 3?", "decision": decision, "by": "bob", "reason": "fine"}
    assert json.loads(shown.out) == told


def test_another_approver_by_name(run: Run, airflow: Server) -> None:
    assert run("approve p --reason fine --as bob").code == 0
    assert airflow.answered[0] == "bob"


@pytest.mark.parametrize("command", ["approve", "reject"])
def test_when_nothing_waits_it_says_so(run: Run, airflow: Server, command: str) -> None:
    airflow.state = "success"
    shown = run(f"{command} p --reason x")
    assert shown.code == 1
    assert "nothing of p waits for an approval" in shown.err
    assert "p__release" in shown.err
    assert airflow.answered is None


@pytest.mark.parametrize(("user", "says"), [("eve", "eve is no Airflow user"), ("admin", "its approvers are ann, bob")])
def test_who_is_no_approver_is_told_who_is(run: Run, airflow: Server, user: str, says: str) -> None:
    shown = run(f"approve p --reason x --as {user}")
    assert shown.code == 1
    assert says in shown.err
    assert airflow.answered is None


def test_a_decision_needs_a_reason(run: Run, airflow: Server) -> None:
    assert run("approve p").code == 2
    assert airflow.answered is None


# --- rollback


@pytest.fixture
def world(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Versions 1 and 2 were released."""
    with World(tmp_path / "world").serving() as made:
        made.release(1)
        made.release(2, bias=0.1)
        monkeypatch.setattr("visionloop.stores.connect", lambda settings: made.connect())
        yield made


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_a_dry_run_changes_nothing(run: Run, world: World) -> None:
    shown = run("rollback p --reason x --dry-run")
    assert (shown.code, shown.out) == (0, "would do: p: version 1 serves instead of 2\n")
    shown = run("rollback p --reason x --dry-run --json")
    assert json.loads(shown.out) == {"project": "p", "would": "version 1 serves instead of 2"}
    assert world.stable.served("p") == 2
    assert len(world.releases()) == 2


@pytest.mark.parametrize(("said", "code", "version"), [("y\n", 0, 1), ("n\n", 1, 2), ("", 1, 2)])
def test_it_says_what_it_will_do_and_asks(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch, said: str, code: int, version: int
) -> None:
    answer(monkeypatch, said)
    shown = run("rollback p --reason", "complaints since noon")
    assert "p: version 1 serves instead of 2. Do it? [y/N]" in shown.err
    assert shown.code == code
    assert world.stable.served("p") == version
    if code == 0:
        assert shown.out.strip().startswith("p serves version 1: version 1 serves again instead of 2, by ")
        assert shown.out.endswith(": complaints since noon\n")


def test_without_a_question_and_as_a_record(run: Run, world: World) -> None:
    shown = run("rollback p --to 1 --yes --json --reason x")
    assert shown.code == 0
    assert Release.model_validate_json(shown.out) == world.releases()[-1]
    assert world.registry.alias == 1


def test_who_rolls_back_is_recorded(run: Run, world: World) -> None:
    assert run("rollback p --yes --as lea --reason x").code == 0
    assert world.releases()[-1].reason == "version 1 serves again instead of 2, by lea: x"


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found"), OSError("No username set")])
def test_a_user_without_a_name_may_roll_back(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """As in a container: neither the environment nor the system knows the user. OSError: since Python 3.13."""

    def unknown(uid: int) -> None:
        raise error

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    assert run("rollback p --yes --reason x").code == 0
    assert world.releases()[-1].reason.endswith(", by uid 54321: x")


def test_a_release_on_its_way_is_called_off_and_the_reason_told(run: Run, world: World) -> None:
    inputs = world.inputs(world.candidate(3, bias=0.2))
    release.preflight(world.project, inputs, world.stores)
    release.canary(world.project, inputs, world.stores)
    plan = run("rollback p --reason x --dry-run")
    assert plan.out == "would do: p: the release of version 3 is called off, version 2 goes on serving\n"
    shown = run("rollback p --yes --reason", "errors at the line")
    assert shown.code == 0
    assert shown.out.startswith("p: version 3 is called off by ")
    assert shown.out.endswith(": errors at the line; version 2 goes on serving\n")
    assert world.stable.served("p") == 2


def test_where_there_is_no_way_back_it_says_so(run: Run, world: World) -> None:
    shown = run("rollback p --to 9 --reason x --yes")
    assert shown.code == 1
    assert shown.err == "error: p cannot go back to version 9: released were 1, 2\n"
    world.stable.down = True
    shown = run("rollback p --reason x --yes")
    assert shown.code == 1
    assert shown.err.startswith("error: Triton of the stable lane")
