"""The page of a tuning: throughput against latency of every setting, the target, the choice."""

from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape

from visionloop.records import TunedPoint, Tuning
from visionloop.reports.page import fill

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, FOOT = 70, 20, 16, 44
COLOURS = ("#2f6db5", "#c2571a", "#1d7a46", "#7a4fb0", "#a8324a", "#5b6b7b")


@dataclass(frozen=True)
class Shape:
    """Settings that differ in their delay alone."""

    name: str
    colour: str
    points: list[TunedPoint]


def render(tuning: Tuning) -> str:
    """The page as HTML."""
    return fill("tuning.html", record=tuning, shapes=_shapes(tuning), picture=_picture(tuning))


def _shapes(tuning: Tuning) -> list[Shape]:
    grouped = groupby(tuning.points, key=lambda point: (point.instances, point.threads))
    return [
        Shape(f"{instances} × {threads}", COLOURS[number % len(COLOURS)], list(points))
        for number, ((instances, threads), points) in enumerate(grouped)
    ]


def _picture(tuning: Tuning) -> Markup:
    right = 1.1 * max(tuning.target_p99_ms, *(point.p99_ms for point in tuning.points))
    top = 1.1 * max(1.0, *(point.images_per_second for point in tuning.points))

    def at(p99_ms: float, rate: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * p99_ms / right,
            HEIGHT - FOOT - (HEIGHT - FOOT - TOP) * rate / top,
        )

    drawn = [_line(at(0, 0), at(right, 0), "axis"), _line(at(0, 0), at(0, top), "axis")]
    for share in (0.25, 0.5, 0.75, 1.0):
        x, y = at(right * share / 1.1, 0)[0], at(0, top * share / 1.1)[1]
        drawn.append(_text(x, HEIGHT - FOOT + 16, f"{right * share / 1.1:.3g}", "middle"))
        drawn.append(_text(LEFT - 8, y + 4, f"{top * share / 1.1:,.0f}", "end"))
    drawn.append(_text((LEFT + WIDTH) / 2, HEIGHT - 6, "p99, ms", "middle"))
    drawn.append(_text(LEFT, TOP - 4, "images a second", "middle"))
    drawn.append(_line(at(tuning.target_p99_ms, 0), at(tuning.target_p99_ms, top), "target"))
    for shape in _shapes(tuning):
        for point in shape.points:
            x, y = at(point.p99_ms, point.images_per_second)
            ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" class="ring"/>' if point == tuning.chosen else ""
            title = escape(f"{shape.name}, delay {point.queue_delay_us} µs")
            dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{shape.colour}"><title>{title}</title></circle>'
            drawn.append(ring + dot)
    inner = "".join(drawn)
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="throughput and p99">{inner}</svg>')  # noqa: S704


def _line(start: tuple[float, float], end: tuple[float, float], kind: str) -> str:
    return f'<line class="{kind}" x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
