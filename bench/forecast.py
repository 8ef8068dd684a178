"""The streaming engine against the plain model: time, ratio, memory and arithmetic of one NiNo forecast, by size of network.

    python bench/forecast.py [--quick] [--checkpoint FILE] [--rounds 3] [--only NAME ...] [--json FILE]

Engine, reference and a bare matrix product of the engine's own shape run in turn, round after round, so that whatever else the
machine does hits all alike; figures are medians. The reference holds every edge in memory at once and is left out above
`--reference-edges`. Peak memory is that of a process of its own (the kernel's high-water mark) beyond the snapshots. GFLOP/s
count the products an edge needs (52k multiply-adds; activations and sums count as nothing), the ceiling is what bare H x H
products reach. On a busy machine `--cpu-time` tells more: processor time divided by the number of threads.

Without a checkpoint the model has random weights of the published shape: the same arithmetic, meaningless forecasts.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nowcast_server.nino.checkpoint import Checkpoint, ModelOptions, load_checkpoint, tensor_shapes
from nowcast_server.nino.engine import CPU_SIZES, StreamingEngine
from nowcast_server.nino.engine.workers import run
from nowcast_server.selftest.checks import flops_per_edge
from trainer_worker.metatrain.reference import Reference
from trainer_worker.wiring import wire

HORIZONS = (1, 5, 20, 40)
CONTEXT = 5
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "fm16 14k": lambda: convolutions(1, 16, 32, 32),
    "fm32 56k": lambda: convolutions(1, 32, 64, 64),
    "conv 1M": lambda: convolutions(3, 128, 256, 288),
    "gpt2 0.2M": lambda: gpt2(3, 64, 1000),
    "gpt2 1.4M": lambda: gpt2(4, 128, 5000),
    "gpt2 4.5M": lambda: gpt2(4, 256, 5000),
    "gpt2 12M": lambda: gpt2(6, 320, 15000),
    "gpt2 30M": lambda: gpt2(6, 384, 50257),
}
QUICK = ("fm16 14k", "fm32 56k", "gpt2 0.2M", "gpt2 1.4M")


@dataclass(frozen=True)
class Row:
    """One network's figures; times in seconds, None where not measured."""

    network: str
    parameters: int
    edges: int
    engine_s: float
    reference_s: float | None
    us_per_edge: float
    gflops: float
    ceiling_gflops: float
    peak_bytes: int
    relative_error: float | None

    @property
    def ratio(self) -> float | None:
        return self.reference_s / self.engine_s if self.reference_s else None


def convolutions(inputs: int, *widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(inputs, width, 3), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def gpt2(layers: int, width: int, vocabulary: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, n_positions=64, n_embd=width, n_layer=layers, n_head=4, bos_token_id=0, eos_token_id=0)
    )


def context_of(model: nn.Module) -> Tensor:
    """A smooth random walk from the model's weights: (context, n)."""
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    states, generator = flat.repeat(CONTEXT, 1), torch.Generator().manual_seed(0)
    for index in range(1, CONTEXT):
        states[index] = states[index - 1] + 0.01 * torch.randn(len(flat), generator=generator)
    return states


def random_checkpoint() -> Checkpoint:
    generator, options = torch.Generator().manual_seed(0), ModelOptions()
    tensors = {
        name: torch.randn(shape, generator=generator) / math.sqrt(shape[-1]) for name, shape in tensor_shapes(options).items()
    }
    return Checkpoint(options, tensors, "random")


def seconds(function: Callable[[], object], *, cpu_time: bool) -> float:
    clock = time.process_time if cpu_time else time.perf_counter
    start = clock()
    function()
    return (clock() - start) / (torch.get_num_threads() if cpu_time else 1)


def ceiling_gflops(hidden: int, *, cpu_time: bool, repeats: int = 200) -> float:
    """What bare products of the engine's tiles reach, on torch's threads or on the engine's, whichever is faster."""
    edges, threads = CPU_SIZES.tile, torch.get_num_threads()

    def products(_: object) -> None:
        h, matrix, out = torch.ones(edges, hidden), torch.ones(hidden, hidden), torch.empty(edges, hidden)
        for _ in range(repeats):
            torch.mm(h, matrix, out=out)

    flops = 2 * edges * hidden**2 * repeats
    apart = flops * threads / seconds(lambda: run(products, range(threads), threads=threads), cpu_time=cpu_time)
    return max(apart, flops / seconds(lambda: products(None), cpu_time=cpu_time)) / 1e9


def relative_error(ours: Tensor, theirs: Tensor, last: Tensor) -> float:
    return max(float((a - b).norm() / (b - last).norm()) for a, b in zip(ours, theirs, strict=True))


def measure(name: str, checkpoint: Checkpoint, arguments: argparse.Namespace) -> Row:
    model = NETWORKS[name]()
    wiring, states = wire(model), context_of(model)
    features = torch.randn(wiring.neurons, checkpoint.options.laplacian, generator=torch.Generator().manual_seed(1))
    features /= math.sqrt(wiring.neurons)
    engines: dict[str, Any] = {"engine": StreamingEngine(checkpoint)}
    if wiring.edges <= arguments.reference_edges:
        engines["reference"] = Reference(checkpoint)
    times: dict[str, list[float]] = {key: [] for key in engines}
    forecasts: dict[str, Tensor] = {}
    ceilings: list[float] = []
    warm = int(wiring.edges > 2_000_000)  # the first round warms up, which large networks do not need
    for turn in range(warm, arguments.rounds + 1):
        for key, engine in engines.items():

            def forecast(key: str = key, engine: Any = engine) -> None:
                forecasts[key] = engine.forecast(wiring, states, horizons=HORIZONS, node_pe=features)

            taken = seconds(forecast, cpu_time=arguments.cpu_time)
            if turn:
                times[key].append(taken)
        ceilings.append(ceiling_gflops(checkpoint.options.hidden, cpu_time=arguments.cpu_time))
    medians = {key: statistics.median(values) for key, values in times.items()}
    flops = flops_per_edge(checkpoint.options, horizons=len(HORIZONS)) * wiring.edges
    errors = [relative_error(forecasts["engine"], forecasts["reference"], states[-1])] if "reference" in engines else [None]
    return Row(
        name,
        wiring.size,
        wiring.edges,
        medians["engine"],
        medians.get("reference"),
        medians["engine"] / wiring.edges * 1e6,
        flops / medians["engine"] / 1e9,
        statistics.median(ceilings),
        peak_bytes(name),
        errors[0],
    )


def peak_bytes(name: str) -> int:
    """Peak memory of one forecast beyond the snapshots, plan and forecasts included, in a process of its own."""
    result = subprocess.run([sys.executable, __file__, "--peak", name], check=True, capture_output=True, text=True)
    return int(result.stdout.split()[-1])


def print_peak(name: str) -> None:
    model = NETWORKS[name]()
    wiring, states = wire(model), context_of(model)
    del model
    engine, small = StreamingEngine(random_checkpoint()), wire(nn.Linear(4, 4))
    engine.forecast(small, torch.randn(CONTEXT, small.size), horizons=HORIZONS, node_pe=torch.zeros(small.neurons, 8))
    features = torch.zeros(wiring.neurons, 8)
    Path("/proc/self/clear_refs").write_text("5")  # restart the high-water mark
    before = status("VmRSS")
    engine.forecast(wiring, states, horizons=HORIZONS, node_pe=features)
    print(status("VmHWM") - before)


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def table(rows: Iterable[Row]) -> str:
    head = f"{'network':<10} {'params':>10} {'edges':>10} {'engine s':>9} {'reference':>9} {'ratio':>6} {'us/edge':>8} "
    head += f"{'GFLOP/s':>8} {'ceiling':>8} {'share':>6} {'peak MB':>8} {'error':>8}"
    lines = [head]
    for row in rows:
        reference = f"{row.reference_s:9.3f} {row.ratio:6.1f}" if row.reference_s else f"{'-':>9} {'-':>6}"
        error = f"{row.relative_error:8.1e}" if row.relative_error is not None else f"{'-':>8}"
        lines.append(
            f"{row.network:<10} {row.parameters:>10,} {row.edges:>10,} {row.engine_s:9.4f} {reference} {row.us_per_edge:8.3f} "
            f"{row.gflops:8.1f} {row.ceiling_gflops:8.1f} {row.gflops / row.ceiling_gflops:6.0%} {row.peak_bytes / 1e6:8.1f} "
            f"{error}"
        )
    return "\n".join(lines)


def main() -> None:
    sys.path.remove(str(Path(__file__).resolve().parent))  # transformers would take accelerate.py here for the package accelerate
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}, one round")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--reference-edges", type=int, default=1_500_000, help="most edges the reference is run on")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(arguments.peak)
        return
    if arguments.quick:
        arguments.rounds = 1
    checkpoint = load_checkpoint(arguments.checkpoint) if arguments.checkpoint else random_checkpoint()
    rows: list[Row] = []
    for name in arguments.only or (QUICK if arguments.quick else NETWORKS):
        rows.append(measure(name, checkpoint, arguments))
        print(table(rows[-1:]).split("\n")[-1] if len(rows) > 1 else table(rows), flush=True)
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, {checkpoint.name}")
    if arguments.json:
        machine = {"threads": torch.get_num_threads(), "load": os.getloadavg()[0], "torch": torch.__version__}
        results = [{**asdict(row), "ratio": row.ratio} for row in rows]
        arguments.json.write_text(json.dumps({"machine": machine, "checkpoint": checkpoint.name, "networks": results}, indent=1))


if __name__ == "__main__":
    main()
