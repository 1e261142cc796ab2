"""Delivery: complete only when the marker is there, harmless when repeated, and never mixed with another one."""

import json
from pathlib import Path

import pytest

from visionloop import layout
from visionloop.errors import ConfigError, DataError, StoreError
from visionloop.project import Project, parse_project
from visionloop.settings import Settings
from visionloop.stages.deliver import Inputs, run
from visionloop.stores import Stores, connect

PROJECT = """\
project: p
task: {classes: [a, b], image: {height: 28, width: 28, channels: 1}}
suite: {scenarios: [{name: overall}]}
release: {approval: automatic}
"""


@pytest.fixture
def project() -> Project:
    return parse_project(PROJECT, Path("project.yaml"))


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return connect(Settings(home=tmp_path, store=f"file://{tmp_path}/store"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/1.png", "b/2.png", ".hidden/x", "a/.DS_Store"):
        path = tmp_path / "New Photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "New Photos"


def test_files_then_the_marker(project: Project, stores: Stores, folder: Path) -> None:
    delivery = run(project, Inputs(folder=folder), stores)
    assert delivery.batch.startswith("new-photos-")
    assert (delivery.files, delivery.size_bytes, delivery.already) == (2, 14, False)
    prefix = layout.incoming("p", delivery.batch)
    assert [item.key for item in stores.objects.scan(prefix)] == [
        prefix + n for n in ("_SUCCESS", "a/1.png", "b/2.png")
    ]
    assert json.loads(stores.objects.get(prefix + "_SUCCESS"))["files"] == 2


def test_the_same_delivery_twice_is_one(project: Project, stores: Stores, folder: Path) -> None:
    first = run(project, Inputs(folder=folder), stores)
    again = run(project, Inputs(folder=folder), stores)
    assert again.already
    assert again.batch == first.batch


def test_a_name_that_is_taken_by_other_files_is_refused(project: Project, stores: Stores, folder: Path) -> None:
    run(project, Inputs(folder=folder, batch="monday"), stores)
    (folder / "a" / "1.png").write_bytes(b"other")
    with pytest.raises(DataError, match="batch monday of p was delivered before with other files"):
        run(project, Inputs(folder=folder, batch="monday"), stores)
    assert stores.objects.get(layout.incoming("p", "monday") + "a/1.png") == b"a/1.png"


def test_a_dry_run_uploads_nothing(project: Project, stores: Stores, folder: Path) -> None:
    assert run(project, Inputs(folder=folder, dry_run=True), stores).files == 2
    assert list(stores.objects.scan("p/")) == []


def test_what_cannot_be_a_batch(project: Project, stores: Stores, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file"):
        run(project, Inputs(folder=tmp_path / "empty"), stores)
    with pytest.raises(DataError, match="is no folder"):
        run(project, Inputs(folder=tmp_path / "none"), stores)
    with pytest.raises(ConfigError, match="cannot be a name"):
        run(project, Inputs(folder=folder, batch="../b"), stores)


def test_a_delivery_that_dies_is_not_complete(
    project: Project, stores: Stores, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(path: Path, key: str) -> str:
        raise StoreError("S3 is gone")

    with monkeypatch.context() as patch:
        patch.setattr(stores.objects, "upload", dies)
        with pytest.raises(StoreError):
            run(project, Inputs(folder=folder, batch="monday"), stores)
    assert not stores.objects.exists(layout.ready("p", "monday"))
    assert not run(project, Inputs(folder=folder, batch="monday"), stores).already
