"""The map of training: runs of one network in weight space, as a picture and in sentences; `nowcast-server embed`."""

import csv
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import typer

from nowcast_server.forecasters.registry import SHIPPED
from nowcast_server.nino.checkpoint import load_checkpoint
from nowcast_server.nino.embed import Embedder, Projection
from nowcast_server.nino.laplacian import Floats
from nowcast_server.trajectories.store import Trajectory, trajectories
from protos.wiring import Wiring

COLOURINGS: Final = {"loss": "training loss", "step": "step", "lr": "learning rate", "seed": "seed"}
WIDTH: Final = 900
HEIGHT: Final = 480
MARGIN: Final = 28
STOPS: Final = ((70, 104, 220), (34, 160, 150), (222, 158, 40), (212, 66, 104))  # from low to high, for white and for black
UNKNOWN: Final = "#8a94a0"
FEW: Final = 8  # values that get an entry each in the legend; more are a scale
NAMED: Final = 16  # runs, of which each has its name beside the picture; more have none
NAMES_AT: Final = 690
LONGEST_NAME: Final = 28
WITHIN: Final = 0.97  # share of the places that the picture is scaled to


@dataclass(frozen=True)
class Embedded:
    name: str  # of the run
    about: dict[str, Any]  # what is known of it; `lr` and `seed` may be there
    steps: Floats  # (m,) of the last snapshot of each context
    losses: Floats  # (m,) at that step; NaN if they are not known
    vectors: Floats  # (m, hidden), see `Embedder.embed`


def nearest(vector: Floats, others: Sequence[Embedded]) -> tuple[Embedded, int] | None:
    """The run, and which of its contexts, that is nearest to a vector (hidden,); None if there is no other run."""
    distances = [np.square(other.vectors - vector).sum(1) for other in others]
    near = min(range(len(others)), key=lambda index: float(distances[index].min()), default=None)
    return None if near is None else (others[near], int(distances[near].argmin()))


def sentence(run: Embedded, earlier: Sequence[Embedded]) -> str | None:
    """Where a run is now, in terms of the earlier ones."""
    found = nearest(run.vectors[-1], earlier)
    if found is None:
        return None
    other, at = found
    last = other.losses[-1]
    end = "" if math.isnan(last) else f", which came to a loss of {last:.3g} at step {int(other.steps[-1]):,}"
    return f"At step {int(run.steps[-1]):,} {run.name} is nearest to step {int(other.steps[at]):,} of {other.name}{end}."


def draw(runs: Sequence[Embedded], places: Sequence[Floats], *, by: str, shares: Sequence[float]) -> str:
    """Draw runs of one network with contexts at `places` (m, 2), by one of `COLOURINGS`; the axes explain `shares` of variance."""
    values = [_values(run, by) for run in runs]
    shown, legend = _colours(np.concatenate(values), by)
    spots = _spots(places)
    parts, at = [], 0
    for run, its in zip(runs, spots, strict=True):
        name = html.escape(run.name)
        line = " ".join(f"{x:.0f},{y:.0f}" for x, y in its)
        parts.append(f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-opacity=".2"/>')
        for index, (x, y) in enumerate(its):
            title = f"<title>{name}, step {int(run.steps[index]):,}, loss {run.losses[index]:.3g}</title>"
            radius = 7 if index == len(its) - 1 else 3.5
            parts.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{radius}" fill="{shown[at + index]}">{title}</circle>')
        at += len(its)
    if len(runs) <= NAMED:
        parts += _names([run.name for run in runs], [its[-1] for its in spots])
    across, up = (f"{share:.0%} of the variance" for share in shares)
    parts.append(f'<text x="{NAMES_AT}" y="{HEIGHT - 38}" class="quiet" text-anchor="end">{across} →</text>')
    parts.append(f'<text x="{MARGIN}" y="14" class="quiet">↑ {up}</text>')
    label = f"Map of training: {len(runs)} runs, coloured by {COLOURINGS[by]}"
    head = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" font-size="13" fill="currentColor"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="map" {head}>{"".join(parts)}{legend}</svg>'


def _spots(places: Sequence[Floats]) -> list[Floats]:
    """Where on the picture the places of each run are; far ones, which would press all others together, lie at the edge."""
    low, high = np.quantile(np.concatenate(places), (1 - WITHIN, WITHIN), axis=0)
    shares = [np.clip((its - low) / np.maximum(high - low, 1e-12), -0.1, 1.1) for its in places]
    across, down = NAMES_AT - MARGIN, HEIGHT - 3 * MARGIN
    return [MARGIN + (0.1 + np.stack([each[:, 0], 1 - each[:, 1]], axis=1)) / 1.2 * (across - MARGIN, down) for each in shares]


def _names(names: Sequence[str], ends: Sequence[Floats]) -> list[str]:
    """The runs' names in a column, one below the other, each with a line to where the run is."""
    order = sorted(range(len(names)), key=lambda index: float(ends[index][1]))
    parts, free = [], 16.0
    for rank, index in enumerate(order):
        x, y = ends[index]
        at = min(max(float(y), free), HEIGHT - 60 - 17.0 * (len(order) - 1 - rank))
        free = at + 17
        parts.append(f'<path d="M{x:.0f} {y:.0f}L{NAMES_AT + 6} {at:.0f}" stroke="currentColor" stroke-opacity=".2"/>')
        parts.append(f'<text x="{NAMES_AT + 10}" y="{at + 4:.0f}">{html.escape(names[index][-LONGEST_NAME:])}</text>')
    return parts


def _values(run: Embedded, by: str) -> Floats:
    if by in ("loss", "step"):
        return np.asarray(run.losses if by == "loss" else run.steps, dtype=float)
    value = run.about.get(by)
    return np.full(len(run.steps), math.nan if value is None else float(value))


def _colours(values: Floats, by: str) -> tuple[list[str], str]:
    """A colour for each value, grey for those not known, and a legend."""
    known = np.unique(values[np.isfinite(values)])
    if not len(known):
        text = f'<text x="{MARGIN}" y="{HEIGHT - 8}" class="quiet">no {COLOURINGS[by]} is known</text>'
        return [UNKNOWN] * len(values), text
    shares = np.searchsorted(known, values) / max(len(known) - 1, 1)  # by rank: losses span decades
    colours = [_blend(share) if math.isfinite(value) else UNKNOWN for share, value in zip(shares, values, strict=True)]
    entries = known if len(known) <= FEW else np.quantile(known, (0, 0.25, 0.5, 0.75, 1), method="nearest")
    legend = f'<text x="{MARGIN}" y="{HEIGHT - 8}" class="quiet">{COLOURINGS[by]}</text>'
    for index, value in enumerate(entries):
        x, colour = MARGIN + 110 + 92 * index, _blend(index / max(len(entries) - 1, 1))
        legend += f'<circle cx="{x}" cy="{HEIGHT - 12}" r="5" fill="{colour}"/>'
        legend += f'<text x="{x + 9}" y="{HEIGHT - 8}">{value:.4g}</text>'
    return colours, legend


def _blend(share: float) -> str:
    mixed = (round(np.interp(share, np.linspace(0, 1, len(STOPS)), channel)) for channel in zip(*STOPS, strict=True))
    return "#" + bytes(mixed).hex()


def embed_run(run: Trajectory, embedder: Embedder, *, name: str) -> Embedded:
    """Embed every context of a run; none lies across a jump or a missing snapshot."""
    rows = [
        (int(piece.steps[end - 1]), float(piece.records["loss"][end - 1]), piece.states(slice(end - embedder.context, end)))
        for piece in run.pieces()
        for end in range(embedder.context, len(piece.steps) + 1)
    ]
    about: dict[str, Any] = {key: run.header[key] for key in ("task", "lr", "seed") if key in run.header}
    vectors = [embedder.embed(torch.from_numpy(states)).double().numpy() for _, _, states in rows]
    return Embedded(name, about, np.array([row[0] for row in rows]), np.array([row[1] for row in rows]), np.asarray(vectors))


def rows_of(runs: Sequence[Embedded], projection: Projection) -> list[dict[str, Any]]:
    """A row for each context: where it is on the map, and which context of another run is nearest to it."""
    rows = []
    for run in runs:
        others = [other for other in runs if other is not run]
        for step, loss, vector, (x, y) in zip(run.steps, run.losses, run.vectors, projection.apply(run.vectors), strict=True):
            row: dict[str, Any] = {"run": run.name, "step": int(step), "loss": loss, **run.about, "x": x, "y": y}
            if found := nearest(vector, others):
                other, at = found
                row |= {"nearest_run": other.name, "nearest_step": int(other.steps[at]), "nearest_ended_at": other.losses[-1]}
            rows.append(row)
    return rows


def embed(folder: Path, *, out: Path, by: str, checkpoint: Path | None, basis: Path | None) -> None:
    """The command; see `nowcast_server.cli.embed`."""
    runs = _runs(folder, checkpoint)
    if basis:
        with np.load(basis) as arrays:
            projection = Projection(arrays["mean"], arrays["components"], arrays["explained"])
    else:
        vectors = np.concatenate([run.vectors for run in runs])
        if len(vectors) < 2:
            detail = f"a map needs two contexts, or the axes of an earlier one (--basis); there is one in {folder}"
            raise typer.BadParameter(detail, param_hint="FOLDER")
        projection = Projection.fit(vectors)
    _write(out, runs, projection, by=by)
    explained = " and ".join(f"{share:.0%}" for share in projection.explained)
    typer.echo(f"{out}: {sum(len(run.steps) for run in runs)} contexts of {len(runs)} runs; the axes explain {explained}")


def _runs(folder: Path, checkpoint: Path | None) -> list[Embedded]:
    """The runs below a folder that are of the first one's network, embedded."""
    weights = load_checkpoint(checkpoint or SHIPPED / "nino-base.safetensors")
    found = [(run, Wiring.from_dict(run.header["wiring"])) for run in trajectories(folder) if "wiring" in run.header]
    if not found:
        raise typer.BadParameter(f"{folder} holds no trajectory with a wiring", param_hint="FOLDER")
    wiring = found[0][1]
    embedder = Embedder(weights, wiring)
    alike = [run for run, its in found if its.hash == wiring.hash]
    embedded = [embed_run(run, embedder, name=str(run.path.relative_to(folder))) for run in alike]
    runs = [run for run in embedded if len(run.steps)]
    if not runs:
        raise typer.BadParameter(f"no run in {folder} has {embedder.context} snapshots", param_hint="FOLDER")
    if len(runs) < len(found):
        typer.echo(f"{len(found) - len(runs)} runs left out: too short, or of another network than {runs[0].name}", err=True)
    return runs


def _write(path: Path, runs: Sequence[Embedded], projection: Projection, *, by: str) -> None:
    if path.suffix == ".svg":
        places = [projection.apply(run.vectors) for run in runs]
        path.write_text(draw(runs, places, by=by, shares=tuple(projection.explained)), encoding="utf-8")
        return
    rows = rows_of(runs, projection)
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {name: np.asarray([row.get(name) for row in rows]) for name in ("run", "step", "loss", "x", "y")}
        arrays["vectors"] = np.concatenate([run.vectors for run in runs]).astype(np.float32)
        arrays |= {"mean": projection.mean, "components": projection.components, "explained": projection.explained}
        np.savez_compressed(path, **arrays)
        return
    fields = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)
