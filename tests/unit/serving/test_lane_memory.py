"""The file that a lane is sent reads real processes: its parent's, and those that serve one version of one model."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import psutil
import pytest

from visionloop import layout
from visionloop.errors import ConfigError
from visionloop.serving import gauge

SLEEPS = "import sys, time; held = b'x' * (20 << 20); print('up', flush=True); time.sleep(60)"


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The module, as a stub of Triton runs it."""
    pb_utils = SimpleNamespace(
        get_input_tensor_by_name=lambda request, name: SimpleNamespace(as_numpy=lambda: request[name]),
        Tensor=lambda name, array: (name, array),
        InferenceResponse=lambda tensors: dict(tensors),
    )
    sys.modules["triton_python_backend_utils"] = pb_utils  # type: ignore[assignment]
    path = tmp_path_factory.mktemp("sent") / "model.py"
    path.write_bytes(gauge.source())
    spec = importlib.util.spec_from_file_location("lane_memory", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["triton_python_backend_utils"]


@pytest.fixture
def stub() -> Iterator[subprocess.Popen[str]]:
    """A process with the arguments of a stub of version 3 of `shirts`."""
    arguments = [sys.executable, "-c", SLEEPS, "/models/shirts/3/model.onnx", "region", "shirts_0_0", "/backends"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "up\n"
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("model", "version", "processes"),
    [("shirts", "3", 1), ("shirts", "2", 0), ("shirt", "3", 0), ("s.irts", "3", 0), ("shirts_0", "3", 0)],
)
def test_a_process_belongs_to_its_version_of_its_model(
    sent: ModuleType, stub: subprocess.Popen[str], model: str, version: str, processes: int
) -> None:
    server, own, found, started = sent.figures(os.getpid(), model, version)
    assert found == processes
    assert server > 20 << 20
    since_boot = started / os.sysconf("SC_CLK_TCK")
    assert abs(psutil.boot_time() + since_boot - psutil.Process().create_time()) < 2
    assert (20 << 20 < own < 200 << 20) if processes else own == 0


def test_a_dead_process_serves_nothing_though_nobody_has_collected_it(
    sent: ModuleType, stub: subprocess.Popen[str]
) -> None:
    stub.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{stub.pid}/cmdline").read_bytes() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sent.figures(os.getpid(), "shirts", "3")[1:3] == [0, 0]


def test_a_process_that_ended_meanwhile_is_no_fault(sent: ModuleType) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert sent.parent_of(Path(f"/proc/{process.pid}")) == 0
    assert sent.started(Path(f"/proc/{process.pid}")) == 0
    assert not sent.serves(process.pid, "shirts", "3")
    assert list(sent.resident([process.pid])) == []


def test_it_answers_as_its_configuration_says(sent: ModuleType) -> None:
    [answer] = sent.TritonPythonModel().execute([{gauge.QUESTION: np.array([b"shirts", b"3"], np.object_)}])
    found = answer[gauge.ANSWER]
    assert (found.dtype, found.shape) == (np.int64, (4,))
    assert found[1:3].tolist() == [0, 0]
    assert json.loads(gauge.config())["output"][0]["dims"] == [len(found)]


def test_another_process_began_at_another_time(sent: ModuleType, stub: subprocess.Popen[str]) -> None:
    assert 0 < sent.started(Path("/proc/self")) < sent.started(Path(f"/proc/{stub.pid}"))


def test_no_project_can_have_its_name() -> None:
    with pytest.raises(ConfigError, match="cannot be a name"):
        layout.checked(gauge.NAME)
