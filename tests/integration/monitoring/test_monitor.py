"""The monitor on a real object store and real garments: quiet on clean traffic, one request when the camera changes,
quiet again when the next model has learned the new camera."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.unit.monitoring.world import add_captures, add_release, add_snapshot, fit_model
from visionloop.demo import fashion
from visionloop.monitoring.score import Scorer
from visionloop.project import Project, load_project
from visionloop.records import DriftReport, Release, RetrainState, TriggerDecision, Window
from visionloop.settings import Settings, to_environ
from visionloop.stages import trigger
from visionloop.stages.monitor import DriftInputs, WindowInputs, drift, ready, window
from visionloop.stores import Stores, connect

REPO = Path(__file__).resolve().parents[3]
NOW = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=6)


@pytest.fixture(scope="module")
def project() -> Project:
    return load_project(REPO / "projects" / "fashion" / "project.yaml")


@pytest.fixture(scope="module")
def stores(s3_settings: Settings) -> Stores:
    return connect(s3_settings)


@pytest.fixture(scope="module")
def model() -> bytes:
    images, labels = fashion.clean("train", 0, 8_000)
    return fit_model(images[..., None], labels.astype(np.int64), classes=10, features=64)


@pytest.fixture(scope="module")
def scorer(model: bytes) -> Scorer:
    return Scorer(model, hashlib.sha256(model).hexdigest())


@pytest.fixture(scope="module")
def first_model(project: Project, stores: Stores, model: bytes) -> None:
    images, labels = fashion.clean("train", 8_000, 13_000)
    snapshot = add_snapshot(project, stores, "first", images[..., None], labels.astype(np.int64), at=NOW)
    add_release(project, stores, 1, snapshot, at=NOW, model=model)


def capture(project: Project, stores: Stores, scorer: Scorer, version: int, images: np.ndarray, hours: int) -> None:
    shaped = images[..., None]
    at = NOW + timedelta(hours=hours)
    add_captures(project, stores, version, shaped, scorer.score(shaped)[0], rows=250, at=at)


def look(project: Project, stores: Stores) -> DriftReport:
    made = window(project, WindowInputs(captures=ready(project, stores)), stores)
    return drift(project, DriftInputs(window=stores.ledger.uri(made)), stores)


def job(settings: Settings, stage: str, inputs: str) -> subprocess.Popen[bytes]:
    """The stage as Ray runs it."""
    return subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.run_stage", stage, "--project", "fashion", "--inputs", inputs],
        cwd=REPO,
        env={**os.environ, **to_environ(settings)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.mark.usefixtures("first_model")
def test_the_monitors_part_of_the_loop(
    project: Project, stores: Stores, scorer: Scorer, model: bytes, s3_settings: Settings
) -> None:
    images, _ = fashion.clean("test", 0, 5_000)
    changed = fashion.through_changed_camera(images, seed=3)
    capture(project, stores, scorer, 1, images[:1_000], hours=1)
    capture(project, stores, scorer, 1, changed[1_000:3_000], hours=2)

    quiet = look(project, stores)
    assert not quiet.drifted
    decision = trigger.run(project, trigger.Inputs(drift_report=stores.ledger.uri(quiet)), stores)
    assert decision.action == "none"

    alarms = [look(project, stores) for _ in range(2)]
    assert [report.drifted for report in alarms] == [True, True]
    assert ready(project, stores) == []
    assert len(stores.ledger.all(Window, project.name)) == 3

    uris = [stores.ledger.uri(report) for report in alarms]
    monitors = [job(s3_settings, "trigger", f'{{"drift_report": "{uri}"}}') for uri in uris * 2]
    for monitor in monitors:
        output, _ = monitor.communicate(timeout=60)
        assert monitor.returncode == 0, output.decode()
    decisions = stores.ledger.all(TriggerDecision, project.name)
    asked = [found for found in decisions if found.action == "retrain"]
    assert (len(decisions), len(asked)) == (3, 1)
    opened = stores.state.read(RetrainState, project.name, "retrain")
    assert opened
    assert opened.request == stores.ledger.uri(asked[0])

    seen, labels = fashion.clean("train", 20_000, 21_500)
    learned = fashion.through_changed_camera(seen, seed=4)[..., None]
    at = NOW + timedelta(hours=3)
    snapshot = add_snapshot(project, stores, "second", learned, labels.astype(np.int64), at=at)
    add_release(project, stores, 2, snapshot, at=at, model=model)
    mixed = np.concatenate([images[3_000:3_400], changed[3_400:4_000]])
    capture(project, stores, scorer, 2, mixed, hours=4)
    capture(project, stores, scorer, 2, changed[4_000:], hours=5)
    assert [look(project, stores).drifted for _ in range(2)] == [False, False]


@pytest.mark.usefixtures("first_model")
def test_a_drift_job_that_is_killed_leaves_one_report(
    project: Project, stores: Stores, scorer: Scorer, s3_settings: Settings
) -> None:
    before = {report.id for report in stores.ledger.all(DriftReport, project.name)}
    version = max(release.version for release in stores.ledger.all(Release, project.name))
    images, _ = fashion.clean("test", 5_000, 6_000)
    capture(project, stores, scorer, version, images, hours=6)
    made = window(project, WindowInputs(captures=ready(project, stores)), stores)
    inputs = f'{{"window": "{stores.ledger.uri(made)}"}}'

    killed = job(s3_settings, "drift", inputs)
    scratch = s3_settings.home / "tmp"
    _until(lambda: any(scratch.glob("*/window.parquet")))
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(10)
    assert {report.id for report in stores.ledger.all(DriftReport, project.name)} == before

    again = job(s3_settings, "drift", inputs)
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output.decode()
    new = [report for report in stores.ledger.all(DriftReport, project.name) if report.id not in before]
    assert len(new) == 1
    assert not new[0].drifted
    assert len(list(stores.objects.scan(f"{project.name}/artifacts/drift_report/{new[0].id}/"))) == 3


def _until(holds, seconds: float = 60.0) -> None:  # type: ignore[no-untyped-def]
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "the job did not get so far"
        time.sleep(0.01)
