"""An endpoint that asks for API keys: strangers are refused over both protocols, health is open, keys are hidden."""

import json
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton_grpc

from visionloop.project import Project
from visionloop.serving.client import Client, EndpointError, connect, open_client
from visionloop.serving.envoy import change_keys
from visionloop.serving.keys import add_key, read_keys
from visionloop.settings import Settings
from visionloop.stores.routes import open_routes

from . import servers, tiny
from .conftest import make_project, put

WRONG = "not-a-key-not-a-key"
INFER = json.dumps(
    {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [0] * 64}]}
).encode()


@dataclass(frozen=True)
class Keyed:
    """Servers whose endpoint knows the clients `visionloop` and `belt`."""

    servers: servers.Servers
    settings: Settings
    project: Project
    belt: Path
    """The file with the key of `belt`."""

    @property
    def url(self) -> str:
        return self.settings.need("endpoint_url")

    @property
    def keys(self) -> Path:
        return Path(self.settings.need("endpoint_keys"))

    def status(self, path: str, key: str | None = None, body: bytes | None = None) -> int:
        """What HTTP says to a request with this key."""
        request = urllib.request.Request(self.url + path, data=body, headers={"x-api-key": key} if key else {})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def code(self, key_file: Path | None) -> str:
        """What gRPC says to a request with the key of a file."""
        with Client(self.url, self.project, key_file=key_file) as client:
            try:
                client.predict(tiny.images(3))
            except EndpointError as error:
                assert key_file is None or key_file.read_text() not in str(error)
                return error.code
            return "OK"


@pytest.fixture(scope="module")
def keyed():
    folder = Path(tempfile.mkdtemp(prefix="vlk-"))
    keys, belt = folder / "keys", folder / "belt"
    belt.write_text(add_key(keys, "belt"))
    found = servers.Servers(folder)
    try:
        found.link_backends()
        for lane in servers.LANES:
            found.start_lane(lane)
        found.start_envoy(keys=read_keys(keys))
        project = make_project(found, "keyed")
        put(found, project, "stable", 1)
        put(found, project, "canary", 2)
        routes = open_routes(found.settings)
        routes.set(project, stable=50, canary=50)
        assert routes.wait_healthy("keyed", "canary")  # its check is an inference, and goes past the listener
        yield Keyed(found, found.settings.model_copy(update={"endpoint_keys": keys}), project, belt)
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/models/keyed/infer", INFER),
        ("/v2/models/keyed", None),
        ("/v2/models/keyed/ready", None),
        ("/v2", None),
    ],
)
def test_http_is_answered_with_a_key_only(keyed, path, body):
    found = [keyed.status(path, key, body) for key in (None, WRONG, keyed.belt.read_text())]
    assert found == [401, 401, 200]


def test_a_stranger_is_told_what_to_send(keyed):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{keyed.url}/v2/models/keyed")
    said = json.loads(refused.value.read())
    assert said == {"error": "expected an API key in the header x-api-key, found none that is known"}


def test_what_is_closed_stays_closed_to_those_with_a_key(keyed):
    found = [keyed.status("/v2/repository/index", key, b"{}") for key in (None, keyed.belt.read_text())]
    assert found == [401, 403]


def test_grpc_is_answered_with_a_key_only(keyed, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text(WRONG)
    found = [keyed.code(file) for file in (None, wrong, keyed.belt)]
    assert found == ["UNAUTHENTICATED", "UNAUTHENTICATED", "OK"]
    with pytest.raises(EndpointError, match="did not describe keyed: UNAUTHENTICATED"):
        connect(keyed.url, "keyed")
    with connect(keyed.url, "keyed", key_file=keyed.belt) as client:
        assert client.predict(tiny.images(1))[0].label in tiny.CLASSES


def test_health_is_open_and_nothing_beside_it(keyed):
    assert [keyed.status(f"/v2/health/{what}") for what in ("ready", "live")] == [200, 200]
    stranger = triton_grpc.InferenceServerClient(keyed.url.removeprefix("http://"))
    assert stranger.is_server_ready()
    assert stranger.is_server_live()
    with grpc.insecure_channel(keyed.url.removeprefix("http://")) as channel:
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10) == b"\x08\x01"  # SERVING
    for path in ("/v2/health/../models/keyed", "/v2/healthy", "/v2/health%2f..%2fmodels/keyed"):
        assert keyed.status(path) in (400, 401), path


def test_the_loops_own_probes_have_a_key(keyed):
    with open_client(keyed.settings, keyed.project) as client:
        lanes = {client.predict(tiny.images(1), probe=True)[0].lane for _ in range(40)}
    assert lanes == {"stable", "canary"}


def test_keys_come_and_go_without_a_restart(keyed, tmp_path):
    process = keyed.servers.processes["envoy"].pid
    door = tmp_path / "door"
    door.write_text(add_key(keyed.keys, "door"))
    assert keyed.code(door) == "UNAUTHENTICATED"
    everybody = read_keys(keyed.keys)
    change_keys(keyed.servers.folder / "routes", {name: key for name, key in everybody.items() if name != "belt"})
    wait_until(keyed, door, "OK")
    assert keyed.code(keyed.belt) == "UNAUTHENTICATED"
    change_keys(keyed.servers.folder / "routes", everybody)
    wait_until(keyed, keyed.belt, "OK")
    assert keyed.servers.processes["envoy"].pid == process


def wait_until(keyed: Keyed, key_file: Path, code: str) -> None:
    """Envoy looks at the file by itself; connections that were open before are drained."""
    end = time.monotonic() + 10
    while keyed.code(key_file) != code:
        assert time.monotonic() < end, "the endpoint did not take the keys in"
        time.sleep(0.02)


def test_no_log_and_no_dump_shows_a_key(keyed):
    keyed.status("/v2/models/keyed/infer", WRONG, INFER)
    with urllib.request.urlopen(f"{keyed.settings.envoy_admin_url}/config_dump", timeout=10) as answer:
        said = answer.read().decode()
    said += "".join(keyed.servers.log(name) for name in ("envoy", "stable", "canary"))
    assert "api_key" in said
    for key in (*read_keys(keyed.keys).values(), WRONG):
        assert key not in said
