"""Draw interval.svg and system.svg: `python docs/pictures/draw.py`."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
INK, FAINT, PLAIN, PUSHED, SERVER = "#1e293b", "#cbd5e1", "#64748b", "#ea580c", "#0d9488"
LEFT, WIDTH = 60, 100
"""Of the first boundary, and of an interval, in pixels."""


def svg(width: int, height: int, title: str, parts: Iterator[str]) -> str:
    """A picture on a white ground, readable on a dark page too."""
    size = f'viewBox="0 0 {width} {height}" width="{width}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="system-ui, sans-serif" font-size="14">'
    ground = f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>'
    arrows = f"<defs>{marker('head', PUSHED)}{marker('dark', INK)}</defs>"
    return "\n".join((head, f"<title>{title}</title>", arrows, ground, *parts, "</svg>\n"))


def marker(name: str, colour: str) -> str:
    """The head of an arrow."""
    size = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"'
    return f'<marker id="{name}" {size}><path d="M0 0 8 4 0 8z" fill="{colour}"/></marker>'


def text(x: float, y: float, words: str, *, colour: str = INK, anchor: str = "middle", size: int = 14) -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}" font-size="{size}">{words}</text>'


def line(x1: float, y1: float, x2: float, y2: float, *, colour: str, extra: str = "") -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" {extra}/>'


def curve(points: list[tuple[float, float]], *, colour: str, extra: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5" {extra}/>'


def at(boundary: float) -> float:
    """Where a boundary is, in pixels."""
    return LEFT + WIDTH * boundary


def weight(boundary: float) -> float:
    """A weight as training without pushes moves it, in pixels."""
    return 72 + 17 * boundary + 6 * math.sin(4.1 * boundary)


def interval() -> Iterator[str]:
    """A weight over six intervals: five snapshots, a forecast that takes one interval, a push over the next."""
    for boundary in range(7):
        yield line(at(boundary), 40, at(boundary), 272, colour=FAINT, extra='stroke-dasharray="3 4"')
    yield text(at(2), 28, "context: the last five snapshots")
    yield line(at(0) + 8, 36, at(4) - 8, 36, colour=INK)
    before = [(at(x / 20), weight(x / 20)) for x in range(101)]
    plain = [(at(x / 20), weight(x / 20)) for x in range(100, 121)]
    pushed = [(at(x / 20), weight(x / 20) + 26 * (x / 20 - 5)) for x in range(100, 121)]
    yield curve(before, colour=PLAIN)
    yield curve(plain, colour=PLAIN, extra='stroke-dasharray="6 4"')
    yield curve(pushed, colour=PUSHED)
    for tenth in range(1, 6):
        x = 5 + tenth / 5.5
        low, high = weight(x), weight(x) + 26 * (x - 5)
        yield line(at(x), low, at(x), high, colour=PUSHED, extra='stroke-width="1.5" marker-end="url(#head)"')
    for boundary in range(5):
        yield f'<circle cx="{at(boundary):g}" cy="{weight(boundary):.1f}" r="6" fill="{INK}"/>'
    yield text(at(6) + 8, weight(6) + 4, "training alone", colour=PLAIN, anchor="start")
    yield text(at(6) + 8, weight(6) + 36, "with the push", colour=PUSHED, anchor="start")
    top = 236
    yield f'<rect x="{at(4):g}" y="{top}" width="{WIDTH}" height="24" rx="4" fill="{SERVER}"/>'
    yield text(at(4.5), top + 17, "forecast", colour="#fff")
    yield f'<rect x="{at(5):g}" y="{top}" width="{WIDTH}" height="24" rx="4" fill="{PUSHED}"/>'
    yield text(at(5.5), top + 17, "push", colour="#fff")
    yield text(at(4) - 10, top + 17, "asked for in the background", anchor="end")
    yield text(at(6) + 8, top + 17, "in equal shares", anchor="start")
    yield text(at(0), 296, "steps", anchor="start", colour=PLAIN)
    yield line(at(0) + 44, 291, at(6), 291, colour=PLAIN, extra='marker-end="url(#dark)"')


def box(title: str, lines: tuple[str, ...], *, x: int, y: int, width: int, height: int, colour: str) -> Iterator[str]:
    yield f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="#fff" stroke="{colour}" stroke-width="2"/>'
    yield text(x + width / 2, y + 24, title, colour=colour, size=16)
    for index, words in enumerate(lines):
        yield text(x + width / 2, y + 50 + 20 * index, words, size=13)


def system() -> Iterator[str]:
    """Workers, a server, and what passes between them."""
    for y, name in ((24, "A"), (144, "B")):
        lines: tuple[str, ...] = ("your loop, Adam, pushes", "rank 0 sends and asks")
        yield from box(f"training job {name}", lines, x=20, y=y, width=230, height=92, colour=PLAIN)
    lines = (
        "five snapshots of each job",
        "one fair queue for the device",
        "forecasters: spectral, linear, nino, …",
        "HTTP API, metrics, live page",
        "no user code, no pickle",
    )
    yield from box("nowcast server", lines, x=520, y=44, width=260, height=172, colour=SERVER)
    for y, words in ((64, "wiring, once; snapshots"), (184, "wiring, once; snapshots")):
        yield line(256, y, 512, y, colour=INK, extra='marker-end="url(#dark)"')
        yield text(384, y - 8, words, size=13)
        yield line(512, y + 24, 256, y + 24, colour=PUSHED, extra='stroke-width="1.5" marker-end="url(#head)"')
        yield text(384, y + 42, "a forecast per interval", size=13, colour=PUSHED)


if __name__ == "__main__":
    (HERE / "interval.svg").write_text(svg(800, 310, "Five snapshots, one forecast, one push", interval()), encoding="utf-8")
    (HERE / "system.svg").write_text(svg(800, 260, "Training jobs and a nowcast server", system()), encoding="utf-8")
