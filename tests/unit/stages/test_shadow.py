"""The shadow replays what was captured of the champion, newest first and bounded, and no client sees an answer."""

import io
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.serving.lanes import PROJECT, World, probabilities
from visionloop import layout
from visionloop.capture.rows import SCHEMA
from visionloop.errors import DataError, StageError, StoreError
from visionloop.records import Release, RolloutState
from visionloop.stages import release
from visionloop.stages.release import Inputs, mirror
from visionloop.stages.release.captures import newest_served, served
from visionloop.stages.release.rollout import open_rollout
from visionloop.stores.routes import Weights

LEVELS = np.linspace(0, 255, 100).astype(np.uint8)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Version 1 serves; a shadow of at most 150 images."""
    text = PROJECT.replace("shadow_images: 0", "shadow_images: 150, max_changed: 0.1")
    with World(tmp_path, project=text).serving() as made:
        made.release(1)
        yield made


def capture(
    world: World,
    at_ms: int,
    *,
    version: int = 1,
    images: bool = True,
    count: int = 100,
    lane: str = "stable",
    confidence: float | None = None,
) -> str:
    """A capture file, as the capture service writes it; `confidence`: of all its answers."""
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    shown = np.stack([np.full((8, 8, 1), level, np.uint8) for level in LEVELS[:count]])
    answers = probabilities({}, shown) if confidence is None else np.full((len(shown), 2), confidence, np.float32)
    rows = [
        {
            "request_id": f"{at_ms}-{number}",
            "at": at,
            "model": "p",
            "version": version,
            "lane": lane,
            "status": 200,
            "latency_ms": 1.0,
            "probabilities": answer,
            "prediction": int(answer.argmax()),
            "confidence": float(answer.max()),
            "image": image.tobytes() if images else None,
            "height": 8,
            "width": 8,
            "channels": 1,
        }
        for number, (image, answer) in enumerate(zip(shown, answers, strict=True))
    ]
    body = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), body)
    name = f"version={version}/lane={lane}/hour={at:%Y%m%d%H}/{at_ms}-0a-n{count}.parquet"
    return world.stores.objects.put(f"{layout.captures('p')}{name}", body.getvalue())


def begun(world: World, version: int = 2, **model: float) -> Inputs:
    inputs = world.inputs(world.candidate(version, **model))
    state = release.preflight(world.project, inputs, world.stores)
    assert isinstance(state, RolloutState)
    assert state.phase == "shadow"
    return inputs


def test_the_newest_captures_are_replayed_up_to_the_bound(world: World) -> None:
    capture(world, 1_000, count=100)
    capture(world, 2_000, count=100)
    capture(world, 3_000, version=7, count=100)
    world.routes.history.clear()
    state = release.shadow(world.project, begun(world, bias=0.1), world.stores)
    assert isinstance(state, RolloutState)
    assert state.phase == "canary"
    seen = state.shadow
    assert seen is not None
    between = [0.4 <= level / 255 < 0.5 for level in [*LEVELS, *LEVELS[:50]]]
    assert (seen.source, seen.images, seen.failed, seen.compared) == ("replayed", 150, 0, 150)
    assert abs(seen.changed - sum(between)) <= 2
    assert world.routes.history == []


def test_the_release_has_the_evidence_and_goes_through(world: World) -> None:
    capture(world, 1_000)
    done = world.release(2, bias=0.1)
    assert done.outcome == "promoted"
    assert done.shadow is not None
    assert done.shadow.images == 100


def test_without_captures_it_says_so_and_goes_on(world: World) -> None:
    capture(world, 1_000, images=False)
    done = world.release(2, bias=0.1)
    assert done.outcome == "promoted"
    assert done.shadow is not None
    assert (done.shadow.source, done.shadow.images) == ("none", 0)


def test_a_candidate_that_answers_otherwise_never_gets_traffic(world: World) -> None:
    capture(world, 1_000)
    capture(world, 2_000)
    inputs = begun(world, bias=-0.9)  # calls a third of them dark that were bright
    world.routes.history.clear()
    done = release.shadow(world.project, inputs, world.stores)
    assert isinstance(done, Release)
    assert done.outcome == "rejected"
    assert done.reason.startswith("in shadow: of 150 captured images the candidate answers ")
    assert release.canary(world.project, inputs, world.stores) == done
    assert all(canary == 0 for _, canary in world.routes.history)
    assert (world.stable.served("p"), world.canary.served("p")) == (1, None)


def test_it_is_not_left_out_and_not_done_twice(world: World) -> None:
    inputs = begun(world)
    with pytest.raises(StageError, match="expected canary or promoting, found shadow"):
        release.canary(world.project, inputs, world.stores)
    state = release.shadow(world.project, inputs, world.stores)
    capture(world, 9_000)
    assert release.shadow(world.project, inputs, world.connect()) == state


def test_a_lane_that_is_down_is_no_verdict(world: World) -> None:
    capture(world, 1_000)
    inputs = begun(world)
    world.canary.down = True
    with pytest.raises(StoreError, match="canary lane"):
        release.shadow(world.project, inputs, world.stores)
    world.canary.down = False
    state = release.shadow(world.project, inputs, world.connect())
    assert isinstance(state, RolloutState)
    assert state.phase == "canary"


def test_a_file_that_is_no_capture_is_an_error(world: World) -> None:
    uri = capture(world, 1_000)
    world.stores.objects.put(world.stores.objects.key(uri), b"this is no parquet")
    with pytest.raises(DataError, match="is no capture file"):
        release.shadow(world.project, begun(world), world.stores)


def test_nothing_serves_so_there_is_nothing_to_shadow(tmp_path: Path) -> None:
    with World(tmp_path, project=PROJECT.replace("shadow_images: 0", "shadow_images: 150")).serving() as world:
        inputs = world.inputs(world.candidate(1))
        state = release.preflight(world.project, inputs, world.stores)
        assert isinstance(state, RolloutState)
        assert state.phase == "canary"
        assert Weights(100, 0) != world.routes.current("p")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("dead", r"in shadow: the canary's server process died: it had been asked \d+ times"),
        ("down", r"in shadow: the canary's server died while the candidate answered: .* down"),
    ],
)
def test_a_server_that_dies_while_it_is_replayed_to_ends_the_release_at_once(
    world: World, fault: str, says: str
) -> None:
    for at_ms in (1_000, 2_000):
        capture(world, at_ms)
    inputs = begun(world)
    real, asked = world.canary.infer, []

    def infer(*arguments: Any, **options: Any) -> Any:
        asked.append(1)
        if len(asked) > 1:
            setattr(world.canary, fault, True)
        return real(*arguments, **options)

    world.canary.infer = infer  # type: ignore[method-assign]
    done = release.shadow(world.project, inputs, world.stores)
    assert isinstance(done, Release)
    assert re.fullmatch(says, done.reason), done.reason
    assert done.shadow and 0 < done.shadow.failed < done.shadow.images < 150
    assert len(asked) == 2
    assert world.stable.served("p") == 1


# --- what is listed


class Counting:
    """An object store that counts the captures that it lists."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.listed = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def scan(self, prefix: str) -> Iterator[Any]:
        for item in self._inner.scan(prefix):
            self.listed += "/captures/" in item.key
            yield item


@pytest.mark.parametrize("days", [1, 5])
def test_what_is_listed_does_not_grow_with_the_champions_history(world: World, days: int) -> None:
    now = datetime.now(UTC)
    for hours in range(24 * days):
        for lane in ("stable", "canary"):
            capture(world, int((now - timedelta(hours=hours)).timestamp() * 1000), count=10, lane=lane)
    rollout = open_rollout(world.project, begun(world, bias=0.1), world.stores)
    objects = world.stores.__dict__["objects"] = Counting(world.stores.objects)
    assert len(served(rollout, (now - timedelta(hours=1)).timestamp() * 1000 - 1)) == 4
    assert objects.listed == 4
    objects.listed = 0
    state = release.shadow(world.project, rollout.inputs, world.stores)
    assert isinstance(state, RolloutState) and state.shadow is not None
    assert state.shadow.images == 150
    assert objects.listed == 16  # 150 images are in fifteen files, and there are two an hour


def test_the_newest_come_first_over_all_lanes_and_hours(world: World) -> None:
    hour = 3_600_000
    at = [5 * hour + 7, 5 * hour + 9, 2 * hour, 2 * hour + 1, 9 * hour]
    for number, at_ms in enumerate(at):
        capture(world, at_ms, count=1, lane=("stable", "canary")[number % 2])
    capture(world, 9 * hour, count=1, lane="shadow")
    capture(world, 9 * hour, count=1, version=7)
    rollout = open_rollout(world.project, begun(world), world.stores)
    assert [one.at_ms for one in newest_served(rollout)] == sorted(at, reverse=True)


def test_where_no_image_is_kept_the_history_is_not_looked_through(world: World) -> None:
    hour = 3_600_000
    for number in range(30):
        capture(world, number * hour, images=False, count=100)
    inputs = begun(world)
    objects = world.stores.__dict__["objects"] = Counting(world.stores.objects)
    state = release.shadow(world.project, inputs, world.stores)
    assert isinstance(state, RolloutState) and state.shadow is not None
    assert (state.shadow.source, objects.listed) == ("none", 17)  # 1,500 rows, then it is clear
    assert state.phase == "canary"


# --- requests that the capture service saw refused


@pytest.fixture
def told(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int | None]]:
    """How many refused requests the capture service says at each question, None: it is silent; the last stays."""
    says: list[int | None] = []

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            count = says.pop(0) if len(says) > 1 else says[0]
            self.send_response(503 if count is None else 200)
            self.end_headers()
            labels = 'model="p",lane="shadow",outcome="refused"'
            self.wfile.write(f"visionloop_capture_requests_total{{{labels}}} {count}\n".encode())

        def log_message(self, *arguments: object) -> None:
            pass

    for name, seconds in (("QUIET", 0.3), ("LOOK", 0.1), ("WRITTEN", 0.1)):
        monkeypatch.setattr(mirror, f"{name}_SECONDS", seconds)
    with ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        world.settings = world.settings.model_copy(update={"capture_url": url})
        world.stores = world.connect()
        yield says
        server.shutdown()


@pytest.mark.parametrize(
    ("said", "failed"),
    [
        ([7], 0),  # refused before this candidate was mirrored to
        ([7, 10], 3),
        ([7, None, 10], 3),
        ([7, None], 0),
        ([None], 0),
        ([None, 1_000], 0),  # silent at first: whose they are is not known
        ([None, 1_000, 1_003], 3),
        ([1_000, 2], 2),  # started anew
        ([1_000, 1_001, 0, 2], 3),
    ],
)
def test_only_requests_that_were_surely_refused_are_counted(
    world: World, told: list[int | None], said: list[int | None], failed: int
) -> None:
    inputs = begun(world)
    told[:] = said
    capture(world, int(time.time() * 1000))
    state = release.shadow(world.project, inputs, world.stores)
    assert isinstance(state, RolloutState) and state.shadow is not None
    assert (state.shadow.failed, state.shadow.mirrored) == (failed, failed)


def test_a_candidate_that_refuses_all_that_is_mirrored_goes_no_further(world: World, told: list[int | None]) -> None:
    inputs = begun(world)
    told[:] = [7, 200]
    capture(world, int(time.time() * 1000))
    done = release.shadow(world.project, inputs, world.stores)
    assert isinstance(done, Release)
    assert done.reason == "in shadow: of 100 mirrored images the candidate has no sound answer to 100, allowed 20.0%"
