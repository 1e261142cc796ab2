"""The endpoint itself: weights, sessions, what is closed, what is too large, and tables that Envoy would not take."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from visionloop.errors import DataError, StoreError
from visionloop.serving.client import Client, EndpointError
from visionloop.serving.envoy_routes import render_routes
from visionloop.stores.routes import Weights, open_routes

from . import tiny
from .conftest import HEAP_MIB, make_project, put
from .test_capture import until


@pytest.fixture(scope="module")
def split(running):
    """A model of which each lane serves another version."""
    project = make_project(running, "split")
    files = {"stable": put(running, project, "stable", 1), "canary": put(running, project, "canary", 2, flipped=True)}
    routes = open_routes(running.settings)
    routes.set(project, stable=50, canary=50)
    assert routes.wait_healthy("split", "canary")
    return project, routes, files


@pytest.fixture
def client(running, split):
    """One that tries nothing again: what fails is to be seen."""
    with Client(running.settings.endpoint_url, split[0], most_tries=1) as opened:
        yield opened


def ask(running, path: str, body: bytes | None = None, method: str = "POST") -> tuple[int, str]:
    request = urllib.request.Request(running.settings.endpoint_url + path, data=body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_answers_say_lane_version_and_the_models_own_probabilities(split, client):
    _, routes, files = split
    routes.set(split[0], stable=50, canary=50)
    batch = tiny.images(5)
    seen = {answers[0].lane: answers for answers in (client.predict(batch) for _ in range(40))}
    assert {lane: answers[0].version for lane, answers in seen.items()} == {"stable": 1, "canary": 2}
    for lane, answers in seen.items():
        expected = tiny.offline(files[lane], batch)
        assert np.allclose([a.probabilities for a in answers], expected, atol=1e-5)
        assert [a.label for a in answers] == [tiny.CLASSES[i] for i in expected.argmax(axis=1)]
        assert answers[0].request_id


def test_weights_flip_under_load_over_both_protocols_without_an_error(running, split, client):
    project, routes, _ = split
    faults, answered, end = [], Counter(), threading.Event()
    batch = tiny.images(2)
    http = triton_http.InferenceServerClient(running.settings.endpoint_url.removeprefix("http://"))
    tensor = triton_http.InferInput("image", list(batch.shape), "UINT8")
    tensor.set_data_from_numpy(batch)

    def load(send) -> None:
        while not end.is_set():
            try:
                answered[send()] += 1
            except Exception as error:
                faults.append(error)

    senders = [
        lambda: client.predict(batch)[0].version,
        lambda: int(http.infer("split", [tensor]).get_response()["model_version"]),
    ]
    threads = [threading.Thread(target=load, args=(send,)) for send in senders]
    for thread in threads:
        thread.start()
    for flip in range(40):
        routes.set(project, stable=100 * (flip % 2), canary=100 * ((flip + 1) % 2))
    end.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert answered[1] > 20
    assert answered[2] > 20


def test_a_set_weight_holds_when_set_returns(split, client):
    project, routes, _ = split
    for stable in (100, 0, 100, 0):
        assert routes.set(project, stable=stable, canary=100 - stable) == Weights(stable, 100 - stable)
        assert {client.predict(tiny.images(1))[0].lane for _ in range(10)} == {"stable" if stable else "canary"}


def test_a_session_stays_in_its_lane_when_the_canary_grows(split, client):
    project, routes, _ = split
    lanes = {}
    for canary in (20, 50):
        routes.set(project, stable=100 - canary, canary=canary)
        for session in map(str, range(60)):
            found = {client.predict(tiny.images(1), session=session)[0].lane for _ in range(2)}
            assert len(found) == 1
            lanes[session, canary] = found.pop()
    early = [s for s in map(str, range(60)) if lanes[s, 20] == "canary"]
    assert 2 <= len(early) <= 28
    assert all(lanes[s, 50] == "canary" for s in early)


def test_lane_stats_count_each_lane(split, client):
    project, routes, _ = split
    routes.set(project, stable=50, canary=50)
    before = routes.lane_stats("split")
    sent = Counter(client.predict(tiny.images(1))[0].lane for _ in range(50))
    after = routes.lane_stats("split")
    assert {lane: after[lane].since(before[lane]).requests for lane in after} == sent
    assert all(after[lane].errors == before[lane].errors for lane in after)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/index",
        "/v2/repository/models/split/unload",
        "//v2/repository/index",
        "/v2/./repository/index",
        "/v2/models/../repository/index",
        "/v2/models/split/trace/setting",
        "/v2/logging",
        "/v2/systemsharedmemory/status",
        "/v2/cudasharedmemory/region/x/register",
    ],
)
def test_model_control_is_closed_over_http(running, split, path):
    assert ask(running, path, b"{}") == (403, '{"error":"closed: models are changed by releases only"}\n')


@pytest.mark.parametrize("name", ["repository", "trace", "logging", "cudasharedmemory", "versions", "ready", "stats"])
def test_a_model_that_is_called_like_a_path_of_tritons_is_answered(running, name):
    project = make_project(running, name)
    put(running, project, "stable", 1)
    open_routes(running.settings).set(project, stable=100, canary=0)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [0] * 64}
    body = json.dumps({"inputs": [tensor]}).encode()
    for path in (f"/v2/models/{name}/infer", f"/v2/models/{name}/versions/1/infer"):
        assert ask(running, path, body)[0] == 200
    for path in (f"/v2/models/{name}/ready", f"/v2/models/{name}/config", f"/v2/models/{name}/stats"):
        assert ask(running, path, method="GET")[0] == 200
    for path in (f"/v2/models/{name}/trace/setting", f"/v2/repository/models/{name}/unload"):
        assert ask(running, path, b"{}")[0] == 403
    with Client(running.settings.endpoint_url, project) as client:
        assert client.predict(tiny.images(1))[0].version == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.unload_model("split"),
        lambda c: c.load_model("split"),
        lambda c: c.get_model_repository_index(),
        lambda c: c.get_trace_settings("split"),
        lambda c: c.update_log_settings({"log_verbose_level": 1}),
        lambda c: c.get_system_shared_memory_status(),
    ],
)
def test_model_control_is_closed_over_grpc(running, split, call):
    with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
        call(triton_grpc.InferenceServerClient(running.settings.endpoint_url.removeprefix("http://")))
    assert ask(running, "/v2/models/split/ready", method="GET")[0] == 200


def test_any_kserve_client_finds_model_and_server(running, split):
    address = running.settings.endpoint_url.removeprefix("http://")
    for library in (triton_grpc, triton_http):
        opened = library.InferenceServerClient(address)
        assert opened.is_server_ready()
        assert opened.is_model_ready("split")
    assert json.loads(ask(running, "/v2/models/split", method="GET")[1])["name"] == "split"


def test_a_lane_of_large_images_is_asked_for_an_inference_too(running):
    project = make_project(running, "large", side=600)
    for lane in ("stable", "canary"):
        put(running, project, lane, 1, side=600)
    routes = open_routes(running.settings)
    routes.set(project, stable=100, canary=0)
    assert routes.wait_healthy("large", "canary")
    assert ask(running, "/v2/models/large/ready", method="GET")[0] == 200
    assert until(lambda: inferences(running, "large", "canary") > 2)


def test_the_checks_of_a_model_that_nobody_asks_about_cost_little(running):
    """One image in two seconds, in the lane that serves."""
    project = make_project(running, "quiet")
    put(running, project, "stable", 1)
    open_routes(running.settings).set(project, stable=100, canary=0)
    assert until(lambda: inferences(running, "quiet", "stable") > 1)
    before = inferences(running, "quiet", "stable")
    time.sleep(8)
    assert 2 <= inferences(running, "quiet", "stable") - before <= 5


def inferences(running, model, lane):
    """That the lane was asked for, so far by nobody but Envoy."""
    with triton_grpc.InferenceServerClient(getattr(running.settings, f"{lane}_grpc")) as client:
        return sum(one.inference_stats.success.count for one in client.get_inference_statistics(model).model_stats)


def test_a_limit_that_the_stack_was_started_with_is_the_endpoints(running):
    with urllib.request.urlopen(f"{running.settings.envoy_admin_url}/config_dump") as answer:
        configs = json.loads(answer.read())["configs"]
    heap = configs[0]["bootstrap"]["overload_manager"]["resource_monitors"][0]["typed_config"]
    assert int(heap["max_heap_size_bytes"]) == HEAP_MIB << 20
    assert running.settings.endpoint_heap_mib == HEAP_MIB  # and who comes later reads the same


def test_what_nobody_serves_is_said(running, split):
    assert ask(running, "/elsewhere") == (404, '{"error":"not found: the endpoint speaks KServe v2"}\n')
    status, text = ask(running, "/v2/models/nobody/infer", b"{}")
    assert status in (400, 404)
    assert "unknown model" in text
    stranger = make_project(running, "stranger")
    with Client(running.settings.endpoint_url, stranger) as client, pytest.raises(EndpointError, match="stranger"):
        client.predict(tiny.images(1))


def test_a_body_above_16_mib_is_refused(running, split):
    assert ask(running, "/v2/models/split/infer", bytes((16 << 20) + 1))[0] == 413


def test_large_arrays_go_in_several_requests(split, client):
    answers = client.predict(tiny.images(150))
    assert len(answers) == 150
    assert len({answer.request_id for answer in answers}) == 3


@pytest.mark.parametrize("wrong", [tiny.images(2)[..., 0], tiny.images(2).astype(np.float32), tiny.images(2)[:, :4]])
def test_images_of_another_shape_or_type_are_refused_before_they_are_sent(client, wrong):
    with pytest.raises(DataError, match=r"split expects uint8 images \[N, 8, 8, 1\]"):
        client.predict(wrong)


def test_a_table_that_envoy_refuses_leaves_the_old_one(split, client, monkeypatch):
    project, routes, _ = split
    routes.set(project, stable=100, canary=0)

    def broken(models, *, version):
        table = render_routes(models, version=version)
        table["resources"][0]["virtual_hosts"][0]["domains"] = []
        return table

    monkeypatch.setattr("visionloop.stores.routes.render_routes", broken)
    with pytest.raises(StoreError, match=r"did not take rds.json"):
        routes.set(project, stable=0, canary=100)
    monkeypatch.undo()
    assert routes.current("split") == Weights(100, 0)
    assert {client.predict(tiny.images(1))[0].lane for _ in range(10)} == {"stable"}
    routes.set(project, stable=0, canary=100)
    assert client.predict(tiny.images(1))[0].lane == "canary"


def test_routes_survive_a_restart_of_everything(own_servers):
    project = make_project(own_servers, "lasting")
    put(own_servers, project, "stable", 4)
    open_routes(own_servers.settings).set(project, stable=100, canary=0)
    for name in ("envoy", "stable"):
        own_servers.kill(name)
    own_servers.start_lane("stable")
    own_servers.start_envoy()
    with Client(own_servers.settings.endpoint_url, project) as client:
        assert client.predict(tiny.images(1))[0].version == 4
    assert open_routes(own_servers.settings).current("lasting") == Weights(100, 0)


def test_an_envoy_that_is_down_is_named(own_servers):
    project = make_project(own_servers, "downed")
    own_servers.kill("envoy")
    with pytest.raises(StoreError, match=r"Envoy's admin interface at http://127.0.0.1:\d+ does not answer"):
        open_routes(own_servers.settings).set(project, stable=100, canary=0)
    with (
        Client(own_servers.settings.endpoint_url, project) as client,
        pytest.raises(EndpointError, match="UNAVAILABLE"),
    ):
        client.predict(tiny.images(1))
