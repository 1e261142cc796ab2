"""How much the endpoint takes from a client, how long it waits for it, and how it says no. Light.

A refusal over HTTP is KServe's `{"error": ...}`; over gRPC it has the status that says what to do.
"""

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

BODY_LIMIT_BYTES = 16 << 20
"""Larger requests get 413; a body must fit into Envoy's buffers to be sent again to the other lane."""
ANNOUNCED_LIMIT_BYTES = 2 * BODY_LIMIT_BYTES
"""A body that announces more is refused unread. Up to here it is read to the limit: clients that do not listen while
they send would see a closed connection instead of the reason."""
LARGEST_HEAD_KIB = 7
"""Triton's HTTP server hangs up on a line above 8 KiB, its gRPC server refuses heads above 8 KiB at random."""
STREAM_IDLE_SECONDS = 60
"""A request in which nothing moves either way, as when a client does not read its answer."""
CLIENT_HEADER = "x-client"
KEY_HEADER = "x-api-key"
OWN_CLIENT = "visionloop"
CLIENTS_COUNTED = 10_000
"""Token buckets at a time; the one that was asked for least recently goes."""
NO_LIMIT = {"max_tokens": 1_000_000_000, "tokens_per_fill": 1_000_000_000, "fill_interval": "1s"}


@dataclass(frozen=True)
class Limits:
    """What one endpoint takes. Seconds are of wall time."""

    headers_seconds: float = 15.0
    """From the first byte of a request to the end of its head."""
    request_seconds: float = 60.0
    """From the first byte of a request to its last."""
    idle_seconds: float = 75.0
    """A connection without a request is closed then; longer than load balancers keep theirs."""
    max_connections: int = 10_000
    heap_mib: int = 2048
    """At 95 % of it new requests get 503, so that the endpoint stays."""
    client_requests_per_second: int = 0
    """Of one client, with a burst of twice as many; 0: no limit."""


DEFAULT = Limits()


def times(limits: Limits) -> Json:
    """The connection manager's patience with slow clients."""
    return {
        "stream_idle_timeout": f"{STREAM_IDLE_SECONDS}s",
        "request_headers_timeout": f"{limits.headers_seconds}s",
        "request_timeout": f"{limits.request_seconds}s",
        "max_request_headers_kb": LARGEST_HEAD_KIB,
        "common_http_protocol_options": {"idle_timeout": f"{limits.idle_seconds}s"},
    }


def overload(limits: Limits) -> Json:
    """The process's own bounds: its memory and its connections."""
    heap = {
        "@type": "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
        "max_heap_size_bytes": limits.heap_mib << 20,
    }
    connections = {
        "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3."
        "DownstreamConnectionsConfig",
        "max_active_downstream_connections": limits.max_connections,
    }
    full = {"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": 0.95}}
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            {"name": "envoy.resource_monitors.fixed_heap", "typed_config": heap},
            {"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": connections},
        ],
        "actions": [{"name": "envoy.overload_actions.stop_accepting_requests", "triggers": [full]}],
    }


def rate_filter(limits: Limits, *, keyed: bool) -> list[Json]:
    """The filter that counts each client's requests, if they are limited. A client is its key, else its address.

    The loop's own key is not limited: its probes are many at once, and each that is refused would be a failed one.
    """
    rate = limits.client_requests_per_second
    if not rate:
        return []
    key = "client" if keyed else "remote_address"
    action = {"request_headers": {"header_name": CLIENT_HEADER, "descriptor_key": key}} if keyed else {key: {}}
    bucket = {"max_tokens": 2 * rate, "tokens_per_fill": rate, "fill_interval": "1s"}
    own = [{"entries": [{"key": key, "value": OWN_CLIENT}], "token_bucket": NO_LIMIT}] if keyed else []
    config = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "clients",
        "token_bucket": NO_LIMIT,
        **{name: {"default_value": {"numerator": 100}} for name in ("filter_enabled", "filter_enforced")},
        "rate_limited_as_resource_exhausted": True,
        "response_headers_to_add": [_HTTP_AGAIN, _GRPC_AGAIN],
        "max_dynamic_descriptors": CLIENTS_COUNTED,
        "rate_limits": [{"actions": [action]}],
        "descriptors": [*own, {"entries": [{"key": key}], "token_bucket": bucket}],
    }
    return [{"name": "rate", "typed_config": config}]


def refusals(limits: Limits) -> Json:
    """What Envoy says when it is not a lane that answers: the limit, and what was found."""
    rate = limits.client_requests_per_second
    late = (
        f"expected a whole request within {limits.request_seconds:g} s, its head within {limits.headers_seconds:g} s, "
        "found a part"
    )
    too_large = f"expected a request of at most {BODY_LIMIT_BYTES} bytes, found more: send fewer images in each"
    return {
        "mappers": [
            *_both(_status(413), too_large, 8, found=" (announced: %REQ(CONTENT-LENGTH)% bytes)"),
            *_both(_status(429), f"expected at most {rate} requests a second of one client, found more", 8),
            *_both(_status(431), f"expected headers of at most {LARGEST_HEAD_KIB} KiB together, found more", 8),
            *_both(_status(408), late, 4),
            *_both(_status(401), f"expected an API key in the header {KEY_HEADER}, found none that is known", 16),
            *_both(_status(403), "%LOCAL_REPLY_BODY%", 7),
            *_both(_status(404), "%LOCAL_REPLY_BODY%", 12),
            *_both(_flags("DPE"), "expected HTTP/1.1 or HTTP/2, found neither: %RESPONSE_CODE_DETAILS%", 3),
            *_both(_flags("UT"), "the model did not answer within its time-out (serving.timeout_ms)", 4),
            *_both(_status(504), f"expected a request that is done within {limits.request_seconds:g} s", 4),
            *_both(_flags("UO"), "too many requests are under way to this lane: try again later", 8, full=True),
            *_both(_flags("UH"), "no lane is well that serves this model: try again later", 14),
            *_both(_flags(*_NO_ANSWER), "no lane answers: try again later (%RESPONSE_FLAGS%)", 14),
            # Short of memory: that has no flag, and a text of its own.
            *_both(
                _status(503), "the endpoint takes no request now (%LOCAL_REPLY_BODY%): try again later", 8, full=True
            ),
        ]
    }


def announced_too_large(path: str) -> Json:
    """A route's match: requests below `path` whose head says that the body is far larger than allowed."""
    length = {"name": "content-length", "range_match": {"start": ANNOUNCED_LIMIT_BYTES + 1, "end": (1 << 63) - 1}}
    return {"prefix": path, "headers": [length]}


def _both(which: Json, text: str, grpc_status: int, *, found: str = "", full: bool = False) -> list[Json]:
    """One refusal for gRPC, and the same for everybody else; who is too full for more says when to ask again."""
    grpc_again, http_again = ([one] if full else [] for one in (_GRPC_AGAIN, _HTTP_AGAIN))
    return [
        {
            "filter": {"and_filter": {"filters": [which, _IS_GRPC]}},
            "headers_to_add": [_set("grpc-status", str(grpc_status)), *grpc_again],
            "body_format_override": {"text_format_source": {"inline_string": text}},
        },
        {
            "filter": which,
            "headers_to_add": http_again,
            "body_format_override": {"json_format": {"error": text + found}},
        },
    ]


def _set(name: str, value: str) -> Json:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


_GRPC_AGAIN, _HTTP_AGAIN = _set("grpc-retry-pushback-ms", "1000"), _set("retry-after", "1")
_NO_ANSWER = ("UF", "UC", "UR", "URX", "LR", "NC")
_IS_GRPC: Json = {"header_filter": {"header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}}}


def _status(code: int) -> Json:
    value = {"default_value": code, "runtime_key": f"refusal.{code}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _flags(*flags: str) -> Json:
    return {"response_flag_filter": {"flags": list(flags)}}
