"""Airflow over its REST API, as a user: which DAGs run, what waits for an approval, and the answer to it.

Users and passwords come from `VISIONLOOP_AIRFLOW_USERS` (SimpleAuthManager), a JSON file `{user: password}`.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from visionloop.errors import ConfigError, Conflict, NotFound, StoreError
from visionloop.settings import Settings

TIMEOUT_SECONDS = 20.0
LOOKS = 3
"""How often a question is asked again when a busy machine lets it time out; what changes something is said once."""
LOGIN = "/auth/token"
APPROVE_TASK = "approve"
DECISIONS = ("Approve", "Reject")


@dataclass(frozen=True)
class DagRun:
    """One run of a DAG; `state` is queued, running, success or failed."""

    run_id: str
    state: str
    run_after: datetime
    conf: dict[str, Any]


@dataclass(frozen=True)
class PendingApproval:
    """A release that waits for one of its approvers."""

    dag: str
    run_id: str
    subject: str
    body: str
    approvers: tuple[str, ...]
    since: datetime


def open_airflow(settings: Settings) -> "Airflow":
    """Airflow behind `settings`; nobody is logged in yet."""
    path = settings.need("airflow_users")
    try:
        users = json.loads(_read(path))
    except ValueError as error:
        raise ConfigError(f"VISIONLOOP_AIRFLOW_USERS: {path} is no JSON object of users: {error}") from None
    return Airflow(settings.need("airflow_url"), users)


class Airflow:
    """One API server. Every call logs in as the user that it needs and keeps that user's token."""

    def __init__(self, url: str, users: dict[str, str], *, transport: httpx.BaseTransport | None = None) -> None:
        if not users:
            raise ConfigError("Airflow has no users: VISIONLOOP_AIRFLOW_USERS names an empty file")
        self.url = url.rstrip("/")
        self._users = users
        self._reader = "admin" if "admin" in users else next(iter(users))
        self._tokens: dict[str, str] = {}
        self._client = httpx.Client(base_url=self.url, timeout=TIMEOUT_SECONDS, transport=transport)

    def login(self, user: str) -> str:
        """A fresh token for `user`. Raises ConfigError for a user without a password here."""
        if user not in self._users:
            raise ConfigError(
                f"{user} is no Airflow user of this machine (known: {', '.join(sorted(self._users))}): "
                "add the user with a password to VISIONLOOP_AIRFLOW_USERS"
            )
        body = {"username": user, "password": self._users[user]}
        answer = self._send("POST", LOGIN, json=body)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise StoreError(f"Airflow at {self.url} does not accept the password of {user}")
        self._tokens[user] = self._checked(answer)["access_token"]
        return self._tokens[user]

    def pending_approvals(self, project: str) -> list[PendingApproval]:
        """Releases of `project` that nobody has decided yet, oldest first."""
        path = f"/dags/{project}__release/dagRuns/~/hitlDetails"
        try:
            found = self._api("GET", path, params={"response_received": "false", "limit": 100})
        except NotFound:
            return []
        details = (_pending(item) for item in found["hitl_details"] if _waits(item["task_instance"]))
        return sorted(details, key=lambda pending: pending.since)

    def answer(self, project: str, *, user: str, decision: str, reason: str) -> str:
        """Decide the oldest pending approval as `user`; returns its subject.

        Raises NotFound when nothing waits, ConfigError when the user is no approver, Conflict when somebody was faster.
        """
        if decision not in DECISIONS:
            raise ConfigError(f"{decision!r} is no decision: expected one of {', '.join(DECISIONS)}")
        waiting = self.pending_approvals(project)
        if not waiting:
            raise NotFound(f"nothing of {project} waits for an approval: {self.url}/dags/{project}__release shows why")
        pending = waiting[0]
        path = f"{_run_path(pending.dag, pending.run_id)}/taskInstances/{APPROVE_TASK}/-1/hitlDetails"
        body = {"chosen_options": [decision], "params_input": {"reason": reason}}
        try:
            self._api("PATCH", path, user=user, json=body)
        except Conflict:
            raise Conflict(f"{pending.subject}: {self._answered(path)}") from None
        except _Forbidden:
            approvers = ", ".join(pending.approvers)
            raise ConfigError(f"{user} may not decide on {pending.subject}: its approvers are {approvers}") from None
        return pending.subject

    def trigger(self, dag: str, conf: dict[str, Any] | None = None, *, user: str | None = None) -> str:
        """Start a run by hand; returns its id."""
        body = {"logical_date": None, "conf": conf or {}}
        return str(self._api("POST", f"/dags/{dag}/dagRuns", user=user, json=body)["dag_run_id"])

    def unpause(self, dag: str) -> bool:
        """Let the scheduler start the DAG; False while Airflow has not read it yet."""
        try:
            self._api("PATCH", f"/dags/{dag}", json={"is_paused": False})
        except NotFound:
            return False
        return True

    def dag_runs(self, dag: str, *, limit: int = 10) -> list[DagRun]:
        """The newest runs, newest first; none while Airflow has not read the DAG yet."""
        try:
            found = self._api("GET", f"/dags/{dag}/dagRuns", params={"limit": limit, "order_by": "-run_after"})
        except NotFound:
            return []
        return [_dag_run(item) for item in found["dag_runs"]]

    def task_states(self, dag: str, run_id: str) -> dict[str, str | None]:
        """Task id -> state (None: not scheduled yet)."""
        found = self._api("GET", f"{_run_path(dag, run_id)}/taskInstances", params={"limit": 100})
        return {item["task_id"]: item["state"] for item in found["task_instances"]}

    def import_errors(self) -> dict[str, str]:
        """DAG file -> why Airflow cannot read it."""
        found = self._api("GET", "/importErrors", params={"limit": 100})
        return {item["filename"]: item["stack_trace"] for item in found["import_errors"]}

    def clear(self, dag: str, run_id: str, tasks: list[str]) -> None:
        """Let these tasks of a run and what follows them run again, as the button in the UI does."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": tasks,
            "include_downstream": True,
            "only_failed": False,
            "reset_dag_runs": True,
        }
        self._api("POST", f"/dags/{dag}/clearTaskInstances", json=body)

    def set_task_state(self, dag: str, run_id: str, task: str, state: str) -> None:
        """Mark a task `success`, `failed` or `skipped`, as the button in the UI does."""
        self._api("PATCH", f"{_run_path(dag, run_id)}/taskInstances/{task}", json={"new_state": state})

    def run_link(self, dag: str, run_id: str) -> str:
        """Where a person looks at a run."""
        return f"{self.url}/dags/{dag}/runs/{quote(run_id, safe='')}"

    def _answered(self, path: str) -> str:
        detail = self._api("GET", path)
        by = (detail.get("responded_by_user") or {}).get("name") or "a time-out"
        return f"already answered with {', '.join(detail['chosen_options'] or ['?'])} by {by}"

    def _api(self, method: str, path: str, *, user: str | None = None, **request: Any) -> Any:
        user = user or self._reader
        for token in (self._tokens.get(user), None):
            headers = {"Authorization": f"Bearer {token or self.login(user)}"}
            answer = self._send(method, f"/api/v2{path}", headers=headers, **request)
            if answer.status_code != httpx.codes.UNAUTHORIZED:
                break
        return self._checked(answer)

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        left = LOOKS if method == "GET" or path == LOGIN else 1
        while True:
            left -= 1
            try:
                return self._client.request(method, path, **request)
            except httpx.TransportError as error:
                if left and isinstance(error, httpx.TimeoutException):
                    continue
                raise StoreError(
                    f"Airflow at {self.url} cannot be reached ({type(error).__name__}: {error}): "
                    "is it running? `visionloop status` shows"
                ) from None

    def _checked(self, answer: httpx.Response) -> Any:
        if answer.is_success:
            return answer.json()
        said = (
            f"Airflow at {self.url} answered {answer.status_code} to {answer.request.method} {answer.request.url.path}"
        )
        kinds = {403: _Forbidden, 404: NotFound, 409: Conflict}
        raise kinds.get(answer.status_code, StoreError)(f"{said}: {_detail(answer)}")


class _Forbidden(StoreError):
    """The user may not do this."""


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"VISIONLOOP_AIRFLOW_USERS: {path} cannot be read: {error.strerror}") from None


def _run_path(dag: str, run_id: str) -> str:
    return f"/dags/{dag}/dagRuns/{quote(run_id, safe='')}"


def _dag_run(item: dict[str, Any]) -> DagRun:
    return DagRun(item["dag_run_id"], item["state"], datetime.fromisoformat(item["run_after"]), item["conf"] or {})


def _waits(task: dict[str, Any]) -> bool:
    """Not cleared, not marked by somebody: an answer would be taken."""
    return task["task_id"] == APPROVE_TASK and task["state"] in {"awaiting_input", "deferred"}


def _pending(item: dict[str, Any]) -> PendingApproval:
    task = item["task_instance"]
    return PendingApproval(
        dag=task["dag_id"],
        run_id=task["dag_run_id"],
        subject=item["subject"],
        body=item["body"] or "",
        approvers=tuple(user["id"] for user in item["assigned_users"]),
        since=datetime.fromisoformat(item["created_at"]),
    )
