"""The table of a model's traffic: every figure by hand, of one model among others, between two scrapes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.serving.traffic import Scrape, quantile, read, traffic

ENVOY = """\
# TYPE envoy_cluster_upstream_rq_completed counter
envoy_cluster_upstream_rq_completed{model="m",lane="stable",protocol="http",envoy_cluster_name="m/stable/http"} 50
envoy_cluster_upstream_rq_completed{model="m",lane="stable",protocol="grpc",envoy_cluster_name="m/stable/grpc"} 10
envoy_cluster_upstream_rq_completed{model="m",lane="canary",protocol="grpc",envoy_cluster_name="m/canary-first/grpc"} 20
envoy_cluster_upstream_rq_completed{model="n",lane="stable",protocol="http",envoy_cluster_name="n/stable/http"} 100
envoy_cluster_upstream_rq_completed{lane="stable",protocol="http",envoy_cluster_name="stable/http"} 5
# TYPE envoy_cluster_upstream_rq counter
envoy_cluster_upstream_rq{envoy_response_code="200",model="m",lane="stable",protocol="http"} 45
envoy_cluster_upstream_rq{envoy_response_code="400",model="m",lane="stable",protocol="http"} 3
envoy_cluster_upstream_rq{envoy_response_code="503",model="m",lane="stable",protocol="http"} 2
envoy_cluster_upstream_rq{envoy_response_code="503",model="m",lane="stable",protocol="grpc"} 4
envoy_cluster_upstream_rq{envoy_response_code="503",model="n",lane="stable",protocol="http"} 9
# TYPE envoy_cluster_grpc counter
envoy_cluster_grpc{grpc_status="0",model="m",lane="stable",protocol="grpc"} 6
envoy_cluster_grpc{grpc_status="14",model="m",lane="stable",protocol="grpc"} 4
envoy_cluster_grpc{grpc_status="3",model="m",lane="canary",protocol="grpc"} 1
envoy_cluster_grpc{grpc_status="99",model="m",lane="canary",protocol="grpc"} 1
# TYPE envoy_cluster_upstream_rq_timeout counter
envoy_cluster_upstream_rq_timeout{model="m",lane="stable",protocol="http"} 2
# TYPE envoy_cluster_upstream_cx_connect_fail counter
envoy_cluster_upstream_cx_connect_fail{model="m",lane="canary",protocol="grpc",envoy_cluster_name="m/canary/grpc"} 7
# TYPE envoy_cluster_upstream_rq_retry_success counter
envoy_cluster_upstream_rq_retry_success{model="m",lane="canary",envoy_cluster_name="m/canary-first/grpc"} 6
envoy_cluster_upstream_rq_retry_success{model="m",lane="stable",envoy_cluster_name="m/stable-first/grpc"} 3
envoy_cluster_upstream_rq_retry_success{model="m",lane="stable",envoy_cluster_name="m/stable-first/http"} 4
envoy_cluster_upstream_rq_retry_success{model="m",lane="stable",envoy_cluster_name="m/stable/http"} 2
envoy_cluster_upstream_rq_retry_success{model="n",lane="stable",envoy_cluster_name="n/stable/http"} 8
# TYPE envoy_cluster_upstream_rq_time histogram
envoy_cluster_upstream_rq_time_bucket{model="m",lane="stable",protocol="http",le="1"} 30
envoy_cluster_upstream_rq_time_bucket{model="m",lane="stable",protocol="http",le="2"} 50
envoy_cluster_upstream_rq_time_bucket{model="m",lane="stable",protocol="http",le="4"} 50
envoy_cluster_upstream_rq_time_bucket{model="m",lane="stable",protocol="http",le="+Inf"} 50
envoy_cluster_upstream_rq_time_bucket{model="m",lane="stable",protocol="grpc",le="1"} 0
envoy_cluster_upstream_rq_time_bucket{model="m",lane="stable",protocol="grpc",le="2"} 0
envoy_cluster_upstream_rq_time_bucket{model="m",lane="stable",protocol="grpc",le="4"} 10
envoy_cluster_upstream_rq_time_bucket{model="m",lane="stable",protocol="grpc",le="+Inf"} 10
# TYPE envoy_http_downstream_rq_completed counter
envoy_http_downstream_rq_completed{envoy_http_conn_manager_prefix="endpoint"} 197
# TYPE envoy_http_downstream_rq_too_large counter
envoy_http_downstream_rq_too_large{envoy_http_conn_manager_prefix="endpoint"} 3
# TYPE envoy_http_api_key_auth_unauthorized counter
envoy_http_api_key_auth_unauthorized{envoy_http_conn_manager_prefix="endpoint"} 5
# TYPE envoy_http_ext_proc_streams_started counter
envoy_http_ext_proc_streams_started{envoy_http_conn_manager_prefix="endpoint"} 70
envoy_server_live{} 1
"""
TRITON = """\
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="m",version="3"} 40
nv_inference_request_success{model="n",version="8"} 400
# TYPE nv_inference_count counter
nv_inference_count{model="m",version="3"} 120
nv_inference_count{model="n",version="8"} 400
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="m",version="3"} 30
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{model="m",version="3"} 8000
"""
CAPTURE = """\
# TYPE visionloop_capture_requests_total counter
visionloop_capture_requests_total{lane="stable",model="m",outcome="captured"} 40
visionloop_capture_requests_total{lane="stable",model="m",outcome="refused"} 9
visionloop_capture_requests_total{lane="canary",model="m",outcome="full"} 2
visionloop_capture_requests_total{lane="none",model="",outcome="cut"} 1
visionloop_capture_requests_total{lane="stable",model="n",outcome="captured"} 15
visionloop_capture_requests_total{lane="shadow",model="m",outcome="captured"} 33
"""
ALL = Scrape(ENVOY, {"stable": TRITON, "canary": ""}, CAPTURE)


def test_each_lane_by_itself() -> None:
    found = traffic("m", ALL)
    stable, canary = found.lanes
    assert (stable.lane, stable.versions, stable.requests, stable.share) == ("stable", [3], 60, 0.75)
    assert (canary.lane, canary.versions, canary.requests, canary.share) == ("canary", [], 20, 0.25)
    assert stable.errors == {"HTTP 400": 3, "HTTP 503": 2, "UNAVAILABLE": 4}
    assert canary.errors == {"INVALID_ARGUMENT": 1, "gRPC 99": 1}
    assert (stable.causes, canary.causes) == ({"timed out": 2}, {"no connection": 7})
    assert (stable.saved, canary.saved) == (3 + 4, 6)
    assert (stable.waited, canary.waited) == (2, 0)
    assert (stable.queue_ms, stable.batch_images) == (0.2, 4.0)
    assert (canary.queue_ms, canary.batch_images) == (None, None)
    assert (stable.captured, stable.dropped) == (40, {"refused": 9})
    assert (canary.captured, canary.dropped) == (0, {"full": 2})
    assert found.silent == []


def test_a_models_name_says_nothing_about_who_answered_in_the_end() -> None:
    text = """\
# TYPE envoy_cluster_upstream_rq_retry_success counter
envoy_cluster_upstream_rq_retry_success{model="x-first",lane="stable",envoy_cluster_name="x-first/stable/http"} 2
envoy_cluster_upstream_rq_retry_success{model="x-first",lane="stable",envoy_cluster_name="x-first/stable-first/http"} 5
"""
    stable, canary = traffic("x-first", Scrape(text, {}, "")).lanes
    assert (stable.saved, stable.waited, canary.saved, canary.waited) == (5, 2, 0, 0)


def test_quantiles_are_over_both_protocols() -> None:
    """60 requests: 30 up to 1 ms, 20 more up to 2 ms, 10 more up to 4 ms."""
    stable, canary = traffic("m", ALL).lanes
    assert (stable.p50_ms, stable.p90_ms) == (1.0, pytest.approx(2 + 2 * 4 / 10))
    assert stable.p99_ms == pytest.approx(2 + 2 * 9.4 / 10)
    assert (canary.p50_ms, canary.p99_ms) == (None, None)


def test_what_no_lane_saw_and_what_was_not_captured() -> None:
    """197 were answered, lanes saw 185; 67 of 70 copies came to the capture service, one of them without a lane.

    The copies of mirrored requests are not of these 70: what they are copied by is not the endpoint's own filter.
    """
    found = traffic("m", ALL)
    assert found.refused == {"too large": 3, "no API key": 5, "other": 4}
    assert (found.sampled, found.uncaptured, found.laneless) == (70, 3, {"cut": 1})


def test_between_two_scrapes_only_what_came_between_counts() -> None:
    text = ENVOY.replace("} 50", "} 90").replace("} 10\n", "} 4\n")  # http went on; grpc's counters were begun anew
    stable = traffic("m", Scrape(text, {"stable": TRITON, "canary": ""}, CAPTURE), ALL).lanes[0]
    assert stable.requests == 40 + 4
    assert (stable.errors, stable.captured, stable.queue_ms) == ({}, 0, None)
    assert stable.versions == [3]


def test_a_server_that_does_not_answer_is_named() -> None:
    found = traffic("m", Scrape(ENVOY, {"stable": TRITON, "canary": None}, None))
    assert found.silent == ["lane canary", "capture"]
    assert (found.lanes[1].requests, found.lanes[1].versions) == (20, [])


def test_nothing_at_all() -> None:
    found = traffic("m", Scrape("", {"stable": "", "canary": ""}, ""))
    assert [(one.requests, one.share, one.p50_ms) for one in found.lanes] == [(0, 0.0, None)] * 2
    assert (found.refused, found.laneless, found.sampled, found.uncaptured) == ({}, {}, 0, 0)


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({10.0: 0, 20.0: 4, float("inf"): 4}, 0.5, 15.0),
        ({10.0: 4, float("inf"): 4}, 1.0, 10.0),
        ({10.0: 1, float("inf"): 4}, 0.99, 10.0),  # nothing is known above the last bound
        ({}, 0.5, None),
        ({10.0: 0, float("inf"): 0}, 0.5, None),
    ],
)
def test_quantile(buckets: dict[float, float], share: float, expected: float | None) -> None:
    assert quantile(buckets, share) == expected


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_a_quantile_lies_in_the_bucket_of_the_sorted_value(values: list[int], share: float) -> None:
    bounds = [float(bound) for bound in range(10)]
    buckets = {bound: float(sum(value <= bound for value in values)) for bound in bounds}
    found = quantile(buckets, share)
    rank = share * len(values)
    exact = next(bound for bound in bounds if buckets[bound] >= rank)
    assert found is not None
    assert exact - 1 <= found <= exact


def test_what_is_no_metrics_is_refused() -> None:
    with pytest.raises(ValueError, match=r"."):
        read("<html>{")
