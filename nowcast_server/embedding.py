"""`nowcast-server embed`: recorded runs as trajectories on a map of training."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from nowcast_server.forecasters.registry import SHIPPED
from nowcast_server.map_picture import Embedded, draw, nearest
from nowcast_server.nino.checkpoint import load_checkpoint
from nowcast_server.nino.embed import Embedder, Projection
from nowcast_server.trajectories.store import Trajectory, trajectories
from protos.wiring import Wiring


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
        projection = Projection.fit(np.concatenate([run.vectors for run in runs]))
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
