"""What 1,000 inferences cost: seconds that a model computed, times the price of the machine that a lane runs on.

    cost of 1,000 = seconds per 1,000 images / how many compute at once x price per hour / 3,600

An inference is one image. The seconds are Triton's own, of whole runs of the model (its input, inference and output;
not the wait in the queue, not the network), each run counted once however many requests it answered. It is the cost at
full use: hours in which nobody asks are paid too, and are not in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from visionloop.project import Price
from visionloop.records import Cost


@dataclass(frozen=True)
class Runs:
    """Runs of a model with so many images each, and the seconds that they took together."""

    count: int = 0
    seconds: float = 0.0

    def since(self, before: "Runs") -> "Runs":
        """What came after `before`; counts that fell (the model was loaded anew) begin at zero."""
        if self.count < before.count:
            return self
        return Runs(self.count - before.count, self.seconds - before.seconds)


Batches = Mapping[int, Runs]
"""Images of a run -> runs."""


def seconds_per_1000(before: Batches, after: Batches, images: int) -> float | None:
    """Seconds that 1,000 images took in runs of exactly so many images; None when there was no such run.

    Health checks and other traffic meanwhile make runs of other sizes, which do not count.
    """
    seen = after.get(images, Runs()).since(before.get(images, Runs()))
    return 1000 * seen.seconds / (seen.count * images) if seen.count else None


def money_per_1000(seconds: float, price: Price, *, at_once: int) -> float:
    """In the price's currency; `at_once`: how many compute beside each other on the machine that the price is of."""
    return seconds / at_once * price.per_hour / 3600


def cost(images: int, candidate: float, champion: float | None, price: Price | None, *, instances: int) -> Cost:
    """The record's part, from seconds per 1,000 images of the two, measured in turns."""

    def money(seconds: float | None) -> float | None:
        return None if seconds is None or price is None else money_per_1000(seconds, price, at_once=instances)

    return Cost(
        batch_images=images,
        instances=instances,
        seconds_per_1000=candidate,
        champion_seconds_per_1000=champion,
        price_per_hour=price.per_hour if price else None,
        currency=price.currency if price else None,
        per_1000=money(candidate),
        champion_per_1000=money(champion),
    )


def told(found: Cost) -> str:
    """One line for people."""
    if found.per_1000 is None:
        text = f"{found.seconds_per_1000:.3g} s of one instance per 1,000 images (no money: the project has no `price`)"
    else:
        money = shown_money(found.per_1000, found.currency or "")
        text = f"{money} per 1,000 images ({found.seconds_per_1000:.3g} s of one instance)"
    return text if found.ratio is None else f"{text}, {found.ratio:.2f}x the champion's"


def shown_cost(seconds: float, price: Price | None, at_once: int) -> str:
    """`0.123 s`, and the money where there is a price."""
    if price is None:
        return f"{seconds:.3f} s"
    return f"{seconds:.3f} s, {shown_money(money_per_1000(seconds, price, at_once=at_once), price.currency)}"


def shown_money(value: float, currency: str) -> str:
    """Three digits that count, never as a power of ten."""
    text = f"{value:.12f}" if value < 1 else f"{value:.2f}"
    digits = len(text) - len(text.lstrip("0."))
    return f"{text[: digits + 3] if value < 1 else text} {currency}".strip()
