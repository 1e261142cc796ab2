"""What each lane did with a model's requests: the counters of Envoy, Triton and the capture service in one table. Pure.

All counters begin with their server's start; two scrapes give what came between them. Quantiles are Prometheus's
`histogram_quantile`: linear within a bucket.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from visionloop.records import Frozen
from visionloop.serving.envoy_capture import SHADOW
from visionloop.serving.envoy_clusters import LANES

Labels = frozenset[tuple[str, str]]
Samples = Mapping[tuple[str, Labels], float]

GRPC_NAMES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
SHARED = ("-first/http", "-first/grpc")
"""How the names of clusters end in which one lane stands in for the other."""
NO_LANE = "none"
"""What the capture service calls the lane of a request that none answered."""
CAUSES = {
    "envoy_cluster_upstream_rq_timeout": "timed out",
    "envoy_cluster_upstream_rq_per_try_timeout": "one try timed out",
    "envoy_cluster_upstream_rq_pending_overflow": "too many at once",
    "envoy_cluster_upstream_cx_connect_fail": "no connection",
    "envoy_cluster_upstream_rq_rx_reset": "broken off by the lane",
}
"""Envoy's counters of what went wrong on the way to a lane; one failed request may count in several, or be saved."""
REFUSALS = {
    "envoy_http_downstream_rq_too_large": "too large",
    "envoy_http_api_key_auth_unauthorized": "no API key",
    "envoy_http_api_key_auth_forbidden": "API key not allowed",
}


@dataclass(frozen=True)
class Scrape:
    """Prometheus's text of each server, as it was read; None where a server did not answer."""

    envoy: str
    lanes: Mapping[str, str | None]
    capture: str | None


class LaneTraffic(Frozen):
    """One lane's part."""

    lane: str
    versions: list[int]
    """What it serves now, mostly one; empty where it serves nothing or did not answer."""
    requests: int
    """That the weights sent its way and that were answered, probes of the loop included."""
    share: float
    """Of the model's requests, 0 to 1."""
    errors: dict[str, int]
    """Answers that were errors: `HTTP <status>`, or gRPC's name."""
    causes: dict[str, int]
    """What Envoy saw go wrong on the way to it (`CAUSES`)."""
    saved: int
    """Requests that it failed while there was a canary, and that the other lane answered (or, in turn, it itself)."""
    waited: int
    """Requests that it failed while there was no other, and that it answered once it was back."""
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    """From the whole request at Envoy to the lane's answer; None without a request."""
    queue_ms: float | None
    """Mean wait in Triton before the model ran, health checks included."""
    batch_images: float | None
    """Mean images that the model answered at once, health checks included."""
    captured: int
    """Requests taken over by the capture service."""
    dropped: dict[str, int]
    """Requests that were sampled and not taken over, by reason; `refused`: the answer was an error."""


class Traffic(Frozen):
    """One model's requests."""

    model: str
    lanes: list[LaneTraffic]
    silent: list[str]
    """Servers that did not answer: what they would have said is missing."""
    laneless: dict[str, int]
    """Requests to any model that were sampled and that no lane answered, by what became of them. One that was refused
    for its size is among them: Envoy shows the capture service the refusal alone, without the model."""
    refused: dict[str, int]
    """Requests to any model that no lane saw, by reason."""
    sampled: int
    """Requests to any model that Envoy copied to the capture service."""
    uncaptured: int
    """Of those, the ones that never reached it: it was down or overwhelmed, or they are on their way."""


def traffic(model: str, after: Scrape, before: Scrape | None = None) -> Traffic:
    """The table, since the servers started or since `before`."""
    envoy = _since(after.envoy, before.envoy if before else None)
    capture = _since(after.capture, before.capture if before else None)
    total = summed(envoy, "envoy_cluster_upstream_rq_completed", model=model)
    lanes = []
    for lane in LANES:
        triton = _since(after.lanes.get(lane), before.lanes.get(lane) if before else None)
        lanes.append(_lane(model, lane, envoy, triton, capture, total))
    silent = [f"lane {lane}" for lane in LANES if after.lanes.get(lane) is None]
    sampled = summed(envoy, "envoy_http_ext_proc_streams_started")
    arrived = summed(capture, "visionloop_capture_requests") - summed(
        capture, "visionloop_capture_requests", lane=SHADOW
    )
    return Traffic(
        model=model,
        lanes=lanes,
        silent=[*silent, *(["capture"] if after.capture is None else [])],
        laneless=_outcomes(capture, lane=NO_LANE),
        refused=_refused(envoy),
        sampled=int(sampled),
        uncaptured=max(0, int(sampled - arrived)),
    )


def read(text: str | None) -> Samples:
    """All samples of a scrape, counters without the `_total` that the parser gives those that have none.

    Raises ValueError for what is no Prometheus text.
    """
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(text or "")
    found = (one for family in families for one in family.samples)
    return {(one.name.removesuffix("_total"), frozenset(one.labels.items())): one.value for one in found}


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """The value below which `share` of the observations lie; `buckets`: upper bound -> observations up to it."""
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return None
    rank, lower, below = share * buckets[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if math.isinf(bound):
                return lower
            inside = buckets[bound] - below
            return lower + (bound - lower) * ((rank - below) / inside if inside else 0.0)
        lower, below = bound, buckets[bound]
    raise AssertionError("the last bucket holds all")


def _lane(model: str, lane: str, envoy: Samples, triton: Samples, capture: Samples, total: float) -> LaneTraffic:
    here = {"model": model, "lane": lane}
    requests = summed(envoy, "envoy_cluster_upstream_rq_completed", **here)
    buckets = _buckets(envoy, here)
    p50, p90, p99 = (quantile(buckets, share) for share in (0.5, 0.9, 0.99))
    of_model = {"model": model}
    answered = summed(triton, "nv_inference_request_success", **of_model)
    runs = summed(triton, "nv_inference_exec_count", **of_model)
    became = _outcomes(capture, **here)
    saved, waited = _answered_after_all(envoy, here)
    return LaneTraffic(
        lane=lane,
        versions=sorted(int(version) for version in _by("version", triton, "nv_inference_count", **of_model)),
        requests=int(requests),
        share=requests / total if total else 0.0,
        errors=_errors(envoy, here),
        causes={cause: int(n) for name, cause in CAUSES.items() if (n := summed(envoy, name, **here))},
        saved=saved,
        waited=waited,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        queue_ms=summed(triton, "nv_inference_queue_duration_us", **of_model) / answered / 1000 if answered else None,
        batch_images=summed(triton, "nv_inference_count", **of_model) / runs if runs else None,
        captured=became.pop("captured", 0),
        dropped=became,
    )


def _answered_after_all(envoy: Samples, here: Mapping[str, str]) -> tuple[int, int]:
    """By the other lane, or by the same one: told by the cluster, which is one of both lanes (`-first`) or of one."""
    found = _by("envoy_cluster_name", envoy, "envoy_cluster_upstream_rq_retry_success", **here)
    both = sum(count for cluster, count in found.items() if cluster.endswith(SHARED))
    return int(both), int(sum(found.values()) - both)


def _outcomes(capture: Samples, **labels: str) -> dict[str, int]:
    found = _by("outcome", capture, "visionloop_capture_requests", **labels)
    return {outcome: int(count) for outcome, count in found.items() if count}


def _errors(envoy: Samples, here: Mapping[str, str]) -> dict[str, int]:
    """HTTP by status; gRPC by its own, since its errors are HTTP 200."""
    http = _by("envoy_response_code", envoy, "envoy_cluster_upstream_rq", protocol="http", **here)
    found = {f"HTTP {code}": int(n) for code, n in http.items() if code >= "400" and n}
    grpc = _by("grpc_status", envoy, "envoy_cluster_grpc", **here)
    return found | {_grpc_name(status): int(n) for status, n in grpc.items() if status != "0" and n}


def _grpc_name(status: str) -> str:
    return GRPC_NAMES[int(status)] if int(status) < len(GRPC_NAMES) else f"gRPC {status}"


def _refused(envoy: Samples) -> dict[str, int]:
    """By name where Envoy counts it so; the rest are paths that lead nowhere, and what is closed."""
    named = {reason: int(summed(envoy, name)) for name, reason in REFUSALS.items()}
    limited = sum(int(n) for (name, _), n in envoy.items() if name.endswith("rate_limited"))
    completed = summed(envoy, "envoy_http_downstream_rq_completed", envoy_http_conn_manager_prefix="endpoint")
    seen = summed(envoy, "envoy_cluster_upstream_rq_completed") + limited + sum(named.values())
    found = {**named, "rate limit": limited, "other": max(0, int(completed - seen))}
    return {reason: count for reason, count in found.items() if count}


def _buckets(envoy: Samples, here: Mapping[str, str]) -> dict[float, float]:
    found = _by("le", envoy, "envoy_cluster_upstream_rq_time_bucket", **here)
    return {float(bound): count for bound, count in found.items()}


def _since(text: str | None, before: str | None) -> Samples:
    """Counters that fell were started anew meanwhile."""
    now = read(text)
    if before is None:
        return now
    old = read(before)
    return {key: value - old.get(key, 0.0) if value >= old.get(key, 0.0) else value for key, value in now.items()}


def summed(samples: Samples, name: str, **labels: str) -> float:
    """Sum of the samples that have these labels."""
    return sum(value for _, value in _found(samples, name, labels))


def _by(label: str, samples: Samples, name: str, **labels: str) -> dict[str, float]:
    """Value of the label -> sum."""
    sums: dict[str, float] = defaultdict(float)
    for known, value in _found(samples, name, labels):
        sums[dict(known).get(label, "")] += value
    return dict(sums)


def _found(samples: Samples, name: str, labels: Mapping[str, str]) -> Iterable[tuple[Labels, float]]:
    wanted = labels.items()
    return ((known, value) for (found, known), value in samples.items() if found == name and wanted <= set(known))
