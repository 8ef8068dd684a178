"""Line charts as SVG, for pages that load nothing."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 620, 330, 64, 14, 40
COLOURS: Final = ("#64748b", "#c2570c", "#0f766e", "#6d4bc4", "#be123c")
"""The plain arm is grey: it is what the others are measured against."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A curve.

    Args:
        label: in the legend; empty for none.
        points: (x, y); those that are not finite are left out.
        colour: of it.
        faint: it stands behind the others.
        dashed: how it is drawn.
    """

    label: str
    points: Points
    colour: str
    faint: bool = False
    dashed: bool = False


def chart(lines: Sequence[Line], *, across: str, up: str, target: float | None = None) -> str:
    """Draw curves. The first fifth of each has no say in the vertical range: its fall would hide what differs later."""
    drawn = [(line, [(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]) for line in lines]
    known = [point for _, points in drawn for point in points]
    if not known:
        return f"<p>No finite {html.escape(up)} to draw.</p>"
    high_x = max(x for x, _ in known) or 1.0
    late = [y for x, y in known if x >= high_x / 5] or [y for _, y in known]
    if target is not None and math.isfinite(target):
        late.append(target)
    low, high = min(late), max(late)
    margin = 0.05 * (high - low) or 0.01
    low, high = low - margin, high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        down = TOP + (high - min(max(y, low - margin), high + margin)) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return LEFT + x / high_x * (WIDTH - LEFT - 30), down

    parts = [_grid(low, high, high_x, place, across)]
    for line, points in sorted(drawn, key=lambda item: not item[0].faint):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        look = f'stroke="{line.colour}" stroke-width="{1 if line.faint else 2.2}" stroke-opacity="{0.35 if line.faint else 1}"'
        look += ' stroke-dasharray="6 3"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" {look}/>')
    if target is not None and math.isfinite(target):
        _, y = place(0, target)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - 30}" stroke="currentColor" stroke-dasharray="2 4"/>')
        parts.append(f'<text x="{LEFT + 4}" y="{y - 5:.1f}" font-size="12">target</text>')
    legend = "".join(
        f'<span><i style="background:{line.colour}"></i>{html.escape(line.label)}</span>' for line in lines if line.label
    )
    view = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(up)} against {html.escape(across)}"'
    title = f"<figcaption>{html.escape(up)}</figcaption>"
    return f'<figure>{title}<svg {view} fill="currentColor">{"".join(parts)}</svg><div class="legend">{legend}</div></figure>'


def _grid(low: float, high: float, high_x: float, place: Callable[[float, float], tuple[float, float]], across: str) -> str:
    parts = []
    for value in _ticks(low, high):
        _, y = place(0, value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - 30}" stroke="currentColor" stroke-opacity="0.15"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" font-size="12" text-anchor="end">{value:.4g}</text>')
    for value in _ticks(0, high_x):
        x, _ = place(value, low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" font-size="12" text-anchor="middle">{value:,.6g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" font-size="12" text-anchor="middle">{html.escape(across)}</text>')
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers between two."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda each: abs(each - rough))
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]
