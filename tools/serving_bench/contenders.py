"""Who is measured: how each server is started, how one request of some images looks to it, and what an answer says."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
READY_SECONDS = 120.0

Images = NDArray[np.uint8]
Encode = Callable[[Images], tuple[dict[str, str], bytes]]
Decode = Callable[[bytes], NDArray[np.float32]]
"""Headers and body of a request; probabilities [N,K] of an answer's body."""


@dataclass(frozen=True)
class Protocol:
    """What is sent where."""

    path: str
    encode: Encode
    decode: Decode

    def request(self, images: Images, port: int) -> bytes:
        """The whole HTTP/1.1 request."""
        headers, body = self.encode(images)
        lines = [f"POST {self.path} HTTP/1.1", f"host: 127.0.0.1:{port}", f"content-length: {len(body)}"]
        return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode() + body

    def ask(self, images: Images, port: int) -> NDArray[np.float32]:
        """Probabilities [N,K], asked for once. Raises OSError, or what `decode` raises of an answer that is none."""
        headers, body = self.encode(images)
        request = urllib.request.Request(f"http://127.0.0.1:{port}{self.path}", body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return self.decode(answer.read())


@dataclass(frozen=True)
class Rival:
    """Another model server."""

    name: str
    protocol: Protocol
    command: Callable[[int], list[str]]
    package: str
    python: Path
    batching: str
    """As it is set here, for the report."""


def kserve(model: str) -> Protocol:
    """KServe v2 over HTTP with the binary extension: Triton, and the endpoint before it."""

    def encode(images: Images) -> tuple[dict[str, str], bytes]:
        tensor = {"name": "image", "shape": list(images.shape), "datatype": "UINT8"}
        head = json.dumps(
            {
                "inputs": [{**tensor, "parameters": {"binary_data_size": images.nbytes}}],
                "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
            }
        ).encode()
        return {"inference-header-content-length": str(len(head))}, head + images.tobytes()

    def decode(body: bytes) -> NDArray[np.float32]:
        head, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
        return np.frombuffer(body[end:], np.float32).reshape(head["outputs"][0]["shape"])

    return Protocol(f"/v2/models/{model}/infer", encode, decode)


def plain(images: Images) -> tuple[dict[str, str], bytes]:
    """The pixels and nothing else."""
    return {"content-type": "application/octet-stream"}, images.tobytes()


def in_base64(images: Images) -> tuple[dict[str, str], bytes]:
    """One image."""
    return JSON, json.dumps({"image": base64.b64encode(images.tobytes()).decode()}).encode()


def list_in_base64(images: Images) -> tuple[dict[str, str], bytes]:
    """A list of images."""
    return JSON, json.dumps({"images": [base64.b64encode(image.tobytes()).decode() for image in images]}).encode()


def numbers(images: Images) -> tuple[dict[str, str], bytes]:
    """As MLflow's scoring protocol has tensors."""
    return JSON, json.dumps({"inputs": {"image": images.tolist()}}).encode()


def listed(body: bytes) -> NDArray[np.float32]:
    """A list of lists."""
    return np.array(json.loads(body), np.float32)


def predictions(body: bytes) -> NDArray[np.float32]:
    """MLflow's answer."""
    return np.array(json.loads(body)["predictions"]["probabilities"], np.float32)


JSON = {"content-type": "application/json"}


def rivals(others: Path, mlflow_model: Path) -> list[Rival]:
    """All of them; `others` is the environment of requirements/rivals.txt, `mlflow_model` a saved model."""
    here, there = Path(sys.executable), others / "bin" / "python"
    bento = [str(there), "-m", "bentoml", "serve", "bentoml_app:Classifier", "--host", "127.0.0.1", "--port"]
    mlflow = [str(here), "-m", "mlflow", "models", "serve", "-m", str(mlflow_model), "--env-manager", "local"]

    def app(python: Path, name: str) -> Callable[[int], list[str]]:
        return lambda port: [str(python), str(HERE / "apps" / name)]

    return [
        Rival(
            "fastapi", Protocol("/predict", plain, listed), app(there, "fastapi_app.py"), "fastapi", there,
            "none: the documentation has none; one call of the session a request, in the thread pool",
        ),
        Rival(
            "ray_serve", Protocol("/predict", plain, listed), app(there, "ray_app.py"), "ray", there,
            "@serve.batch(max_batch_size=64, batch_wait_timeout_s=0.01), one replica",
        ),
        Rival(
            "litserve", Protocol("/predict", in_base64, listed), app(there, "litserve_app.py"), "litserve", there,
            "max_batch_size=64, batch_timeout=0.01, one worker",
        ),
        Rival(
            "bentoml", Protocol("/predict", list_in_base64, listed), lambda port: [*bento, str(port)], "bentoml", there,
            "batchable=True, max_batch_size=64, max_latency_ms=10000, one worker",
        ),
        Rival(
            "mlflow", Protocol("/invocations", numbers, predictions),
            lambda port: [*mlflow, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"], "mlflow", here,
            "none: `mlflow models serve` has none; one worker",
        ),
    ]  # fmt: skip


def free_port() -> int:
    """On the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def version_of(rival: Rival) -> str:
    """Of its package, in its environment."""
    if rival.python == Path(sys.executable):
        return version(rival.package)
    text = f"import importlib.metadata as m; print(m.version({rival.package!r}))"
    return subprocess.run([rival.python, "-c", text], check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def running(rival: Rival, environ: dict[str, str], log: Path, shown: Images) -> Iterator[int]:
    """The port of a server that answers; it and all its processes are gone at the end."""
    port = free_port()
    path = f"{rival.python.parent}:{os.environ['PATH']}"
    with log.open("ab") as out:
        process = subprocess.Popen(
            rival.command(port),
            env={**os.environ, **environ, "PORT": str(port), "PATH": path},
            cwd=HERE / "apps",
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        _wait(rival, process, port, log, shown)
        yield port
    finally:
        _end(process)


def _wait(rival: Rival, process: "subprocess.Popen[bytes]", port: int, log: Path, shown: Images) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            rival.protocol.ask(shown, port)
            return
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
        except OSError as error:
            said = str(error)
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{rival.name} does not answer ({said}):\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.2)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
