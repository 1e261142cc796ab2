"""What of Envoy Prometheus may read: a listener of its own for chosen statistics, and names that become labels.

Envoy's admin interface can end Envoy, so nobody is given its address. This listener answers one GET with the families
that docs/guide/metrics.md explains, and nothing else; the same file serves on a laptop and in a pod.
"""

import re
from typing import Any
from urllib.parse import quote

from visionloop.serving.addresses import LOOPBACK, Addresses

Json = dict[str, Any]

METRICS_PATH = "/metrics"
ADMIN_CLUSTER = "admin"
BUCKETS_MS = [
    *(1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 65, 80, 100, 130, 160, 200, 250, 300, 400, 500),
    *(650, 800, 1_000, 1_500, 2_000, 3_000, 5_000, 10_000, 30_000),
]
"""Envoy counts whole milliseconds; a quantile is known to its bucket: to a half of its value, a third below 1 s."""
GRPC_METHOD = "inference.GRPCInferenceService.ModelInfer"
_LANE_CLUSTER = r"^cluster\.{model}{lane}{protocol}"
_MODEL, _LANE, _PROTOCOL = r"(?:[^/]+/)", r"(?:(?:stable|canary)(?:-first)?/)", r"(?:(?:http|grpc)\.)"
TAGS = {
    # The first group leaves the name, the second is the label's value. A cluster is <model>/<lane>[-first]/<protocol>.
    "model": _LANE_CLUSTER.format(model=r"(([^/]+)/)", lane=_LANE, protocol=_PROTOCOL),
    "lane": _LANE_CLUSTER.format(model=_MODEL + "?", lane=r"((stable|canary)(?:-first)?/)", protocol=_PROTOCOL),
    "protocol": _LANE_CLUSTER.format(model=_MODEL + "?", lane=_LANE, protocol=r"((http|grpc)\.)"),
    "envoy.cluster_name": r"^cluster\.((.+?/(?:http|grpc)|[^./]+)\.)",
    "grpc_status": rf"\.grpc(\.{re.escape(GRPC_METHOD)}\.(\d+))$",
}
ENVOYS_OWN_TAGS = ("envoy.response_code", "envoy.response_code_class", "envoy.http_conn_manager_prefix")
OF_A_LANE = (
    *("upstream_rq_completed", r"upstream_rq_\d\d\d", "upstream_rq_time", "upstream_rq_timeout"),
    *("upstream_rq_per_try_timeout", "upstream_rq_pending_overflow", "upstream_rq_retry", "upstream_rq_retry_success"),
    *(
        "upstream_rq_rx_reset",
        "upstream_cx_connect_fail",
        "upstream_rq_active",
        rf"grpc\.{re.escape(GRPC_METHOD)}\.\d+",
    ),
    *("membership_healthy", r"outlier_detection\.ejections_enforced_total"),
)
OF_THE_ENDPOINT = (
    *("downstream_rq_completed", r"downstream_rq_\dxx", "downstream_rq_time", "downstream_rq_active"),
    *(
        "downstream_rq_too_large",
        "downstream_cx_active",
        r"api_key_auth\..+",
        r".*rate_limited",
        r"ext_proc\.streams_.+",
    ),
)
OF_CAPTURE = ("upstream_rq_pending_overflow", "upstream_cx_connect_fail", "membership_healthy")
OF_ENVOY = ("uptime", "live", "memory_allocated")


def stats_config() -> Json:
    """The bootstrap's part: which pieces of a statistic's name are labels, and the latency histograms' buckets."""
    tags = [{"tag_name": name, "regex": regex} for name, regex in TAGS.items()]
    times = {"match": {"suffix": "rq_time"}, "buckets": BUCKETS_MS}
    return {
        "use_all_default_tags": False,
        "stats_tags": [*tags, *({"tag_name": name} for name in ENVOYS_OWN_TAGS)],
        "histogram_bucket_settings": [times],
    }


def families() -> str:
    """The regular expression over Envoy's full names that a scrape may see."""
    kinds = {
        r"cluster\.([^/]+/)?(stable|canary)(-first)?/(http|grpc)": OF_A_LANE,
        r"cluster\.capture": OF_CAPTURE,
        r"http\.endpoint": OF_THE_ENDPOINT,
        "server": OF_ENVOY,
    }
    return "|".join(rf"^{prefix}\.({'|'.join(names)})$" for prefix, names in kinds.items())


def metrics_listener(addresses: Addresses) -> list[Json]:
    """The listener, if the addresses have one: `GET /metrics` without a query, and 404 for everything else."""
    if addresses.metrics_port is None:
        return []
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3."
        "HttpConnectionManager",
        "stat_prefix": "metrics",
        "stream_idle_timeout": "10s",
        "request_headers_timeout": "10s",
        "route_config": {"name": "metrics", "virtual_hosts": [_host()]},
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    return [
        {
            "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
            "name": "metrics",
            "address": _address(addresses.metrics_host, addresses.metrics_port),
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        }
    ]


def admin_cluster(addresses: Addresses) -> list[Json]:
    """Envoy's own admin interface as a place that the metrics listener, and no other, sends requests to."""
    if addresses.metrics_port is None:
        return []
    endpoint = {"endpoint": {"address": _address(LOOPBACK, addresses.admin_port)}}
    return [
        {
            "name": ADMIN_CLUSTER,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": ADMIN_CLUSTER, "endpoints": [{"lb_endpoints": [endpoint]}]},
        }
    ]


def _host() -> Json:
    """The whole of `:path` is compared, so that no query of the caller's reaches the admin interface."""
    asked = {":method": "GET", ":path": METRICS_PATH}
    match = {
        "path": METRICS_PATH,
        "headers": [{"name": name, "string_match": {"exact": value}} for name, value in asked.items()],
    }
    rewritten = f"/stats/prometheus?usedonly&filter={quote(families(), safe='')}"
    return {
        "name": "metrics",
        "domains": ["*"],
        "routes": [
            {"match": match, "route": {"cluster": ADMIN_CLUSTER, "prefix_rewrite": rewritten, "timeout": "10s"}},
            {"match": {"prefix": "/"}, "direct_response": {"status": 404}},
        ],
    }


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}
