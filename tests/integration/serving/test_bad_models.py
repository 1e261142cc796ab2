"""Each kind of bad model on its way into service: where it is stopped, why, how soon, and that nobody else notices."""

import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from visionloop import layout
from visionloop.errors import StoreError
from visionloop.evaluation.gate import decide
from visionloop.evaluation.samples import TestSamples
from visionloop.evaluation.suite import Contest, run_suite
from visionloop.packaging.runtime import onnx_predictor
from visionloop.project import Gate, Scenario
from visionloop.records import Evaluation, Release
from visionloop.stack.triton import is_dead_stub
from visionloop.stages import release
from visionloop.stores.routes import Weights

from . import servers, tiny
from .conftest import make_project
from .test_capture import until
from .world import Traffic, World, model_file

NAME = "bad"
BACKEND = Path(__file__).parent / "backends" / "onnxruntime"
CHAMPION = {"busy": 1}
"""Products of matrices in each answer: more of them make another model slower."""
BAND = (0.30, 0.40)
"""Brightnesses that neither the extreme images of preflight have nor `OUTSIDE`."""
ALL = np.stack([np.full((8, 8, 1), level, np.uint8) for level in range(0, 256, 5)])
OUTSIDE = np.stack([image for image in ALL if not BAND[0] - 0.02 < image.mean() / 255 < BAND[1] + 0.02])
SECONDS = 10.0
"""From the first evidence to the end of the release."""


@dataclass(frozen=True)
class Case:
    """A fault, and what becomes of a release that has it."""

    name: str
    stage: str
    reason: str
    model: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("corrupt file", "preflight", r"Triton of the canary lane refused bad: ", {"corrupt": True}),
    Case("wrong output shape", "preflight", r"answers 4 images with \[4, 4\] numbers, expected", {"classes": 4}),
    Case(
        "NaN on some inputs",
        "preflight",
        r"answers \d+ of \d+ golden samples with no probabilities, one with \[nan nan nan\]",
        {"nan_between": BAND},
    ),
    Case(
        "NaN on inputs that the golden samples lack",
        "shadow",
        r"in shadow: of \d+ captured images the candidate has no sound answer to (\d+) \(\1 with NaN or infinity\)",
        {"nan_between": BAND, "golden_images": OUTSIDE},
    ),
    Case(
        "NaN without a shadow",
        "canary",
        r"at 50 %: \d+ of \d+ of the canary's requests failed \(\d+ with NaN or infinity\), allowed 1.0% more",
        {"nan_between": BAND, "golden_images": OUTSIDE},
        {"shadow_images": 0},
    ),
    Case("three times slower", "preflight", r"takes [\d.]+ ms for a batch, the stable lane [\d.]+ ms", {"busy": 6}),
    Case(
        "biased against one class",
        "shadow",
        r"in shadow: of \d+ captured images the candidate answers \d+ with another label than the champion",
        {"pushed_down": 1},
        {"max_changed": 0.1},
    ),
    Case(
        "too much memory",
        "preflight",
        r"the candidate needs \d{3} MiB in the canary lane \(\d+ MiB once loaded\), allowed 150 MiB",
        {"scratch_mib": 160}, {"max_memory_mib": 150, "max_latency_ratio": 50.0},
    ),
    Case(
        "leaks memory",
        "preflight",
        r"after \d+ batches of 64: memory grew by \d+ MiB over \d+ requests, from \d+ to \d+ MiB, allowed 32 MiB",
        {"leaks_bytes": 1 << 20},
    ),
    Case(
        "leaks memory slowly",
        "canary",
        r"at 50 %: memory grew by \d+ MiB over \d+ requests, from \d+ to \d+ MiB, allowed 32 MiB",
        {"leaks_bytes": 100 << 10},
    ),
    Case(
        "crashes after 100 requests",
        "preflight",
        r"after \d+ batches of 64: the canary's server (process died: it had been asked 1\d\d times|died while)",
        {"dies_after": 100},
    ),
    Case(
        "crashes after 200 requests",
        "canary",
        r"at 50 %: the canary's server process died",
        {"dies_after": 200},
    ),
]  # fmt: skip


class Supervised:
    """What the stack's supervisor does for its lanes: a canary lane with a dead model process is started again."""

    def __init__(self, found: servers.Servers) -> None:
        self._servers, self._end = found, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Supervised":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join(60)

    def has_work(self) -> bool:
        """Is there a dead process, or a lane on its way up?"""
        process = self._servers.processes.get("canary")
        try:
            return process is None or any(map(is_dead_stub, psutil.Process(process.pid).children()))
        except psutil.NoSuchProcess:
            return True

    def _watch(self) -> None:
        complained = 0
        while not self._end.wait(1.0):
            complained = complained + 1 if self.has_work() else 0
            if complained == 2:
                self._servers.kill("canary")
                self._servers.start_lane("canary")


@pytest.fixture(scope="module")
def lanes() -> Iterator[tuple[servers.Servers, Supervised]]:
    """Servers whose backend has faults, watched."""
    folder = Path(tempfile.mkdtemp(prefix="vlb-"))
    with servers.running(folder, backend=BACKEND) as found, Supervised(found) as supervised:
        yield found, supervised
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def world(lanes: tuple[servers.Servers, Supervised]) -> World:
    """Version 1 serves, and its traffic was captured."""
    made = World(lanes[0], make_project(lanes[0], NAME))
    policy(made, canary_percent=[50], max_latency_ratio=2.0, shadow_images=200, shadow_seconds=0)
    assert made.release(1, **CHAMPION).outcome == "promoted"
    with Traffic(made, batch=ALL):
        assert until(lambda: any(made.stores.objects.scan(f"{layout.captures(NAME)}version=1/")))
    return made


@pytest.fixture
def here(world: World, lanes: tuple[servers.Servers, Supervised]) -> Iterator[World]:
    """With both lanes well and the usual policy."""
    usual = world.project
    assert until(lambda: not lanes[1].has_work() and world.stores.canary.ready())
    yield world
    world.project = usual


def policy(world: World, **changes: Any) -> None:
    """Another release policy from now on."""
    changed = world.project.release.model_copy(update=changes)
    world.project = world.project.model_copy(update={"release": changed})


def go(world: World, inputs: release.Inputs) -> tuple[str, datetime, Release]:
    """The stage that ended the release, when that stage began, and the record."""
    for stage in (release.preflight, release.shadow, release.canary, release.promote):
        began = datetime.now(UTC)
        done = stage(world.project, inputs, world.stores)
        if isinstance(done, Release):
            return stage.__name__, began, done
    raise AssertionError(done)


def crashed_at(found: servers.Servers, after: datetime) -> list[datetime]:
    """When a model's process died, as it said itself."""
    times = re.findall(r"fault at ([\d.]+): the process dies", found.log("canary"))
    return [at for at in (datetime.fromtimestamp(float(one), UTC) for one in times) if at > after]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_a_bad_model_is_stopped_and_the_old_version_serves_on(here: World, number: int) -> None:
    case = CASES[number]
    policy(here, **case.policy)
    inputs = here.inputs(here.candidate(number + 2, **{**CHAMPION, **case.model}))
    with Traffic(here, batch=ALL, pause_seconds=0.02) as traffic:
        stage, began, done = go(here, inputs)
    assert re.search(case.reason, done.reason), done.reason
    assert (stage, done.outcome) == (case.stage, "rolled_back" if case.stage == "canary" else "rejected")
    evidence = min(crashed_at(here.servers, began), default=began)
    assert (done.created_at - evidence).total_seconds() <= SECONDS
    assert here.stores.ledger.all(Release, NAME)[-1] == done

    assert traffic.failures == []
    expected = tiny.offline(model_file(here.servers, NAME, 1), ALL)
    assert traffic.answers["stable"]
    assert all(np.allclose(found, expected, atol=1e-5) for found in traffic.answers["stable"])
    assert bool(traffic.answers["canary"]) == (stage == "canary")
    assert here.versions(20) == {("stable", 1): 20}
    assert here.stores.routes.current(NAME) == Weights(100, 0)
    assert release.examine(here.project, here.stores) == []


def test_a_good_model_passes_the_same_stages(here: World) -> None:
    """With the policy and the traffic of the bad ones; its memory stands in the record."""
    with Traffic(here, batch=ALL, pause_seconds=0.02) as traffic:
        stage, _, done = go(here, here.inputs(here.candidate(90, **CHAMPION, bias=0.1)))
    assert (stage, done.outcome) == ("promote", "promoted"), done.reason
    assert traffic.failures == []
    before, loaded, *answering = done.memory
    assert before.processes == before.model_bytes == 0 < before.server_bytes
    assert loaded.processes == 1
    assert loaded.model_bytes > 20 << 20
    requests = [reading.requests for reading in answering]
    assert requests == sorted(requests)
    assert requests[-1] > 200


def test_another_projects_candidate_that_ends_the_lane_is_no_verdict(here: World) -> None:
    """Its process dies, so the whole lane is started anew; the good candidate is there again, and goes on."""
    other = World(here.servers, make_project(here.servers, "other"))
    policy(other, canary_percent=[50], step_requests=1_500)
    assert other.release(1, **CHAMPION).outcome == "promoted"
    inputs = other.inputs(other.candidate(2, **CHAMPION, bias=0.1))
    release.preflight(other.project, inputs, other.stores)
    ended: list[Release] = []
    crashes = here.inputs(here.candidate(91, **CHAMPION, dies_after=100))
    crashing = threading.Thread(target=lambda: ended.append(go(here, crashes)[2]))
    errors = []
    with Traffic(other, pause_seconds=0.02) as traffic:
        crashing.start()
        for _ in range(20):
            try:
                state = release.canary(other.project, inputs, other.connect())
                break
            except StoreError as error:
                errors.append(str(error))
                time.sleep(1.0)
    crashing.join(60)
    assert [done.outcome for done in ended] == ["rejected"]
    assert not isinstance(state, Release), state.reason
    assert any("other projects' models were in it" in error for error in errors), errors
    assert traffic.failures == []
    done = release.promote(other.project, inputs, other.stores)
    assert done.outcome == "promoted"
    assert len({reading.server_started for reading in done.memory}) == 2


def test_a_model_that_is_biased_against_one_class_is_stopped_by_the_gate_which_names_the_class(tmp_path: Path) -> None:
    champion, biased = (
        onnx_predictor(tiny.tiny_onnx(tmp_path / f"{name}.onnx", **model).read_bytes())
        for name, model in (("good", {}), ("biased", {"pushed_down": 1}))
    )
    images = np.repeat(ALL, 4, axis=0)
    targets = champion(images).probabilities.argmax(1)
    labels = np.array(tiny.CLASSES, np.str_)[targets]
    scenarios = [
        Scenario(name="worst-class", metric="worst_class_recall", severity="critical", at_least=0.5),
        Scenario(name="middle", severity="major", where={"label": "middle"}, not_worse_by=0.05),
        Scenario(name="dark", severity="major", where={"label": "dark"}, not_worse_by=0.05),
    ]
    contest = Contest(TestSamples(images, targets, {"label": labels}), biased, champion, seed=1)
    evaluation = Evaluation(
        id="e", project=NAME, snapshot="s", training_run="t", champion="c", test_samples=len(images), page_uri="",
        inputs={}, input_digests={}, config_digest="", scenarios=run_suite(scenarios, contest),
    )  # fmt: skip
    outcome, reasons = decide(evaluation, Gate(must_improve=False))
    assert outcome == "rejected"
    assert (
        reasons[0] == "critical scenario worst-class failed: worst_class_recall (middle) 0.0000, at least 0.5000 asked"
    )
    assert any(reason.startswith("major scenario middle failed: accuracy -1.0000") for reason in reasons)
    assert not any("dark" in reason for reason in reasons)
