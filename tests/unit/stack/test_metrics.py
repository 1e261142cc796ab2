"""What the stack shows to Prometheus, and what it tells the lanes about traces."""

from pathlib import Path

import pytest

from visionloop.errors import StackError
from visionloop.settings import Settings
from visionloop.stack.addresses import addressed
from visionloop.stack.envoy import ENVOY
from visionloop.stack.mlflow import MLFLOW
from visionloop.stack.service import Context
from visionloop.stack.services import ALL
from visionloop.stack.triton import TRITON

from .test_envoy_keys import PORTS


def context(folder: Path, **settings: str) -> Context:
    return Context(home=folder, repo=folder, settings=Settings(home=folder, **settings), ports=PORTS)


def test_envoys_own_listener_is_shown_and_never_its_admin_port(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    assert ENVOY.metrics_url(ctx) == "http://127.0.0.1:4/metrics"
    assert MLFLOW.metrics_url(ctx) == ""
    assert {one.name for one in ALL if one.metrics} == {"envoy", "capture", *(one.name for one in TRITON)}
    assert all(one.metrics in one.ports for one in ALL if one.metrics)
    assert all(one.metrics != "admin" for one in ALL)


def test_a_stack_from_before_the_listener_shows_none(tmp_path: Path) -> None:
    ctx = Context(home=tmp_path, repo=tmp_path, settings=Settings(home=tmp_path), ports={"envoy.admin": 1})
    assert ENVOY.metrics_url(ctx) == ""


def test_lanes_trace_only_where_a_collector_is_named(tmp_path: Path) -> None:
    stable, canary = TRITON
    plain = stable.launch(context(tmp_path)).argv
    assert not [word for word in plain if word.startswith("--trace")]
    told = canary.launch(context(tmp_path, traces_url="http://127.0.0.1:4318/v1/traces")).argv
    assert "--trace-config=opentelemetry,resource=service.name=visionloop-canary" in told
    with pytest.raises(StackError, match="VISIONLOOP_TRACES_URL: expected traces to go to"):
        stable.launch(context(tmp_path, traces_url="nowhere"))


def test_the_collector_is_told_to_every_server(tmp_path: Path) -> None:
    base = Settings(home=tmp_path, traces_url="http://127.0.0.1:4318/v1/traces")
    assert addressed(base, [ENVOY], {}, PORTS).traces_url == base.traces_url
