"""Captured rows are the traffic: every image of every kind of client, none of the probes."""

import io
import json
import signal
import time
import urllib.request

import numpy as np
import pyarrow.parquet as pq
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from visionloop import layout
from visionloop.serving.client import Client
from visionloop.settings import Settings
from visionloop.stores.objects import open_objects
from visionloop.stores.routes import open_routes

from . import tiny
from .conftest import make_project, put


def captured(settings: Settings, project: str) -> list[dict]:
    """All rows, oldest file first."""
    objects = open_objects(settings)
    keys = [info.key for info in objects.scan(layout.captures(project))]
    return [row for key in keys for row in pq.read_table(io.BytesIO(objects.get(key))).to_pylist()]


def until(holds, seconds: float = 15.0):
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    return holds()


def test_every_image_of_every_client_is_captured_once_and_no_probe(running):
    project = make_project(running, "cap")
    model = put(running, project, "stable", 3)
    open_routes(running.settings).set(project, stable=100, canary=0)
    batch = tiny.images(7)
    expected = tiny.offline(model, batch)
    with Client(running.settings.endpoint_url, project) as client:
        for _ in range(30):
            client.predict(batch)
            client.predict(batch, probe=True)
    address = running.settings.endpoint_url.removeprefix("http://")
    for library, extra in (
        (triton_http, {"binary_data": True}),
        (triton_http, {"binary_data": False}),
        (triton_grpc, {}),
    ):
        tensor = library.InferInput("image", list(batch.shape), "UINT8")
        tensor.set_data_from_numpy(batch, **extra)
        library.InferenceServerClient(address).infer("cap", [tensor])
    assert until(lambda: len(captured(running.settings, "cap")) >= 33 * 7)
    rows = captured(running.settings, "cap")
    assert len(rows) == 33 * 7
    assert {(r["model"], r["version"], r["lane"], r["status"]) for r in rows} == {("cap", 3, "stable", 200)}
    assert len({r["request_id"] for r in rows}) == 33
    first = [r for r in rows if r["request_id"] == rows[-1]["request_id"]]
    images = np.stack([np.frombuffer(r["image"], np.uint8).reshape(8, 8, 1) for r in first])
    assert (images == batch).all()
    assert np.allclose([r["probabilities"] for r in first], expected, atol=1e-5)
    assert [r["prediction"] for r in first] == expected.argmax(axis=1).tolist()
    assert all(0 < r["latency_ms"] < 5000 for r in rows)
    assert counters(running)["written"] >= 33 * 7


def test_what_is_mirrored_is_answered_by_both_lanes_and_clients_see_one(running):
    project = make_project(running, "mirror")
    put(running, project, "stable", 1)
    put(running, project, "canary", 2, flipped=True)
    routes = open_routes(running.settings)
    routes.set(project, stable=100, canary=0, mirrored=True)
    with Client(running.settings.endpoint_url, project) as client:
        lanes = {client.predict(tiny.images(3))[0].lane for _ in range(40)}
        client.predict(tiny.images(1), probe=True)
    for _ in range(10):
        lanes.add(ask_http(running, "mirror"))
    assert lanes == {"stable"}

    def both() -> tuple[dict, dict]:
        found = captured(running.settings, "mirror")
        return tuple({r["request_id"]: r for r in found if r["lane"] == lane} for lane in ("stable", "shadow"))

    assert until(lambda: [len(rows) for rows in both()] == [50, 50]), [len(rows) for rows in both()]
    served, shadow = both()
    assert served.keys() == shadow.keys()
    assert {r["version"] for r in served.values()} == {1} and {r["version"] for r in shadow.values()} == {2}
    assert {r["image"] for r in shadow.values()} == {None}
    assert any(served[one]["prediction"] != shadow[one]["prediction"] for one in served)
    routes.set(project, stable=100, canary=0)


def test_a_lane_that_does_not_answer_what_is_mirrored_costs_no_request(own_servers):
    project = make_project(own_servers, "alone")
    put(own_servers, project, "stable", 1)
    put(own_servers, project, "canary", 2)
    open_routes(own_servers.settings).set(project, stable=100, canary=0, mirrored=True)
    with Client(own_servers.settings.endpoint_url, project, most_tries=1) as client:
        for how in (signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL):
            own_servers.kill("canary", how)
            answers = [client.predict(tiny.images(2))[0] for _ in range(200)]
            assert max(answer.latency_ms for answer in answers) < 1000


def test_a_stopped_capture_service_costs_no_request(own_servers):
    project = make_project(own_servers, "calm")
    put(own_servers, project, "stable", 1)
    open_routes(own_servers.settings).set(project, stable=100, canary=0)
    with Client(own_servers.settings.endpoint_url, project, most_tries=1) as client:
        client.predict(tiny.images(1))
        own_servers.kill("capture")
        answers = [client.predict(tiny.images(2)) for _ in range(100)]
    assert sum(map(len, answers)) == 200


def test_a_capture_service_that_pauses_loses_nothing(own_servers):
    project = make_project(own_servers, "pause")
    put(own_servers, project, "stable", 1)
    open_routes(own_servers.settings).set(project, stable=100, canary=0)
    with Client(own_servers.settings.endpoint_url, project) as client:
        client.predict(tiny.images(1))
        own_servers.kill("capture", signal.SIGSTOP)
        for _ in range(20):
            client.predict(tiny.images(1))
        time.sleep(0.2)
        own_servers.kill("capture", signal.SIGCONT)
    assert until(lambda: counters(own_servers)["captured"] == 21), counters(own_servers)


def test_what_was_captured_is_written_at_the_end(own_servers):
    project = make_project(own_servers, "last")
    put(own_servers, project, "stable", 1)
    open_routes(own_servers.settings).set(project, stable=100, canary=0)
    with Client(own_servers.settings.endpoint_url, project) as client:
        for _ in range(20):
            client.predict(tiny.images(1))
    assert until(lambda: counters(own_servers)["captured"] == 20), counters(own_servers)
    own_servers.kill("capture", 15)
    assert len(captured(own_servers.settings, "last")) == 20


def ask_http(found, model: str) -> str:
    """Which lane answered."""
    body = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [200] * 64}]}
    url = f"{found.settings.endpoint_url}/v2/models/{model}/infer"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as answer:
        return answer.headers["x-lane"]


def counters(found) -> dict[str, int]:
    with urllib.request.urlopen(f"{found.settings.capture_url}/metrics") as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    pairs = (line.split() for line in lines)
    return {n.removeprefix("visionloop_capture_").removesuffix("_total"): int(v) for n, v in pairs}


def test_health_says_the_version(running):
    with urllib.request.urlopen(f"{running.settings.capture_url}/healthz") as answer:
        assert json.loads(answer.read())["status"] == "ok"
