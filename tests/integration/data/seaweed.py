"""An S3 server of a test's own, to be killed and started again on the same data and ports, with no keeper beside it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import boto3

KEY, SECRET, BUCKET = "TESTKEY", "test-secret", "visionloop"
ROLES = ("master", "volume", "filer", "s3")


class Seaweed:
    """`weed server -s3` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = dict(zip([*ROLES, *(f"{role}.grpc" for role in ROLES)], _free_ports(8), strict=True))
        self.endpoint = f"http://127.0.0.1:{self.ports['s3']}"
        self.credentials = folder / "credentials"
        self.credentials.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
        identity = {"name": "t", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (folder / "data").mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when it answers."""
        command = [
            str(Path(sys.executable).parent / "weed"), "-logtostderr", "server", f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={self.folder / 's3.json'}",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-master.electionTimeout=500ms",
            "-master.telemetry=false", "-volume.max=0", "-master.volumeSizeLimitMB=1024",
        ]  # fmt: skip
        for role in ROLES:
            command += [f"-{role}.port={self.ports[role]}", f"-{role}.port.grpc={self.ports[f'{role}.grpc']}"]
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True)
        self._await()

    def make_bucket(self) -> None:
        """Make the bucket, and write to it once, so that volumes are there."""
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="written", Body=b"")

    def kill(self) -> None:
        """As a power cut would: SIGKILL to the whole group."""
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def outage(self, seconds: float, *, frozen: bool = False) -> threading.Thread:
        """Begin an outage now (dead, or frozen with its connections open), which ends by itself; join to await it."""
        assert self._process
        os.killpg(self._process.pid, signal.SIGSTOP if frozen else signal.SIGKILL)
        thread = threading.Thread(target=self._recover, args=(seconds, frozen))
        thread.start()
        return thread

    def _recover(self, seconds: float, frozen: bool) -> None:
        assert self._process
        time.sleep(seconds)
        if frozen:
            os.killpg(self._process.pid, signal.SIGCONT)
        else:
            self._process.wait()
            self.start()

    def _await(self) -> None:
        ends = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=2)
                return
            except (urllib.error.URLError, OSError):
                assert self._process and self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
                assert time.monotonic() < ends, "the S3 server does not come up"
                time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
