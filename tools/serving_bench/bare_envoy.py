"""An Envoy that does nothing but pass requests on: what any proxy costs here, beside which ours is to be seen."""

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving_bench.contenders import free_port

from visionloop.stack.ports import LOOPBACK
from visionloop.stack.service import servers_folder

STARTS_SECONDS = 20.0
_HTTP = "type.googleapis.com/envoy.extensions.filters"


@contextmanager
def bare_envoy(folder: Path, target: int) -> Iterator[int]:
    """The port of a running one before the server on port `target`. Raises RuntimeError when it does not start."""
    port, admin = free_port(), free_port()
    path, log = folder / "bare-envoy.json", folder / "bare-envoy.log"
    path.write_text(json.dumps(_bootstrap(port, admin, target)))
    command = [servers_folder() / "envoy/envoy/_bin/envoy", "-c", path, "--concurrency", "1", "--disable-hot-restart"]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--log-level", "warning"], stdout=out, stderr=out)
    try:
        _await_ready(process, admin, log)
        yield port
    finally:
        process.terminate()
        process.wait()


def _await_ready(process: "subprocess.Popen[bytes]", admin: int, log: Path) -> None:
    deadline = time.monotonic() + STARTS_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{admin}/ready", timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"a bare Envoy did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _bootstrap(port: int, admin: int, target: int) -> dict[str, Any]:
    """One listener, one cluster, one route, no filter but the router."""
    manager = {
        "@type": f"{_HTTP}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bare",
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "lane"}}]}
            ]
        },
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{_HTTP}.http.router.v3.Router"}}],
    }
    listener = {
        "name": "bare",
        "address": _at(port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    endpoint = {"lb_endpoints": [{"endpoint": {"address": _at(target)}}]}
    cluster = {"name": "lane", "load_assignment": {"cluster_name": "lane", "endpoints": [endpoint]}}
    return {"admin": {"address": _at(admin)}, "static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _at(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": LOOPBACK, "port_value": port}}
