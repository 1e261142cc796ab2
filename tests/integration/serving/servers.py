"""Two Triton lanes, Envoy and the capture service, started by hand so that a test may kill one of them."""

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.unit.stages.made import signing_keys
from visionloop.serving.addresses import Addresses
from visionloop.serving.envoy import write_initial
from visionloop.serving.envoy_limits import DEFAULT, Limits
from visionloop.serving.tracing import trace_flags
from visionloop.settings import Settings, to_environ
from visionloop.stack.service import SHARED_MEMORY

REPO = Path(__file__).resolve().parents[3]
OPT = Path(sys.prefix) / "opt"
TRITON = OPT / "triton"
LANES = ("stable", "canary")
REGIONS = f"vl-test-{os.getpid()}-"
"""How the lanes' shared memory begins."""


class Servers:
    """The serving half of the stack below one folder; `backend` wraps the shipped one, which it finds beside itself."""

    def __init__(self, folder: Path, *, traces_url: str | None = None, backend: Path | None = None) -> None:
        self.folder, self._backend = folder, backend
        names = [f"{lane}_{kind}" for lane in LANES for kind in ("http", "grpc", "metrics")]
        self.ports = free_ports([*names, "listener", "admin", "envoy_metrics", "capture_http", "capture_grpc"])
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for part in ("routes", "empty", "backends", "logs", "store", "projects"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        private, public = signing_keys(folder)
        self.settings = Settings(
            signing_key=private,
            verify_key=public,
            traces_url=traces_url,
            home=folder,
            projects=folder / "projects",
            store=f"file://{folder}/store",
            endpoint_url=f"http://127.0.0.1:{self.ports['listener']}",
            envoy_admin_url=f"http://127.0.0.1:{self.ports['admin']}",
            stable_grpc=f"127.0.0.1:{self.ports['stable_grpc']}",
            canary_grpc=f"127.0.0.1:{self.ports['canary_grpc']}",
            model_repository=folder / "model_repository",
            routes=folder / "routes",
            capture_url=f"http://127.0.0.1:{self.ports['capture_http']}",
            envoy_metrics_url=f"http://127.0.0.1:{self.ports['envoy_metrics']}",
            stable_metrics_url=f"http://127.0.0.1:{self.ports['stable_metrics']}",
            canary_metrics_url=f"http://127.0.0.1:{self.ports['canary_metrics']}",
        )

    def start(self) -> None:
        """Start all and wait until each says that it is well."""
        self.link_backends()
        for lane in LANES:
            self.start_lane(lane)
        self.start_capture()
        self.start_envoy()

    def link_backends(self) -> None:
        """What the lanes run."""
        backends, shipped = self.folder / "backends", REPO / "model_repository/backends/onnxruntime"
        links = {backends / "python": TRITON / "pytriton/tritonserver/backends/python"}
        if self._backend:
            (backends / "onnxruntime").mkdir(exist_ok=True)
            links[backends / "onnxruntime/model.py"] = self._backend / "model.py"
            links[backends / "onnxruntime/shipped"] = shipped
        else:
            links[backends / "onnxruntime"] = shipped
        for link, source in links.items():
            if not link.is_symlink():
                link.symlink_to(source)

    def start_lane(self, lane: str) -> None:
        """One Triton server; it loads whatever its repository holds."""
        repository = self.folder / "model_repository" / lane
        repository.mkdir(parents=True, exist_ok=True)
        libraries = f"{TRITON / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
        path = f"{OPT / 'triton-venv' / 'bin'}:{os.environ['PATH']}"
        arguments = [
            str(TRITON / "pytriton/tritonserver/bin/tritonserver"),
            f"--model-repository={repository}",
            "--model-control-mode=explicit",
            "--load-model=*",
            *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
            *(f"--{kind}-port={self.ports[f'{lane}_{kind}']}" for kind in ("http", "grpc", "metrics")),
            *("--allow-gpu-metrics=false", "--exit-on-error=false", "--strict-readiness=false"),
            *("--exit-timeout-secs=5", "--disable-auto-complete-config"),
            f"--backend-directory={self.folder / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={REGIONS}{lane}-",
            *trace_flags(lane, self.settings.traces_url),
        ]
        environ = {**os.environ, "LD_LIBRARY_PATH": libraries, "PATH": path}
        self._start(lane, arguments, environ, self.folder / "empty")
        self._wait(lane, f"http://127.0.0.1:{self.ports[f'{lane}_http']}/v2/health/ready")

    def start_envoy(self, keys: dict[str, str] | None = None, limits: Limits = DEFAULT) -> None:
        """Envoy with the routes that it had."""
        at = {
            f"{lane}_{kind}": f"127.0.0.1:{self.ports[f'{lane}_{kind}']}" for lane in LANES for kind in ("grpc", "http")
        }
        write_initial(
            self.folder / "routes",
            Addresses(
                listener_port=self.ports["listener"],
                admin_port=self.ports["admin"],
                metrics_port=self.ports["envoy_metrics"],
                capture_grpc=f"127.0.0.1:{self.ports['capture_grpc']}",
                **at,
            ),
            keys=keys,
            limits=limits,
        )
        binary = OPT / "envoy/envoy/_bin/envoy"
        bootstrap = str(self.folder / "routes/bootstrap.json")
        arguments = [str(binary), "-c", bootstrap, "--disable-hot-restart", "--concurrency", "1", "-l", "warning"]
        self._start("envoy", arguments, dict(os.environ), self.folder / "empty")
        self._wait("envoy", f"{self.settings.envoy_admin_url}/ready")

    def start_capture(self) -> None:
        """The capture service, writing below the folder store."""
        ports = [f"--grpc-port={self.ports['capture_grpc']}", f"--http-port={self.ports['capture_http']}"]
        environ = {**os.environ, **to_environ(self.settings), "PYTHONPATH": str(REPO)}
        self._start("capture", [sys.executable, "-m", "visionloop.capture", *ports], environ, REPO)
        self._wait("capture", f"{self.settings.capture_url}/healthz")

    def kill(self, name: str, with_signal: int = signal.SIGKILL) -> None:
        """Send a signal to one server's process group."""
        os.killpg(self.processes[name].pid, with_signal)
        if with_signal in (signal.SIGKILL, signal.SIGTERM):
            self.processes.pop(name).wait(20)

    def stop(self) -> None:
        """End all, at once: what they would still write is thrown away."""
        for process in self.processes.values():
            os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes.values():
            process.wait()
        for region in SHARED_MEMORY.glob(f"{REGIONS}*"):
            region.unlink(missing_ok=True)

    def log(self, name: str) -> str:
        """What a server has said."""
        return (self.folder / "logs" / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str, arguments: list[str], environ: dict[str, str], folder: Path) -> None:
        with (self.folder / "logs" / f"{name}.log").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                arguments, env=environ, cwd=folder, stdout=out, stderr=out, start_new_session=True
            )

    def _wait(self, name: str, url: str) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(url, timeout=2):
                    return
            except OSError:
                if self.processes[name].poll() is not None:
                    break
                time.sleep(0.05)
        raise AssertionError(f"{name} did not get well:\n{self.log(name)[-3000:]}")


def free_ports(names: list[str]) -> dict[str, int]:
    """A free port for each name; all are held open until the last is chosen."""
    sockets = [socket.socket() for _ in names]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}
    finally:
        for each in sockets:
            each.close()


@contextmanager
def running(folder: Path, *, traces_url: str | None = None, backend: Path | None = None) -> Iterator[Servers]:
    """The servers, ended at the end."""
    servers = Servers(folder, traces_url=traces_url, backend=backend)
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()
