"""The drift report's page: verdict, what changed in words, histograms, images side by side. One file, no network."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np

from visionloop.monitoring.drift import PREDICTED, ColumnDrift, Comparison
from visionloop.project import Monitoring
from visionloop.records import DriftView
from visionloop.reports.charts import class_bars, histogram
from visionloop.reports.page import Pixels, data_uri, fill

SHOWN = {"image": 4, "prediction": 2}
"""How many columns of a view are told in words and drawn; principal components say nothing to a person."""
MAX_PERCENT = 3.0
"""Larger relative changes are left out: from a value near 0 everything is a thousand per cent away."""

TITLES = {"image": "What the images look like", "embedding": "What the model sees", "prediction": "What it answers"}


@dataclass(frozen=True)
class DriftPage:
    """What the page shows besides the comparison."""

    project: str
    version: int
    report_id: str
    created_at: datetime
    first_at: datetime
    last_at: datetime
    window_samples: int
    reference_examples: list[Pixels]
    """uint8 HWC."""
    window_examples: list[Pixels]
    classes: list[str]
    policy: Monitoring


@dataclass(frozen=True)
class Chart:
    """One column's figure and its sentence."""

    column: ColumnDrift
    sentence: str
    svg: str


def render(page: DriftPage, comparison: Comparison) -> str:
    """The page as HTML; it links to `evidently.html` and `drift.json` beside it."""
    ranked = sorted(comparison.columns, key=lambda column: column.threshold - column.score)
    readable = _readable(ranked)
    return fill(
        "drift.html",
        page=page,
        comparison=comparison,
        changed=[view for view in comparison.views if view.drifted],
        sentences=[describe(column, page.classes) for column in readable if column.drifted],
        charts=[_chart(column, page.classes) for column in readable],
        columns=ranked,
        titles=TITLES,
        severity=severity(comparison.auc),
        mix=mix(comparison),
        view_sentence=view_sentence,
        reference_images=[data_uri(image) for image in page.reference_examples],
        window_images=[data_uri(image) for image in page.window_examples],
    )


def describe(column: ColumnDrift, classes: list[str]) -> str:
    """One column in words: `brightness fell from 73 to 41 (-44 %)`."""
    if column.name == PREDICTED:
        return _describe_classes(column, classes)
    before, after = float(np.median(column.reference)), float(np.median(column.window))
    if np.isclose(before, after, rtol=1e-3, atol=1e-6):
        return f"{column.name} keeps its median of {_number(before)}, but is spread differently"
    verb = "rose" if after > before else "fell"
    change = (after - before) / abs(before) if abs(before) > 1e-6 else 0.0
    relative = f" ({change:+.0%})" if 0.0 < abs(change) <= MAX_PERCENT else ""
    return f"{column.name} {verb} from {_number(before)} to {_number(after)}{relative}"


def severity(auc: float) -> str:
    """A word for how well window and reference can be told apart."""
    steps = ((0.6, "hardly distinguishable"), (0.75, "slightly different"), (0.9, "clearly different"))
    return next((word for limit, word in steps if auc < limit), "entirely different")


def mix(comparison: Comparison) -> str:
    """Which known batches the window resembles most; empty when there is only one."""
    shares = comparison.match.shares
    if len(shares) < 2:
        return next(iter(shares))
    return ", ".join(f"{share:.0%} {name}" for name, share in shares.items())


def view_sentence(view: DriftView) -> str:
    """A view's count against its limit."""
    return f"{view.drifted_columns} of {view.columns} columns moved ({view.share:.0%}, limit {view.threshold:.0%})"


def _readable(ranked: list[ColumnDrift]) -> list[ColumnDrift]:
    """The most moved columns of the views that a person can read; of the answers, always the class mix."""
    image = [column for column in ranked if column.view == "image"]
    answers = [column for column in ranked if column.view == "prediction"]
    answers.sort(key=lambda column: column.name != PREDICTED)
    return [*image[: SHOWN["image"]], *answers[: SHOWN["prediction"]]]


def _describe_classes(column: ColumnDrift, classes: list[str]) -> str:
    before, after = (
        np.bincount(part.astype(int), minlength=len(classes)) / len(part) for part in (column.reference, column.window)
    )
    most = int(np.abs(after - before).argmax())
    verb = "more" if after[most] > before[most] else "less"
    return f"{classes[most]} is answered {verb} often: {before[most]:.0%} before, {after[most]:.0%} now"


def _chart(column: ColumnDrift, classes: list[str]) -> Chart:
    if column.name == PREDICTED:
        svg = class_bars(column.reference, column.window, classes)
    else:
        svg = histogram(column.reference, column.window)
    return Chart(column, describe(column, classes), svg)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
