"""A slow model, a failing one and a frozen lane while there is a canary: who answers, and how often each is asked."""

import json
import shutil
import signal
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tritonclient.grpc as triton_grpc

from visionloop.project import Project
from visionloop.serving.client import Client
from visionloop.serving.traffic import traffic
from visionloop.stores.routes import open_routes
from visionloop.stores.scrapes import scrape
from visionloop.stores.triton import open_lane

from . import servers, tiny
from .conftest import make_project, put
from .test_bad_models import BACKEND

TIMEOUT_MS = 6_000
THIRD_SECONDS = 2.0
"""After it, the other lane is asked."""
SLOW = {"sleeps_ms": 1_200}
BATCH = tiny.images(3)


@pytest.fixture(scope="module")
def lanes() -> Iterator[servers.Servers]:
    """Servers whose backend takes its time where the model says so."""
    folder = Path(tempfile.mkdtemp(prefix="vlt-"))
    with servers.running(folder, backend=BACKEND) as found:
        yield found
    shutil.rmtree(folder, ignore_errors=True)


def serve(found: servers.Servers, name: str, *, percent: int = 100, **models: dict[str, int]) -> Project:
    """These models in the lanes; so much of the requests goes to the canary."""
    project = make_project(found, name)
    project = project.model_copy(update={"serving": project.serving.model_copy(update={"timeout_ms": TIMEOUT_MS})})
    for version, (lane, model) in enumerate(models.items(), 1):
        put(found, project, lane, version, **model)
    routes = open_routes(found.settings)
    routes.set(project, stable=100 - percent, canary=percent)
    assert routes.wait_healthy(name, "canary")
    return project


def over_http(found: servers.Servers, name: str) -> tuple[int, str, float]:
    """Status, the lane that answered, seconds."""
    data = BATCH.ravel().tolist()
    body = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": list(BATCH.shape), "data": data}]}
    request = urllib.request.Request(f"{found.settings.endpoint_url}/v2/models/{name}/infer", json.dumps(body).encode())
    began = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert len(json.loads(answer.read())["outputs"][0]["data"]) == 9
            return answer.status, answer.headers["x-lane"], time.monotonic() - began
    except urllib.error.HTTPError as error:
        return error.code, error.headers["x-lane"], time.monotonic() - began


def over_grpc(found: servers.Servers, project: Project) -> tuple[int, str, float]:
    """The same; an error is raised."""
    with Client(found.settings.need("endpoint_url"), project, most_tries=1) as client:
        answer = client.predict(BATCH)[0]
    return 200, answer.lane, answer.latency_ms / 1000


def ask(found: servers.Servers, project: Project, times: int) -> list[tuple[int, str, float]]:
    """One after the other, over both protocols."""
    return [one for _ in range(times) for one in (over_http(found, project.name), over_grpc(found, project))]


def inferences(found: servers.Servers, name: str, lane: str) -> int:
    """Images that the lane's model was given in requests of several."""
    with triton_grpc.InferenceServerClient(getattr(found.settings, f"{lane}_grpc")) as client:
        [model] = client.get_inference_statistics(name).model_stats
        return sum(one.compute_infer.count for one in model.batch_stats if one.batch_size == len(BATCH))


def test_a_slow_model_is_answered_and_asked_once(lanes):
    project = serve(lanes, "slow", percent=50, stable=SLOW, canary=SLOW)
    found = ask(lanes, project, 4)
    assert {status for status, _, _ in found} == {200}
    assert min(seconds for _, _, seconds in found) >= SLOW["sleeps_ms"] / 1000
    assert sum(inferences(lanes, "slow", lane) for lane in ("stable", "canary")) == len(found)


def test_what_a_lane_fails_is_asked_of_the_other(lanes):
    project = serve(lanes, "failing", stable={}, canary={"sleeps_ms": 500, "fails": 1})
    with Client(lanes.settings.need("endpoint_url"), project, most_tries=1) as client:
        assert client.predict(BATCH)[0].asked == 2
    found = ask(lanes, project, 1)
    assert {(status, lane) for status, lane, _ in found} == {(200, "stable")}
    assert inferences(lanes, "failing", "stable") == len(found) + 1


def test_what_was_saved_is_told_by_who_answered_in_the_end(lanes):
    """The other lane, whichever failed; or the same one, when it was back."""
    counted = {}
    for name, percent, models in (
        ("good-stable", 100, {"stable": {}, "canary": {"fails": 1}}),
        ("good-canary", 1, {"stable": {"fails": 1}, "canary": {}}),
    ):
        before = scrape(lanes.settings)
        project = serve(lanes, name, percent=percent, **models)
        ask(lanes, project, 2)
        counted[name] = [(one.saved, one.waited) for one in traffic(name, scrape(lanes.settings), before).lanes]
    assert counted["good-stable"][0] == (0, 0)
    assert counted["good-stable"][1] in {(number, 0) for number in range(1, 5)}  # then the endpoint passes it by
    assert counted["good-canary"][0] in {(3, 0), (4, 0)}

    project, stable = serve(lanes, "back", percent=0, stable={}, canary={}), open_lane(lanes.settings, "stable")
    stable.unload("back")
    threading.Timer(1.0, lambda: stable.load("back")).start()
    assert over_http(lanes, "back")[:2] == (200, "stable")
    assert [(one.saved, one.waited) for one in traffic("back", scrape(lanes.settings)).lanes] == [(0, 1), (0, 0)]


def test_a_canary_that_is_frozen_is_stood_in_for_after_a_third_of_the_time(lanes):
    """The last test: what is cancelled on a frozen Triton 2.51 may end it when it goes on."""
    project = serve(lanes, "frozen", stable={}, canary={})
    assert {lane for _, lane, _ in ask(lanes, project, 3)} == {"canary"}
    lanes.kill("canary", signal.SIGSTOP)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: over_http(lanes, "frozen"), range(8)))
    with Client(lanes.settings.need("endpoint_url"), project, most_tries=1) as client:
        assert 1 <= client.predict(BATCH)[0].asked <= 2  # once where the endpoint has found out already
    found += ask(lanes, project, 2)
    assert {(status, lane) for status, lane, _ in found} == {(200, "stable")}
    assert max(seconds for _, _, seconds in found) < THIRD_SECONDS + 1
