"""Envoy's route table: which share of each model's requests goes to which lane, what is captured, what is closed.

The table itself is the only memory of the weights: each route carries its model's entry as metadata, and
`read_routes` reads it back.
"""

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from visionloop.errors import ConfigError
from visionloop.serving.envoy_limits import announced_too_large

Json = dict[str, Any]

CAPTURE_FILTER = "capture"
BUFFER_FILTER = "buffer"
EXTRACTION_FILTER = "envoy.filters.http.grpc_field_extraction"
GUARD_FILTER = "lua"
KEY_FILTER = "api_key"
PROBE_HEADER = "x-visionloop-probe"
SESSION_HEADER = "x-session"
LANE_HEADER = "x-lane"
MODEL_HEADER = "x-model"
LATENCY_HEADER = "x-latency-us"
TRIES_HEADER = "x-envoy-attempt-count"
METADATA = "visionloop"
LANES_SHARE = 3
"""While there is a canary a lane has this part of the time-out, and then the other is asked instead."""
AWAY = "connect-failure,refused-stream,reset,gateway-error,unavailable"
"""What a request gets from a lane that was killed, or whose model's process was."""
FAILED = f"{AWAY},5xx,internal"
"""... and what it gets from a model that fails: once more is of use only where another lane may answer."""
TRIES_IN_TURNS = 3
"""One would do, if the other lane were never just being loaded."""
TRIES_AT_THE_SAME = 100
"""With the pauses before them they take about 24 s, if the request's time-out is not over by then."""
PAUSES = {"base_interval": "0.025s", "max_interval": "0.5s"}
"""Before a further try: at random up to the first, then up to its double, and so on."""
GRPC_SERVICE = "/inference.GRPCInferenceService"
INFER = f"{GRPC_SERVICE}/ModelInfer"
READY = f"{GRPC_SERVICE}/ModelReady"
HEALTH = rf"/v2/.*/(live|ready)|{re.escape(GRPC_SERVICE)}/.*(Live|Ready)|/grpc\.health\..*"
"""Paths that ask whether somebody is there."""
READY_SECONDS = 2.0
"""Who asks for health wants to know it now."""
CLOSED_HTTP = (
    "/v2/(repository|trace|logging|systemsharedmemory|cudasharedmemory)(/.*)?",
    "/v2/models/[^/]+(/versions/[^/]+)?/trace(/.*)?",
)
CLOSED_GRPC = (
    *("Repository", "SystemSharedMemory", "CudaSharedMemory", "TraceSetting", "LogSettings"),
    "ModelStreamInfer",
)
"""Triton's model control, shared memory and tracing are the loop's own; streams carry several models each. The whole
path is compared, as Triton does it, so that a model may be called `trace` or `repository`."""


@dataclass(frozen=True)
class ModelRoute:
    """One model's entry: weights of the lanes in percent, and what its routes and health checks need."""

    model: str
    stable: int
    canary: int
    timeout_ms: int
    capture_percent: float
    image: tuple[int, int, int]
    """Height, width, channels of the uint8 input."""
    max_in_flight: int = 1024
    """Requests under way to each lane over each protocol; further ones get 503."""
    mirrored: bool = False
    """What is captured goes to the canary lane as well, whose answers no client sees."""

    def __post_init__(self) -> None:
        if min(self.stable, self.canary) < 0 or self.stable + self.canary != 100:
            raise ConfigError(
                f"weights of {self.model}: expected stable + canary = 100, found {self.stable} + {self.canary}"
            )


def render_routes(models: dict[str, ModelRoute], *, version: str) -> Json:
    """The route file (RDS): what is closed first, then the models, then what the stable lane says of itself."""
    routes = [*_closed(), *_too_large()]
    for name in sorted(models):
        routes += _model_routes(models[name])
    host = {
        "name": "endpoint",
        "domains": ["*"],
        "routes": [*routes, *_fallback()],
        "request_body_buffer_limit": 16 << 20,
        "include_attempt_count_in_response": True,
    }
    table = {
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": "routes",
        "virtual_hosts": [host],
        "response_headers_to_add": [
            # Endpoint metadata, not the cluster's name: after a fail-over that would be the wrong one.
            _header(LANE_HEADER, "%UPSTREAM_METADATA(lanes:lane)%"),
            _header(LATENCY_HEADER, "%COMMON_DURATION(DS_RX_BEG:US_RX_BEG:us)%"),
        ],
    }
    return {"version_info": version, "resources": [table]}


def read_routes(document: Json) -> dict[str, ModelRoute]:
    """The models that a route file has. Anything that is no route file has none."""
    found = {}
    for table in document.get("resources", []):
        for host in table.get("virtual_hosts", []):
            for route in host.get("routes", []):
                entry = route.get("metadata", {}).get("filter_metadata", {}).get(METADATA)
                if entry:
                    found[entry["model"]] = ModelRoute(**{**entry, "image": tuple(entry["image"])})
    return found


_NO_PROBE: Json = {
    "name": PROBE_HEADER,
    "string_match": {"exact": "1"},
    "invert_match": True,
    "treat_missing_header_as_empty": True,
}


def _model_routes(entry: ModelRoute) -> list[Json]:
    infer = {
        "path_separated_prefix": f"/v2/models/{entry.model}",
        "headers": [
            {"name": ":method", "string_match": {"exact": "POST"}},
            {"name": ":path", "string_match": {"suffix": "/infer"}},
        ],
    }
    everything = {"path_separated_prefix": f"/v2/models/{entry.model}"}
    grpc = {
        "path": INFER,
        "grpc": {},
        "headers": [{"name": "x-model", "string_match": {"exact": entry.model}}],
    }
    captured = [_captured(infer, "http", entry), _captured(grpc, "grpc", entry)] if entry.capture_percent > 0 else []
    return [*_ready(entry), *captured, _route(everything, "http", entry), _route(grpc, "grpc", entry)]


def _ready(entry: ModelRoute) -> list[Json]:
    """Would an inference be answered? Asked of a lane that has just answered one; Triton's word is not enough.

    While the stable lane has any weight it must be well: it is asked whatever its state, and has no other behind it.
    """
    behind = "stable" if entry.stable else "any"
    http = {"safe_regex": {"regex": rf"/v2/models/{re.escape(entry.model)}(/versions/[0-9]+)?/ready"}}
    grpc = {"path": READY, "grpc": {}, "headers": [{"name": "x-model", "string_match": {"exact": entry.model}}]}
    return [
        _to(f"{entry.model}/ready/{behind}/{protocol}", match, _uncaptured(), seconds=READY_SECONDS)
        for protocol, match in (("http", http), ("grpc", grpc))
    ]


def _captured(match: Json, protocol: str, entry: ModelRoute) -> Json:
    """A share of the requests, drawn for each. Envoy draws the lane from the same random number: millionths keep the
    two draws apart, since the lane is its remainder by 100."""
    numerator = math.ceil(entry.capture_percent * 100) * 100
    share = {
        "default_value": {"numerator": numerator, "denominator": "MILLION"},
        "runtime_key": f"capture.{entry.model}",
    }
    headers = [*match["headers"], _NO_PROBE]
    route = _route({**match, "headers": headers, "runtime_fraction": share}, protocol, entry, captured=True)
    if entry.mirrored:
        route["route"]["request_mirror_policies"] = [{"cluster": f"{entry.model}/shadow/{protocol}"}]
    return route


def _route(match: Json, protocol: str, entry: ModelRoute, *, captured: bool = False) -> Json:
    route: Json = {
        "match": match,
        "metadata": {"filter_metadata": {METADATA: asdict(entry)}},
        "route": {
            "timeout": f"{entry.timeout_ms / 1000}s",
            "weighted_clusters": _weights(protocol, entry),
            "hash_policy": [{"header": {"header_name": SESSION_HEADER}}],
            "retry_policy": _retry(entry),
        },
    }
    return route if captured else {**route, **_uncaptured_route()}


def _weights(protocol: str, entry: ModelRoute) -> Json:
    """Canary last: a session that is in it at 10 % stays in it at 30 %. While it runs, each lane stands in for the
    other."""
    stable = "stable-first" if entry.canary else "stable"
    return {
        "clusters": [
            {"name": f"{entry.model}/{stable}/{protocol}", "weight": entry.stable},
            {"name": f"{entry.model}/canary-first/{protocol}", "weight": entry.canary},
        ],
        "use_hash_policy": True,
    }


def _retry(entry: ModelRoute) -> Json:
    """At the lanes in turns while there is a canary; else as soon as the killed lane is back.

    An inference changes nothing, so that it may be repeated. What a model fails by itself is asked of the other lane
    too, twice of each at most; without a canary it is not asked again, since nobody else would answer it.
    """
    policy: Json = {
        "retry_on": FAILED if entry.canary else AWAY,
        "num_retries": TRIES_IN_TURNS if entry.canary else TRIES_AT_THE_SAME,
        "retry_back_off": PAUSES,
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3."
                "PreviousPrioritiesConfig",
                "update_frequency": 1,
            },
        },
    }
    if entry.canary:
        policy["per_try_timeout"] = f"{entry.timeout_ms / LANES_SHARE / 1000:.3f}s"
    return policy


def _fallback() -> list[Json]:
    """Models without a route and the server's own state are asked of the stable lane; the rest is not found.

    Alive is the endpoint itself, whatever its lanes do.
    """
    http = [{"path": "/v2"}, {"path_separated_prefix": "/v2/models"}]
    grpc = [{"prefix": f"{GRPC_SERVICE}/", "grpc": {}}]
    open_to_all = _uncaptured() | _keyless()
    return [
        {**_direct({"path": "/v2/health/live"}, 200, ""), "typed_per_filter_config": open_to_all},
        *(_to(f"stable/{protocol}", match, open_to_all, seconds=READY_SECONDS) for protocol, match in _health()),
        *(_to("stable/http", match, _uncaptured()) for match in http),
        *(_to("stable/grpc", match, _uncaptured()) for match in grpc),
        _direct({"prefix": "/"}, 404, "not found: the endpoint speaks KServe v2"),
    ]


def _health() -> list[tuple[str, Json]]:
    """What load balancers ask: they have no key."""
    grpc = [{"path": f"{GRPC_SERVICE}/{method}"} for method in ("ServerLive", "ServerReady")]
    grpc.append({"prefix": "/grpc.health.v1.Health/"})
    return [("http", {"path_separated_prefix": "/v2/health"}), *(("grpc", {**match, "grpc": {}}) for match in grpc)]


def _to(cluster: str, match: Json, filters: Json, *, seconds: float = 15.0) -> Json:
    route = {"cluster": cluster, "timeout": f"{seconds}s"}
    return {"match": match, "route": route, "typed_per_filter_config": filters}


def _closed() -> list[Json]:
    http: list[Json] = [{"safe_regex": {"regex": regex}} for regex in CLOSED_HTTP]
    grpc: list[Json] = [{"prefix": f"{GRPC_SERVICE}/{method}"} for method in CLOSED_GRPC]
    return [_direct(match, 403, "closed: models are changed by releases only") for match in (*http, *grpc)]


def _too_large() -> list[Json]:
    """What announces too large a body is refused by its head: nothing waits for the body, or looks at it."""
    readers = (BUFFER_FILTER, EXTRACTION_FILTER, GUARD_FILTER)
    unread = _uncaptured() | {name: _off() for name in readers}
    return [{**_direct(announced_too_large("/"), 413, "too large"), "typed_per_filter_config": unread}]


def _direct(match: Json, status: int, text: str) -> Json:
    return {
        "match": match,
        "direct_response": {"status": status, **({"body": {"inline_string": text}} if text else {})},
        **_uncaptured_route(),
    }


def _uncaptured() -> Json:
    return {CAPTURE_FILTER: {"@type": _http("ext_proc.v3.ExtProcPerRoute"), "disabled": True}}


def _uncaptured_route() -> Json:
    return {"typed_per_filter_config": _uncaptured()}


def _keyless() -> Json:
    """No key is asked for; harmless where the endpoint asks for none at all."""
    return {KEY_FILTER: _off()}


def _off() -> Json:
    return {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}


def _http(kind: str) -> str:
    return f"type.googleapis.com/envoy.extensions.filters.http.{kind}"


def _header(name: str, value: str) -> Json:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
