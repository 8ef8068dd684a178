"""Does the map of training separate runs by learning rate better than PCA of raw weights does? Silhouettes of both.

    python bench/map_runs.py runs/map && python bench/map.py runs/map

The silhouette of a context is (b - a) / max(a, b): a is the mean distance to contexts of the same learning rate and other seeds,
b that to the nearest other learning rate. 1 is a clean separation, 0 none. Contexts of the same run are left out of a.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from nowcast_server.forecasters.registry import SHIPPED
from nowcast_server.map_picture import embed_run
from nowcast_server.nino.checkpoint import load_checkpoint
from nowcast_server.nino.embed import Embedder, Floats, Projection
from nowcast_server.trajectories.store import Trajectory, trajectories
from protos.wiring import Wiring


def silhouette(points: Floats, labels: np.ndarray, runs: np.ndarray) -> float:
    """Mean over all contexts (m, k)."""
    distances = np.sqrt(np.square(points[:, None] - points[None]).sum(-1))
    values = []
    for index, label in enumerate(labels):
        mine = distances[index][(labels == label) & (runs != runs[index])].mean()
        other = min(distances[index][labels == each].mean() for each in set(labels) - {label})
        values.append((other - mine) / max(mine, other))
    return float(np.mean(values))


def _spreads(states: Floats, run: Trajectory, context: int) -> Floats:
    """Standard deviation of each tensor and of its movement over a context, which need no network: (m, 2 * parameters)."""
    wiring = Wiring.from_dict(run.header["wiring"])
    ends = np.cumsum([parameter.size for parameter in wiring.parameters])[:-1]
    now, moved = states[context - 1 :], states[context - 1 :] - states[: 1 - context]
    return np.stack([part.std(1) for each in (now, moved) for part in np.split(each, ends, axis=1)], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = list(trajectories(given.folder))
    embedder = Embedder(load_checkpoint(SHIPPED / "nino-base.safetensors"), Wiring.from_dict(found[0].header["wiring"]))
    runs = [embed_run(run, embedder, name=run.path.name) for run in found]
    labels = np.concatenate([np.full(len(run.steps), run.about["lr"]) for run in runs])
    whose = np.concatenate([np.full(len(run.steps), index) for index, run in enumerate(runs)])
    late = np.concatenate([run.steps >= run.steps.max() / 2 for run in runs])
    context = embedder.context
    states = [run.states(slice(None)).astype(np.float64) for run in found]
    spaces = {
        "raw weights": np.concatenate([each[context - 1 :] for each in states]),
        "movement of raw weights": np.concatenate([each[context - 1 :] - each[: 1 - context] for each in states]),
        "spread of each tensor's weights and movement": np.concatenate([_spreads(each, found[0], context) for each in states]),
        "neuron embeddings": np.concatenate([run.vectors for run in runs]),
    }
    print("| space | 2 components | 8 components | 2 components, second half of the runs |\n|---|---|---|---|")
    for name, vectors in spaces.items():
        two, eight = (Projection.fit(vectors, count=count).apply(vectors) for count in (2, 8))
        half = Projection.fit(vectors[late]).apply(vectors[late])
        figures = (silhouette(two, labels, whose), silhouette(eight, labels, whose), silhouette(half, labels[late], whose[late]))
        print(f"| {name} | " + " | ".join(f"{each:+.2f}" for each in figures) + " |")


if __name__ == "__main__":
    main()
