"""Airflow on SQLite with the LocalExecutor: API server, scheduler, DAG processor and triggerer, a process each."""

import base64
import json
import secrets
import sys
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import yaml

from visionloop.stack.files import secret, write_private
from visionloop.stack.ports import LOOPBACK
from visionloop.stack.probe import NoAnswer, fetch_json
from visionloop.stack.process import Identity
from visionloop.stack.s3 import client_environment
from visionloop.stack.service import ONE_THREAD, Context, Launch, Service, Step, program

API = "airflow-api"
ROLES = {"admin": "admin", "viewer": "viewer"}
"""Users that are always there, and their role; approvers get APPROVER_ROLE."""
APPROVER_ROLE = "user"
SETTINGS = {
    "CORE__LOAD_EXAMPLES": "False",
    "CORE__EXECUTOR": "LocalExecutor",
    "CORE__PARALLELISM": "16",
    "CORE__AUTH_MANAGER": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
    "API__WORKERS": "1",
    "DAG_PROCESSOR__REFRESH_INTERVAL": "10",
    "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
    "DAG_PROCESSOR__PARSING_PROCESSES": "1",
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
    "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    "USAGE_DATA_COLLECTION__ENABLED": "False",
}
"""A chain of 30 tasks takes 9 s with these against 33 s by default, and a killed scheduler is noticed within 30 s."""
LOCK_PATIENCE_S = 60
"""How long a process waits while another writes. SQLite's own 5 s pass on a busy machine: the API answers 500."""


def environment(ctx: Context) -> dict[str, str]:
    """The environment of all parts."""
    keys = json.loads(secret(ctx.secret_file("airflow-keys.json"), _new_keys))
    root = ctx.folder("airflow")
    own = {
        **SETTINGS,
        "CORE__DAGS_FOLDER": str(ctx.folder("airflow", "dags")),
        "CORE__PLUGINS_FOLDER": str(ctx.repo / "plugins"),
        "CORE__FERNET_KEY": keys["fernet"],
        "CORE__EXECUTION_API_SERVER_URL": f"{_url(ctx)}/execution/",
        "CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in users(ctx).items()),
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(ctx.secret_file("airflow-users.json")),
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{root / 'airflow.db'}?timeout={LOCK_PATIENCE_S}",
        "LOGGING__BASE_LOG_FOLDER": str(ctx.folder("airflow", "logs")),
        "API__BASE_URL": _url(ctx),
        "API__SECRET_KEY": keys["api"],
        "API_AUTH__JWT_SECRET": keys["jwt"],
    }
    paths = ":".join(str(path) for path in (ctx.repo, ctx.repo / "dags", ctx.repo / "plugins"))
    return ctx.environment(
        {
            **ONE_THREAD,
            **client_environment(ctx),
            "PYTHONPATH": paths,
            "AIRFLOW_HOME": str(root),
            **{f"AIRFLOW__{key}": value for key, value in own.items()},
        }
    )


def users(ctx: Context) -> dict[str, str]:
    """Name -> role: the fixed users and all approvers that a project file names; an unreadable file names none."""
    named: set[str] = set()
    for path in sorted(ctx.settings.projects.glob("*/project.yaml")):
        try:
            release = (yaml.safe_load(path.read_text()) or {}).get("release") or {}
            named.update(str(name) for name in release.get("approvers") or ())
        except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError):
            continue  # the project's own check reports it; here it must not keep the other projects from their server
    allowed = {name for name in named if name and not set(name) & set(",:| \n")}
    return {**dict.fromkeys(sorted(allowed), APPROVER_ROLE), **ROLES}


def prepare_api(ctx: Context, step: Step) -> None:
    """Give new users a password, and bring the database to this version of Airflow."""
    known = _passwords(ctx)
    passwords = {name: known.get(name) or secrets.token_urlsafe(12) for name in users(ctx)}
    write_private(ctx.secret_file("airflow-users.json"), json.dumps(passwords, indent=1))
    _newcomers(ctx).unlink(missing_ok=True)
    stamp, wanted = ctx.folder("airflow") / "migrated", installed_version("apache-airflow")
    if (ctx.folder("airflow") / "airflow.db").exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    step(Launch([program("airflow"), "db", "migrate"], environment(ctx), ctx.folder("airflow")))
    write_private(stamp, wanted)


def refresh_api(ctx: Context, step: Step) -> bool:
    """Airflow reads its users when it starts, so it must start again for approvers that are named since then."""
    new = sorted(set(users(ctx)) - set(_passwords(ctx)))
    if new:
        write_private(_newcomers(ctx), f"the project files name new users: {', '.join(new)}")
    return not new


def new_users(ctx: Context, leader: Identity) -> str | None:
    """What `refresh_api` left for the supervisor."""
    file = _newcomers(ctx)
    return file.read_text() if file.exists() else None


def refresh_dags(ctx: Context, step: Step) -> bool:
    """The DAG processor looks into its folder every few seconds."""
    prepare_dags(ctx, step)
    return True


def prepare_dags(ctx: Context, step: Step) -> None:
    """Write one DAG file per project, where this repository has the generator."""
    generator = ctx.repo / "dags" / "visionloop_dags" / "write_stubs.py"
    if generator.is_file():
        out = ctx.folder("airflow", "dags")
        command = [sys.executable, str(generator), "--projects", str(ctx.settings.projects), "--out", str(out)]
        step(Launch(command, environment(ctx), ctx.repo))


def launch_api(ctx: Context) -> Launch:
    """`airflow api-server`: UI, REST, and the API that tasks report to."""
    return _launch(ctx, "api-server", f"--host={LOOPBACK}", f"--port={ctx.port(API)}", "--workers=1")


def check_api(ctx: Context, started: datetime) -> None:
    """Well when it answers and reaches its database."""
    if _health(ctx)["metadatabase"]["status"] != "healthy":
        raise NoAnswer("the API server does not reach its database")


def check_part(part: str, ctx: Context, started: datetime) -> None:
    """Well when its heartbeat of this very start has arrived; one of the start before does not count."""
    health = _health(ctx)[part]
    beat = health.get(f"latest_{part}_heartbeat")
    if health["status"] != "healthy" or beat is None:
        raise NoAnswer(f"the {part} has sent no heartbeat")
    if _utc(beat) < started:
        raise NoAnswer(f"the {part} has sent no heartbeat since its start")


def version(ctx: Context) -> str:
    """As the API server reports it."""
    return str(fetch_json(f"{_url(ctx)}/api/v2/version")["version"])


def part_service(name: str, part: str, *arguments: str) -> Service:
    """The service of a part beside the API server. `part` is its name in Airflow's health report."""
    return Service(
        name=name,
        launch=lambda ctx: _launch(ctx, *arguments),
        check=lambda ctx, started: check_part(part, ctx, started),
        version=version,
        needs=(API,),
        start_timeout_s=180,
        stop_timeout_s=6,  # the scheduler may hang on SIGTERM
    )


def _passwords(ctx: Context) -> dict[str, str]:
    """User -> password, of the running API server or of the one before."""
    found: dict[str, str] = json.loads(secret(ctx.secret_file("airflow-users.json"), lambda: "{}"))
    return found


def _newcomers(ctx: Context) -> Path:
    return ctx.folder("airflow") / "new-users"


def _launch(ctx: Context, *arguments: str) -> Launch:
    return Launch([program("airflow"), *arguments], environment(ctx), ctx.folder("airflow"))


def _health(ctx: Context) -> Any:
    return fetch_json(f"{_url(ctx)}/api/v2/monitor/health")


def _url(ctx: Context) -> str:
    return f"http://{LOOPBACK}:{ctx.port(API)}"


def _utc(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _new_keys() -> str:
    fernet = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return json.dumps({"fernet": fernet, "api": secrets.token_hex(32), "jwt": secrets.token_hex(64)})


AIRFLOW = (
    Service(
        name=API,
        launch=launch_api,
        check=check_api,
        version=version,
        ports={"http": 8080},
        addresses={
            "airflow_url": f"http://{LOOPBACK}:{{http}}",
            "airflow_users": "{home}/stack/secrets/airflow-users.json",
        },
        prepare=prepare_api,
        refresh=refresh_api,
        complaint=new_users,
        start_timeout_s=240,
    ),
    part_service("airflow-scheduler", "scheduler", "scheduler", "--skip-serve-logs"),
    replace(
        part_service("airflow-dag-processor", "dag_processor", "dag-processor"),
        prepare=prepare_dags,
        refresh=refresh_dags,
    ),
    part_service("airflow-triggerer", "triggerer", "triggerer", "--skip-serve-logs"),
)
