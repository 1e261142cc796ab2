"""The embedded endpoint's limits: from the user's environment to what Envoy reads."""

import json
from pathlib import Path
from typing import Any

from visionloop.settings import load_settings
from visionloop.stack.addresses import addressed
from visionloop.stack.envoy import ENVOY
from visionloop.stack.service import Context
from visionloop.stack.services import ALL

from .test_envoy_keys import PORTS, step

CHOSEN = {
    "VISIONLOOP_ENDPOINT_HEADERS_SECONDS": "1.5",
    "VISIONLOOP_ENDPOINT_REQUEST_SECONDS": "2.5",
    "VISIONLOOP_ENDPOINT_IDLE_SECONDS": "3.5",
    "VISIONLOOP_ENDPOINT_MAX_CONNECTIONS": "4",
    "VISIONLOOP_ENDPOINT_HEAP_MIB": "512",
    "VISIONLOOP_ENDPOINT_CLIENT_REQUESTS_PER_SECOND": "6",
}


def started(folder: Path, environ: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The connection manager of lds.json and bootstrap.json, as a start of the stack writes them."""
    base = load_settings({"VISIONLOOP_HOME": str(folder), **environ})
    lanes = [service for service in ALL if service.name.startswith(("triton", "envoy"))]
    told = addressed(base, lanes, {}, PORTS)
    ENVOY.prepare(Context(home=folder, repo=folder, settings=told, ports=PORTS), step)
    endpoint = json.loads((folder / "envoy" / "lds.json").read_text())["resources"][0]
    manager = endpoint["filter_chains"][0]["filters"][0]["typed_config"]
    return manager, json.loads((folder / "envoy" / "bootstrap.json").read_text())


def test_every_limit_of_the_environment_is_in_what_envoy_reads(tmp_path: Path) -> None:
    manager, bootstrap = started(tmp_path, CHOSEN)
    assert (manager["request_headers_timeout"], manager["request_timeout"]) == ("1.5s", "2.5s")
    assert manager["common_http_protocol_options"]["idle_timeout"] == "3.5s"
    [rate] = [one["typed_config"] for one in manager["http_filters"] if one["name"] == "rate"]
    assert rate["descriptors"][-1]["token_bucket"]["tokens_per_fill"] == 6
    heap, connections = (one["typed_config"] for one in bootstrap["overload_manager"]["resource_monitors"])
    assert heap["max_heap_size_bytes"] == 512 << 20
    assert connections["max_active_downstream_connections"] == 4


def test_without_them_the_defaults_hold(tmp_path: Path) -> None:
    manager, bootstrap = started(tmp_path, {})
    assert (manager["request_headers_timeout"], manager["request_timeout"]) == ("15.0s", "60.0s")
    assert not [one for one in manager["http_filters"] if one["name"] == "rate"]
    heap, _ = (one["typed_config"] for one in bootstrap["overload_manager"]["resource_monitors"])
    assert heap["max_heap_size_bytes"] == 2048 << 20
