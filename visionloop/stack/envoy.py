"""Envoy, the endpoint before the two lanes; clusters and routes come from files that it watches."""

import json
from datetime import datetime
from typing import Any

from visionloop.errors import StackError
from visionloop.stack.capture import CAPTURE
from visionloop.stack.files import write_private
from visionloop.stack.ports import LOOPBACK
from visionloop.stack.probe import fetch, fetch_json
from visionloop.stack.service import Context, Launch, Service, Step, servers_folder
from visionloop.stack.triton import LANES, name_of


def prepare(ctx: Context, step: Step) -> None:
    """Write the configuration of this start: the ports may be others than last time."""
    for name, text in configuration(ctx).items():
        write_private(ctx.folder("envoy") / name, text)


def launch(ctx: Context) -> Launch:
    """`envoy -c <home>/envoy/bootstrap.json`."""
    binary = servers_folder() / "envoy/envoy/_bin/envoy"
    if not binary.is_file():
        raise StackError(f"{binary} is missing: run `make install`")
    return Launch(
        [
            str(binary),
            "-c",
            str(ctx.folder("envoy") / "bootstrap.json"),
            "--concurrency",
            "1",
            "--disable-hot-restart",  # its shared memory has one name per machine, and two stacks may run
            "--log-level",
            "warning",
        ],
        ctx.environment(),
        ctx.folder("envoy"),
    )


def check(ctx: Context, started: datetime) -> None:
    """Well when all listeners are open."""
    fetch(f"http://{LOOPBACK}:{ctx.port('envoy', 'admin')}/ready")


def version(ctx: Context) -> str:
    """As the admin interface reports it: `<commit>/1.40.0/Clean/RELEASE/BoringSSL`."""
    info = fetch_json(f"http://{LOOPBACK}:{ctx.port('envoy', 'admin')}/server_info")
    return str(info["version"]).split("/")[1]


def configuration(ctx: Context) -> dict[str, str]:
    """File name -> text of all that Envoy reads at its start."""
    folder = ctx.folder("envoy")
    sources = {kind: _watched(f"{folder}/{kind}.json", str(folder)) for kind in ("lds", "cds")}
    bootstrap = {
        "node": {"id": "visionloop", "cluster": "visionloop"},
        "admin": {"address": _address(ctx.port("envoy", "admin"))},
        "dynamic_resources": {"lds_config": sources["lds"], "cds_config": sources["cds"]},
    }
    clusters = [
        _cluster(lane, ctx.port(name_of(lane), "grpc")) for lane in LANES if f"{name_of(lane)}.grpc" in ctx.ports
    ]
    return {
        "bootstrap.json": json.dumps(bootstrap),
        "cds.json": json.dumps({"resources": clusters}),
        "lds.json": json.dumps({"resources": [_listener(ctx)]}),
    }


def _listener(ctx: Context) -> dict[str, Any]:
    return {
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": "endpoint",
        "address": _address(ctx.port("envoy")),
        "filter_chains": [],
    }


def _cluster(name: str, port: int) -> dict[str, Any]:
    return {
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}],
        },
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": LOOPBACK, "port_value": port}}


def _watched(path: str, folder: str) -> dict[str, Any]:
    return {"path_config_source": {"path": path, "watched_directory": {"path": folder}}, "resource_api_version": "V3"}


ENVOY = Service(
    name="envoy",
    launch=launch,
    check=check,
    version=version,
    ports={"http": 8000, "admin": 9901},
    addresses={
        "endpoint_url": f"http://{LOOPBACK}:{{http}}",
        "envoy_admin_url": f"http://{LOOPBACK}:{{admin}}",
        "routes": "{home}/envoy",
    },
    needs=(*(name_of(lane) for lane in LANES), CAPTURE.name),
    prepare=prepare,
    start_timeout_s=30,
)
