"""The evaluation's page: what the gate will say, bars with intervals, confusions, examples. One file, no network."""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from visionloop.evaluation.metrics import confusion
from visionloop.records import Evaluation, Interval, ScenarioResult, id_of
from visionloop.reports.page import Pixels, data_uri, fill

WIDTH, HEIGHT = 260, 34
"""Of an interval's drawing, in user units."""
EXAMPLES = 18
"""At most of each kind."""
CONFUSED_CLASSES = 20
"""With more classes, the matrices show those that are confused most."""


@dataclass(frozen=True)
class Answered:
    """The clean test samples and who said what; `champion` is None before the first release."""

    images: Pixels
    """uint8 [N, H, W, C]."""
    targets: NDArray[np.int64]
    challenger: NDArray[np.int64]
    champion: NDArray[np.int64] | None
    sample_ids: NDArray[np.str_]


@dataclass(frozen=True)
class EvaluationPage:
    """What the page shows besides the record."""

    evaluation: Evaluation
    verdict: str
    """`passed` or `rejected`: what the gate's policy says to these figures."""
    reasons: list[str]
    classes: list[str]
    challenger_name: str
    champion_name: str | None
    answered: Answered


@dataclass(frozen=True)
class Row:
    """A scenario in the table."""

    result: ScenarioResult
    asked: str
    drawing: Markup


@dataclass(frozen=True)
class Example:
    """One test image with its story."""

    src: str
    truth: str
    before: str | None
    after: str
    sample_id: str


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: `cells[row][column]` = (count, share of the row)."""

    title: str
    classes: list[str]
    cells: list[list[tuple[int, float]]]


def render(page: EvaluationPage) -> str:
    """The page as HTML."""
    fixed, broken = _examples(page)
    return fill(
        "evaluation.html",
        page=page,
        record=page.evaluation,
        id_of=id_of,
        rows=[Row(result, asked(result), draw(result)) for result in page.evaluation.scenarios],
        matrices=matrices(page),
        fixed=fixed,
        broken=broken,
        counts=_counts(page.evaluation.scenarios),
        percent=percent,
        points=points,
    )


def percent(figure: Interval) -> str:
    """`91.2 % [90.6, 91.8]`."""
    if not figure.n:
        return "no samples"
    return f"{100 * figure.value:.1f} % [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def points(change: Interval) -> str:
    """`+1.2 [+0.7, +1.7]`, in percentage points."""
    return f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def asked(result: ScenarioResult) -> str:
    """The bar in words."""
    if result.bar_kind == "at_least" and result.bar is not None:
        return f"at least {100 * result.bar:.1f} %"
    if result.bar_kind == "not_worse_than_champion":
        return f"at most {100 * result.margin:.1f} points below the champion, with 95 % confidence"
    return "nothing"


def draw(result: ScenarioResult) -> Markup:
    """Champion above, challenger below: interval as line, figure as dot, the bar as upright line; from 0 to 100 %."""
    inner = f'<line class="axis" x1="0" y1="{HEIGHT - 1}" x2="{WIDTH}" y2="{HEIGHT - 1}"/>'
    for figure, kind, y in ((result.champion, "champion", 10), (result.challenger, "challenger", 22)):
        if figure is not None and figure.n:
            low, value, high = (WIDTH * part for part in (figure.low, figure.value, figure.high))
            inner += f'<line class="{kind}" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>'
            inner += f'<circle class="{kind}" cx="{value:.1f}" cy="{y}" r="4"/>'
    if result.bar is not None:
        x = WIDTH * min(max(result.bar, 0.0), 1.0)
        inner += f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEIGHT}"/>'
    label = escape(f"{result.name}: challenger {percent(result.challenger)}")
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{inner}</svg>')  # noqa: S704


def matrices(page: EvaluationPage) -> list[Matrix]:
    """Confusions of champion and challenger on the clean samples, over the same classes."""
    answered, count = page.answered, len(page.classes)
    whole = [("Challenger", confusion(answered.targets, answered.challenger, count))]
    if answered.champion is not None:
        whole.insert(0, ("Champion", confusion(answered.targets, answered.champion, count)))
    errors = np.sum([matrix - np.diag(np.diag(matrix)) for _, matrix in whole], axis=0)
    shown = np.sort(np.argsort(-(errors.sum(0) + errors.sum(1)), kind="stable")[:CONFUSED_CLASSES])
    return [_matrix(title, matrix, shown, page.classes) for title, matrix in whole]


def _matrix(title: str, whole: NDArray[np.int64], shown: NDArray[np.int64], classes: list[str]) -> Matrix:
    sums = np.maximum(whole.sum(1), 1)
    cells = [[(int(whole[row, column]), float(whole[row, column] / sums[row])) for column in shown] for row in shown]
    return Matrix(title, [classes[index] for index in shown], cells)


def _examples(page: EvaluationPage) -> tuple[list[Example], list[Example]]:
    """Fixed and broken ones; before the first release, none fixed and simply the mistakes."""
    answered = page.answered
    right = answered.challenger == answered.targets
    if answered.champion is None:
        return [], _shown(page, np.flatnonzero(~right))
    was_right = answered.champion == answered.targets
    return _shown(page, np.flatnonzero(right & ~was_right)), _shown(page, np.flatnonzero(~right & was_right))


def _shown(page: EvaluationPage, rows: NDArray[np.int64]) -> list[Example]:
    """An even pick, in the order of the samples' ids (which is no order of anything else)."""
    answered, names = page.answered, page.classes
    rows = rows[np.argsort(answered.sample_ids[rows], kind="stable")][:EXAMPLES]
    return [
        Example(
            src=data_uri(answered.images[row]),
            truth=names[answered.targets[row]],
            before=None if answered.champion is None else names[answered.champion[row]],
            after=names[answered.challenger[row]],
            sample_id=str(answered.sample_ids[row]),
        )
        for row in rows
    ]


def _counts(results: list[ScenarioResult]) -> dict[str, int]:
    return {outcome: sum(r.outcome == outcome for r in results) for outcome in ("passed", "failed", "too_few")}
