"""Envoy, the endpoint before the two lanes; clusters and routes come from files that it watches."""

from dataclasses import fields
from datetime import datetime
from typing import TYPE_CHECKING

from visionloop.errors import ConfigError, StackError
from visionloop.settings import Settings
from visionloop.stack.capture import CAPTURE
from visionloop.stack.ports import LOOPBACK
from visionloop.stack.probe import fetch, fetch_json
from visionloop.stack.service import Context, Launch, Service, Step, servers_folder
from visionloop.stack.triton import LANES, name_of

if TYPE_CHECKING:
    from visionloop.serving.envoy_limits import Limits


def prepare(ctx: Context, step: Step) -> None:
    """Write the configuration of this start: the ports may be others than last time. Routes that were set stay."""
    from visionloop.serving.addresses import Addresses
    from visionloop.serving.envoy import write_initial

    missing = [name_of(lane) for lane in LANES if f"{name_of(lane)}.grpc" not in ctx.ports]
    if missing:
        raise StackError(f"the endpoint needs both lanes, but {' and '.join(missing)} is left out")
    addresses = Addresses(
        listener_port=ctx.port("envoy"),
        admin_port=ctx.port("envoy", "admin"),
        metrics_port=ctx.port("envoy", "metrics"),
        stable_grpc=_at(ctx, "triton-stable", "grpc"),
        stable_http=_at(ctx, "triton-stable", "http"),
        canary_grpc=_at(ctx, "triton-canary", "grpc"),
        canary_http=_at(ctx, "triton-canary", "http"),
        capture_grpc=_at(ctx, "capture", "grpc") if "capture.grpc" in ctx.ports else None,
    )
    write_initial(ctx.folder("envoy"), addresses, keys=_keys(ctx), limits=_limits(ctx.settings))


def refresh(ctx: Context, step: Step) -> bool:
    """`up` on a running stack: clients that have a key now, or none any more, without a restart."""
    from visionloop.serving.envoy import change_keys

    keys = _keys(ctx)
    try:
        change_keys(ctx.folder("envoy"), keys)
    except ConfigError as error:
        raise StackError(str(error)) from None
    return True


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


def _keys(ctx: Context) -> dict[str, str] | None:
    """Client -> API key, None where the endpoint asks for none. Raises StackError, which the supervisor reports."""
    from visionloop.serving.keys import read_keys

    try:
        return read_keys(ctx.settings.endpoint_keys) if ctx.settings.endpoint_keys else None
    except ConfigError as error:
        raise StackError(str(error)) from None


def _limits(settings: Settings) -> "Limits":
    """What the settings say of each."""
    from visionloop.serving.envoy_limits import Limits

    return Limits(**{field.name: getattr(settings, f"endpoint_{field.name}") for field in fields(Limits)})


def _at(ctx: Context, service: str, port: str) -> str:
    return f"{LOOPBACK}:{ctx.port(service, port)}"


ENVOY = Service(
    name="envoy",
    launch=launch,
    check=check,
    version=version,
    ports={"http": 8000, "admin": 9901, "metrics": 9902},
    addresses={
        "endpoint_url": f"http://{LOOPBACK}:{{http}}",
        "envoy_admin_url": f"http://{LOOPBACK}:{{admin}}",
        "envoy_metrics_url": f"http://{LOOPBACK}:{{metrics}}",
        "routes": "{home}/envoy",
    },
    needs=(*(name_of(lane) for lane in LANES), CAPTURE.name),
    prepare=prepare,
    refresh=refresh,
    metrics="metrics",
    start_timeout_s=30,
)
