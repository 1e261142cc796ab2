"""The shadow replays what was captured of the champion, newest first and bounded, and no client sees an answer."""

import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime
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
from visionloop.stages.release import Inputs
from visionloop.stores.routes import Weights

LEVELS = np.linspace(0, 255, 100).astype(np.uint8)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Version 1 serves; a shadow of at most 150 images."""
    text = PROJECT.replace("shadow_images: 0", "shadow_images: 150, max_changed: 0.1")
    with World(tmp_path, project=text).serving() as made:
        made.release(1)
        yield made


def capture(world: World, at_ms: int, *, version: int = 1, images: bool = True, count: int = 100) -> str:
    """A capture file, as the capture service writes it."""
    shown = np.stack([np.full((8, 8, 1), level, np.uint8) for level in LEVELS[:count]])
    answers = probabilities({}, shown)
    rows = [
        {
            "request_id": f"{at_ms}-{number}",
            "at": datetime.fromtimestamp(at_ms / 1000, UTC),
            "model": "p",
            "version": version,
            "lane": "stable",
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
    name = f"version={version}/lane=stable/hour=2026010100/{at_ms}-0a-n{count}.parquet"
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
