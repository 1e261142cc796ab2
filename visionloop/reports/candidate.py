"""The candidate's page: what each variant of the model costs and loses, and which one is served."""

from dataclasses import dataclass

from visionloop.packaging.variants import BASE
from visionloop.project import Packaging, Price
from visionloop.records import Candidate, Interval, SliceParity, Variant, id_of
from visionloop.reports.page import fill
from visionloop.serving.cost import shown_cost

MAX_SLICES = 60
"""Rows of the table of slices; with more, those where most decisions differ."""
NAMES = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8"}


@dataclass(frozen=True)
class CandidatePage:
    """The record and the policy that chose."""

    candidate: Candidate
    policy: Packaging
    price: Price | None = None
    at_once: int = 1
    """Threads that compute beside each other on the machine that the price is of."""


@dataclass(frozen=True)
class Row:
    """A variant in the table."""

    variant: Variant
    cost: str
    saving: str
    worst: str
    size: str


@dataclass(frozen=True)
class SliceRow:
    """A slice, with how many decisions each variant takes otherwise than PyTorch."""

    name: str
    samples: int
    disagreements: list[int]


def render(page: CandidatePage) -> str:
    """The page as HTML."""
    record = page.candidate
    base = next(variant for variant in record.variants if variant.name == BASE)
    others = [variant for variant in record.variants if variant.changes]
    return fill(
        "candidate.html",
        record=record,
        policy=page.policy,
        names=NAMES,
        rows=[_row(variant, base, page) for variant in record.variants],
        price=page.price,
        changes=list(zip(*(variant.changes for variant in others), strict=True)),
        others=others,
        slices=slices(record.variants),
        id_of=id_of,
        points=points,
        chosen=next(variant for variant in record.variants if variant.chosen),
    )


def points(change: Interval) -> str:
    """`-0.12 [-0.40, +0.15]`, in percentage points."""
    return f"{100 * change.value:+.2f} [{100 * change.low:+.2f}, {100 * change.high:+.2f}]"


def slices(variants: list[Variant]) -> list[SliceRow]:
    """Each slice of the suite and each class, in their order; when there are too many, those that differ most."""
    columns: list[dict[str, SliceParity]] = [{one.name: one for one in variant.parity.slices} for variant in variants]
    rows = [
        SliceRow(name, found.samples, [column[name].disagreements for column in columns])
        for name, found in columns[0].items()
    ]
    kept = {row.name for row in sorted(rows, key=lambda row: -sum(row.disagreements))[:MAX_SLICES]}
    return [row for row in rows if row.name in kept]


def _row(variant: Variant, base: Variant, page: CandidatePage) -> Row:
    mine, theirs = variant.seconds_per_1000_images, base.seconds_per_1000_images
    judged = [change for change in variant.changes if change.judged]
    worst = min(judged, key=lambda change: change.difference.value, default=None)
    return Row(
        variant=variant,
        cost="not measured" if mine is None else shown_cost(mine, page.price, page.at_once),
        saving="" if variant is base or mine is None or not theirs else f"{theirs / mine:.2f} x",
        worst="" if worst is None else f"{points(worst.difference)} in {worst.scenario}",
        size=f"{variant.size_bytes / 1e6:,.2f} MB",
    )
