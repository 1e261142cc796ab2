"""Which instances, threads and batching delay serve a model best under a latency target. Pure.

What is measured for each setting is a closed loop at a stated concurrency; the choice is the most throughput among the
settings whose p99 holds the target, and among those that are as fast but for noise the one that takes least.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from visionloop.records import TunedPoint

DELAYS_US = (0, 500, 2_000, 5_000)
NOISE = 0.03
"""Two settings whose throughputs differ by no more are as fast as each other."""


@dataclass(frozen=True)
class Setting:
    """What a project's `serving` section has of it."""

    instances: int
    threads: int
    queue_delay_us: int


def settings(cores: int) -> list[Setting]:
    """All that use no more than the cores: instances x threads of half of them and of all, each with every delay."""
    shapes = [
        (instances, share // instances)
        for share in sorted({max(1, cores // 2), cores})
        for instances in range(1, share + 1)
        if share % instances == 0
    ]
    return [Setting(*shape, delay) for shape in dict.fromkeys(shapes) for delay in DELAYS_US]


def median_of(points: Sequence[TunedPoint]) -> TunedPoint:
    """What was measured of one setting, several times: the median of each figure, and all failures."""
    figures = {name: median(getattr(one, name) for one in points) for name in ("images_per_second", "p50_ms", "p99_ms")}
    return points[0].model_copy(update={**figures, "failures": sum(one.failures for one in points)})


def choose(points: Sequence[TunedPoint], target_p99_ms: float) -> TunedPoint | None:
    """The best of those that hold the target; None when none does, or all had failures."""
    able = [point for point in points if point.p99_ms <= target_p99_ms and not point.failures]
    if not able:
        return None
    most = max(point.images_per_second for point in able)
    near = [point for point in able if point.images_per_second >= (1 - NOISE) * most]
    return min(near, key=lambda one: (one.instances * one.threads, one.instances, one.queue_delay_us))
