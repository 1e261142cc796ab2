"""The MLflow server: SQLite for runs and registry, artifacts proxied to the object store."""

from datetime import datetime

from visionloop.stack.ports import LOOPBACK
from visionloop.stack.probe import fetch
from visionloop.stack.s3 import client_environment
from visionloop.stack.service import ONE_THREAD, Context, Launch, Service, program

LEAN = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 processes and 0.5 GB instead of 13 and 2.8 GB
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
ARTIFACTS = "_mlflow"
"""Prefix of MLflow's artifacts; no project can be called so."""


def launch(ctx: Context) -> Launch:
    """`mlflow server` with one worker."""
    database = ctx.folder("mlflow") / "mlflow.db"
    store = ctx.settings.store or ctx.folder("mlflow").as_uri()
    return Launch(
        [
            program("mlflow"),
            "server",
            f"--backend-store-uri=sqlite:///{database}",
            f"--artifacts-destination={store.rstrip('/')}/{ARTIFACTS}",
            f"--host={LOOPBACK}",
            f"--port={ctx.port('mlflow')}",
            "--workers=1",
        ],
        ctx.environment(
            {
                **ONE_THREAD,
                **LEAN,
                **client_environment(ctx),
                **({"MLFLOW_S3_ENDPOINT_URL": ctx.settings.s3_endpoint} if ctx.settings.s3_endpoint else {}),
            }
        ),
        ctx.folder("mlflow"),
    )


def check(ctx: Context, started: datetime) -> None:
    """Well when it answers its health path."""
    fetch(f"http://{LOOPBACK}:{ctx.port('mlflow')}/health")


def version(ctx: Context) -> str:
    """As the server reports it."""
    return fetch(f"http://{LOOPBACK}:{ctx.port('mlflow')}/version").decode().strip()


MLFLOW = Service(
    name="mlflow",
    launch=launch,
    check=check,
    version=version,
    ports={"http": 5000},
    addresses={"mlflow_url": f"http://{LOOPBACK}:{{http}}"},
    needs=("s3",),
)
