"""The monitor's stages over a folder store: real captures, a real dataset, a real model; run twice, killed, refused."""

import hashlib
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.unit.monitoring.world import (
    BEGAN,
    add_captures,
    add_release,
    add_snapshot,
    change_camera,
    make_images,
    make_model,
    make_project,
    make_stores,
)
from visionloop.errors import ConfigError, DataError, IntegrityError, NotFound, StageError
from visionloop.monitoring.score import Scorer
from visionloop.project import Project
from visionloop.records import DriftReport, Window
from visionloop.stages.monitor import DriftInputs, WindowInputs, drift, ready, window
from visionloop.stores import Stores


@pytest.fixture(scope="module")
def project() -> Project:
    return make_project()


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(make_model(), hashlib.sha256(make_model()).hexdigest())


@pytest.fixture(scope="module")
def world(project: Project, scorer: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """Version 1 serves; 400 clean images were captured, then 400 of a changed camera, then 50 more."""
    stores = make_stores(tmp_path_factory.mktemp("world"))
    snapshot = add_snapshot(project, stores, "first", *make_images(1_500, seed=1))
    add_release(project, stores, 1, snapshot)
    clean, _ = make_images(400, seed=2)
    dark = change_camera(make_images(450, seed=3)[0])
    for images, hours in ((clean, 0), (dark, 1)):
        add_captures(project, stores, 1, images, scorer.score(images)[0], at=BEGAN + timedelta(hours=hours))
    return stores


@pytest.fixture
def fresh(project: Project, tmp_path: Path) -> Stores:
    stores = make_stores(tmp_path)
    snapshot = add_snapshot(project, stores, "first", *make_images(300, seed=1))
    add_release(project, stores, 1, snapshot)
    return stores


def test_windows_of_the_traffic_and_the_report_of_the_second(project: Project, world: Stores) -> None:
    for _ in range(2):
        captures = ready(project, world)
        assert len(captures) == 4
        made = window(project, WindowInputs(captures=captures), world)
        assert (made.samples, made.version, made.captures) == (400, 1, sorted(captures))
    assert ready(project, world) == [], "50 samples are left, which is no window"

    report = drift(project, DriftInputs(window=world.ledger.uri(made)), world)
    assert report.drifted
    assert (report.reference_samples, report.window_samples) == (600, 400)
    folder = world.objects.key(report.html_uri).rpartition("/")[0]
    assert b"no longer looks like" in world.objects.get(f"{folder}/drift.html")
    assert b"plotly" in world.objects.get(f"{folder}/evidently.html").lower()
    assert json.loads(world.objects.get(f"{folder}/drift.json"))["window"] == report.window
    assert len(list(world.objects.scan("p/artifacts/reference/"))) == 1
    assert not list((world.settings.home / "tmp").iterdir())


def test_stages_run_twice_give_the_same_record(project: Project, world: Stores) -> None:
    made = world.ledger.all(Window, project.name)[0]
    assert window(project, WindowInputs(captures=made.captures[::-1]), world) == made
    report = world.ledger.all(DriftReport, project.name)[0]
    assert drift(project, DriftInputs(window=report.window), world) == report


def test_a_window_holds_what_was_served(project: Project, world: Stores, scorer: Scorer) -> None:
    made = world.ledger.all(Window, project.name)[0]
    with world.objects.open(world.objects.key(made.table_uri)) as stream:
        table = pq.read_table(stream)
    assert table.num_rows == made.samples
    wanted = {"request_id", "at", "lane", "image", "probabilities", "embedding", "brightness", "sharpness"}
    assert wanted <= set(table.column_names)
    assert len(table["image"][0].as_py()) == 28 * 28
    assert (made.first_at, made.last_at) == (BEGAN, BEGAN + timedelta(seconds=300, milliseconds=99))


def test_killed_before_the_record_and_run_again(
    project: Project, fresh: Stores, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = make_images(400, seed=4)
    captures = add_captures(project, fresh, 1, images, scorer.score(images)[0])

    def killed(record: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fresh.ledger, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            window(project, WindowInputs(captures=captures), fresh)
    assert ready(project, fresh) == captures
    made = window(project, WindowInputs(captures=captures), fresh)
    assert len(list(fresh.objects.scan("p/artifacts/window/"))) == 1
    assert fresh.ledger.all(Window, project.name) == [made]


def test_no_release_is_no_window(project: Project, tmp_path: Path, scorer: Scorer) -> None:
    stores = make_stores(tmp_path)
    images, _ = make_images(400, seed=5)
    add_captures(project, stores, 1, images, scorer.score(images)[0])
    assert ready(project, stores) == []


def test_after_a_release_the_old_versions_captures_do_not_count(
    project: Project, fresh: Stores, scorer: Scorer
) -> None:
    images, _ = make_images(400, seed=6)
    answers = scorer.score(images)[0]
    add_captures(project, fresh, 1, images, answers)
    snapshot = add_snapshot(project, fresh, "second", *make_images(100, seed=7), at=BEGAN + timedelta(hours=1))
    add_release(project, fresh, 2, snapshot, at=BEGAN + timedelta(hours=2))
    assert ready(project, fresh) == []
    new = add_captures(project, fresh, 2, images, answers, lane="canary", at=BEGAN + timedelta(hours=3))
    assert ready(project, fresh) == new


def test_captures_that_a_window_holds_are_refused_in_another(project: Project, fresh: Stores, scorer: Scorer) -> None:
    images, _ = make_images(200, seed=8)
    captures = add_captures(project, fresh, 1, images, scorer.score(images)[0])
    window(project, WindowInputs(captures=captures), fresh)
    with pytest.raises(StageError, match="no capture counts twice"):
        window(project, WindowInputs(captures=captures[:1]), fresh)


def test_rows_without_an_image_are_left_out(project: Project, fresh: Stores, scorer: Scorer) -> None:
    images, _ = make_images(200, seed=9)
    captures = add_captures(project, fresh, 1, images, scorer.score(images)[0], without_image=30)
    assert window(project, WindowInputs(captures=captures), fresh).samples == 140


def test_a_window_without_any_image_says_why(project: Project, fresh: Stores, scorer: Scorer) -> None:
    images, _ = make_images(100, seed=10)
    captures = add_captures(project, fresh, 1, images, scorer.score(images)[0], without_image=100)
    with pytest.raises(DataError, match="none of the 100 captured rows has an image of 28 x 28 x 1"):
        window(project, WindowInputs(captures=captures), fresh)


def test_images_of_another_size_are_left_out(project: Project, fresh: Stores, scorer: Scorer) -> None:
    images, _ = make_images(100, seed=11)
    answers = scorer.score(images)[0]
    small = add_captures(project, fresh, 1, images[:, :20], answers, at=BEGAN + timedelta(hours=5))
    whole = add_captures(project, fresh, 1, images, answers)
    assert window(project, WindowInputs(captures=small + whole), fresh).samples == 100


def test_a_broken_capture_is_named(project: Project, fresh: Stores, scorer: Scorer) -> None:
    images, _ = make_images(100, seed=12)
    (key,) = add_captures(project, fresh, 1, images, scorer.score(images)[0])
    fresh.objects.put(key, fresh.objects.get(key)[:-20])
    with pytest.raises(DataError, match=r"n100\.parquet is no capture file"):
        window(project, WindowInputs(captures=[key]), fresh)


def test_captures_of_an_unknown_version(project: Project, fresh: Stores, scorer: Scorer) -> None:
    images, _ = make_images(100, seed=13)
    captures = add_captures(project, fresh, 9, images, scorer.score(images)[0])
    with pytest.raises(NotFound, match="no candidate's record has it"):
        window(project, WindowInputs(captures=captures), fresh)


def test_a_model_file_that_was_changed_is_refused(project: Project, fresh: Stores, scorer: Scorer) -> None:
    images, _ = make_images(100, seed=14)
    captures = add_captures(project, fresh, 1, images, scorer.score(images)[0])
    fresh.objects.put("p/artifacts/candidate/candidate-1/model.onnx", make_model() + b"x")
    with pytest.raises(IntegrityError, match="its candidate's record says"):
        window(project, WindowInputs(captures=captures), fresh)


def test_capturing_no_images_cannot_be_monitored(fresh: Stores, project: Project) -> None:
    blind = project.model_copy(update={"monitoring": project.monitoring.model_copy(update={"capture_images": 0.0})})
    with pytest.raises(ConfigError, match="set it above 0"):
        ready(blind, fresh)


def test_what_an_airflow_worker_imports_is_light() -> None:
    code = (
        "import sys; import visionloop.stages.monitor, visionloop.stages.trigger, visionloop.stages.plan; "
        "heavy = {'numpy', 'pandas', 'pyarrow', 'onnxruntime', 'evidently', 'sklearn', 'lance', 'torch', 'mlflow'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
