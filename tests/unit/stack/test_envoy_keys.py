"""The embedded endpoint's keys: off by default, taken in at a start and by `up`, and a broken file is a reason."""

import json
from pathlib import Path

import pytest

from visionloop.errors import StackError
from visionloop.serving.keys import add_key
from visionloop.settings import Settings, env_file, load_settings
from visionloop.stack.addresses import addressed, publish
from visionloop.stack.envoy import ENVOY
from visionloop.stack.service import Context, Launch

PORTS = {
    "envoy.http": 1,
    "envoy.admin": 2,
    "envoy.metrics": 4,
    **{f"triton-{lane}.{kind}": 3 for lane in ("stable", "canary") for kind in ("grpc", "http", "metrics")},
}


def step(launch: Launch) -> None:
    raise AssertionError("no command is needed")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    settings = Settings(home=tmp_path, endpoint_keys=tmp_path / "keys")
    return Context(home=tmp_path, repo=tmp_path, settings=settings, ports=PORTS)


def filters(context: Context) -> list[str]:
    endpoint = json.loads((context.home / "envoy" / "lds.json").read_text())["resources"][0]
    manager = endpoint["filter_chains"][0]["filters"][0]["typed_config"]
    return [found["name"] for found in manager["http_filters"]]


def test_by_default_the_endpoint_asks_for_no_key(tmp_path: Path) -> None:
    context = Context(home=tmp_path, repo=tmp_path, settings=Settings(home=tmp_path), ports=PORTS)
    ENVOY.prepare(context, step)
    assert "api_key" not in filters(context)
    assert ENVOY.refresh(context, step)


def test_with_the_setting_it_does_and_up_brings_new_keys(context: Context) -> None:
    add_key(context.home / "keys", "belt")
    ENVOY.prepare(context, step)
    assert filters(context)[0] == "api_key"
    key = add_key(context.home / "keys", "door")
    assert key not in (context.home / "envoy" / "lds.json").read_text()
    assert ENVOY.refresh(context, step)
    assert key in (context.home / "envoy" / "lds.json").read_text()


def test_a_broken_file_is_a_reason_and_changes_nothing(context: Context) -> None:
    with pytest.raises(StackError, match="cannot be read: No such file"):
        ENVOY.prepare(context, step)
    add_key(context.home / "keys", "belt")
    ENVOY.prepare(context, step)
    before = (context.home / "envoy" / "lds.json").read_text()
    (context.home / "keys").chmod(0o644)
    with pytest.raises(StackError, match="has mode 0644"):
        ENVOY.refresh(context, step)
    assert (context.home / "envoy" / "lds.json").read_text() == before


def test_keys_do_not_begin_on_a_running_stack(context: Context) -> None:
    """The other servers would not know of them."""
    ENVOY.prepare(Context(context.home, context.repo, Settings(home=context.home), PORTS), step)
    add_key(context.home / "keys", "belt")
    with pytest.raises(StackError, match="was started without API keys: `visionloop down` first, then up"):
        ENVOY.refresh(context, step)


def test_every_server_and_command_of_the_stack_learns_of_the_file(tmp_path: Path) -> None:
    base = Settings(home=tmp_path, endpoint_keys=tmp_path / "keys")
    told = addressed(base, [ENVOY], {}, PORTS)
    assert told.endpoint_keys == tmp_path / "keys"
    env_file(tmp_path).parent.mkdir()
    publish(told)
    assert load_settings({"VISIONLOOP_HOME": str(tmp_path)}).own_key_file == tmp_path / "keys"
    assert addressed(Settings(home=tmp_path), [ENVOY], {}, PORTS).endpoint_keys is None
