"""`project check | schema | init` and `deliver`: what an ML engineer begins with, and what it says to mistakes."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.data.deliveries import idx_batch
from visionloop.project import load_project

from .conftest import PROJECT, Run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two class folders."""
    folder = tmp_path / "photos"
    for number, name in enumerate(("good", "bent")):
        (folder / name).mkdir(parents=True)
        for image in range(3):
            Image.fromarray(np.full((20, 24, 3), 40 * image + number, np.uint8)).save(folder / name / f"{image}.png")
    return folder


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store in a folder."""
    monkeypatch.setenv("VISIONLOOP_STORE", f"file://{tmp_path}/store")
    return tmp_path / "store"


# --- check


def test_a_project_that_is_fine(run: Run, project: Path) -> None:
    for command in ("project check", "project check p", f"project check {project}"):
        shown = run(command)
        assert (shown.code, shown.out) == (0, f"{project}: fine\n")
    assert json.loads(run("project check --json").out) == {str(project): []}


def test_a_wrong_key_has_file_line_expected_found_and_the_nearest(run: Run, project: Path) -> None:
    project.write_text(PROJECT.replace("at_least", "at_lest") + "training: {epoch: 3}\n")
    shown = run("project check p")
    assert shown.code == 1
    first, second = sorted(shown.out.splitlines(), key=len, reverse=True)
    assert {line.split(": ", 1)[0] for line in (first, second)} == {f"{project}:7", f"{project}:9"}
    assert "found unknown key `suite.scenarios.0.at_lest`" in shown.out
    assert "expected one of at_least, corruption" in shown.out
    assert "did you mean `at_least`?" in shown.out
    assert "did you mean `epochs`?" in shown.out


@pytest.mark.parametrize(
    ("wrong", "right", "says"),
    [
        ("height: 4", "height: 8", ":4: task.image.height: Input should be greater than or equal to 8, found 4"),
        ("classes: [a, a]", "classes: [a, b]", ":3: task.classes: class names must differ"),
        ("approvers: []", "approvers: [ann, bob]", "name at least one Airflow user under approvers"),
        ("[a, b", "[a, b]", "this is no YAML"),
    ],
)
def test_a_wrong_value_has_its_line(run: Run, project: Path, wrong: str, right: str, says: str) -> None:
    project.write_text(PROJECT.replace(right, wrong))
    shown = run("project check p")
    assert shown.code == 1
    assert f"{project}:" in shown.out
    assert says in shown.out


def test_one_broken_file_does_not_hide_the_others(run: Run, project: Path) -> None:
    other = project.parent.parent / "q" / "project.yaml"
    other.parent.mkdir()
    other.write_text("project: q\n")
    shown = run("project check --json")
    assert shown.code == 1
    found = json.loads(shown.out)
    assert found[str(project)] == []
    assert [line.split(" ", 1)[1] for line in found[str(other)]] == [
        f"expected the key `{key}`, found nothing" for key in ("task", "suite", "release")
    ]


def test_an_unknown_project_names_the_nearest(run: Run, project: Path) -> None:
    (project.parent.parent / "fashion").mkdir()
    (project.parent.parent / "fashion" / "project.yaml").write_text(PROJECT)
    shown = run("project check fashon")
    assert shown.code == 1
    assert "did you mean fashion?" in shown.err


def test_without_any_project_it_says_how_to_begin(run: Run) -> None:
    shown = run("project check")
    assert shown.code == 1
    assert "visionloop project init" in shown.err


# --- schema


def test_the_schema_names_every_section_and_the_units(run: Run) -> None:
    schema = json.loads(run("project schema").out)
    sections = {"task", "data", "training", "suite", "gate", "packaging", "serving", "price", "release", "monitoring"}
    assert set(schema["properties"]) == {"project", "description", "schedule", *sections}
    assert schema["additionalProperties"] is False
    assert "Pixels" in schema["$defs"]["Contract"]["properties"]["min_side"]["description"]
    for name, section in schema["$defs"].items():
        for field, told in section["properties"].items():
            assert "description" in told or "$ref" in str(told), f"{name}.{field} says nothing of itself"


# --- init


def test_a_project_from_class_folders(run: Run, photos: Path, tmp_path: Path) -> None:
    shown = run(f"project init screws --task classification --data {photos} --approver lea --approver tom")
    assert shown.code == 0
    path = tmp_path / "projects" / "screws" / "project.yaml"
    assert f"made {path}" in shown.out
    assert f"visionloop deliver screws {photos}" in shown.out
    made = load_project(path)
    assert (made.name, made.task.classes, made.release.approvers) == ("screws", ["bent", "good"], ["lea", "tom"])
    assert made.task.image.model_dump() == {"height": 20, "width": 24, "channels": 3}
    assert run("project check screws").code == 0


def test_a_new_project_as_json(run: Run, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "projects" / "screws" / "project.yaml"
    shown = run(f"project init screws --data {photos} --json")
    assert json.loads(shown.out) == {"project": "screws", "file": str(path), "classes": ["bent", "good"]}
    assert path.is_file()


def test_a_project_from_idx_files(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, data in idx_batch(12, labels=[n % 3 for n in range(12)]).items():
        (folder / name).write_bytes(data)
    assert run(f"project init digits --task classification --data {folder}").code == 0
    made = load_project(tmp_path / "projects" / "digits" / "project.yaml")
    assert made.task.classes == ["class-0", "class-1", "class-2"]
    assert made.task.image.channels == 1


def test_a_project_is_never_overwritten(run: Run, project: Path, photos: Path) -> None:
    before = project.read_text()
    shown = run(f"project init p --data {photos}")
    assert shown.code == 1
    assert f"{project} exists" in shown.err
    assert project.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("Screws --data {photos}", "'Screws' cannot be a name"),
        ("../x --data {photos}", "'../x' cannot be a name"),
        ("screws --data {photos}/none", "is no folder"),
        ("screws --data {photos}/good", "expected"),
        ("screws --data {photos} --task detection", "expected classification"),
    ],
)
def test_what_cannot_become_a_project_leaves_nothing(
    run: Run, photos: Path, tmp_path: Path, arguments: str, says: str
) -> None:
    shown = run(f"project init {arguments.format(photos=photos)}")
    assert shown.code == 1
    assert shown.err.startswith("error: ")
    assert says in shown.err
    assert not (tmp_path / "projects").exists()


def test_labels_without_their_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "x-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_batch(2)["labels-idx1-ubyte"]))
    shown = run(f"project init digits --data {tmp_path / 'mnist'}")
    assert shown.code == 1
    assert "label" in shown.err


def test_a_folder_that_cannot_be_written(run: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "projects").write_text("a file in the way")
    shown = run(f"project init screws --data {photos}")
    assert shown.code == 1
    assert "cannot be written" in shown.err
    assert "VISIONLOOP_PROJECTS" in shown.err


# --- deliver


def test_a_folder_is_delivered_once(run: Run, project: Path, photos: Path, stored: Path) -> None:
    plan = run(f"deliver p {photos} --batch monday --dry-run")
    assert (plan.code, plan.out) == (0, "would deliver batch monday: 6 files, 0.0 MB\n")
    assert not (stored / "p" / "incoming").exists()
    assert run(f"deliver p {photos} --batch monday").out.startswith("delivered batch monday: 6 files")
    assert (stored / "p" / "incoming" / "monday" / "_SUCCESS").is_file()
    again = run(f"deliver p {photos} --batch monday")
    assert (again.code, again.out.split(" batch")[0]) == (0, "delivered before:")
    assert json.loads(run(f"deliver p {photos} --batch monday --json").out)["already"] is True


def test_another_folder_under_the_same_name_is_refused(run: Run, project: Path, photos: Path, stored: Path) -> None:
    run(f"deliver p {photos} --batch monday")
    (photos / "good" / "0.png").unlink()
    shown = run(f"deliver p {photos} --batch monday")
    assert shown.code == 1
    assert "was delivered before with other files" in shown.err


def test_an_empty_folder_is_no_batch(run: Run, project: Path, tmp_path: Path, stored: Path) -> None:
    (tmp_path / "empty").mkdir()
    shown = run(f"deliver p {tmp_path / 'empty'}")
    assert shown.code == 1
    assert "holds no file" in shown.err
