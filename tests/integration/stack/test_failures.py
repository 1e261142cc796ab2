"""What goes wrong with embedded servers: each fault gives one clear line, loses nothing, and leaves nothing behind."""

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import numpy as np
import psutil
import pytest
import tritonclient.grpc
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from tests.integration.conftest import REPO, running_stack
from visionloop import stack
from visionloop.errors import StackError
from visionloop.packaging.signing import sign
from visionloop.serving.repository import Entry
from visionloop.settings import Settings, env_file, load_settings
from visionloop.stack.process import family, identity_of, is_alive
from visionloop.stack.service import Context
from visionloop.stack.signing import PRIVATE, make_keys
from visionloop.stack.status import read_state, write_state

LANES = ["triton"]
PATIENCE_S = 60.0
CONFIG = """
name: "double"
backend: "onnxruntime"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 2 ] }
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
version_policy { specific { versions: 1 } }
"""


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings of a stack that does not run; whatever a test starts in it is ended."""
    monkeypatch.chdir(REPO)
    settings = Settings(home=tmp_path_factory.mktemp("h"), projects=REPO / "projects")
    yield settings
    with contextlib.suppress(StackError):
        stack.down(settings)


def reload(settings: Settings) -> Settings:
    """The addresses of the running stack."""
    return load_settings({"VISIONLOOP_HOME": str(settings.home)})


def until(holds: Callable[[], object], what: str) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def service(settings: Settings, name: str) -> stack.ServiceStatus:
    """One service's status."""
    return next(found for found in stack.status(settings).services if found.name == name)


def processes_of(settings: Settings) -> list[int]:
    """Live processes that carry this home in their environment: the stack's, the supervisor included."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(settings.home) in process.cmdline() or process.environ().get("VISIONLOOP_HOME") == str(
                settings.home
            ):
                found.append(process.pid)
    return found


def put_model(settings: Settings, lane: str) -> None:
    """An entry that doubles its input."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    graph = helper.make_graph([node], "double", tensors[:1], tensors[1:])
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    make_keys(Context(home=settings.home, repo=REPO, settings=settings, ports={}))
    private = settings.home / "stack" / "secrets" / PRIVATE
    Entry(settings.home / "model_repository" / lane / "double").write(
        version=1,
        config=CONFIG,
        model=model,
        sha256=hashlib.sha256(model).hexdigest(),
        signature=sign({"model.onnx": model, "config.pbtxt": CONFIG.encode()}, private),
    )


def ask(address: str) -> list[float]:
    """The lane's answer to (1, 2)."""
    client = tritonclient.grpc.InferenceServerClient(address)
    item = tritonclient.grpc.InferInput("x", [1, 2], "FP32")
    item.set_data_from_numpy(np.array([[1.0, 2.0]], dtype=np.float32))
    with contextlib.closing(client):
        answer = client.infer("double", [item], client_timeout=10).as_numpy("y")
    assert answer is not None
    return [float(value) for value in answer[0]]


def test_up_twice_is_harmless_and_down_ends_everything(home: Settings) -> None:
    first = stack.up(home, only=LANES)
    second = stack.up(home, only=LANES)
    assert first.is_up and second.is_up
    assert [s.pid for s in first.services] == [s.pid for s in second.services]
    assert stack.down(home).phase == "down"
    assert processes_of(home) == []
    assert not env_file(home.home).exists()
    assert stack.down(home).phase == "down"


def test_two_terminals_at_once_start_one_stack(home: Settings) -> None:
    environ = {**os.environ, "VISIONLOOP_HOME": str(home.home), "VISIONLOOP_PROJECTS": str(home.projects)}
    command = [sys.executable, "-m", "visionloop.stack", "up", "--only", "triton"]
    both = [subprocess.Popen(command, env=environ, cwd=REPO, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert len({service(home, f"triton-{lane}").pid for lane in ("stable", "canary")}) == 2
    servers = [pid for pid in processes_of(home) if psutil.Process(pid).name() == "tritonserver"]
    assert len(servers) == 2


def test_two_stacks_beside_each_other(home: Settings) -> None:
    stack.up(home, only=LANES)
    with running_stack(LANES) as other:
        ours = reload(home)
        assert len({ours.stable_grpc, ours.canary_grpc, other.stable_grpc, other.canary_grpc}) == 4
    assert stack.status(home).is_up


def test_objects_and_served_models_survive_down_and_up(home: Settings) -> None:
    put_model(home, "canary")
    stack.up(home, only=["s3", "triton"])
    client(reload(home)).put_object(Bucket="visionloop", Key="a/b", Body=b"kept")
    assert ask(str(reload(home).canary_grpc)) == [2.0, 4.0]
    stack.down(home)
    stack.up(home, only=["s3", "triton"])
    assert client(reload(home)).get_object(Bucket="visionloop", Key="a/b")["Body"].read() == b"kept"
    assert ask(str(reload(home).canary_grpc)) == [2.0, 4.0]


def client(settings: Settings):  # type: ignore[no-untyped-def]
    """An S3 client with the generated credentials."""
    assert settings.s3_credentials is not None
    key, password = (line.partition("=")[2].strip() for line in settings.s3_credentials.read_text().splitlines()[1:3])
    keys = {"aws_access_key_id": key, "aws_secret_access_key": password}
    return boto3.Session(**keys).client("s3", endpoint_url=settings.s3_endpoint, region_name="us-east-1")


def test_a_killed_server_is_started_again_at_its_address(home: Settings) -> None:
    put_model(home, "stable")
    stack.up(home, only=LANES)
    address, pid = str(reload(home).stable_grpc), service(home, "triton-stable").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: service(home, "triton-stable").restarts == 1 and stack.status(home).is_up, "the lane is up again")
    again = service(home, "triton-stable")
    assert again.pid != pid
    assert "killed by signal 9" in again.reason
    assert ask(address) == [2.0, 4.0]


def test_a_model_that_was_changed_is_not_served_after_a_restart(home: Settings) -> None:
    put_model(home, "stable")
    stack.up(home, only=LANES)
    folder = home.home / "model_repository" / "stable" / "double"
    with (folder / "1" / "model.onnx").open("ab") as model:
        model.write(b" ")
    os.kill(service(home, "triton-stable").pid or 0, signal.SIGKILL)
    until(lambda: service(home, "triton-stable").restarts == 1 and stack.status(home).is_up, "the lane is up again")
    with pytest.raises(InferenceServerException, match="unknown model"):
        ask(str(reload(home).stable_grpc))
    assert not folder.exists()
    [kept] = (home.home / "model_repository" / "refused").iterdir()
    assert (kept / "1" / "model.onnx").is_file()


def test_an_entry_with_code_beside_the_model_is_not_served_after_a_restart(home: Settings) -> None:
    put_model(home, "stable")
    stack.up(home, only=LANES)
    lane, ran = home.home / "model_repository" / "stable", home.home / "ran"
    code = f"open({str(ran)!r}, 'a').write(__file__ + '\\n')\n"
    shutil.copytree(lane / "double", lane / ".double")
    (lane / ".double" / "config.pbtxt").write_text(CONFIG.replace('"double"', '".double"'))
    for place in ("double/1/model.py", "double/model.py", ".double/1/model.py"):
        (lane / place).write_text(code)
    os.kill(service(home, "triton-stable").pid or 0, signal.SIGKILL)
    until(lambda: service(home, "triton-stable").restarts == 1 and stack.status(home).is_up, "the lane is up again")
    with pytest.raises(InferenceServerException, match="unknown model"):
        ask(str(reload(home).stable_grpc))
    assert list(lane.iterdir()) == []
    assert not ran.exists()
    kept = sorted(path.name.rpartition("-")[0] for path in (home.home / "model_repository" / "refused").iterdir())
    assert kept == ["stable-.double", "stable-double"]


def test_a_lane_with_a_dead_stub_is_started_again_before_anybody_asks(home: Settings) -> None:
    put_model(home, "stable")
    stack.up(home, only=LANES)
    pid = service(home, "triton-stable").pid
    assert pid is not None
    stub = next(child for child in psutil.Process(pid).children() if child.name().startswith("triton_python"))
    stub.kill()
    until(lambda: service(home, "triton-stable").restarts == 1 and stack.status(home).is_up, "the lane is up again")
    assert f"a model's process died (pid {stub.pid})" in service(home, "triton-stable").reason
    assert ask(str(reload(home).stable_grpc)) == [2.0, 4.0]


def test_a_killed_supervisor_leaves_the_servers_and_the_next_one_adopts_them(home: Settings) -> None:
    stack.up(home, only=LANES)
    pids = {s.name: s.pid for s in stack.status(home).services}
    kill_supervisor(home)
    assert stack.status(home).phase == "unsupervised"
    assert {s.name: s.pid for s in stack.status(home).services} == pids
    assert stack.up(home, only=LANES).is_up
    assert {s.name: s.pid for s in stack.status(home).services} == pids
    os.kill(pids["triton-stable"] or 0, signal.SIGKILL)  # the new one keeps them like its own
    until(lambda: service(home, "triton-stable").restarts == 1 and stack.status(home).is_up, "restarted")
    stack.down(home)
    assert processes_of(home) == []


def test_down_ends_what_a_killed_supervisor_left(home: Settings) -> None:
    stack.up(home, only=LANES)
    kill_supervisor(home)
    assert stack.down(home).phase == "down"
    assert processes_of(home) == []


def kill_supervisor(settings: Settings) -> None:
    """As the out-of-memory killer would."""
    state = read_state(settings.home)
    assert state is not None and state.supervisor is not None
    os.kill(state.supervisor.pid, signal.SIGKILL)
    until(lambda: not is_alive(state.supervisor), "the supervisor is gone")


def test_a_stale_state_file_never_costs_another_process_its_life(home: Settings) -> None:
    stack.up(home, only=LANES)
    stack.down(home)
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], start_new_session=True)
    try:
        state, now = read_state(home.home), identity_of(innocent.pid)
        assert state is not None and now is not None
        stale = now.model_copy(update={"started_ticks": now.started_ticks - 1})
        state.phase, state.supervisor = "up", stale
        for name in state.services:
            state.services[name] = state.services[name].model_copy(update={"state": "running", "leader": stale})
        write_state(home.home, state)
        assert stack.status(home).phase == "down"
        assert stack.up(home, only=LANES).is_up
        stack.down(home)
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_a_wanted_port_that_is_taken_gives_way(home: Settings) -> None:
    stack.up(home, only=LANES)
    before = reload(home)
    stack.down(home)
    with socket.create_server(("127.0.0.1", int(str(before.stable_grpc).rpartition(":")[2]))):
        stack.up(home, only=LANES)
        after = reload(home)
    assert after.stable_grpc != before.stable_grpc
    assert after.canary_grpc == before.canary_grpc  # what can stay, stays


def test_a_fixed_port_that_is_taken_is_one_clear_line(home: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        fixed = home.model_copy(update={"stable_grpc": f"127.0.0.1:{port}"})
        with pytest.raises(StackError) as caught:
            stack.up(fixed, only=LANES)
    message = str(caught.value)
    assert f"triton-stable: port {port}, set by VISIONLOOP_STABLE_GRPC, is taken by" in message
    assert f"pid {os.getpid()}" in message
    assert "\n" not in message
    assert processes_of(home) == []


def test_a_fixed_port_that_is_free_is_used(home: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    stack.up(home.model_copy(update={"stable_grpc": f"127.0.0.1:{port}"}), only=LANES)
    assert reload(home).stable_grpc == f"127.0.0.1:{port}"


@pytest.mark.parametrize("place", ["/proc/visionloop", "file/home"])
def test_an_unwritable_folder_is_one_clear_line(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match=r"cannot write to .* \(.*\): choose another folder by VISIONLOOP_HOME"):
        stack.up(Settings(home=tmp_path / place), only=LANES)


@pytest.mark.parametrize("name", ["triton-canary", "supervisor"])
def test_a_full_disk_for_a_log_is_one_clear_line_and_nothing_runs(home: Settings, name: str) -> None:
    (home.home / "logs").mkdir()
    (home.home / "logs" / f"{name}.log").symlink_to("/dev/full")
    with pytest.raises(StackError) as caught:
        stack.up(home, only=LANES)
    message = str(caught.value)
    assert name in message and "cannot be written (No space left on device)" in message
    assert "\n" not in message
    assert processes_of(home) == []
    (home.home / "logs" / f"{name}.log").unlink()
    assert stack.up(home, only=LANES).is_up


def test_a_disk_that_fills_while_the_stack_runs_ends_no_server(home: Settings) -> None:
    put_model(home, "stable")
    stack.up(home, only=LANES)
    for name in ("triton-stable", "supervisor"):
        (home.home / "logs" / f"{name}.log").unlink()
        (home.home / "logs" / f"{name}.log").symlink_to("/dev/full")
    os.kill(service(home, "triton-stable").pid or 0, signal.SIGKILL)
    until(lambda: service(home, "triton-stable").restarts == 1 and stack.status(home).is_up, "the lane is up again")
    assert ask(str(reload(home).stable_grpc)) == [2.0, 4.0]


def test_a_server_that_does_not_start_ends_the_others_and_says_why(home: Settings) -> None:
    (home.home / "model_repository").mkdir()
    (home.home / "model_repository" / "canary").write_text("a file in the way")
    with pytest.raises(StackError) as caught:
        stack.up(home, only=["s3", "triton"])
    message = str(caught.value)
    assert message.startswith("triton-canary: ")
    assert f"its log is {home.home / 'logs' / 'triton-canary.log'}" in message
    assert "\n" not in message
    assert processes_of(home) == []
    found = stack.status(home)
    assert found.phase == "failed"
    assert not env_file(home.home).exists()


def test_another_folder_than_the_repository_is_refused(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StackError, match=r"is not visionloop's repository \(dags, plugins"):
        stack.up(home, only=LANES)


def test_what_the_stack_starts_is_all_in_its_families(home: Settings) -> None:
    stack.up(home, only=["s3", "triton"])
    state = read_state(home.home)
    assert state is not None and state.supervisor is not None
    known = {pid for entry in state.services.values() if entry.leader for pid in family(entry.leader)}
    assert set(processes_of(home)) - known <= {state.supervisor.pid}
