"""Do release records, registry, weights and lanes say the same? Pure: what each says in, differences out."""

from dataclasses import dataclass
from typing import Literal

Repair = Literal["load", "alias", "empty_canary", "weights", "tidy", "call_off", "way_back"]

LEFT_ALONE_MINUTES = 10.0
"""A release says at least every minute or two that somebody looks after it."""


@dataclass(frozen=True)
class LaneFacts:
    """A lane's version of a model, None where it has none."""

    loaded: int | None
    """What it answers with."""
    on_disk: int | None
    """What it would load at its next start."""


@dataclass(frozen=True)
class Facts:
    """What is recorded and what is there, of one project."""

    released: int | None
    """By the release records."""
    alias: int | None
    """The registry's champion."""
    running: int | None
    """The version that is being released."""
    phase: str
    ended: bool
    """How the release in progress ends is decided: a process died before all was done for it."""
    stable: LaneFacts
    canary: LaneFacts
    weights: tuple[int, int] | None
    """Stable, canary, in percent; None for a model without a route."""
    percent: int = 0
    """Of the traffic, that the release in progress gives its canary at most."""
    left_alone_minutes: float = 0.0
    """Since somebody looked after the release in progress, or the rollback."""
    way_back: int | None = None
    """The version of a rollback that began."""
    mirrored: bool = False
    """Do captured requests go to the canary lane as well?"""
    damaged: tuple[str, ...] = ()
    """Artifacts of the released version that are missing or are not what was signed and recorded."""


@dataclass(frozen=True)
class Difference:
    """One line for people, and what would put it right; None where that needs a decision."""

    text: str
    repair: Repair | None
    advice: str


def differences(facts: Facts) -> list[Difference]:
    """In the order in which they are to be put right; empty when all agree."""
    found = [_damaged(name) for name in facts.damaged]
    if facts.ended:
        text = f"the release of version {facts.running} ended, and not all was done for it"
        return [*found, Difference(text, "tidy", "it is done")]
    if facts.way_back is not None:
        text = f"the rollback to version {facts.way_back} is under way or was cut off, {_ago(facts)}"
        return [*found, Difference(text, "way_back", "it is finished")]
    if facts.running is not None and facts.left_alone_minutes > LEFT_ALONE_MINUTES:
        share = f" with {facts.weights[1]} % of the traffic" if facts.weights and facts.weights[1] else ""
        text = f"version {facts.running} is in its {facts.phase}{share}, and was looked after {_ago(facts)}"
        return [*found, Difference(text, "call_off", "it is called off: the old version serves on")]
    if facts.phase != "promoting":
        found += [*_stable(facts), *_alias(facts)]
    return found + (_idle(facts) if facts.running is None else _under_way(facts))


def _ago(facts: Facts) -> str:
    return f"{facts.left_alone_minutes:.0f} minutes ago"


def _damaged(name: str) -> Difference:
    return Difference(
        f"{name} of the released version is missing or changed in the object store",
        None,
        "restore it from a backup, or release another version: a lane that restarts still has its own copy",
    )


def _stable(facts: Facts) -> list[Difference]:
    advice = f"version {facts.released} is loaded" if facts.released else "it is unloaded"
    released = _named(facts.released)
    if facts.stable.loaded != facts.released:
        text = f"the stable lane serves {_named(facts.stable.loaded)}, released is {released}"
        return [Difference(text, "load", advice)]
    if facts.stable.on_disk != facts.released:
        text = f"the stable lane would load {_named(facts.stable.on_disk)} at its next start, released is {released}"
        return [Difference(text, "load", advice)]
    return []


def _alias(facts: Facts) -> list[Difference]:
    if facts.alias == facts.released:
        return []
    text = f"the registry's champion is {_named(facts.alias)}, released is {_named(facts.released)}"
    return [Difference(text, "alias", "the alias is set")]


def _idle(facts: Facts) -> list[Difference]:
    found = []
    if facts.weights and facts.weights[1]:
        text = f"no release is in progress, and the canary lane gets {facts.weights[1]} % of the traffic"
        found.append(Difference(text, "weights", "the stable lane gets all of it"))
    if facts.mirrored:
        text = "no release is in progress, and captured requests are mirrored to the canary lane"
        found.append(Difference(text, "weights", "they are not any more"))
    left = facts.canary.loaded or facts.canary.on_disk
    if left:
        text = f"no release is in progress, and the canary lane holds {_named(left)}"
        found.append(Difference(text, "empty_canary", "it is emptied"))
    return found


def _under_way(facts: Facts) -> list[Difference]:
    if facts.phase == "promoting":
        return []
    if facts.weights and facts.weights[1] > facts.percent:
        text = (
            f"{_named(facts.running)} is in its {facts.phase}, and the canary lane gets {facts.weights[1]} % of the "
            f"traffic, which should be {facts.percent} %"
        )
        return [Difference(text, "weights", "the stable lane gets all of it until the release says otherwise")]
    if facts.phase == "preflight" or facts.canary.loaded == facts.running:
        return []
    text = f"{_named(facts.running)} is in its {facts.phase}, and the canary lane serves {_named(facts.canary.loaded)}"
    return [Difference(text, None, "clear the release's task `preflight`, or call it off: `visionloop rollout abort`")]


def _named(version: int | None) -> str:
    return "nothing" if version is None else f"version {version}"
