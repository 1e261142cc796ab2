"""SeaweedFS with its S3 gateway: one process is master, volume server, filer and gateway; and the loop's bucket."""

import json
import logging
import secrets
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from visionloop.errors import StackError
from visionloop.stack.files import secret
from visionloop.stack.ports import LOOPBACK
from visionloop.stack.probe import NoAnswer, fetch, fetch_json
from visionloop.stack.service import Context, Launch, Service, Step, program

log = logging.getLogger(__name__)

SOCKETS = Path("/tmp")  # noqa: S108 - SeaweedFS has it built in
VOLUME_MB = 1024
ROLES = ("master", "volume", "filer")


def prepare(ctx: Context, step: Step) -> None:
    """Write the one key twice: for clients as AWS writes it, for the server as it reads it."""
    text = secret(ctx.secret_file("s3-credentials"), _new_credentials)
    key, password = (line.partition("=")[2].strip() for line in text.splitlines()[1:3])
    identity = {
        "name": "visionloop",
        "credentials": [{"accessKey": key, "secretKey": password}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    ctx.secret_file("s3.json").unlink(missing_ok=True)
    secret(ctx.secret_file("s3.json"), lambda: json.dumps({"identities": [identity]}))


def launch(ctx: Context) -> Launch:
    """`weed server` on the loopback, with no user's configuration file."""
    ports = [f"-{role}.port{suffix}={ctx.port('s3', f'{role}{name}')}" for role in ROLES for suffix, name in GRPC]
    return Launch(
        [
            program("weed"),
            "-logtostderr",
            f"-config_dir={ctx.folder('s3', 'config')}",
            "server",
            f"-dir={ctx.folder('s3', 'data')}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            *ports,
            "-filer",
            "-s3",
            f"-s3.port={ctx.port('s3')}",
            f"-s3.port.grpc={ctx.port('s3', 'grpc')}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.iam=false",
            f"-s3.config={ctx.secret_file('s3.json')}",
            "-master.electionTimeout=500ms",  # one master: the usual 10 s only keep the volume server waiting
            "-master.heartbeatInterval=100ms",
            "-master.telemetry=false",
            f"-master.volumeSizeLimitMB={VOLUME_MB}",
            "-volume.max=0",
            "-volume.preStopSeconds=0",  # nobody routes to it: a pause before the end serves no one
        ],
        ctx.environment(),
        ctx.folder("s3"),
    )


GRPC = (("", ""), (".grpc", "_grpc"))


def check(ctx: Context, started: datetime) -> None:
    """Well when the gateway answers and the master knows a volume server to write to."""
    fetch(f"http://{LOOPBACK}:{ctx.port('s3')}/healthz")
    topology = fetch_json(f"http://{LOOPBACK}:{ctx.port('s3', 'master')}/dir/status")["Topology"]
    if not topology.get("Max"):
        raise NoAnswer("the volume server has not joined yet, or the disk is full")


def version(ctx: Context) -> str:
    """As the master reports it: `8000GB 4.48 pypi`."""
    status = fetch_json(f"http://{LOOPBACK}:{ctx.port('s3', 'master')}/dir/status")
    return str(status["Version"]).split()[1]


def finish(ctx: Context) -> None:
    """Make the bucket where it is missing, in a process of its own: boto3 would stay in the supervisor's memory."""
    bucket = ctx.settings.store.removeprefix("s3://").split("/")[0]
    try:
        fetch(f"http://{LOOPBACK}:{ctx.port('s3', 'filer')}/buckets/{bucket}/?limit=1")
        return
    except NoAnswer:
        log.info("making the bucket %s", bucket)
    done = subprocess.run(
        [sys.executable, "-m", "visionloop.stack.bucket"],
        env=ctx.environment(client_environment(ctx)),
        cwd=ctx.repo,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise StackError(f"the bucket of {ctx.settings.store} cannot be made: {lines[-1]}")


def cleanup(ctx: Context) -> None:
    """Remove the sockets that SeaweedFS makes under a fixed name, which a killed one leaves."""
    ports = {number for key, number in ctx.ports.items() if key.startswith("s3.")}
    for socket in SOCKETS.glob("seaweedfs-*.sock"):
        if socket.stem.rpartition("-")[2] in {str(port) for port in ports}:
            socket.unlink(missing_ok=True)


def client_environment(ctx: Context) -> dict[str, str]:
    """What a program that speaks S3 by AWS's own conventions needs."""
    own = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    if ctx.settings.s3_credentials:
        own["AWS_SHARED_CREDENTIALS_FILE"] = str(ctx.settings.s3_credentials)
    if ctx.settings.s3_endpoint:
        own["AWS_ENDPOINT_URL_S3"] = ctx.settings.s3_endpoint
    return own


def _new_credentials() -> str:
    key, password = "VL" + secrets.token_hex(9).upper(), secrets.token_urlsafe(30)
    return f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {password}\n"


S3 = Service(
    name="s3",
    launch=launch,
    check=check,
    version=version,
    ports={"http": 8333, "grpc": None, **{f"{role}{name}": None for role in ROLES for _, name in GRPC}},
    addresses={
        "s3_endpoint": f"http://{LOOPBACK}:{{http}}",
        "s3_credentials": "{home}/stack/secrets/s3-credentials",
        "store": "s3://visionloop",
    },
    prepare=prepare,
    finish=finish,
    cleanup=cleanup,
    start_timeout_s=60,
    stop_timeout_s=4,  # by then the volumes are closed; the filer would wait 15 s for its own gateway to hang up
)
