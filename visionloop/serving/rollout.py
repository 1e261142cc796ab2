"""Is a step of the canary good enough to go on? Pure: evidence and policy in, outcome and reason out."""

from dataclasses import dataclass
from math import ceil
from typing import Literal

from visionloop.project import Release as Policy
from visionloop.records import LaneEvidence

LATENCY_NOISE_MS = 20.0
"""On a shared machine p95 moves by this much from one moment to the next: smaller differences say nothing."""
PROBES_FOR_LATENCY = 20
"""Fewer probes have no p95 to compare with."""


@dataclass(frozen=True)
class Verdict:
    """Of one step."""

    outcome: Literal["passed", "failed"]
    reason: str


def judge(canary: LaneEvidence, stable: LaneEvidence | None, policy: Policy) -> Verdict:
    """Errors first, then whether it was asked often enough, then answers, then latency; the first fault decides.

    `stable` is None at the first release, when there is nothing to compare with.
    """
    found = (
        _errors(canary, policy)
        or _too_few(canary, policy)
        or _disagreements(canary, policy)
        or _latency(canary, stable, policy)
    )
    if found:
        return Verdict("failed", found)
    slow = f", p95 {canary.latency_p95_ms:.1f} ms" + (f" against {stable.latency_p95_ms:.1f} ms" if stable else "")
    return Verdict(
        "passed",
        f"{canary.requests} requests, {canary.errors} errors, "
        f"{canary.disagreements} of {canary.probes} probes answered otherwise{slow}",
    )


def is_hopeless(errors: int, policy: Policy) -> bool:
    """More errors than a full step may have: no need to send the rest of the probes."""
    return errors > ceil(policy.max_error_rate * policy.step_requests) + 1


def most_probes(percent: int, policy: Policy) -> int:
    """Probes after which a canary at this weight should long have had its share: three times the expected number."""
    return ceil(3 * policy.step_requests * 100 / percent) + 100


def _errors(canary: LaneEvidence, policy: Policy) -> str | None:
    rate = canary.errors / canary.requests if canary.requests else 0.0
    if rate <= policy.max_error_rate:
        return None
    return f"the canary failed {canary.errors} of {canary.requests} requests, allowed {policy.max_error_rate:.1%}"


def _too_few(canary: LaneEvidence, policy: Policy) -> str | None:
    if canary.probes >= policy.step_requests:
        return None
    return f"the canary answered {canary.probes} probes, expected {policy.step_requests}: it is not well"


def _disagreements(canary: LaneEvidence, policy: Policy) -> str | None:
    if canary.disagreements / canary.probes <= policy.max_disagreement:
        return None
    return (
        f"{canary.disagreements} of {canary.probes} answers of the canary differ from those recorded offline, "
        f"allowed {policy.max_disagreement:.1%}"
    )


def _latency(canary: LaneEvidence, stable: LaneEvidence | None, policy: Policy) -> str | None:
    if stable is None or stable.probes < PROBES_FOR_LATENCY:
        return None
    limit = max(stable.latency_p95_ms * policy.max_latency_ratio, stable.latency_p95_ms + LATENCY_NOISE_MS)
    if canary.latency_p95_ms <= limit:
        return None
    return (
        f"p95 of the canary is {canary.latency_p95_ms:.1f} ms, of the stable lane {stable.latency_p95_ms:.1f} ms, "
        f"allowed {limit:.1f} ms"
    )
