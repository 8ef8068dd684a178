"""What streaming snapshots costs a training step: "the step pays only for the host copy".

    python bench/step_time.py [--json FILE] [--rounds N] [--threads N]

Trains FM-16 and an MLP of 10M parameters, in turns without and with a `Nowcast` that streams to a real server process over
HTTP. A snapshot is taken every 4 steps, 50 times as often as by default, so that there nearly always is one on its way.
Figures are medians over single steps; ratios are of medians from the same run:

    in flight  a step during which a snapshot was on its way, to a step without nowcasts: by the clock, and in the training
               thread's CPU time, which other processes on the machine disturb less
    copy       the host copy within a step that takes a snapshot, beside one contiguous copy of the same size
    overhead   all that streaming costs per snapshot, waiting for cores and memory included, at the default interval of 200

One core is left to the server, which in earnest runs elsewhere; `--threads` changes that.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer_worker import Nowcast
from trainer_worker.tasks.convnet import convnet

INTERVAL, CONTEXT, BATCH = 4, 8, 128
ROUND = INTERVAL * CONTEXT - 1  # steps: the nowcast itself never comes
WARM_UP = 3


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--json", type=Path, help="write the figures to this file")
    options.add_argument("--rounds", type=int, default=8, help="turns of each kind [8]")
    options.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 1) - 1), help="of torch, for training")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    with serving() as url:
        figures = {
            "FM-16": measure(convnet(16), (1, 28, 28), url, rounds=given.rounds),
            "10M MLP": measure(wide_mlp(), (784,), url, rounds=given.rounds),
        }
    heads = ("parameters", "plain ms", "in flight ms", "ratio", "CPU ratio", "copy ms", "bare copy ms", "overhead")
    print(f"{'':9}" + "".join(f"{head:>13}" for head in heads))
    for name, row in figures.items():
        print(
            f"{name:9}{row['parameters']:>13,}{1e3 * row['plain_s']:>13.2f}{1e3 * row['in_flight_s']:>13.2f}"
            f"{row['in_flight_ratio']:>13.3f}{row['in_flight_cpu_ratio']:>13.3f}"
            f"{1e3 * row['copy_s']:>13.3f}{1e3 * row['bare_copy_s']:>13.3f}{row['overhead']:>13.3%}"
        )
    if given.json:
        given.json.write_text(json.dumps({"threads": given.threads, "interval": INTERVAL, "models": figures}, indent=2))


def wide_mlp() -> nn.Module:
    """784-2800-2800-10: 10.1M parameters."""
    return nn.Sequential(nn.Linear(784, 2800), nn.ReLU(), nn.Linear(2800, 2800), nn.ReLU(), nn.Linear(2800, 10))


def measure(model: nn.Module, shape: tuple[int, ...], url: str, *, rounds: int) -> dict[str, Any]:
    """Turns without and with nowcasts, and the figures."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs, targets = torch.randn(BATCH, *shape), torch.randint(10, (BATCH,))
    steps: dict[str, list[tuple[float, float]]] = defaultdict(list)
    copies = []
    train(model, optimizer, inputs, targets, steps=WARM_UP, into=defaultdict(list))
    for _ in range(rounds):
        train(model, optimizer, inputs, targets, steps=ROUND, into=steps)
        with Nowcast(
            model, optimizer, server=url, max_steps=10**6, interval=INTERVAL, context=CONTEXT, forecaster="last"
        ) as nowcast:
            train(model, optimizer, inputs, targets, steps=ROUND, into=steps, nowcast=nowcast)
        summary = nowcast.summary()
        assert summary["snapshots"]["taken"] == CONTEXT - 1, summary
        assert summary["server"]["lost"] == 0, summary
        copies.append(summary["copied_s"] / summary["snapshots"]["taken"])
    clock = {kind: median(seconds for seconds, _ in times) for kind, times in steps.items()}
    cpu = {kind: median(seconds for _, seconds in times) for kind, times in steps.items()}
    snapshots = len(steps["snapshot"])
    extra_s = sum(len(steps[kind]) * (clock[kind] - clock["plain"]) for kind in steps) / snapshots
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "plain_s": clock["plain"],
        "in_flight_s": clock["in flight"],
        "in_flight_ratio": clock["in flight"] / clock["plain"],
        "in_flight_cpu_ratio": cpu["in flight"] / cpu["plain"],
        "copy_s": median(copies),
        "bare_copy_s": bare_copy_s(model),
        "overhead": extra_s / (200 * clock["plain"]),
        "steps": {kind: len(times) for kind, times in steps.items()},
    }


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    *,
    steps: int,
    into: dict[str, list[tuple[float, float]]],
    nowcast: Nowcast | None = None,
) -> None:
    """Train and time each step, by what went on during it."""
    for _ in range(steps):
        busy = nowcast is not None and nowcast.in_flight > 0
        start, cpu_start = time.perf_counter(), time.thread_time()
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        took = time.perf_counter() - start, time.thread_time() - cpu_start
        if nowcast is None:
            kind = "plain"
        elif nowcast.step % INTERVAL == 0:
            kind = "snapshot"
        else:
            kind = "in flight" if busy else "idle"
        into[kind].append(took)


@torch.no_grad()
def bare_copy_s(model: nn.Module) -> float:
    """One contiguous copy of as many bytes as a snapshot has."""
    source = torch.ones(sum(parameter.numel() for parameter in model.parameters()))
    target = torch.zeros_like(source)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return median(times)


@contextmanager
def serving() -> Iterator[str]:
    """A server process on a free port; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "nowcast_server", "run", "--port", str(port), "--threads", "1", "--log-level", "error"]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"{url}/readyz", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
