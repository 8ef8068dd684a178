"""Record short FM-16 runs at several learning rates and seeds: what `bench/map.py` embeds.

python bench/map_runs.py runs/map --steps 300
"""

import argparse
from pathlib import Path

import torch

from nowcast_server.trajectories.store import SUFFIX, TrajectoryWriter
from trainer_worker.tasks.task import Task, load_task
from trainer_worker.wiring import wire

RATES = (1e-3, 3e-3, 1e-2)
SEEDS = (1, 2, 3)
BATCH = 64


def record(task: Task, folder: Path, *, rate: float, seed: int, steps: int, every: int) -> None:
    """Train once with AdamW, and keep a snapshot every so many steps with the mean training loss since the last."""
    torch.manual_seed(seed)
    model = task.build()
    wiring = wire(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    flat = torch.nn.utils.parameters_to_vector
    header = {"task": "fm-16", "wiring": wiring.to_dict(), "lr": rate, "seed": seed}
    path = folder / f"lr{rate:g}-seed{seed}{SUFFIX}"
    losses: list[float] = []
    with TrajectoryWriter(path, flat(model.parameters()).detach().numpy(), header=header) as writer:
        for step in range(1, steps + 1):
            inputs, targets = task.train.take(torch.randint(len(task.train), (BATCH,)))
            loss = torch.nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if step % every == 0:
                writer.append(step, flat(model.parameters()).detach().numpy(), loss=sum(losses) / len(losses))
                losses.clear()
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task("fm-16")
    for seed in SEEDS:
        for rate in RATES:
            record(task, given.folder, rate=rate, seed=seed, steps=given.steps, every=given.every)


if __name__ == "__main__":
    main()
