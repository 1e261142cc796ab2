"""The Airflow store against an API server that answers as Airflow 3.3 does, without a network."""

import json

import httpx
import pytest

from visionloop.errors import ConfigError, Conflict, NotFound, StoreError
from visionloop.settings import Settings
from visionloop.stores.airflow import Airflow, open_airflow

USERS = {"admin": "a", "ann": "b", "bob": "c"}
RUN = "asset_triggered__2026-01-01T00:00:00+00:00"


class Server:
    """Two users may answer one approval once; tokens are good until `expire`."""

    def __init__(self):
        self.answered = None
        self.tokens = {}
        self.logins = 0
        self.state = "awaiting_input"
        self.seen = []

    def expire(self):
        self.tokens.clear()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content or b"{}")
        if path == "/auth/token":
            return self.login(body)
        user = self.tokens.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        if user is None:
            return httpx.Response(401, json={"detail": "Invalid JWT token"})
        self.seen.append((request.method, request.url.raw_path.decode(), body))
        return self.route(request, path.removeprefix("/api/v2"), user, body)

    def login(self, body):
        if USERS.get(body["username"]) != body["password"]:
            return httpx.Response(401, json={"detail": "Invalid credentials"})
        self.logins += 1
        self.tokens[f"{body['username']}-{self.logins}"] = body["username"]
        return httpx.Response(201, json={"access_token": f"{body['username']}-{self.logins}"})

    def route(self, request, path, user, body):
        if path == "/dags/p__release/dagRuns/~/hitlDetails":
            return httpx.Response(200, json={"hitl_details": [] if self.answered else [self.detail()]})
        if path.endswith("/taskInstances/approve/-1/hitlDetails"):
            return self.answer(user, body) if request.method == "PATCH" else httpx.Response(200, json=self.detail())
        if path == "/dags/p__data" and request.method == "PATCH":
            return httpx.Response(200, json={"is_paused": body["is_paused"]})
        if path == "/dags/p__data/dagRuns" and request.method == "POST":
            return httpx.Response(200, json={"dag_run_id": "manual__1"})
        if path == "/dags/p__data/dagRuns":
            run = {"dag_run_id": RUN, "state": "running", "run_after": "2026-01-01T00:00:00Z", "conf": None}
            return httpx.Response(200, json={"dag_runs": [run]})
        if path.endswith("/taskInstances"):
            tasks = [{"task_id": "find", "state": "success"}, {"task_id": "ingest", "state": None}]
            return httpx.Response(200, json={"task_instances": tasks})
        return httpx.Response(404, json={"detail": "not found"})

    def answer(self, user, body):
        if self.answered:
            return httpx.Response(409, json={"detail": "has already been updated"})
        if user not in {"ann", "bob"}:
            return httpx.Response(403, json={"detail": f"User={user} is not a respondent for the task."})
        self.answered = (user, body)
        return httpx.Response(200, json={})

    def detail(self):
        by, body = self.answered or (None, {})
        return {
            "subject": "Release p version 3?",
            "body": "| figures |",
            "assigned_users": [{"id": "ann", "name": "ann"}, {"id": "bob", "name": "bob"}],
            "created_at": "2026-01-01T00:00:00Z",
            "responded_by_user": {"id": by, "name": by} if by else None,
            "chosen_options": body.get("chosen_options"),
            "task_instance": {"dag_id": "p__release", "dag_run_id": RUN, "task_id": "approve", "state": self.state},
        }


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def airflow(server):
    return Airflow("http://airflow:8080/", USERS, transport=httpx.MockTransport(server))


def answer(airflow, **changed):
    return airflow.answer("p", **{"user": "ann", "decision": "Approve", "reason": "better", **changed})


def test_answers_as_the_approver(airflow, server):
    assert answer(airflow) == "Release p version 3?"
    assert server.answered == ("ann", {"chosen_options": ["Approve"], "params_input": {"reason": "better"}})
    path = server.seen[-1][1]
    assert "asset_triggered__2026-01-01T00%3A00%3A00%2B00%3A00/taskInstances/approve/-1/hitlDetails" in path


def test_pending_says_what_and_who(airflow):
    (pending,) = airflow.pending_approvals("p")
    assert (pending.run_id, pending.subject, pending.approvers) == (RUN, "Release p version 3?", ("ann", "bob"))


@pytest.mark.parametrize("state", ["success", "failed", None])
def test_an_approval_whose_task_does_not_wait_any_more_is_not_pending(airflow, server, state):
    server.state = state
    assert airflow.pending_approvals("p") == []


def test_no_approver(airflow, server):
    with pytest.raises(ConfigError, match=r"admin may not decide on Release p version 3.*approvers are ann, bob"):
        answer(airflow, user="admin")
    assert server.answered is None


def test_nothing_to_approve(airflow, server):
    answer(airflow)
    with pytest.raises(NotFound, match=r"nothing of p waits .* http://airflow:8080/dags/p__release"):
        answer(airflow)


def test_somebody_was_faster(airflow, server):
    pending = airflow.pending_approvals("p")
    server.answered = ("bob", {"chosen_options": ["Reject"]})
    airflow.pending_approvals = lambda project: pending
    with pytest.raises(Conflict, match=r"already answered with Reject by bob"):
        answer(airflow)


def test_an_unknown_decision(airflow):
    with pytest.raises(ConfigError, match="'yes' is no decision: expected one of Approve, Reject"):
        answer(airflow, decision="yes")


def test_an_unknown_user_names_those_that_exist(airflow):
    with pytest.raises(ConfigError, match=r"eve is no Airflow user .*known: admin, ann, bob"):
        answer(airflow, user="eve")


def test_a_changed_password(server):
    wrong = Airflow("http://airflow:8080", {"ann": "old"}, transport=httpx.MockTransport(server))
    with pytest.raises(StoreError, match="does not accept the password of ann"):
        wrong.unpause("p__data")


def test_one_login_serves_many_calls_and_is_repeated_when_it_has_expired(airflow, server):
    airflow.unpause("p__data")
    airflow.unpause("p__data")
    assert server.logins == 1
    server.expire()
    assert airflow.unpause("p__data") is True
    assert server.logins == 2


def test_a_dag_that_airflow_has_not_read_yet(airflow):
    assert airflow.unpause("q__data") is False
    assert airflow.dag_runs("q__data") == []
    assert airflow.pending_approvals("q") == []
    with pytest.raises(NotFound, match=r"answered 404 to POST /api/v2/dags/q__data/dagRuns"):
        airflow.trigger("q__data")


def test_runs_and_tasks(airflow):
    (run,) = airflow.dag_runs("p__data", limit=1)
    assert (run.run_id, run.state, run.conf) == (RUN, "running", {})
    assert airflow.task_states("p__data", run.run_id) == {"find": "success", "ingest": None}
    assert airflow.trigger("p__data", {"batch": "b1"}) == "manual__1"
    assert airflow.run_link("p__data", RUN).startswith("http://airflow:8080/dags/p__data/runs/asset_triggered__2026")


def test_airflow_is_down():
    with pytest.raises(StoreError, match=r"Airflow at http://127.0.0.1:9 cannot be reached .*visionloop status"):
        Airflow("http://127.0.0.1:9", USERS).unpause("p__data")


def test_the_users_file(tmp_path):
    users = tmp_path / "users.json"
    settings = Settings(airflow_url="http://airflow:8080", airflow_users=users)
    with pytest.raises(ConfigError, match="cannot be read"):
        open_airflow(settings)
    users.write_text("not json")
    with pytest.raises(ConfigError, match="is no JSON object of users"):
        open_airflow(settings)
    users.write_text("{}")
    with pytest.raises(ConfigError, match="has no users"):
        open_airflow(settings)
    users.write_text(json.dumps(USERS))
    assert open_airflow(settings).url == "http://airflow:8080"


@pytest.mark.parametrize(("slow", "asked"), [(2, 3), (3, 3)])
def test_a_busy_server_is_asked_again_but_told_once(server, slow, asked):
    calls = []

    def busy(request):
        if "/auth/" not in request.url.path:
            calls.append(request.method)
            if len(calls) <= slow:
                raise httpx.ReadTimeout("timed out", request=request)
        return server(request)

    airflow = Airflow("http://airflow:8080", USERS, transport=httpx.MockTransport(busy))
    if slow < 3:
        assert airflow.dag_runs("p__data")[0].state == "running"
    else:
        with pytest.raises(StoreError, match="ReadTimeout"):
            airflow.dag_runs("p__data")
    assert calls == ["GET"] * asked
    calls.clear()
    with pytest.raises(StoreError, match="ReadTimeout"):
        airflow.trigger("p__data")
    assert calls == ["POST"]
