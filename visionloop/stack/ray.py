"""The Ray head: scheduler, object store, dashboard and Jobs API, all on the loopback and behind a token."""

import hashlib
import os
import secrets
import shutil
import tempfile
from datetime import datetime
from pathlib import Path

from visionloop.stack.files import secret
from visionloop.stack.ports import LOOPBACK
from visionloop.stack.probe import fetch, fetch_json
from visionloop.stack.s3 import client_environment
from visionloop.stack.service import SHARED_MEMORY, Context, Launch, Service, Step, program
from visionloop.stack.signing import SIGNING, VERIFYING, make_keys

SOCKET_PATH_LIMIT = 107
"""Bytes that the kernel allows for the path of a Unix socket."""
SESSION_PATH = len("/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.12345")
OBJECT_STORE_MB = 1024
SMALLEST_STORE_MB = 80
SESSIONS_KEPT = 2


def prepare(ctx: Context, step: Step) -> None:
    """Make the token, and throw away all but the last sessions (logs and sockets of earlier runs)."""
    secret(ctx.secret_file("ray-token"), lambda: secrets.token_hex(32))
    make_keys(ctx)
    sessions = sorted(path for path in temp_folder(ctx).glob("session_2*") if path.is_dir())
    for old in sessions[: -SESSIONS_KEPT + 1]:
        shutil.rmtree(old, ignore_errors=True)


def launch(ctx: Context) -> Launch:
    """`ray start --head --block`; its working folder is the repository's, so that jobs find ray_jobs/."""
    return Launch(
        [
            program("ray"),
            "start",
            "--head",
            "--block",
            f"--node-ip-address={LOOPBACK}",
            f"--port={ctx.port('ray', 'gcs')}",
            f"--dashboard-host={LOOPBACK}",
            f"--dashboard-port={ctx.port('ray')}",
            f"--dashboard-agent-listen-port={ctx.port('ray', 'agent')}",
            f"--ray-client-server-port={ctx.port('ray', 'client')}",
            "--min-worker-port=0",  # any: the usual range clashes with other servers
            "--max-worker-port=0",
            f"--temp-dir={temp_folder(ctx)}",
            f"--object-store-memory={object_store_mb() * 1024 * 1024}",
            f"--num-cpus={max(2, os.cpu_count() or 2)}",
            "--include-dashboard=true",
            "--disable-usage-stats",
        ],
        ctx.environment(ray_environment(ctx)),
        ctx.repo,
    )


def ray_environment(ctx: Context) -> dict[str, str]:
    """The server's own settings, which jobs inherit."""
    return {
        **client_environment(ctx),
        "PYTHONPATH": str(ctx.repo),
        "RAY_API_SERVER_ADDRESS": _url(ctx),  # else its own parts guess, and fail beside a second Ray on this machine
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(ctx.secret_file("ray-token")),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # one node only: Ray then binds to the loopback and nothing else
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_USAGE_STATS_ENABLED": "0",
        "AUTOSCALER_METRIC_PORT": str(ctx.port("ray", "autoscaler_metrics")),
        "DASHBOARD_METRIC_PORT": str(ctx.port("ray", "dashboard_metrics")),
        "RAY_COLOR_PREFIX": "0",  # jobs' logs are read in Airflow, not in a terminal
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin take the processor from the servers beside them
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def check(ctx: Context, started: datetime) -> None:
    """Well when the control store, the node and its agent (it starts the jobs) are, and the Jobs API answers."""
    headers = _bearer(ctx)
    fetch(f"{_url(ctx)}/api/gcs_healthz", headers=headers)
    fetch(f"http://{LOOPBACK}:{ctx.port('ray', 'agent')}/api/local_raylet_healthz", headers=headers)
    fetch(f"{_url(ctx)}/api/jobs/", headers=headers)


def version(ctx: Context) -> str:
    """As the dashboard reports it."""
    return str(fetch_json(f"{_url(ctx)}/api/version", headers=_bearer(ctx))["ray_version"])


def temp_folder(ctx: Context) -> Path:
    """`<home>/ray`, or a folder of the system's where that path is too long for Ray's sockets."""
    wanted = ctx.home / "ray"
    if len(str(wanted)) + SESSION_PATH <= SOCKET_PATH_LIMIT:
        return wanted
    digest = hashlib.sha256(str(ctx.home).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"visionloop-ray-{os.getuid()}-{digest}"


def object_store_mb() -> int:
    """1 GiB, or half of what the shared-memory disk has free."""
    free_mb = shutil.disk_usage(SHARED_MEMORY).free // (2 * 1024 * 1024)
    return max(SMALLEST_STORE_MB, min(OBJECT_STORE_MB, free_mb))


def cleanup(ctx: Context) -> None:
    """Remove the folder outside home; inside, the last session's logs stay."""
    if temp_folder(ctx) != ctx.home / "ray":
        shutil.rmtree(temp_folder(ctx), ignore_errors=True)


def _url(ctx: Context) -> str:
    return f"http://{LOOPBACK}:{ctx.port('ray')}"


def _bearer(ctx: Context) -> dict[str, str]:
    return {"Authorization": f"Bearer {ctx.secret_file('ray-token').read_text().strip()}"}


RAY = Service(
    name="ray",
    launch=launch,
    check=check,
    version=version,
    ports={
        "http": 8265,
        "gcs": 6379,
        "client": None,
        "agent": None,
        "autoscaler_metrics": None,
        "dashboard_metrics": None,
    },
    addresses={
        "ray_url": f"http://{LOOPBACK}:{{http}}",
        "ray_token": "{home}/stack/secrets/ray-token",
        **SIGNING,
        **VERIFYING,
    },
    prepare=prepare,
    cleanup=cleanup,
    stop_timeout_s=15,
)
