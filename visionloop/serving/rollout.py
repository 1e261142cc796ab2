"""What is a canary's next move? Pure: recorded evidence, people's orders and the policy in; a move and its reason out.

Four rates are held against what the policy allows: requests that failed, answers that differ from those recorded
offline, probes that were slow, captured answers to clients that were unsure. Each is tested on all evidence since the
canary began (`sequential`), so that looking after every few requests costs no false alarm: a canary that is as good as
allowed is rolled back with probability at most `false_alarm_rate` (shared out among the four), one that is worse in any
of the first three is promoted with probability at most `miss_rate`. What cannot be told apart after `max_probes` is
rolled back; how sure the answers to clients are can end a canary, and holds none up, since there may be few clients. An
answer of NaN is a failed request. A server process that died, memory above its bound and a leak (`memory`) end it at
once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from statistics import median
from typing import Literal

from visionloop.project import Release as Policy
from visionloop.records import CanaryStep, LaneEvidence, LaneName, LiveAnswers, RolloutState
from visionloop.serving.memory import died, ill
from visionloop.serving.sequential import Finding, Rate, compare

LATENCY_NOISE_MS = 20.0
"""On a shared machine p95 moves by this much from one moment to the next: smaller differences say nothing."""
BATCH_NOISE_MS = 2.0
"""Smaller differences of medians say nothing."""
UNDER_WAY = 20
METRICS = 4
UNSURE = 0.5
"""An answer below this confidence is unsure: no class has more than half of it."""


@dataclass(frozen=True)
class Move:
    """What comes next, and why."""

    kind: Literal["step", "look", "wait", "promote", "roll_back"]
    """`step`: begin the next one; `look`: gather more evidence; `wait`: somebody paused it."""
    percent: int
    """Weight of the canary lane meanwhile, 0 before the first step."""
    reason: str


@dataclass(frozen=True)
class Measured:
    """One of the rates, and what the test says of it."""

    name: str
    canary: Rate
    stable: Rate | None
    allowed: float
    finding: Finding
    reason: str
    """Why it is worse; empty where it is not."""
    needed: bool = True
    """Has it to be shown to be fine before a promotion?"""


def decide(state: RolloutState, percents: Sequence[int], policy: Policy) -> Move:
    """The next move of a rollout in its canary phase. Faults come first, then orders, then whether there is enough."""
    steps = state.steps
    percent = steps[-1].canary_percent if steps else 0
    found = measure(steps, policy, state.live)
    fault = died(state.memory) or next((one.reason for one in found if one.finding == "worse"), None)
    fault = fault or next((step.reason for step in steps if step.outcome == "failed"), None)
    fault = fault or ill(state.memory, policy)
    if fault:
        return Move("roll_back", percent, fault)
    order = state.orders[-1] if state.orders else None
    if order and order.verb == "promote":
        return Move("promote", percent, f"by {order.by}: {order.reason}")
    if order and order.verb == "pause":
        return Move("wait", percent, f"paused at {percent} % by {order.by}: {order.reason}")
    if steps and not _is_full(steps[-1], policy):
        return Move("look", percent, "the step is not full")
    if len(steps) < len(percents):
        return Move("step", percents[len(steps)], describe(steps) if steps else "the first step")
    return _last(found, steps, percent, policy)


def measure(steps: Sequence[CanaryStep], policy: Policy, live: LiveAnswers | None = None) -> list[Measured]:
    """The rates over all steps; the last one only where answers to clients were captured in both lanes."""
    canary, stable = total(steps, "canary"), total(steps, "stable")
    beside = bool(stable.requests)
    return [
        _tested(
            f"requests failed ({canary.not_finite} with NaN or infinity)" if canary.not_finite else "requests failed",
            _rate(canary.errors, canary.requests),
            _rate(stable.errors, stable.requests) if beside else None,
            policy.max_error_rate,
            policy,
        ),
        _tested(
            "answers differ from those recorded offline",
            _rate(canary.disagreements, canary.probes),
            None,
            policy.max_disagreement,
            policy,
        ),
        _tested(
            "probes were slow",
            _rate(canary.slow, canary.probes),
            _rate(stable.slow, stable.probes) if beside else None,
            policy.max_slow_share,
            policy,
        ),
        *([_sure(live, policy)] if live and live.canary and live.stable else []),
    ]


def _sure(live: LiveAnswers, policy: Policy) -> Measured:
    canary, stable = _rate(live.canary_unsure, live.canary), _rate(live.stable_unsure, live.stable)
    found = _tested("answers to clients were unsure", canary, stable, policy.max_unsure, policy)
    return replace(found, needed=False)


def total(steps: Iterable[CanaryStep], lane: LaneName) -> LaneEvidence:
    """What a lane did in all steps; latencies are the last step's."""
    summed = LaneEvidence(lane=lane)
    for step in steps:
        for seen in step.lanes:
            if seen.lane == lane:
                summed = add(summed, seen)
    return summed


def add(before: LaneEvidence, seen: LaneEvidence) -> LaneEvidence:
    """Counts together; latencies of the newer one, where it has any."""
    newer = seen if seen.latency_p95_ms else before
    return LaneEvidence(
        lane=before.lane,
        requests=before.requests + seen.requests,
        errors=before.errors + seen.errors,
        probes=before.probes + seen.probes,
        disagreements=before.disagreements + seen.disagreements,
        not_finite=before.not_finite + seen.not_finite,
        slow=before.slow + seen.slow,
        latency_p50_ms=newer.latency_p50_ms,
        latency_p95_ms=newer.latency_p95_ms,
    )


def describe(steps: Sequence[CanaryStep]) -> str:
    """The evidence in one line."""
    canary, stable = total(steps, "canary"), total(steps, "stable")
    beside = f" against {stable.latency_p95_ms:.1f} ms" if stable.probes else ""
    return (
        f"{canary.requests} requests, {canary.errors} errors, "
        f"{canary.disagreements} of {canary.probes} probes answered otherwise, "
        f"p95 {canary.latency_p95_ms:.1f} ms{beside}"
    )


def slow_limit_ms(stable_p95_ms: float, policy: Policy) -> float:
    """A probe that takes longer is slow. Fixed before the canary gets any traffic."""
    return max(stable_p95_ms * policy.max_latency_ratio, stable_p95_ms + LATENCY_NOISE_MS)


def too_slow(canary_ms: Sequence[float], stable_ms: Sequence[float], policy: Policy) -> str | None:
    """Why the canary is too slow, from times of the same batch taken in turns; None when it is not.

    Medians: what else runs on the machine hits single times of both.
    """
    canary, stable = median(canary_ms), median(stable_ms)
    if canary <= max(policy.max_latency_ratio * stable, stable + BATCH_NOISE_MS):
        return None
    return (
        f"the canary takes {canary:.1f} ms for a batch, the stable lane {stable:.1f} ms: {canary / stable:.1f} times, "
        f"allowed {policy.max_latency_ratio:.1f}"
    )


def is_hopeless(errors: int, requests: int, policy: Policy) -> bool:
    """So many errors in a look that no more probes need to be sent.

    An error is counted at once and its request when it is over: those on their way are taken for good ones.
    """
    return held_against(_rate(errors, requests + UNDER_WAY), None, policy.max_error_rate, policy) == "worse"


def most_probes(percent: int, wanted: int) -> int:
    """Probes after which a canary at this weight should long have had its share: three times the expected number."""
    return ceil(3 * wanted * 100 / percent) + 100


def _last(found: list[Measured], steps: Sequence[CanaryStep], percent: int, policy: Policy) -> Move:
    """All steps are full: enough to promote, to give up, or not yet."""
    unproven = [one for one in found if one.finding == "open" and one.needed]
    if not unproven:
        return Move("promote", percent, describe(steps))
    shown = ", ".join(f"{one.name} {one.canary.events} of {one.canary.trials}" for one in unproven)
    canary = total(steps, "canary")
    if canary.probes + canary.errors >= policy.max_probes:
        text = f"after {policy.max_probes} probes it is not shown to be as good as allowed: {shown}"
        return Move("roll_back", percent, text)
    return Move("look", percent, f"not known well enough yet: {shown}")


def _is_full(step: CanaryStep, policy: Policy) -> bool:
    return total([step], "canary").probes >= policy.step_requests


def _tested(name: str, canary: Rate, stable: Rate | None, allowed: float, policy: Policy) -> Measured:
    finding = held_against(canary, stable, allowed, policy)
    return Measured(name, canary, stable, allowed, finding, _why(name, canary, stable, allowed, policy))


def _why(name: str, canary: Rate, stable: Rate | None, allowed: float, policy: Policy) -> str:
    beside = f" more than the {stable.events} of {stable.trials} of the stable lane" if stable else ""
    low, _ = canary.bounds(policy.false_alarm_rate / METRICS)
    return (
        f"{canary.events} of {canary.trials} of the canary's {name}, allowed {allowed:.1%}{beside} "
        f"(its rate is at least {low:.1%})"
    )


def held_against(canary: Rate, stable: Rate | None, allowed: float, policy: Policy) -> Finding:
    """One of METRICS rates. A false alarm of any ends the release, so they share; a miss takes that all miss."""
    return compare(canary, stable, margin=allowed, false_alarm=policy.false_alarm_rate / METRICS, miss=policy.miss_rate)


def _rate(events: int, trials: int) -> Rate:
    """A request that failed at both tries is counted twice by the endpoint, and one on its way not yet."""
    return Rate(events, max(events, trials))
