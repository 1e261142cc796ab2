"""What a variant costs: seconds of one thread per 1,000 images, in turns, so that a busy machine slows all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from visionloop.packaging.graph import INPUT, PROBABILITIES
from visionloop.packaging.session import has, open_session

MIN_ROUNDS, MAX_ROUNDS = 5, 20
ENOUGH_SECONDS = 3.0
"""After MIN_ROUNDS no round begins later than this."""

Clock = Callable[[], float]


def measure(
    models: Mapping[str, bytes], images_NHWC: NDArray[np.uint8], *, device: Literal["cpu", "gpu"]
) -> dict[str, float | None]:
    """Seconds per 1,000 images of each model on a batch; None where this machine has no such device.

    On a CPU the calling thread's own time: sessions of one thread compute in it, and others' work does not count. On a
    GPU the time until the answer is there.
    """
    if not has(device):
        return dict.fromkeys(models)
    sessions = {name: open_session(model, threads=1, device=device) for name, model in models.items()}
    feed = {INPUT: np.ascontiguousarray(images_NHWC)}

    def runner(name: str) -> Callable[[], object]:
        return lambda: sessions[name].run([PROBABILITIES], feed)

    clock = time.thread_time if device == "cpu" else time.perf_counter
    seconds = in_turns({name: runner(name) for name in models}, clock=clock)
    return {name: 1000 * found / len(images_NHWC) for name, found in seconds.items()}


def in_turns(work: Mapping[str, Callable[[], object]], *, clock: Clock) -> dict[str, float]:
    """Median seconds of each piece of work; each is done once before, untimed."""
    for do in work.values():
        do()
    found: dict[str, list[float]] = {name: [] for name in work}
    began = time.monotonic()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.monotonic() - began > ENOUGH_SECONDS:
            break
        for name, do in work.items():
            start = clock()
            do()
            found[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in found.items()}
