"""A canary's next move: both sides of each bound, faults before orders, and a machine that always comes to an end."""

import re
from datetime import UTC, datetime
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from visionloop.project import Release as Policy
from visionloop.records import CanaryStep, LaneEvidence, LiveAnswers, MemoryReading, Order, RolloutState
from visionloop.serving.rollout import (
    LATENCY_NOISE_MS,
    add,
    decide,
    describe,
    is_hopeless,
    measure,
    most_probes,
    slow_limit_ms,
    too_slow,
    total,
)

POLICY = Policy(
    approval="automatic",
    step_requests=100,
    max_error_rate=0.02,
    max_disagreement=0.05,
    max_slow_share=0.1,
    max_probes=2_000,
)
PERCENTS = [10, 50]
WELL = {"requests": 400, "probes": 300, "latency_p50_ms": 5.0, "latency_p95_ms": 10.0}


def canary(**changes: float) -> LaneEvidence:
    """A lane that is well, with enough evidence to say so."""
    return LaneEvidence.model_validate({"lane": "canary", **WELL, **changes})


def stable(**changes: float) -> LaneEvidence:
    return LaneEvidence.model_validate({"lane": "stable", **WELL, **changes})


def step(*lanes: LaneEvidence, percent: int = 50, **changes: Any) -> CanaryStep:
    shown = {"canary_percent": percent, "lanes": list(lanes), "outcome": "open", "reason": "r", **changes}
    return CanaryStep.model_validate(shown)


def state(*steps: CanaryStep, orders: list[str] | None = None) -> RolloutState:
    given = [Order(verb=verb, by="ann", reason="so be it") for verb in orders or []]  # type: ignore[arg-type]
    return RolloutState(candidate="c", approval="a", phase="canary", steps=list(steps), orders=given)


def live(**counts: int) -> LiveAnswers:
    return LiveAnswers(since=datetime(2026, 1, 1, tzinfo=UTC), **counts)


FIRST = step(stable(), canary(), percent=10, outcome="passed")


# --- answers to clients


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        (live(canary=300, canary_unsure=150, stable=3_000, stable_unsure=60), "roll_back"),
        (live(canary=300, canary_unsure=70, stable=3_000, stable_unsure=600), "promote"),
        (live(canary=3, canary_unsure=3, stable=30, stable_unsure=0), "promote"),  # few clients hold nothing up
        (live(canary=300, canary_unsure=300), "promote"),  # nothing to hold it against
        (None, "promote"),
    ],
)
def test_a_canary_that_is_much_less_sure_than_the_stable_lane_goes(seen: LiveAnswers | None, kind: str) -> None:
    well = state(FIRST, step(stable(), canary())).model_copy(update={"live": seen})
    move = decide(well, PERCENTS, POLICY)
    assert move.kind == kind
    if kind == "roll_back":
        assert move.reason.startswith(
            "150 of 300 of the canary's answers to clients were unsure, allowed 20.0% more than the 60 of 3000 of the"
        )


# --- the way through


def test_the_first_move_is_the_first_step() -> None:
    move = decide(state(), PERCENTS, POLICY)
    assert (move.kind, move.percent) == ("step", 10)


@pytest.mark.parametrize(("probes", "kind", "percent"), [(99, "look", 10), (100, "step", 50)])
def test_a_step_is_full_when_the_canary_answered_enough_probes(probes: int, kind: str, percent: int) -> None:
    move = decide(state(step(stable(), canary(probes=probes), percent=10)), PERCENTS, POLICY)
    assert (move.kind, move.percent) == (kind, percent)


def test_after_the_last_step_a_canary_that_is_well_is_promoted() -> None:
    move = decide(state(FIRST, step(stable(), canary(errors=1, disagreements=2))), PERCENTS, POLICY)
    assert (move.kind, move.percent) == ("promote", 50)
    assert move.reason == "800 requests, 1 errors, 2 of 600 probes answered otherwise, p95 10.0 ms against 10.0 ms"


def test_evidence_of_all_steps_counts_together() -> None:
    """100 probes show nothing about 2 % of errors; 100 and 300 do."""
    alone = step(canary(probes=100, requests=100))
    move = decide(state(alone), [50], POLICY)
    assert (move.kind, move.reason) == ("look", "not known well enough yet: requests failed 0 of 100")
    assert decide(state(FIRST, alone), PERCENTS, POLICY).kind == "promote"


# --- what ends it


@pytest.mark.parametrize(
    ("well", "unwell", "says"),
    [
        ({"errors": 11}, {"errors": 40}, "40 of 400 of the canary's requests failed, allowed 2.0% more than the 0 of"),
        (
            {"disagreements": 20},
            {"disagreements": 40},
            "40 of 300 of the canary's answers differ from those recorded offline, allowed 5.0% .its rate is at least",
        ),
        (
            {"slow": 40},
            {"slow": 80},
            "80 of 300 of the canary's probes were slow, allowed 10.0% more than the 0 of",
        ),
    ],
)
def test_each_rate_has_two_sides(well: dict[str, float], unwell: dict[str, float], says: str) -> None:
    assert decide(state(step(stable(), canary(**well))), [50], POLICY).kind == "look"
    move = decide(state(step(stable(), canary(**unwell))), [50], POLICY)
    assert move.kind == "roll_back"
    assert re.search(says, move.reason), move.reason


@pytest.mark.parametrize(("errors", "kind"), [(40, "look"), (0, "roll_back")])
def test_what_the_stable_lane_does_too_is_not_the_canarys_fault(errors: int, kind: str) -> None:
    found = state(step(stable(errors=errors), canary(errors=40)))
    assert decide(found, [50], POLICY).kind == kind


@pytest.mark.parametrize(("probes", "kind"), [(1_999, "look"), (2_000, "roll_back")])
def test_what_cannot_be_told_apart_is_rolled_back_in_the_end(probes: int, kind: str) -> None:
    found = state(step(canary(probes=probes, requests=2_000, disagreements=int(probes * 0.05))))
    move = decide(found, [50], POLICY)
    assert move.kind == kind
    assert "answers differ from those recorded offline" in move.reason


def test_a_failed_step_ends_it_with_its_reason() -> None:
    ill = step(percent=10, outcome="failed", reason="the canary lane fails the endpoint's checks")
    move = decide(state(ill), PERCENTS, POLICY)
    assert (move.kind, move.percent, move.reason) == ("roll_back", 10, "the canary lane fails the endpoint's checks")


READINGS = [  # before, loaded, answering
    MemoryReading(requests=requests, server_bytes=40 << 20, model_bytes=mib << 20, processes=int(mib > 0))
    for requests, mib in ((0, 0), (10, 60), (20, 60), (30, 60))
]


@pytest.mark.parametrize(
    ("newest", "kind", "says"),
    [
        (READINGS[-1].model_copy(update={"requests": 40}), "promote", ""),
        (
            MemoryReading(requests=40, server_bytes=40 << 20, model_bytes=0, processes=0),
            "roll_back",
            "the canary's server process died: it had been asked 40 times",
        ),
        (
            READINGS[-1].model_copy(update={"requests": 40, "model_bytes": 3 << 30}),
            "roll_back",
            "the candidate needs 3072 MiB in the canary lane (60 MiB once loaded), allowed 2048 MiB",
        ),
    ],
)
def test_what_its_memory_shows_ends_it(newest: MemoryReading, kind: str, says: str) -> None:
    well = state(FIRST, step(stable(), canary()))
    move = decide(well.model_copy(update={"memory": [*READINGS, newest]}), PERCENTS, POLICY)
    assert move.kind == kind
    assert says in move.reason


def test_a_death_is_said_before_the_failed_requests_that_it_caused() -> None:
    dead = MemoryReading(requests=40, server_bytes=40 << 20, model_bytes=0, processes=0)
    ill = state(step(stable(), canary(errors=200))).model_copy(update={"memory": [*READINGS, dead]})
    assert decide(ill, PERCENTS, POLICY).reason.startswith("the canary's server process died")


def test_answers_of_nan_are_failed_requests_and_named() -> None:
    ill = step(stable(), canary(errors=40, not_finite=35))
    move = decide(state(ill), PERCENTS, POLICY)
    assert move.kind == "roll_back"
    assert "40 of 400 of the canary's requests failed (35 with NaN or infinity), allowed 2.0%" in move.reason


def test_without_a_stable_lane_there_is_no_latency_to_compare_with() -> None:
    errors, answers, latency = measure([step(canary(slow=0))], POLICY)
    assert (errors.stable, answers.stable, latency.stable) == (None, None, None)


# --- orders


@pytest.mark.parametrize(
    ("orders", "kind"),
    [
        (["pause"], "wait"),
        (["pause", "resume"], "look"),
        (["pause", "resume", "pause"], "wait"),
        (["promote"], "promote"),
        (["pause", "promote"], "promote"),
    ],
)
def test_the_last_order_counts(orders: list[str], kind: str) -> None:
    assert decide(state(step(canary(probes=30, requests=30)), orders=orders), PERCENTS, POLICY).kind == kind


def test_the_reason_says_who_ordered_it() -> None:
    early = step(canary(probes=30, requests=30))
    assert decide(state(early, orders=["promote"]), PERCENTS, POLICY).reason == "by ann: so be it"
    assert decide(state(early, orders=["pause"]), PERCENTS, POLICY).reason == "paused at 50 % by ann: so be it"


@pytest.mark.parametrize("order", ["pause", "promote"])
def test_no_order_stands_above_a_fault(order: str) -> None:
    found = state(step(stable(), canary(errors=200)), orders=[order])
    assert decide(found, PERCENTS, POLICY).kind == "roll_back"


# --- the parts


def test_counts_add_up_and_the_newer_latency_stays() -> None:
    older = canary(errors=1, slow=2, disagreements=3, not_finite=1)
    newer = canary(latency_p50_ms=7.0, latency_p95_ms=20.0)
    both = add(older, newer)
    assert (both.requests, both.errors, both.probes, both.disagreements, both.slow) == (800, 1, 600, 3, 2)
    assert add(both, older).not_finite == 2
    assert (both.latency_p50_ms, both.latency_p95_ms) == (7.0, 20.0)
    assert add(older, LaneEvidence(lane="canary")) == older
    assert total([FIRST, FIRST], "stable").requests == 800


def test_a_first_release_is_described_without_a_stable_lane() -> None:
    assert describe([step(canary())]) == "400 requests, 0 errors, 0 of 300 probes answered otherwise, p95 10.0 ms"


@pytest.mark.parametrize(("p95", "limit"), [(2.0, 2.0 + LATENCY_NOISE_MS), (20.0, 40.0), (21.0, 42.0)])
def test_noise_is_no_latency(p95: float, limit: float) -> None:
    """Twice 2 ms is less than what a shared machine adds by itself."""
    assert slow_limit_ms(p95, POLICY) == limit


@pytest.mark.parametrize(
    ("canary_ms", "stable_ms", "slow"),
    [([20.0], [10.0], False), ([20.1], [10.0], True), ([2.9], [1.0], False), ([3.1], [1.0], True)],
)
def test_a_batch_may_take_twice_as_long_and_noise_is_no_difference(
    canary_ms: list[float], stable_ms: list[float], slow: bool
) -> None:
    reason = too_slow([*canary_ms, 0.0, 999.0], [*stable_ms, 0.0, 999.0], POLICY)
    assert bool(reason) is slow
    if slow:
        assert re.search(
            r"takes [\d.]+ ms for a batch, the stable lane [\d.]+ ms: [\d.]+ times, allowed 2.0", str(reason)
        )


@pytest.mark.parametrize(
    ("errors", "requests", "hopeless"), [(2, 0, False), (5, 20, False), (9, 20, True), (9, 0, True)]
)
def test_a_look_is_cut_short_when_the_errors_alone_say_so(errors: int, requests: int, hopeless: bool) -> None:
    assert is_hopeless(errors, requests, POLICY) is hopeless


@given(st.integers(1, 100), st.integers(1, 500))
def test_enough_probes_are_sent_for_the_share_to_be_reached(percent: int, wanted: int) -> None:
    expected = wanted * 100 / percent
    assert 3 * expected <= most_probes(percent, wanted) <= ceil(3 * expected) + 100


counts = st.integers(0, 300)
evidence = st.builds(
    lambda extra, errors, probes, wrong, slow: canary(
        requests=probes + errors + extra,
        errors=errors,
        probes=probes,
        disagreements=min(wrong, probes),
        slow=min(slow, probes),
    ),
    counts, st.integers(0, 40), counts, st.integers(0, 40), st.integers(0, 60),
)  # fmt: skip
ORDER = ("promote", "step", "look", "roll_back")


@given(evidence, st.none() | st.just(stable()), st.sampled_from(["errors", "disagreements", "slow"]))
def test_worse_evidence_never_gets_further(seen: LaneEvidence, beside: LaneEvidence | None, what: str) -> None:
    if getattr(seen, what) < (seen.requests if what == "errors" else seen.probes):
        worse = seen.model_copy(update={what: getattr(seen, what) + 1})
        moves = [decide(state(step(*filter(None, (beside, one)))), [50], POLICY).kind for one in (seen, worse)]
        assert ORDER.index(moves[1]) >= ORDER.index(moves[0])


# --- the machine


class Rollout(RuleBasedStateMachine):
    """A release as the stage drives it: moves are carried out, the lanes do what they like, people order things."""

    @initialize(percents=st.lists(st.integers(1, 100), min_size=1, max_size=3), errors=st.floats(0, 0.3))
    def begin(self, percents: list[int], errors: float) -> None:
        self.percents, self.errors = percents, errors
        self.state = RolloutState(candidate="c", approval="a", phase="canary")
        self.champion, self.weight, self.ended = 1, 0, ""
        self.looks = 0

    @precondition(lambda self: not self.ended)
    @rule(draw=st.floats(0, 1), probes=st.integers(50, 400))
    def go_on(self, draw: float, probes: int) -> None:
        move = decide(self.state, self.percents, POLICY)
        if move.kind == "promote":
            self.champion, self.weight, self.ended = 2, 0, "promoted"
        elif move.kind == "roll_back":
            self.weight, self.ended = 0, "rolled_back"
        elif move.kind != "wait":
            self._look(move.kind == "step", move.percent, int(draw * self.errors * probes), probes)

    @precondition(lambda self: not self.ended)
    @rule(verb=st.sampled_from(["pause", "resume", "promote"]))
    def order(self, verb: Any) -> None:
        self.state = self.state.model_copy(
            update={"orders": [*self.state.orders, Order(verb=verb, by="ann", reason="because")]}
        )

    @precondition(lambda self: not self.ended and self.state.steps)
    @rule()
    def canary_dies(self) -> None:
        last = self.state.steps[-1].model_copy(update={"outcome": "failed", "reason": "it is not well"})
        self._put([*self.state.steps[:-1], last])
        assert decide(self.state, self.percents, POLICY).kind == "roll_back"

    @precondition(lambda self: not self.ended)
    @rule()
    def process_dies(self) -> None:
        """Another one reads what was written."""
        self.state = RolloutState.model_validate_json(self.state.model_dump_json())

    @precondition(lambda self: self.ended)
    @rule()
    def nothing_more_happens(self) -> None:
        assert self.weight == 0

    @invariant()
    def the_old_version_serves_until_the_new_one_does(self) -> None:
        if self.__dict__.get("ended") != "promoted":
            assert self.__dict__.get("champion", 1) == 1

    @invariant()
    def the_weight_is_that_of_the_step(self) -> None:
        if self.__dict__.get("weight"):
            assert self.weight == self.percents[len(self.state.steps) - 1]

    def teardown(self) -> None:
        """Left alone, each comes to its end."""
        if "state" not in self.__dict__:
            return
        self.order("resume") if not self.ended else None
        while not self.ended:
            self.go_on(0.5, 200)
            assert self.looks < 200, self.state
        assert (self.champion == 2) == (self.ended == "promoted")
        assert self.weight == 0

    def _look(self, begins: bool, percent: int, errors: int, probes: int) -> None:
        self.looks += 1
        self.weight = percent
        steps = list(self.state.steps)
        if begins:
            steps.append(step(percent=percent))
        seen = LaneEvidence(lane="canary", requests=probes, errors=errors, probes=probes)
        known = total([steps[-1]], "canary")
        self._put([*steps[:-1], steps[-1].model_copy(update={"lanes": [add(known, seen)]})])

    def _put(self, steps: list[CanaryStep]) -> None:
        self.state = self.state.model_copy(update={"steps": steps})


TestRollout = Rollout.TestCase
TestRollout.settings = settings(max_examples=25, stateful_step_count=20)
