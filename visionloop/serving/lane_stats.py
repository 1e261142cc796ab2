"""What each lane did, counted from Envoy's statistics of one model's clusters."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PARTS = {"stable": ("stable", "stable-first"), "canary": ("canary-first",)}
"""Lane -> the clusters that the weights send its share to."""
GRPC_METHOD = "inference.GRPCInferenceService.ModelInfer"


@dataclass(frozen=True)
class LaneCount:
    """Requests that the weights sent to a lane, and those that it failed, counters since Envoy started.

    A request that a lane failed and the other then answered is an error of the first, though its client never saw one.
    """

    requests: int = 0
    errors: int = 0

    def since(self, before: "LaneCount") -> "LaneCount":
        """What came after `before`; counters that fell (Envoy was restarted) count from zero."""
        if self.requests < before.requests:
            return self
        return LaneCount(self.requests - before.requests, max(0, self.errors - before.errors))


def count_lanes(model: str, stats: Mapping[str, Any]) -> dict[str, LaneCount]:
    """Lane -> counts, from Envoy's `cluster.<model>/...` counters."""
    return {lane: _count([f"cluster.{model}/{part}/" for part in parts], stats) for lane, parts in PARTS.items()}


def _count(prefixes: list[str], stats: Mapping[str, Any]) -> LaneCount:
    requests = errors = 0
    for at in (f"{prefix}{protocol}." for prefix in prefixes for protocol in ("http", "grpc")):
        requests += int(stats.get(f"{at}upstream_rq_completed", 0))
        errors += int(stats.get(f"{at}upstream_rq_5xx", 0)) + int(stats.get(f"{at}upstream_rq_retry", 0))
        errors += _grpc_failures(f"{at}grpc.{GRPC_METHOD}.", stats)
    return LaneCount(requests, errors)


def _grpc_failures(at: str, stats: Mapping[str, Any]) -> int:
    """gRPC failures that are the server's: unknown 2, deadline 4, exhausted 8, internal 13, unavailable 14, loss 15."""
    codes = re.compile(re.escape(at) + r"(2|4|8|13|14|15)$")
    return sum(int(value) for name, value in stats.items() if codes.match(name))
