"""Sends the loop's own requests through the endpoint, and says what each lane made of them."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from visionloop.serving.client import Answer, EndpointError
from visionloop.serving.golden import Golden

log = logging.getLogger(__name__)

AT_ONCE = 4
CHUNK = 40
SPEAK_EVERY_SECONDS = 5.0


class Predicts(Protocol):
    """What is asked of the endpoint's client."""

    def predict(self, images: NDArray[np.uint8], *, probe: bool = False) -> list[Answer]:
        """Answers in the order of the images."""


@dataclass
class Tally:
    """One lane's answers to probes."""

    probes: int = 0
    errors: int = 0
    disagreements: int = 0
    not_finite: int = 0
    """Probes answered with NaN or infinity, which are faults beside the errors."""
    latencies_ms: list[float] = field(default_factory=list)
    """Of those that no other lane was asked before: its time is not this lane's."""

    @property
    def faults(self) -> int:
        """What counts against the lane's requests."""
        return self.errors + self.not_finite

    def percentile_ms(self, q: float) -> float:
        """0 where nothing was answered."""
        return float(np.percentile(self.latencies_ms, q)) if self.latencies_ms else 0.0


def send_probes(
    client: Predicts,
    goldens: Mapping[str, Golden],
    *,
    wanted: int,
    most: int,
    give_up: Callable[[int], bool],
    is_well: Callable[[], bool],
) -> dict[str, Tally]:
    """Send until the canary answered `wanted` probes, at most `most`; returns a tally per lane.

    Which lane will answer is not known before, so each probe carries one image of every lane's own golden samples,
    and the answer is held against those of the lane that answered. `give_up(faults)` ends it early; an error whose
    lane is not known counts against the canary, unless the endpoint itself was away. Where the canary answers nothing,
    the endpoint may be passing it by for some seconds: `is_well()` waits for its return, or says no, which ends it too.
    """
    tallies = {"stable": Tally(), "canary": Tally()}
    probe = _Probe(client, goldens, tallies)
    sent, spoke = 0, time.monotonic()
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="probe") as pool:
        while sent < most and tallies["canary"].probes < wanted and not give_up(tallies["canary"].faults):
            count, before = min(CHUNK, most - sent), tallies["canary"].probes
            list(pool.map(probe.send, range(sent, sent + count)))
            sent += count
            if tallies["canary"].probes == before and not is_well():
                break
            if time.monotonic() - spoke > SPEAK_EVERY_SECONDS:
                spoke = time.monotonic()
                log.info("%d of %d probes answered by the canary, %d sent", tallies["canary"].probes, wanted, sent)
    return tallies


def time_probes(client: Predicts, goldens: Mapping[str, Golden], count: int) -> Tally:
    """The stable lane's answers to so many probes, sent as `send_probes` sends them."""
    tallies = {"stable": Tally(), "canary": Tally()}
    probe = _Probe(client, goldens, tallies)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="probe") as pool:
        list(pool.map(probe.send, range(count)))
    return tallies["stable"]


class _Probe:
    """Threads share it."""

    def __init__(self, client: Predicts, goldens: Mapping[str, Golden], tallies: dict[str, Tally]) -> None:
        self._client, self._goldens, self._tallies = client, goldens, tallies
        self._places = {lane: place for place, lane in enumerate(goldens)}
        self._lock = threading.Lock()

    def send(self, number: int) -> None:
        indexes = {lane: number % len(golden.images) for lane, golden in self._goldens.items()}
        images = np.stack([self._goldens[lane].images[index] for lane, index in indexes.items()])
        try:
            answers = self._client.predict(images, probe=True)
        except EndpointError as error:
            log.log(logging.DEBUG if error.refused else logging.INFO, "probe %d: %s", number, error)
            if error.refused:
                return
            with self._lock:
                self._tallies[error.lane if error.lane in self._tallies else "canary"].errors += 1
            return
        lane = answers[0].lane
        sick = not all(np.isfinite(answer.probabilities).all() for answer in answers)
        wrong = lane in self._goldens and self._goldens[lane].disagrees(
            indexes[lane], answers[self._places[lane]].probabilities
        )
        with self._lock:
            tally = self._tallies[lane]
            tally.probes += 1
            tally.not_finite += sick
            tally.disagreements += wrong and not sick
            if answers[0].asked == 1:
                tally.latencies_ms.append(answers[0].latency_ms)
