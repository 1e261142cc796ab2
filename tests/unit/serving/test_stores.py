"""Lanes and routes whose server is down or not configured: one line that names server, address and way out."""

import socket
from pathlib import Path

import numpy as np
import pytest

from visionloop.errors import ConfigError, StoreError
from visionloop.project import parse_project
from visionloop.serving.addresses import Addresses
from visionloop.serving.envoy import write_initial
from visionloop.settings import Settings
from visionloop.stores.routes import open_routes
from visionloop.stores.triton import _one_line, open_lane

from .lanes import PROJECT


@pytest.fixture
def port() -> int:
    """Nobody listens there."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def test_a_triton_that_is_down(port: int) -> None:
    lane = open_lane(Settings(canary_grpc=f"127.0.0.1:{port}"), "canary")
    assert not lane.ready()
    calls = (
        lambda: lane.load("p"),
        lambda: lane.unload("p"),
        lambda: lane.served("p"),
        lambda: lane.statistics("p"),
        lambda: lane.memory("p", version=1),
        lambda: lane.infer("p", np.zeros((1, 8, 8, 1), np.uint8), version=1),
    )
    for call in calls:
        with pytest.raises(StoreError) as caught:
            call()
        assert str(caught.value).startswith(f"Triton of the canary lane at 127.0.0.1:{port}: ")
        assert "\n" not in str(caught.value)


def test_a_lane_that_is_not_configured() -> None:
    with pytest.raises(ConfigError, match=r"VISIONLOOP_STABLE_GRPC is not set .*`visionloop up`"):
        open_lane(Settings(), "stable")
    with pytest.raises(ConfigError, match="VISIONLOOP_MODEL_REPOSITORY is not set"):
        open_lane(Settings(stable_grpc="127.0.0.1:9"), "stable").entry("p")


def test_an_envoy_that_is_down_keeps_its_table(tmp_path: Path, port: int) -> None:
    write_initial(tmp_path, Addresses(1, port, "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    routes = open_routes(Settings(routes=tmp_path, envoy_admin_url=f"http://127.0.0.1:{port}"))
    assert routes.current("p") is None
    project = parse_project(PROJECT, Path("project.yaml"))
    with pytest.raises(StoreError, match=rf"Envoy's admin interface at http://127.0.0.1:{port} does not answer"):
        routes.set(project, stable=100, canary=0)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_broken_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "rds.json").write_text("{")
    routes = open_routes(Settings(routes=tmp_path, envoy_admin_url="http://127.0.0.1:9"))
    with pytest.raises(StoreError, match=r"rds.json is no JSON"):
        routes.current("p")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("failed to load 'p'", "failed to load 'p'"),
        ("failed:\n\nAt:\n  /opt/model.py(12): initialize\n", "failed:"),
        ('bad model\nTraceback (most recent call last):\n  File "/x/model.py", line 3, in f\nValueError: no', None),
    ],
)
def test_a_reason_is_one_line_without_a_traceback(said: str, told: str | None) -> None:
    assert _one_line(said) == (told or "bad model ValueError: no")
    assert len(_one_line(said * 1000)) <= 600
