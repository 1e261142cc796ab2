"""Envoy's clusters: each model has its own to both lanes, so that one model's faults, limits and counts are its own."""

import base64
import gzip
import ipaddress
import json
from typing import Any

from visionloop.serving.addresses import Addresses
from visionloop.serving.envoy_capture import capture_filter
from visionloop.serving.envoy_guard import LARGEST_ANSWER_HEAD_KIB, answer_guard
from visionloop.serving.envoy_routes import ModelRoute

Json = dict[str, Any]

LANES = ("stable", "canary")
PROTOCOLS = ("http", "grpc")
PARTS = ("stable", "canary", "stable-first", "canary-first", "shadow", "ready/stable", "ready/any")
BUFFER_BYTES = 16 << 20
LIMITS = {"max_connections": 1024, "max_pending_requests": 1024, "max_requests": 1024, "max_retries": 1024}
"""As Envoy's defaults, but for retries: 3 would fail most requests of a dying canary."""
CAPTURE_LIMITS = {**LIMITS, "max_requests": 8192}
"""Each captured request keeps its stream for `envoy_capture.PAUSE_SECONDS`: so many a second are captured."""
LEAST_CHECK_SECONDS, MOST_CHECK_SECONDS = 2.0, 8.0
"""Of one check. The most is less than `Routes` waits for a new cluster, whose first check comes before its use."""
UNUSED_SECONDS = {"canary": 2.0, "stable": 4.0}
"""Between two checks of a lane that is well and that nothing was sent to yet: by clients, or to ask for readiness."""
MIRRORED_AT_ONCE = 64
"""Further requests are not mirrored: what clients send must not queue up in the canary lane."""


def render_clusters(models: dict[str, ModelRoute], addresses: Addresses, *, version: str) -> Json:
    """The cluster file (CDS): the lanes themselves, capture, and each model's own clusters."""
    clusters = [_lane_cluster(f"{lane}/{p}", lane, p, addresses) for lane in LANES for p in PROTOCOLS]
    if addresses.capture_grpc:
        capture = _cluster("capture", addresses.capture_grpc, http2=True)
        clusters.append({**capture, "circuit_breakers": {"thresholds": [CAPTURE_LIMITS]}})
    for name in sorted(models):
        for protocol in PROTOCOLS:
            clusters += _clusters_of(models[name], protocol, addresses)
    return {"version_info": version, "resources": clusters}


def cluster_names(model: str) -> list[str]:
    """All clusters of a model."""
    return [f"{model}/{part}/{p}" for part in PARTS for p in PROTOCOLS]


def _clusters_of(entry: ModelRoute, protocol: str, addresses: Addresses) -> list[Json]:
    """Only a canary is watched: it may be new and ill. The stable lane is asked whatever its state, and waited for.

    Who asks whether the model is ready is told by two clusters that nothing else goes through, and which are watched.
    """
    model, outliers = entry.model, {"consecutive_5xx": 2, "interval": "1s", "base_ejection_time": "5s"}
    canary = _watched(entry, "canary", f"{model}/canary/{protocol}", protocol, addresses)
    stable, ready = f"{model}/stable/{protocol}", f"{model}/ready/stable/{protocol}"
    return [
        {**_lane_cluster(stable, "stable", protocol, addresses), "circuit_breakers": _breakers(entry)},
        {**canary, "outlier_detection": {**outliers, "max_ejection_percent": 100}},
        _in_turn(entry, f"{model}/stable-first/{protocol}", [stable, canary["name"]]),
        _in_turn(entry, f"{model}/canary-first/{protocol}", [canary["name"], stable]),
        _shadow(entry, protocol, addresses),
        _watched(entry, "stable", ready, protocol, addresses),
        _in_turn(entry, f"{model}/ready/any/{protocol}", [canary["name"], ready]),
    ]


def _shadow(entry: ModelRoute, protocol: str, addresses: Addresses) -> Json:
    """The canary lane for mirrored requests: their answers go to the capture service, and to nobody else."""
    cluster = _lane_cluster(f"{entry.model}/shadow/{protocol}", "canary", protocol, addresses)
    if addresses.capture_grpc:
        [options] = cluster["typed_extension_protocol_options"].values()
        options["http_filters"] = [capture_filter(mirrored=True), *options["http_filters"]]
    at_once = min(MIRRORED_AT_ONCE, entry.max_in_flight)
    return {**cluster, "circuit_breakers": {"thresholds": [dict.fromkeys(LIMITS, at_once)]}}


def _watched(entry: ModelRoute, lane: str, name: str, protocol: str, addresses: Addresses) -> Json:
    """A lane of a model that is asked only while it answers inferences."""
    cluster = _lane_cluster(name, lane, protocol, addresses)
    http_port = int(addresses.of(lane, "http").rpartition(":")[2])
    [endpoint] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    endpoint["endpoint"]["health_check_config"] = {"port_value": http_port}
    return {
        **cluster,
        "circuit_breakers": _breakers(entry),
        "health_checks": [_check(entry, unused_seconds=UNUSED_SECONDS[lane])],
        # Workers hear at once of a canary that is well again: by default Envoy gathers changes for a second first.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"},
    }


def _breakers(entry: ModelRoute) -> Json:
    """More requests than that at once are refused; as many tries again as there are requests."""
    return {"thresholds": [dict.fromkeys(LIMITS, entry.max_in_flight)]}


def _lane_cluster(name: str, lane: str, protocol: str, addresses: Addresses) -> Json:
    return _cluster(name, addresses.of(lane, protocol), http2=protocol == "grpc", lane=lane)


def _in_turn(entry: ModelRoute, name: str, clusters: list[str]) -> Json:
    """The first of the clusters, and the second when the first is ill or has just failed this request."""
    return {
        "@type": _kind("config.cluster.v3.Cluster"),
        "name": name,
        "connect_timeout": "1s",
        "lb_policy": "CLUSTER_PROVIDED",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "circuit_breakers": _breakers(entry),
        "typed_extension_protocol_options": _protocol({}, guarded=True),
        "cluster_type": {
            "name": "envoy.clusters.aggregate",
            "typed_config": {"@type": _kind("extensions.clusters.aggregate.v3.ClusterConfig"), "clusters": clusters},
        },
    }


def _cluster(name: str, address: str, *, http2: bool, lane: str | None = None) -> Json:
    host, _, port = address.rpartition(":")
    endpoint: Json = {
        "endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}},
        **({"metadata": {"filter_metadata": {"lanes": {"lane": lane}}}} if lane else {}),
    }
    protocol: Json = {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    return {
        "@type": _kind("config.cluster.v3.Cluster"),
        "name": name,
        "type": "STATIC" if _is_ip(host) else "STRICT_DNS",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "circuit_breakers": {"thresholds": [LIMITS]},
        "typed_extension_protocol_options": _protocol(protocol, guarded=lane is not None),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _protocol(protocol: Json, *, guarded: bool) -> Json:
    """How a cluster is spoken to. Envoy takes the filters of the cluster that the route names, aggregate or not."""
    lane = {"common_http_protocol_options": {"max_response_headers_kb": LARGEST_ANSWER_HEAD_KIB}}
    options = {
        "@type": _kind("extensions.upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": protocol or {"http_protocol_options": {}},
        **({**lane, "http_filters": answer_guard()} if guarded else {}),
    }
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}


def _check(entry: ModelRoute, *, unused_seconds: float) -> Json:
    """By an inference, over HTTP: a model whose process died still calls itself ready.

    Every two seconds of a lane that is well, more seldom while nothing has ever gone through the cluster; what is ill,
    or has just failed a check, is asked sooner. An answer that is an error is enough, of silence it takes two. A check
    waits behind what the model computes, so that a slow model is given longer.
    """
    patience = min(max(LEAST_CHECK_SECONDS, entry.timeout_ms / 5000), MOST_CHECK_SECONDS)
    return {
        "timeout": f"{patience}s",
        "interval": "2s",
        "no_traffic_healthy_interval": f"{unused_seconds}s",
        "no_traffic_interval": "1s",
        "unhealthy_interval": "1s",
        "unhealthy_edge_interval": "0.1s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "http_health_check": {"codec_client_type": "HTTP1", **_inference(entry)},
    }


def _inference(entry: ModelRoute) -> Json:
    """An inference of one black image, in KServe's binary tensor extension; packed, it is small at any size."""
    size = entry.image[0] * entry.image[1] * entry.image[2]
    tensor = {
        "name": "image",
        "shape": [1, *entry.image],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": size},
    }
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "probabilities"}]}).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-encoding": "gzip"}
    return {
        "method": "POST",
        "path": f"/v2/models/{entry.model}/infer",
        "request_headers_to_add": [{"header": {"key": key, "value": value}} for key, value in headers.items()],
        "send": {"binary": base64.b64encode(gzip.compress(head + bytes(size), mtime=0)).decode()},
    }


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _kind(name: str) -> str:
    return f"type.googleapis.com/envoy.{name}"
