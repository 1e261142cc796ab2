"""The two lanes: plain Triton servers, `stable` and `canary`, each with a model repository of its own."""

import hashlib
import sysconfig
import uuid
from datetime import datetime
from functools import partial
from pathlib import Path

import psutil

from visionloop.errors import ConfigError, StackError
from visionloop.stack.ports import LOOPBACK
from visionloop.stack.probe import fetch, fetch_json
from visionloop.stack.process import Identity
from visionloop.stack.service import SHARED_MEMORY, Context, Launch, Service, Step, servers_folder
from visionloop.stack.signing import VERIFYING, make_keys, put_aside_unverified

LANES = ("stable", "canary")
STUB = "triton_python_b"
"""What the kernel calls a stub: 15 characters of its name."""


def name_of(lane: str) -> str:
    """The lane's service."""
    return f"triton-{lane}"


def python_library() -> tuple[str, str | None]:
    """Name of the shared library of this Python, which Triton's stub links, and the folder that it is in, if any."""
    name = str(sysconfig.get_config_var("INSTSONAME"))
    folders = [str(sysconfig.get_config_var("LIBDIR")), "/usr/lib/x86_64-linux-gnu", "/usr/lib64"]
    return name, next((folder for folder in folders if (Path(folder) / name).exists()), None)


def missing_library(name: str) -> str:
    """What to do without it."""
    return f"install the shared library of this Python ({name}), for example the package libpython3-dev"


def prepare(lane: str, ctx: Context, step: Step) -> None:
    """Make the lane's folders, link the backends, and sweep the shared memory of a killed predecessor."""
    library, found = python_library()
    if found is None:
        raise StackError(f"{name_of(lane)}: no model could be loaded: {missing_library(library)}")
    put_aside_unverified(ctx.folder("model_repository", lane), make_keys(ctx))
    ctx.folder("stack", "empty")
    backends = ctx.folder("stack", "backends")
    _link(backends / "python", servers_folder() / "triton/pytriton/tritonserver/backends/python")
    _link(backends / "onnxruntime", ctx.repo / "model_repository" / "backends" / "onnxruntime")
    cleanup(lane, ctx)


def launch(lane: str, ctx: Context) -> Launch:
    """`tritonserver`; it loads all that its repository holds, so that a lane serves again what it served."""
    name = name_of(lane)
    triton = servers_folder() / "triton"
    libraries = f"{triton / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    env = ctx.environment({"LD_LIBRARY_PATH": libraries, "MALLOC_ARENA_MAX": "2"})
    env["PATH"] = (
        f"{servers_folder() / 'triton-venv' / 'bin'}:{env['PATH']}"  # the stub's interpreter finds its venv so
    )
    return Launch(
        [
            str(triton / "pytriton/tritonserver/bin/tritonserver"),
            f"--model-repository={ctx.folder('model_repository', lane)}",
            "--model-control-mode=explicit",
            "--load-model=*",
            *(f"--{kind}-address={LOOPBACK}" for kind in ("http", "grpc", "metrics")),
            *(f"--{kind}-port={ctx.port(name, kind)}" for kind in ("http", "grpc", "metrics")),
            "--allow-gpu-metrics=false",
            "--exit-on-error=false",
            "--strict-readiness=false",  # one model that fails to load must not take the lane away from the others
            "--exit-timeout-secs=10",
            "--disable-auto-complete-config",
            f"--backend-directory={ctx.folder('stack', 'backends')}",
            f"--backend-config=python,shm-region-prefix-name={shared_prefix(lane, ctx)}",
            "--backend-config=python,stub-timeout-seconds=120",
            *_trace_flags(lane, ctx),
        ],
        env,
        ctx.folder("stack", "empty"),  # a model.py in the working folder would shadow the backend's
    )


def check(lane: str, ctx: Context, started: datetime) -> None:
    """Well when it says that it is ready."""
    fetch(f"http://{LOOPBACK}:{ctx.port(name_of(lane), 'http')}/v2/health/ready")


def version(lane: str, ctx: Context) -> str:
    """As the server's metadata has it."""
    return str(fetch_json(f"http://{LOOPBACK}:{ctx.port(name_of(lane), 'http')}/v2")["version"])


def complaint(lane: str, ctx: Context, leader: Identity) -> str | None:
    """A stub that died: Triton never starts it again, yet calls its model ready and fails each request after 1 s.

    The dead stub stays a zombie, since Triton collects a stub only when it unloads the model.
    """
    try:
        children = psutil.Process(leader.pid).children()
    except psutil.NoSuchProcess:
        return None
    dead = [child.pid for child in children if is_dead_stub(child)]
    return f"a model's process died (pid {dead[0]})" if dead else None


def cleanup(lane: str, ctx: Context) -> None:
    """Remove the shared memory that a killed server left."""
    for region in SHARED_MEMORY.glob(f"{shared_prefix(lane, ctx)}*"):
        region.unlink(missing_ok=True)


def shared_prefix(lane: str, ctx: Context) -> str:
    """Begin of the names of this lane's shared-memory regions: this home's own."""
    return f"visionloop-{hashlib.sha256(str(ctx.home).encode()).hexdigest()[:8]}-{lane}-"


def _trace_flags(lane: str, ctx: Context) -> list[str]:
    from visionloop.serving.tracing import trace_flags

    try:
        return trace_flags(lane, ctx.settings.traces_url)
    except ConfigError as error:
        raise StackError(f"VISIONLOOP_TRACES_URL: {error}") from None


def is_dead_stub(child: psutil.Process) -> bool:
    """Is it a model's process that ended, and that Triton has not collected?"""
    try:
        return child.status() == psutil.STATUS_ZOMBIE and child.name().startswith(STUB)
    except psutil.Error:
        return False


def _link(link: Path, target: Path) -> None:
    """Both lanes do this at the same time in the same folder: made aside, then renamed over what is there."""
    if not target.is_dir():
        raise StackError(f"{target} is missing: run `make install`")
    if link.is_symlink() and link.readlink() == target:
        return
    aside = link.with_name(f".{link.name}-{uuid.uuid4().hex}")
    aside.symlink_to(target)
    aside.replace(link)


def lane_service(lane: str, first_port: int) -> Service:
    """The service of one lane."""
    return Service(
        name=name_of(lane),
        launch=partial(launch, lane),
        check=partial(check, lane),
        version=partial(version, lane),
        ports={"grpc": first_port + 1, "http": first_port, "metrics": first_port + 2},
        addresses={
            f"{lane}_grpc": f"{LOOPBACK}:{{grpc}}",
            f"{lane}_metrics_url": f"http://{LOOPBACK}:{{metrics}}",
            "model_repository": "{home}/model_repository",
            **VERIFYING,
        },
        metrics="metrics",
        prepare=partial(prepare, lane),
        complaint=partial(complaint, lane),
        cleanup=partial(cleanup, lane),
        start_timeout_s=180,
        stop_timeout_s=12,
    )


TRITON = (lane_service("stable", 8010), lane_service("canary", 8020))
