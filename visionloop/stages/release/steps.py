"""The canary: a growing share of the traffic goes to the candidate, and each step is judged before the next."""

import logging

from visionloop.project import Project
from visionloop.records import CanaryStep, Candidate, LaneEvidence, Release, RolloutState
from visionloop.serving.client import open_client
from visionloop.serving.golden import Golden, read_golden
from visionloop.serving.lane_stats import LaneCount
from visionloop.serving.probes import Tally, send_probes
from visionloop.serving.rollout import Verdict, is_hopeless, judge, most_probes
from visionloop.stages.release.inputs import Inputs
from visionloop.stages.release.loading import GOLDEN, fetch
from visionloop.stages.release.rollout import Rollout, open_rollout
from visionloop.stores import Stores

log = logging.getLogger(__name__)

FIRST_RELEASE_PERCENT = [100]
"""Nothing serves yet that a smaller share could be compared with."""


def canary(project: Project, inputs: Inputs, stores: Stores) -> RolloutState | Release:
    """Go through the steps that are left; a failed one ends the release, and the stable lane never stopped serving."""
    rollout = open_rollout(project, inputs, stores)
    done = rollout.finished()
    if done:
        return done
    state = rollout.require("canary", "promoting")
    percents = project.release.canary_percent if rollout.serving() else FIRST_RELEASE_PERCENT
    goldens = _goldens(rollout)
    while True:
        failed = next((step for step in state.steps if step.outcome == "failed"), None)
        if failed:
            return rollout.end("rolled_back", f"at {failed.canary_percent} %: {failed.reason}")
        if len(state.steps) >= len(percents):
            return rollout.advance(phase="promoting", canary_percent=percents[-1])
        percent = percents[len(state.steps)]
        state = rollout.advance(canary_percent=percent)  # before the weights: a release that was taken over sets none
        step = _step(rollout, percent, goldens)
        log.info("canary of %s at %d %%: %s, %s", project.name, percent, step.outcome, step.reason)
        state = rollout.advance(steps=[*state.steps, step])


def _step(rollout: Rollout, percent: int, goldens: dict[str, Golden]) -> CanaryStep:
    project, routes, policy = rollout.project, rollout.stores.routes, rollout.project.release
    routes.set(project, stable=100 - percent, canary=percent)
    if not routes.wait_healthy(project.name, "canary"):
        return CanaryStep(
            canary_percent=percent, lanes=[], outcome="failed", reason="the canary lane fails the endpoint's checks"
        )
    before = routes.lane_stats(project.name)
    with open_client(rollout.stores.settings, project) as client:
        tallies = send_probes(
            client,
            goldens,
            wanted=policy.step_requests,
            most=most_probes(percent, policy),
            give_up=lambda errors: is_hopeless(max(errors, _errors_since(rollout, before)), policy),
            is_well=lambda: routes.wait_healthy(project.name, "canary"),
        )
    after = routes.lane_stats(project.name)
    seen = {lane: _evidence(lane, tallies[lane], after[lane].since(before[lane])) for lane in tallies}
    verdict: Verdict = judge(seen["canary"], seen["stable"] if percent < 100 else None, policy)
    lanes = [seen["stable"], seen["canary"]]
    return CanaryStep(canary_percent=percent, lanes=lanes, outcome=verdict.outcome, reason=verdict.reason)


def _errors_since(rollout: Rollout, before: dict[str, LaneCount]) -> int:
    """Errors of the canary that the endpoint counted, also those that nobody saw: the stable lane answered instead."""
    now = rollout.stores.routes.lane_stats(rollout.project.name)
    return now["canary"].since(before["canary"]).errors


def _evidence(lane: str, tally: Tally, count: LaneCount) -> LaneEvidence:
    """The endpoint counts live traffic and probes; a restarted endpoint counts less than the probes that were sent."""
    return LaneEvidence(
        lane="canary" if lane == "canary" else "stable",
        requests=max(count.requests, tally.probes + tally.errors),
        errors=max(count.errors, tally.errors),
        probes=tally.probes,
        disagreements=tally.disagreements,
        latency_p50_ms=tally.percentile_ms(50),
        latency_p95_ms=tally.percentile_ms(95),
    )


def _goldens(rollout: Rollout) -> dict[str, Golden]:
    """Each lane's own golden samples."""
    stores, serving = rollout.stores, rollout.serving()
    goldens = {"canary": read_golden(fetch(rollout.candidate, GOLDEN, stores))}
    if serving:
        champion = stores.ledger.get(Candidate, serving.candidate)
        goldens["stable"] = read_golden(fetch(champion, GOLDEN, stores))
    return goldens
