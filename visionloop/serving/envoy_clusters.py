"""Envoy's clusters: each model has its own to both lanes, so that one model's faults, limits and counts are its own."""

import base64
import ipaddress
import json
from typing import Any

from visionloop.serving.addresses import Addresses
from visionloop.serving.envoy_routes import ModelRoute

Json = dict[str, Any]

LANES = ("stable", "canary")
PROTOCOLS = ("http", "grpc")
BUFFER_BYTES = 16 << 20
LIMITS = {"max_connections": 1024, "max_pending_requests": 1024, "max_requests": 1024, "max_retries": 1024}
"""As Envoy's defaults, but for retries: 3 would fail most requests of a dying canary."""
CAPTURE_LIMITS = {**LIMITS, "max_requests": 8192}
"""Each captured request keeps its stream for a second (see `CAPTURE_PAUSE_SECONDS`): so many a second are captured."""
LARGEST_CHECK_BYTES = 256 << 10
"""Images above this are not sent as a health check; Triton's own readiness is asked instead."""


def render_clusters(models: dict[str, ModelRoute], addresses: Addresses, *, version: str) -> Json:
    """The cluster file (CDS): the lanes themselves, capture, and three clusters per model and protocol."""
    clusters = [_lane_cluster(f"{lane}/{p}", lane, p, addresses) for lane in LANES for p in PROTOCOLS]
    if addresses.capture_grpc:
        capture = _cluster("capture", addresses.capture_grpc, http2=True)
        clusters.append({**capture, "circuit_breakers": {"thresholds": [CAPTURE_LIMITS]}})
    for name in sorted(models):
        for protocol in PROTOCOLS:
            clusters += [
                _model_cluster(models[name], "stable", protocol, addresses),
                _model_cluster(models[name], "canary", protocol, addresses),
                _canary_first(name, protocol),
            ]
    return {"version_info": version, "resources": clusters}


def cluster_names(model: str) -> list[str]:
    """All clusters of a model."""
    return [f"{model}/{part}/{p}" for part in ("stable", "canary", "canary-first") for p in PROTOCOLS]


def _model_cluster(entry: ModelRoute, lane: str, protocol: str, addresses: Addresses) -> Json:
    """Only a canary is watched: the stable lane has no other to fall back to, so it is asked whatever its state."""
    cluster = _lane_cluster(f"{entry.model}/{lane}/{protocol}", lane, protocol, addresses)
    if lane == "stable":
        return cluster
    http_port = int(addresses.of(lane, "http").rpartition(":")[2])
    [endpoint] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    endpoint["endpoint"]["health_check_config"] = {"port_value": http_port}
    outliers = {"consecutive_5xx": 2, "interval": "1s", "base_ejection_time": "5s", "max_ejection_percent": 100}
    return {
        **cluster,
        "health_checks": [_check(entry)],
        "outlier_detection": outliers,
        # Workers hear at once of a canary that is well again: by default Envoy gathers changes for a second first.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"},
    }


def _lane_cluster(name: str, lane: str, protocol: str, addresses: Addresses) -> Json:
    return _cluster(name, addresses.of(lane, protocol), http2=protocol == "grpc", lane=lane)


def _canary_first(model: str, protocol: str) -> Json:
    """The canary, and the stable lane when the canary is ill or has just failed this request."""
    return {
        "@type": _kind("config.cluster.v3.Cluster"),
        "name": f"{model}/canary-first/{protocol}",
        "connect_timeout": "1s",
        "lb_policy": "CLUSTER_PROVIDED",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "circuit_breakers": {"thresholds": [LIMITS]},
        "cluster_type": {
            "name": "envoy.clusters.aggregate",
            "typed_config": {
                "@type": _kind("extensions.clusters.aggregate.v3.ClusterConfig"),
                "clusters": [f"{model}/canary/{protocol}", f"{model}/stable/{protocol}"],
            },
        },
    }


def _cluster(name: str, address: str, *, http2: bool, lane: str | None = None) -> Json:
    host, _, port = address.rpartition(":")
    endpoint: Json = {
        "endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}},
        **({"metadata": {"filter_metadata": {"lanes": {"lane": lane}}}} if lane else {}),
    }
    protocol: Json = {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    options = {
        "@type": _kind("extensions.upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": protocol,
    }
    return {
        "@type": _kind("config.cluster.v3.Cluster"),
        "name": name,
        "type": "STATIC" if _is_ip(host) else "STRICT_DNS",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "circuit_breakers": {"thresholds": [LIMITS]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _check(entry: ModelRoute) -> Json:
    """By an inference, over HTTP: a model whose process died still calls itself ready."""
    height, width, channels = entry.image
    small = height * width * channels <= LARGEST_CHECK_BYTES
    what = _inference(entry) if small else {"path": f"/v2/models/{entry.model}/ready"}
    return {
        "timeout": "2s",
        "interval": "1s",
        "no_traffic_interval": "1s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "http_health_check": {"codec_client_type": "HTTP1", **what},
    }


def _inference(entry: ModelRoute) -> Json:
    """An inference of one black image, in KServe's binary tensor extension."""
    size = entry.image[0] * entry.image[1] * entry.image[2]
    tensor = {
        "name": "image",
        "shape": [1, *entry.image],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": size},
    }
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "probabilities"}]}).encode()
    length = {"key": "inference-header-content-length", "value": str(len(head))}
    return {
        "method": "POST",
        "path": f"/v2/models/{entry.model}/infer",
        "request_headers_to_add": [{"header": length}],
        "send": {"binary": base64.b64encode(head + bytes(size)).decode()},
    }


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _kind(name: str) -> str:
    return f"type.googleapis.com/envoy.{name}"
