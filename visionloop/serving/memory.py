"""Does a candidate fit in memory, does it leak, did its process die? Pure: readings and policy in, a reason out.

A leak is growth that stays and goes on. Each reading counts as the lowest of itself and all later ones, so that what
comes back is no growth, and the two largest steps upwards are forgiven: an arena that doubled, a burst of traffic, a
neighbour that was loaded. So memory that moves within a band no wider than `max_memory_growth_mib` is never called a
leak, nor with two jumps of any size where the band is a third of that, however often it is read; memory that grows
evenly is, as soon as what it kept comes to more.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from visionloop.project import Release as Policy
from visionloop.records import MemoryReading

MIB = 1 << 20
FORGIVEN = 2
SPACING = 1.05
"""A reading is kept when so many times the requests of the one before were answered: a long release keeps few."""

Readings = Sequence[MemoryReading]


def ill(readings: Readings, policy: Policy) -> str | None:
    """Why a release with these readings (as `MemoryReading` orders them) must end; None when nothing speaks for it."""
    return died(readings) or too_large(readings, policy) or leak(readings, policy)


def died(readings: Readings) -> str | None:
    """No process is left that served it, or its server was started anew while no other model was there.

    Of several instances one may die and leave the others: requests fail then, and are counted. A server that other
    models use too may have ended for theirs.
    """
    for before, after in pairwise(readings[1:]):
        if is_blameless(before, after):
            continue
        if before.processes and not after.processes:
            return f"the canary's server process died: it had been asked {max(before.requests, after.requests)} times"
        if is_another_server(before, after):
            return f"the canary's server process died and was started anew: it had been asked {before.requests} times"
    return None


def is_another_server(before: MemoryReading, after: MemoryReading) -> bool:
    """Was the server started anew between the two? Where that was not read, its count of requests began again."""
    if before.server_started and after.server_started:
        return before.server_started != after.server_started
    return after.requests < before.requests


def is_blameless(before: MemoryReading, after: MemoryReading) -> bool:
    """Was the server started anew, and may another project's model be why?"""
    return is_another_server(before, after) and bool(before.others or after.others)


def with_others(readings: Readings, new: MemoryReading) -> MemoryReading:
    """The newest reading, with the most other models that its server was seen with."""
    if not readings or is_another_server(readings[-1], new):
        return new
    return new.model_copy(update={"others": max(readings[-1].others, new.others)})


def too_large(readings: Readings, policy: Policy) -> str | None:
    """More than the policy allows, at any time since it was loaded."""
    if len(readings) < 2:
        return None
    at_first, most = needed_mib(readings[:2]), needed_mib(readings)
    if most <= policy.max_memory_mib:
        return None
    return (
        f"the candidate needs {most:.0f} MiB in the canary lane ({at_first:.0f} MiB once loaded), "
        f"allowed {policy.max_memory_mib} MiB"
    )


def leak(readings: Readings, policy: Policy) -> str | None:
    """Growth with the requests that is more than allowed, jumps aside."""
    answering = readings[2:]
    own = [reading.model_bytes if reading.processes else reading.server_bytes for reading in answering]
    kept = list(accumulate(reversed(own), min))[::-1]
    steps = sorted(after - before for before, after in pairwise(kept))
    if sum(steps[: len(steps) - FORGIVEN]) <= policy.max_memory_growth_mib * MIB:
        return None
    asked = answering[-1].requests - answering[0].requests
    return (
        f"memory grew by {sum(steps) / MIB:.0f} MiB over {asked} requests, from {own[0] / MIB:.0f} to "
        f"{own[-1] / MIB:.0f} MiB, allowed {policy.max_memory_growth_mib} MiB"
    )


def needed_mib(readings: Readings) -> float:
    """The most that lane and model held since it was loaded, less what the server held before."""
    return (max(one.server_bytes + one.model_bytes for one in readings[1:]) - readings[0].server_bytes) / MIB


def keep(readings: Readings, new: MemoryReading) -> list[MemoryReading]:
    """The readings with the newest; the one before goes when it says little more."""
    if len(readings) < 4 or died([*readings[:1], readings[-1], new]):
        return [*readings, new]
    spaced = readings[-1].requests >= SPACING * readings[-2].requests
    return [*readings, new] if spaced else [*readings[:-1], new]
