"""The serving half of the stack, and a project with a model small enough to be made here."""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import running_stack
from visionloop.project import Project, load_project
from visionloop.serving.triton_config import render
from visionloop.settings import Settings
from visionloop.stores.triton import open_lane

from . import servers, tiny

PROJECT = """
project: {name}
task:
  classes: [dark, middle, bright]
  image: {{ height: {side}, width: {side}, channels: 1 }}
suite:
  scenarios: [{{ name: all, at_least: 0.5 }}]
release: {{ approval: automatic, shadow_images: 0, canary_percent: [20, 60], step_requests: 60, max_latency_ratio: 20 }}
"""
HEAP_MIB = 1536
"""Of the shared stack's endpoint: not the default."""


@dataclass(frozen=True)
class Shared:
    """These tests' stack, and a folder for what tests make."""

    settings: Settings
    folder: Path


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """The embedded stack's serving half, on S3, shared by the tests that kill nothing."""
    with running_stack(["s3", "triton", "envoy"], endpoint_heap_mib=HEAP_MIB) as settings:
        yield Shared(settings, tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def decisions(caplog: pytest.LogCaptureFixture) -> None:
    """A test that fails shows why a release ended as it did."""
    caplog.set_level(logging.INFO, "visionloop")


@pytest.fixture
def own_servers() -> Iterator[servers.Servers]:
    """Servers of one test's own, to be killed."""
    folder = Path(tempfile.mkdtemp(prefix="vlo-"))
    with servers.running(folder) as found:
        yield found
    shutil.rmtree(folder, ignore_errors=True)


def make_project(found: Shared | servers.Servers, name: str, *, side: int = tiny.SIDE) -> Project:
    """A project file where the servers look for it."""
    path = found.settings.projects / name / "project.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PROJECT.format(name=name, side=side))
    return load_project(path)


def put(found: Shared | servers.Servers, project: Project, lane: str, version: int, **model: object) -> Path:
    """Load a version of the tiny model in a lane, without a release."""
    path = tiny.tiny_onnx(found.folder / f"{project.name}-{version}.onnx", **model)
    data = path.read_bytes()
    opened = open_lane(found.settings, lane)
    entry = opened.entry(project.name)
    config, sha256 = render(project, version), hashlib.sha256(data).hexdigest()
    entry.write(version=version, config=config, model=data, sha256=sha256, signature="not asked for")
    opened.load(project.name)
    entry.prune()
    return path
