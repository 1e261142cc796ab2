"""Probes: held against the golden samples of the lane that answered, bounded in number, given up when hopeless."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from visionloop.serving.client import Answer, EndpointError
from visionloop.serving.golden import Golden
from visionloop.serving.probes import AT_ONCE, CHUNK, send_probes

RIGHT = np.array([0.9, 0.1], np.float32)
WRONG = np.array([0.1, 0.9], np.float32)


def golden(level: int, count: int = 3) -> Golden:
    return Golden(np.full((count, 2, 2, 1), level, np.uint8), np.stack([RIGHT] * count))


GOLDENS = {"canary": golden(2), "stable": golden(1)}


class Endpoint:
    """Every n-th request goes to the canary; each lane answers its own golden images right and the other's wrong."""

    def __init__(self, every: int = 2, **broken: str | None) -> None:
        self.every, self.broken = every, broken
        self.sent = 0
        self.largest = self._now = 0
        self._lock = threading.Lock()

    def predict(self, images: np.ndarray, *, probe: bool = False) -> list[Answer]:
        assert probe
        with self._lock:
            number = self.sent
            self.sent += 1
            self._now += 1
            self.largest = max(self.largest, self._now)
        lane = "canary" if number % self.every == 0 else "stable"
        try:
            if lane in self.broken:
                raise EndpointError("no", code="INTERNAL", lane=self.broken[lane])
            own = 2 if lane == "canary" else 1
            return [
                Answer("x", 0.9, RIGHT if image.mean() == own else WRONG, lane, 1, str(number), 5.0 + number % 2)
                for image in images
            ]
        finally:
            with self._lock:
                self._now -= 1


def never(errors: int) -> bool:
    return False


def always() -> bool:
    return True


def test_each_answer_is_held_against_its_lanes_own_golden_samples() -> None:
    client = Endpoint()
    tallies = send_probes(client, GOLDENS, wanted=50, most=1000, give_up=never, is_well=always)
    assert 50 <= tallies["canary"].probes <= 50 + CHUNK
    assert tallies["stable"].probes > 0
    assert [(t.errors, t.disagreements) for t in tallies.values()] == [(0, 0), (0, 0)]
    assert client.largest <= AT_ONCE
    assert 5.0 <= tallies["canary"].percentile_ms(50) <= 6.0


def test_the_time_of_a_lane_that_hung_is_not_the_others() -> None:
    """A frozen stable lane: the canary answers in its place, two seconds late."""

    class Frozen(Endpoint):
        def predict(self, images: np.ndarray, *, probe: bool = False) -> list[Answer]:
            found = super().predict(images, probe=probe)
            late = found[0].lane == "stable"
            mine = [RIGHT if image.mean() == 2 else WRONG for image in images]
            return [
                replace(one, lane="canary", probabilities=right, latency_ms=2_000.0, asked=2) if late else one
                for one, right in zip(found, mine, strict=True)
            ]

    tallies = send_probes(Frozen(), GOLDENS, wanted=50, most=1000, give_up=never, is_well=always)
    assert tallies["canary"].probes >= 50
    assert 0 < len(tallies["canary"].latencies_ms) < tallies["canary"].probes
    assert max(tallies["canary"].latencies_ms) < 10


def test_a_canary_with_another_models_answers_disagrees_every_time() -> None:
    tallies = send_probes(
        Endpoint(), {**GOLDENS, "canary": golden(3)}, wanted=20, most=1000, give_up=never, is_well=always
    )
    assert tallies["canary"].disagreements == tallies["canary"].probes >= 20
    assert tallies["stable"].disagreements == 0


def test_an_endpoint_that_is_away_is_nobodys_fault() -> None:
    class Away(Endpoint):
        def predict(self, images: np.ndarray, *, probe: bool = False) -> list[Answer]:
            found = super().predict(images, probe=probe)
            if self.sent % 3 == 0:
                raise EndpointError("connection refused", code="UNAVAILABLE", lane=None, refused=True)
            return found

    tallies = send_probes(Away(), GOLDENS, wanted=50, most=1000, give_up=never, is_well=always)
    assert [(tally.errors, tally.faults) for tally in tallies.values()] == [(0, 0), (0, 0)]
    assert tallies["canary"].probes >= 50


def test_an_answer_of_nan_counts_as_a_fault_and_not_as_another_answer() -> None:
    """Even where only the other lane's image is answered so: clients will send such images too."""

    class Sick(Endpoint):
        def predict(self, images: np.ndarray, *, probe: bool = False) -> list[Answer]:
            found = super().predict(images, probe=probe)
            if found[0].lane == "canary":
                nan = np.array([np.nan, 1.0], np.float32)
                answers = [nan if image.mean() == 1 else RIGHT for image in images]
                found = [replace(one, probabilities=row) for one, row in zip(found, answers, strict=True)]
            return found

    told = []
    tallies = send_probes(
        Sick(),
        GOLDENS,
        wanted=100,
        most=1000,
        give_up=lambda faults: told.append(faults) or faults > 30,
        is_well=always,
    )
    canary = tallies["canary"]
    assert canary.not_finite == canary.probes == canary.faults > 30
    assert (canary.errors, canary.disagreements, tallies["stable"].not_finite) == (0, 0, 0)
    assert told[-1] == canary.faults


def test_at_the_first_release_a_stray_answer_of_the_stable_lane_is_no_fault() -> None:
    tallies = send_probes(Endpoint(), {"canary": golden(2)}, wanted=20, most=1000, give_up=never, is_well=always)
    assert (tallies["stable"].disagreements, tallies["canary"].disagreements) == (0, 0)


@pytest.mark.parametrize("most", [1, 39, 40, 41, 100])
def test_never_more_than_allowed(most: int) -> None:
    client = Endpoint(every=1_000_000)
    tallies = send_probes(client, GOLDENS, wanted=20, most=most, give_up=never, is_well=always)
    assert client.sent == most
    assert tallies["stable"].probes + tallies["canary"].probes == most


@pytest.mark.parametrize(("named", "blamed"), [("canary", "canary"), (None, "canary"), ("stable", "stable")])
def test_errors_count_against_the_lane_that_failed_or_the_canary(named: str | None, blamed: str) -> None:
    tallies = send_probes(Endpoint(canary=named), GOLDENS, wanted=20, most=80, give_up=never, is_well=always)
    assert tallies[blamed].errors == 40
    assert tallies["canary"].probes == 0
    assert tallies["canary"].percentile_ms(95) == 0.0


def test_a_hopeless_canary_is_given_up() -> None:
    client = Endpoint(every=1, canary="canary")
    tallies = send_probes(client, GOLDENS, wanted=1000, most=5000, give_up=lambda errors: errors > 10, is_well=always)
    assert client.sent == CHUNK
    assert tallies["canary"].errors == CHUNK


def test_a_canary_that_is_passed_by_for_a_while_is_waited_for() -> None:
    """After two failures in a row the endpoint leaves it alone for seconds: long enough to send all probes in vain."""
    client = Endpoint(every=1_000_000)
    asked = []

    def comes_back() -> bool:
        asked.append(client.sent)
        client.every = 2
        return True

    tallies = send_probes(client, GOLDENS, wanted=20, most=200, give_up=never, is_well=comes_back)
    assert asked == [2 * CHUNK]  # its one answer came with the first ones
    assert tallies["canary"].probes >= 20


def test_a_canary_that_does_not_come_back_ends_it() -> None:
    client = Endpoint(every=1_000_000)
    send_probes(client, GOLDENS, wanted=20, most=1000, give_up=never, is_well=lambda: False)
    assert client.sent == 2 * CHUNK
