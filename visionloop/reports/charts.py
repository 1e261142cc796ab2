"""Small SVG charts that stand in a page by themselves: no script, no library, text escaped."""

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

WIDTH, HEIGHT, FOOT = 340, 120, 18
"""Of the drawing in user units; FOOT is the strip for the axis labels."""
BINS = 28
MAX_CLASSES = 12


def histogram(reference: NDArray[np.float64], window: NDArray[np.float64]) -> Markup:
    """Two distributions on one axis from the 0.5th to the 99.5th percentile: bars the reference, line the window."""
    both = np.concatenate([reference, window])
    low, high = np.percentile(both, [0.5, 99.5])
    if high <= low:
        high = low + 1.0
    edges = np.linspace(low, high, BINS + 1)
    shares = [np.histogram(np.clip(part, low, high), edges)[0] / len(part) for part in (reference, window)]
    top = max(float(share.max()) for share in shares)
    step = WIDTH / BINS
    heights = [(HEIGHT - FOOT - 4) * share / top for share in shares]
    bars = "".join(_bar(at * step, step - 1, tall, "ref") for at, tall in enumerate(heights[0]))
    points = " ".join(_step(at, step, tall) for at, tall in enumerate(heights[1]))
    line = f'<polygon class="win" points="0,{HEIGHT - FOOT} {points} {WIDTH},{HEIGHT - FOOT}"/>'
    return _svg(bars + line + _label(0, _number(low), "start") + _label(WIDTH, _number(high), "end"))


def class_bars(reference: NDArray[np.int64], window: NDArray[np.int64], classes: list[str]) -> Markup:
    """Shares of the classes, side by side; with many classes, those that changed most."""
    shares = [np.bincount(part, minlength=len(classes)) / len(part) for part in (reference, window)]
    shown = np.sort(np.argsort(-np.abs(shares[1] - shares[0]), kind="stable")[:MAX_CLASSES])
    top = max(float(share[shown].max()) for share in shares)
    step = WIDTH / len(shown)
    drawn = ""
    for place, index in enumerate(shown):
        for part, kind in enumerate(("ref", "win")):
            tall = (HEIGHT - FOOT - 4) * shares[part][index] / top
            drawn += _bar(place * step + part * step * 0.42, step * 0.4, tall, kind)
        drawn += _label(place * step + step * 0.42, classes[index][: max(3, int(step / 5))], "middle")
    return _svg(drawn)


def _bar(x: float, wide: float, tall: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{HEIGHT - FOOT - tall:.1f}" width="{wide:.1f}" height="{tall:.1f}"/>'


def _step(at: int, step: float, tall: float) -> str:
    y = HEIGHT - FOOT - tall
    return f"{at * step:.1f},{y:.1f} {(at + 1) * step:.1f},{y:.1f}"


def _label(x: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - 5}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}" if abs(value) >= 0.01 else "0"


def _svg(inner: str) -> Markup:
    axis = f'<line class="axis" x1="0" y1="{HEIGHT - FOOT}" x2="{WIDTH}" y2="{HEIGHT - FOOT}"/>'
    # The only text from outside is escaped in _label.
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{inner}{axis}</svg>')  # noqa: S704
