"""What a lane did, from Envoy's counters: a failure that the other lane hid counts too."""

import pytest

from visionloop.serving.lane_stats import LaneCount, count_lanes

CANARY = "cluster.m/canary-first/"
METHOD = "inference.GRPCInferenceService.ModelInfer"


def test_both_protocols_are_added_up_and_other_models_left_out() -> None:
    stats = {
        "cluster.m/stable/http.upstream_rq_completed": 5,
        "cluster.m/stable/grpc.upstream_rq_completed": 7,
        "cluster.m/stable-first/grpc.upstream_rq_completed": 20,
        f"{CANARY}grpc.upstream_rq_completed": 3,
        "cluster.other/stable/grpc.upstream_rq_completed": 100,
        "cluster.m/canary/grpc.upstream_rq_completed": 100,  # behind the weight: counted once, at the weight
    }
    assert count_lanes("m", stats) == {"stable": LaneCount(32, 0), "canary": LaneCount(3, 0)}


@pytest.mark.parametrize(
    ("name", "errors"),
    [
        ("http.upstream_rq_5xx", 1),
        ("http.upstream_rq_4xx", 0),  # the client's own fault
        ("grpc.upstream_rq_retry", 1),  # the stable lane answered instead, and nobody saw it
        *((f"grpc.grpc.{METHOD}.{code}", 1) for code in (2, 4, 8, 13, 14, 15)),
        *((f"grpc.grpc.{METHOD}.{code}", 0) for code in (0, 1, 3, 5, 7, 12, 16)),
        (f"grpc.grpc.{METHOD}.141", 0),
        ("grpc.grpc.other.Method.14", 0),
    ],
)
def test_which_counters_are_errors_of_the_lane(name: str, errors: int) -> None:
    assert count_lanes("m", {f"{CANARY}{name}": 1})["canary"].errors == errors


def test_nothing_counted_yet() -> None:
    assert count_lanes("m", {}) == {"stable": LaneCount(), "canary": LaneCount()}


@pytest.mark.parametrize(
    ("before", "after", "between"),
    [
        (LaneCount(10, 2), LaneCount(15, 3), LaneCount(5, 1)),
        (LaneCount(10, 2), LaneCount(4, 1), LaneCount(4, 1)),  # Envoy was restarted
        (LaneCount(10, 2), LaneCount(12, 0), LaneCount(2, 0)),
    ],
)
def test_what_came_since(before: LaneCount, after: LaneCount, between: LaneCount) -> None:
    assert after.since(before) == between
