"""The capture service: what Envoy samples of the traffic, written to the object store."""

import sys
from datetime import datetime

from visionloop.stack.ports import LOOPBACK
from visionloop.stack.probe import fetch_json
from visionloop.stack.s3 import client_environment
from visionloop.stack.service import ONE_THREAD, Context, Launch, Service


def launch(ctx: Context) -> Launch:
    """`python -m visionloop.capture`."""
    return Launch(
        [
            sys.executable,
            "-m",
            "visionloop.capture",
            f"--grpc-port={ctx.port('capture', 'grpc')}",
            f"--http-port={ctx.port('capture')}",
        ],
        ctx.environment({**ONE_THREAD, **client_environment(ctx), "PYTHONPATH": str(ctx.repo)}),
        ctx.folder("capture"),
    )


def check(ctx: Context, started: datetime) -> None:
    """Well when it says so."""
    fetch_json(f"http://{LOOPBACK}:{ctx.port('capture')}/healthz")


def version(ctx: Context) -> str:
    """As the service reports it."""
    return str(fetch_json(f"http://{LOOPBACK}:{ctx.port('capture')}/healthz")["version"])


CAPTURE = Service(
    name="capture",
    launch=launch,
    check=check,
    version=version,
    ports={"http": 8040, "grpc": 8041},
    addresses={"capture_url": f"http://{LOOPBACK}:{{http}}"},
    needs=("s3",),
    metrics="http",
    stop_timeout_s=20,
)
