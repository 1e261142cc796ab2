"""The canary: a growing share of the traffic goes to the candidate, and what it does is judged as it comes in."""

import logging
import time

from visionloop.errors import StoreError
from visionloop.project import Project
from visionloop.records import CanaryStep, Candidate, LaneEvidence, LaneName, LiveAnswers, Release, RolloutState
from visionloop.serving.client import Client, open_client
from visionloop.serving.golden import Golden, read_golden
from visionloop.serving.lane_stats import LaneCount
from visionloop.serving.probes import Tally, send_probes, time_probes
from visionloop.serving.rollout import Move, add, decide, describe, is_hopeless, most_probes, slow_limit_ms
from visionloop.stages.release.ending import end, finished
from visionloop.stages.release.inputs import Inputs
from visionloop.stages.release.live import Live, begin
from visionloop.stages.release.rollout import Rollout, open_rollout
from visionloop.stages.release.vitals import Vitals
from visionloop.stores import Stores
from visionloop.stores.packaged import GOLDEN, read_packaged
from visionloop.stores.triton import ModelRefused

log = logging.getLogger(__name__)

LANES: tuple[LaneName, LaneName] = ("stable", "canary")
FIRST_RELEASE_PERCENT = [100]
"""Nothing serves yet that a smaller share could be compared with."""
LOOK_PROBES = 100
"""Answers of the canary between two looks at the evidence."""
TIMED_PROBES = 60
ANSWER_SECONDS = 2.0
READING_SECONDS = 0.5
ASK_AGAIN_SECONDS, PASSED_BY_TIMES = 2.0, 10
"""A canary that answers when asked directly is waited for so long, so often, and asked again in between."""
WELL_SECONDS = 4.0
"""One that does not answer in time has so long: the endpoint checks it every second."""
WATCH_SECONDS = 1.0
"""How often a paused canary is looked at."""
SPEAK_EVERY_SECONDS = 60.0


def canary(project: Project, inputs: Inputs, stores: Stores) -> RolloutState | Release:
    """Go on until the canary is promoted or rolled back; the stable lane never stops serving meanwhile."""
    rollout = open_rollout(project, inputs, stores)
    done = finished(rollout)
    if done:
        return done
    state = rollout.require("canary", "promoting")
    if state.phase == "promoting":
        return state
    percents = project.release.canary_percent if rollout.serving() else FIRST_RELEASE_PERCENT
    goldens = _goldens(rollout)
    with open_client(stores.settings, project) as client:
        state = _time_stable(rollout, state, client, goldens)
        if state.live is None and not state.steps:
            state = rollout.advance(live=begin(rollout))
        look = _Look(rollout, client, goldens, Live(rollout, state.live.since) if state.live else None)
        while True:
            move = decide(state, percents, project.release)
            if move.kind == "roll_back":
                rollout.advance(steps=[*state.steps[:-1], *(_failed(one, move.reason) for one in state.steps[-1:])])
                return end(rollout, "rolled_back", f"at {move.percent} %: {move.reason}")
            if move.kind == "promote":
                return rollout.advance(phase="promoting", steps=_closed(state.steps))
            state = _went_on(rollout, state, look, move)


class _Look:
    """Gathers evidence through the endpoint: the loop's own probes, and the endpoint's counts of all traffic."""

    def __init__(self, rollout: Rollout, client: Client, goldens: dict[str, Golden], live: Live | None) -> None:
        self._rollout, self._client, self._goldens, self._live = rollout, client, goldens, live
        self._name, self._routes = rollout.project.name, rollout.stores.routes
        self._policy = rollout.project.release
        self._spoke = 0.0
        self._silence = ""
        self.vitals = Vitals(rollout, patience_seconds=READING_SECONDS)

    def probe(self, step: CanaryStep, *, slow_ms: float | None) -> CanaryStep:
        """The step with the evidence of some more probes; failed when the canary does not answer them."""
        wanted = min(LOOK_PROBES, self._policy.step_requests)
        if not self._is_well():
            self.vitals.look()  # another project's candidate may have ended the lane meanwhile: that is no verdict
            return _failed(step, f"the canary lane fails the endpoint's checks{self._silence}")
        before, gave_up = self._routes.lane_stats(self._name), False

        def give_up(faults: int) -> bool:
            nonlocal gave_up
            gave_up = self.vitals.look() is not None or self._is_hopeless(before, faults)
            return gave_up

        tallies = send_probes(
            self._client,
            self._goldens,
            wanted=wanted,
            most=most_probes(step.canary_percent, wanted),
            give_up=give_up,
            is_well=self._is_well,
        )
        after = self._routes.lane_stats(self._name)
        seen = _with(step, before, after, tallies, slow_ms)
        self.vitals.look()
        found = tallies["canary"]
        if found.probes < wanted and not gave_up:
            few = f"the canary answered {found.probes} probes, expected {wanted}: it is not well"
            return _failed(seen, few + self._silence)
        return seen

    def watch(self, step: CanaryStep) -> CanaryStep:
        """The step with what the live traffic shows in a moment."""
        before = self._routes.lane_stats(self._name)
        time.sleep(WATCH_SECONDS)
        self.vitals.look()
        return _with(step, before, self._routes.lane_stats(self._name), {}, None)

    def answers(self) -> LiveAnswers | None:
        """What clients were answered since the canary began."""
        return self._live.look() if self._live else None

    def speak(self, text: str) -> None:
        """Log it, unless that was done just now."""
        if time.monotonic() - self._spoke > SPEAK_EVERY_SECONDS:
            self._spoke = time.monotonic()
            log.info("canary of %s: %s", self._name, text)

    def _is_well(self) -> bool:
        """Does the endpoint send requests to the canary? One that it passes by is asked directly meanwhile."""
        if self.vitals.look():
            return False
        if self._routes.wait_healthy(self._name, "canary", seconds=0):
            return True
        for _ in range(PASSED_BY_TIMES):
            began = time.monotonic()
            patience = self._patience_seconds()
            if patience is not None:
                left = max(0.0, began + patience - time.monotonic())
                return self._routes.wait_healthy(self._name, "canary", seconds=left)
            if self._routes.wait_healthy(self._name, "canary", seconds=ASK_AGAIN_SECONDS):
                return True
        return False

    def _patience_seconds(self) -> float | None:
        """How long one that does not answer is waited for, not at all where its model fails; None: it answers."""
        version, image = self._rollout.candidate.version, self._goldens["canary"].images[:1]
        try:
            self._rollout.stores.canary.infer(self._name, image, version=version, deadline_seconds=ANSWER_SECONDS)
        except (StoreError, ModelRefused) as error:
            self._silence = f": {error}"
            return WELL_SECONDS if isinstance(error, StoreError) else 0.0
        log.info("%s: the endpoint passes the canary by, which answers when asked directly", self._name)
        return None

    def _is_hopeless(self, before: dict[str, LaneCount], faults: int) -> bool:
        """Also for errors that nobody saw, since the stable lane answered instead."""
        count = self._routes.lane_stats(self._name)["canary"].since(before["canary"])
        return is_hopeless(max(faults, count.errors), count.requests, self._policy)


def _went_on(rollout: Rollout, state: RolloutState, look: _Look, move: Move) -> RolloutState:
    """The state after this move."""
    steps = state.steps
    if move.kind == "wait":
        look.speak(move.reason)
        watched = [*steps[:-1], look.watch(steps[-1])] if steps else steps
        if not steps:
            time.sleep(WATCH_SECONDS)
        live = look.answers()
        if watched == steps and live == state.live and not look.vitals.fault:
            return rollout.mine()
        return rollout.advance(steps=watched, memory=look.vitals.readings, live=live)
    if move.kind == "step":
        log.info("canary of %s gets %d %%: %s", rollout.project.name, move.percent, move.reason)
        begun = CanaryStep(canary_percent=move.percent, lanes=[], outcome="open", reason="just begun")
        steps = [*_closed(steps), begun]
        rollout.advance(canary_percent=move.percent, steps=steps)
    rollout.route(canary=move.percent)
    probed = look.probe(steps[-1], slow_ms=state.slow_ms)
    return rollout.advance(steps=[*steps[:-1], probed], memory=look.vitals.readings, live=look.answers())


def _time_stable(rollout: Rollout, state: RolloutState, client: Client, goldens: dict[str, Golden]) -> RolloutState:
    """Fix what counts as slow, once, before the canary has any traffic."""
    if "stable" not in goldens or state.slow_ms is not None or state.steps:
        return state
    stable = time_probes(client, goldens, TIMED_PROBES)
    if stable.probes < TIMED_PROBES / 2:
        # With no times every canary would be slow.
        raise StoreError(f"the stable lane answered {stable.probes} of {TIMED_PROBES} probes: it is not well")
    limit = slow_limit_ms(stable.percentile_ms(95), rollout.project.release)
    log.info("%s: p95 is %.1f ms, slow is above %.1f ms", rollout.project.name, stable.percentile_ms(95), limit)
    return rollout.advance(slow_ms=limit)


def _with(
    step: CanaryStep,
    before: dict[str, LaneCount],
    after: dict[str, LaneCount],
    tallies: dict[str, Tally],
    slow_ms: float | None,
) -> CanaryStep:
    """The step with more evidence."""
    lanes: list[LaneEvidence] = []
    for lane in LANES:
        seen = _evidence(lane, tallies.get(lane, Tally()), after[lane].since(before[lane]), slow_ms)
        known = next((one for one in step.lanes if one.lane == lane), LaneEvidence(lane=lane))
        lanes.append(add(known, seen))
    grown = step.model_copy(update={"lanes": lanes})
    return grown.model_copy(update={"reason": describe([grown])})


def _evidence(lane: LaneName, tally: Tally, count: LaneCount, slow_ms: float | None) -> LaneEvidence:
    """The endpoint counts live traffic and probes; a restarted endpoint counts less than the probes that were sent."""
    return LaneEvidence(
        lane=lane,
        requests=max(count.requests, tally.probes + tally.errors),
        errors=max(count.errors, tally.errors) + tally.not_finite,
        probes=tally.probes,
        disagreements=tally.disagreements,
        not_finite=tally.not_finite,
        slow=sum(ms > slow_ms for ms in tally.latencies_ms) if slow_ms is not None else 0,
        latency_p50_ms=tally.percentile_ms(50),
        latency_p95_ms=tally.percentile_ms(95),
    )


def _failed(step: CanaryStep, reason: str) -> CanaryStep:
    return step.model_copy(update={"outcome": "failed", "reason": reason})


def _closed(steps: list[CanaryStep]) -> list[CanaryStep]:
    """An open step that is left behind has passed."""
    return [step.model_copy(update={"outcome": "passed"}) if step.outcome == "open" else step for step in steps]


def _goldens(rollout: Rollout) -> dict[str, Golden]:
    """Each lane's own golden samples."""
    stores, serving = rollout.stores, rollout.serving()
    goldens = {"canary": _golden(rollout.candidate, stores)}
    if serving:
        champion = stores.ledger.get(Candidate, serving.candidate)
        goldens["stable"] = _golden(champion, stores)
    return goldens


def _golden(candidate: Candidate, stores: Stores) -> Golden:
    return read_golden(read_packaged(candidate, stores, GOLDEN)[GOLDEN])
