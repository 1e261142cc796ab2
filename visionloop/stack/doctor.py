"""What `visionloop doctor` looks at: can this machine run the embedded stack, and what to do where it cannot."""

import os
import platform
import shutil
import sys
from pathlib import Path

import psutil

from visionloop.settings import Settings
from visionloop.stack.ports import is_free, owner_of
from visionloop.stack.process import is_alive
from visionloop.stack.service import SHARED_MEMORY, program, servers_folder
from visionloop.stack.services import ALL
from visionloop.stack.status import Check, read_state
from visionloop.stack.triton import missing_library, python_library

PYTHONS = ((3, 11), (3, 12))
LEAST_DISK_GB = 5.0
LEAST_MEMORY_GB = 7.5
"""What the kernel leaves of 8 GiB."""
LEAST_SHARED_MB = 64
DATA_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path(sys.prefix) / "opt/fashion-mnist/FashionMNIST/raw")
"""Where Debian's package, and where torchvision, puts the example's images."""


def doctor(settings: Settings) -> list[Check]:
    """All findings, the worst of them with advice."""
    return [
        check_python(),
        check_system(),
        check_servers(),
        check_library(),
        check_home(settings.home),
        check_disk(settings.home),
        check_memory(),
        check_shared_memory(),
        check_processor(),
        *check_ports(settings),
        check_data(),
    ]


def check_python() -> Check:
    """The interpreter's version."""
    ok = sys.version_info[:2] in PYTHONS
    return Check(name="python", ok=ok, found=platform.python_version(), advice="" if ok else "use Python 3.11 or 3.12")


def check_system() -> Check:
    """The servers' wheels are for Linux on x86-64."""
    found = f"{platform.system()} {platform.machine()}"
    ok = found == "Linux x86_64"
    return Check(name="system", ok=ok, found=found, advice="" if ok else "the embedded servers need Linux on x86-64")


def check_servers() -> Check:
    """Whether each server's program is there."""
    opt = servers_folder()
    programs = {
        "Triton": opt / "triton/pytriton/tritonserver/bin/tritonserver",
        "Triton's venv": opt / "triton-venv/bin/python",
        "Envoy": opt / "envoy/envoy/_bin/envoy",
        "SeaweedFS": Path(program("weed")),
        "MLflow": Path(program("mlflow")),
        "Ray": Path(program("ray")),
        "Airflow": Path(program("airflow")),
    }
    missing = [name for name, path in programs.items() if not os.access(path, os.X_OK)]
    found = f"missing: {', '.join(missing)}" if missing else f"all in {sys.prefix}"
    return Check(name="servers", ok=not missing, found=found, advice="run `make install`" if missing else "")


def check_library() -> Check:
    """Triton's stub links the shared library of this Python."""
    name, folder = python_library()
    advice = "" if folder else missing_library(name)
    return Check(name="shared library of Python", ok=folder is not None, found=folder or "not found", advice=advice)


def check_home(home: Path) -> Check:
    """Whether the folder of everything that a run writes can be written."""
    nearest = next(path for path in [home, *home.parents] if path.exists())
    ok = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    return Check(name="home", ok=ok, found=str(home), advice="" if ok else "choose another folder by VISIONLOOP_HOME")


def check_disk(home: Path) -> Check:
    """Room for data, models and logs."""
    nearest = next(path for path in [home, *home.parents] if path.exists())
    free_gb = shutil.disk_usage(nearest).free / 2**30
    ok = free_gb >= LEAST_DISK_GB
    return Check(
        name="disk", ok=ok, found=f"{free_gb:.1f} GiB free", advice="" if ok else f"free {LEAST_DISK_GB:.0f} GiB"
    )


def check_memory() -> Check:
    """Room for the servers (4 GiB) and for training."""
    total_gb = psutil.virtual_memory().total / 2**30
    ok = total_gb >= LEAST_MEMORY_GB
    advice = "" if ok else "8 GiB are needed for the stack and a training"
    return Check(name="memory", ok=ok, found=f"{total_gb:.1f} GiB", advice=advice)


def check_shared_memory() -> Check:
    """Triton and Ray pass tensors through /dev/shm."""
    free_mb = shutil.disk_usage(SHARED_MEMORY).free // 2**20
    ok = free_mb >= LEAST_SHARED_MB
    advice = "" if ok else "enlarge /dev/shm (in a container: --shm-size=1g)"
    return Check(name="shared memory", ok=ok, found=f"{free_mb} MiB free in /dev/shm", advice=advice)


def check_processor() -> Check:
    """AVX2, which the wheels of torch and onnxruntime are fast with."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    best = next((name for name in ("avx512_vnni", "avx512f", "avx2", "avx") if name in flags), "none")
    ok = best not in ("avx", "none")
    found = f"{os.cpu_count()} cores, vector instructions: {best}"
    return Check(name="processor", ok=ok, found=found, advice="" if ok else "works, but training will be slow")


def check_ports(settings: Settings) -> list[Check]:
    """The usual ports; a taken one is no fault, since another is chosen. Nothing to say while the stack runs."""
    state = read_state(settings.home)
    if state is not None and is_alive(state.supervisor):
        return [Check(name="ports", ok=True, found="the stack is running")]
    usual = {port: f"{service.name}" for service in ALL for port in service.ports.values() if port is not None}
    taken = [f"{port} ({name}: {owner_of(port)})" for port, name in usual.items() if not is_free(port)]
    found = f"taken, others will be chosen: {', '.join(taken)}" if taken else "all free"
    return [Check(name="ports", ok=True, found=found)]


def check_data() -> Check:
    """The images of the example project."""
    folder = next((place for place in DATA_FOLDERS if (place / "train-images-idx3-ubyte.gz").exists()), None)
    advice = "" if folder else "`make demo` downloads the images, or install the Debian package dataset-fashion-mnist"
    return Check(name="example data", ok=folder is not None, found=str(folder or "not installed"), advice=advice)
