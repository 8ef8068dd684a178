"""What gliding costs a training step: a push added, and at each boundary a host copy and a push taken up.

    python bench/step_time.py [--json FILE] [--rounds N] [--threads N] [--interval N] [--delay-ms N]

Trains FM-16 and an MLP of 10M parameters, in turns without and with a `Nowcast` that glides on forecasts of a real server
process over HTTP. Figures are medians over single steps; ratios are of medians from the same run:

    gliding    a step with a push, snapshots and forecasts on their way, to a step without nowcasts: by the clock, and in the
               training thread's CPU time, which other processes on the machine disturb less
    boundary   the step that ends an interval
    copy       the host copy within it, beside one contiguous copy of the same size
    overhead   all that gliding costs over a whole interval, waiting for cores and memory included, as a share of its plain steps
    blocked    the share of the training time in which training copied a snapshot or took up a push

With `--delay-ms` a proxy holds every byte back, so that the server is a round trip of so long away.

One core is left to the server, which in earnest runs elsewhere; `--threads` changes that.
"""

import argparse
import asyncio
import json
import multiprocessing
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
from trainer_worker.tasks.task import convnet

BATCH = 128
INTERVALS = 12
"""In a turn; the first six fill the context and bring the first push."""
WARM_UP = 3


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--json", type=Path, help="write the figures to this file")
    options.add_argument("--rounds", type=int, default=8, help="turns of each kind [8]")
    options.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 1) - 1), help="of torch, for training")
    options.add_argument("--interval", type=int, default=20, help="steps between snapshots [20]")
    options.add_argument("--delay-ms", type=float, default=0.0, help="round trip to the server [0]")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    with serving() as near, distant(near, delay_s=given.delay_ms / 2000) as url:
        figures = {
            "FM-16": measure(convnet(16), (1, 28, 28), url, rounds=given.rounds, interval=given.interval),
            "10M MLP": measure(wide_mlp(), (784,), url, rounds=given.rounds, interval=given.interval),
        }
    heads = ("parameters", "plain ms", "gliding ms", "ratio", "CPU ratio", "copy ms", "bare copy ms", "overhead", "blocked", "used")
    print(f"{'':9}" + "".join(f"{head:>13}" for head in heads))
    for name, row in figures.items():
        print(
            f"{name:9}{row['parameters']:>13,}{1e3 * row['plain_s']:>13.2f}{1e3 * row['gliding_s']:>13.2f}"
            f"{row['gliding_ratio']:>13.3f}{row['gliding_cpu_ratio']:>13.3f}"
            f"{1e3 * row['copy_s']:>13.3f}{1e3 * row['bare_copy_s']:>13.3f}{row['overhead']:>13.3%}"
            f"{row['blocked']:>13.3%}{row['forecasts_used']:>13}"
        )
    if given.json:
        given.json.write_text(json.dumps({"threads": given.threads, "interval": given.interval, "models": figures}, indent=2))


def wide_mlp() -> nn.Module:
    """784-2800-2800-10: 10.1M parameters."""
    return nn.Sequential(nn.Linear(784, 2800), nn.ReLU(), nn.Linear(2800, 2800), nn.ReLU(), nn.Linear(2800, 10))


def measure(model: nn.Module, shape: tuple[int, ...], url: str, *, rounds: int, interval: int) -> dict[str, Any]:
    """Turns without and with nowcasts, and the figures."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs, targets = torch.randn(BATCH, *shape), torch.randint(10, (BATCH,))
    steps: dict[str, list[tuple[float, float]]] = defaultdict(list)
    copies, used, blocked_s = [], 0, 0.0
    train(model, optimizer, inputs, targets, steps=WARM_UP, into=defaultdict(list))
    for _ in range(rounds):
        train(model, optimizer, inputs, targets, steps=interval * INTERVALS // 2, into=steps)
        with Nowcast(model, optimizer, server=url, interval=interval) as nowcast:
            train(model, optimizer, inputs, targets, steps=interval * INTERVALS, into=steps, nowcast=nowcast)
        summary = nowcast.summary()
        assert summary["server"]["lost"] == 0, summary
        copies.append(summary["copied_s"] / summary["snapshots"]["taken"])
        used, blocked_s = used + summary["nowcasts"]["used"], blocked_s + summary["waited_s"] + summary["copied_s"]
    clock = {kind: median(seconds for seconds, _ in times) for kind, times in steps.items()}
    cpu = {kind: median(seconds for _, seconds in times) for kind, times in steps.items()}
    extra_s = (interval - 1) * (clock["gliding"] - clock["plain"]) + clock["boundary"] - clock["plain"]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "plain_s": clock["plain"],
        "gliding_s": clock["gliding"],
        "boundary_s": clock["boundary"],
        "gliding_ratio": clock["gliding"] / clock["plain"],
        "gliding_cpu_ratio": cpu["gliding"] / cpu["plain"],
        "copy_s": median(copies),
        "bare_copy_s": bare_copy_s(model),
        "overhead": extra_s / (interval * clock["plain"]),
        "forecasts_used": used,
        "blocked": blocked_s / sum(seconds for kind, times in steps.items() if kind != "plain" for seconds, _ in times),
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
    snapshots = 0
    for _ in range(steps):
        pushed = nowcast is not None and any(event.outcome == "glided" for event in nowcast.events[-1:])
        start, cpu_start = time.perf_counter(), time.thread_time()
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        took = time.perf_counter() - start, time.thread_time() - cpu_start
        kind = "plain"
        if nowcast is not None:
            taken = nowcast.summary()["snapshots"]["taken"]
            kind = ("boundary" if taken > snapshots else "gliding") if pushed else "filling"
            snapshots = taken
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


@contextmanager
def distant(url: str, *, delay_s: float) -> Iterator[str]:
    """The same server, every byte held back for so long each way by a process of its own; its URL."""
    if not delay_s:
        yield url
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    proxy = multiprocessing.get_context("spawn").Process(
        target=hold_back, args=(port, int(url.rsplit(":", 1)[1]), delay_s), daemon=True
    )
    proxy.start()
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        proxy.terminate()
        proxy.join()


def hold_back(port: int, target: int, delay_s: float) -> None:
    """Pass bytes on between a port and a target on this machine, each `delay_s` after it came."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def write() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(due - loop.time())
                if not data:
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()

        writing = asyncio.create_task(write())
        data = b"-"
        while data:
            data = await reader.read(2**18)
            queue.put_nowait((loop.time() + delay_s, data))
        await writing

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)

    async def serve() -> None:
        async with await asyncio.start_server(connect, "127.0.0.1", port) as server:
            await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
