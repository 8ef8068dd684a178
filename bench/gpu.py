"""What a device does with forecasts, by size of network and size of tile: one JSON.

    python bench/gpu.py [--device cuda] [--out gpu.json] [--budget 600]

First the checks of `nowcast-server selftest`; then, with random weights of the published shape (128 hidden channels) and with
the package's own (64): edges a second for each size; and what other tiles give.
A measurement that would begin after the budget is left out. `bench/gpu.sh` runs this and the tests that need a device.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nowcast_server.device import check_device
from nowcast_server.forecasters.registry import SHIPPED
from nowcast_server.nino.checkpoint import Checkpoint, load_checkpoint
from nowcast_server.nino.engine import DEVICE_SIZES, StreamingEngine
from nowcast_server.nino.options import ModelOptions, tensor_shapes
from nowcast_server.selftest.checks import Setup
from nowcast_server.selftest.cli import as_json, outcomes
from nowcast_server.selftest.networks import SIZES, snapshots

TILES = (1 << 13, 1 << 14, 1 << 15, 1 << 16, 1 << 17)


def published_shape() -> Checkpoint:
    generator, options = torch.Generator().manual_seed(0), ModelOptions()
    tensors = {name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in tensor_shapes(options).items()}
    return Checkpoint(options, tensors, "random weights of the published shape")


def by_size(setup: Setup, sizes: list[str]) -> Iterator[dict[str, Any]]:
    """Seconds and edges a second."""
    engine = StreamingEngine(setup.checkpoint, device=setup.device)
    for name in sizes:
        wiring = SIZES[name]()
        forecast = partial(engine.forecast, wiring, snapshots(wiring, device=setup.device), horizons=(1,))
        seconds = setup.seconds(forecast, rounds=3)
        hidden, speed = setup.checkpoint.options.hidden, wiring.edges / seconds
        yield {"hidden": hidden, "network": name, "edges": wiring.edges, "seconds": seconds, "edges_per_s": speed}


def by_tile(setup: Setup, name: str) -> Iterator[dict[str, Any]]:
    """Edges a second with tiles of other sizes."""
    wiring = SIZES[name]()
    states = snapshots(wiring, device=setup.device)
    for tile in TILES:
        engine = StreamingEngine(setup.checkpoint, device=setup.device, sizes=replace(DEVICE_SIZES, tile=tile))
        seconds = setup.seconds(partial(engine.forecast, wiring, states, horizons=(1,)), rounds=3)
        yield {"network": name, "tile": tile, "seconds": seconds, "edges_per_s": wiring.edges / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--budget", type=float, default=600.0, help="seconds; nothing begins after them")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.budget
    check_device(arguments.device)
    device, shipped = torch.device(arguments.device), load_checkpoint(SHIPPED / "nino-base.safetensors")
    done = []
    for outcome in outcomes(Setup(device, shipped)):
        done.append(outcome)
        print(f"{'ok' if outcome.ok else 'FAILED'} {outcome.name} {outcome.seconds:.1f} s {outcome.detail}", flush=True)
    report: dict[str, Any] = {"selftest": as_json(done, Setup(device, shipped)), "sizes": [], "tiles": []}
    sizes = ["14k", "0.2M", "1.4M", "30M"] if device.type == "cuda" else ["14k"]
    setups = [Setup(device, checkpoint) for checkpoint in (published_shape(), shipped)]
    measurements = [("sizes", by_size(setup, sizes)) for setup in setups]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        report["memory_bytes"], report["processors"] = properties.total_memory, properties.multi_processor_count
        measurements += [("tiles", by_tile(setups[0], "30M"))]
    with torch.no_grad():
        for key, measured in measurements:
            for figures in measured:
                report[key].append(figures)
                print(key, json.dumps(figures), flush=True)
                arguments.out.write_text(json.dumps(report, indent=1) + "\n")
                if time.monotonic() > end:
                    print("the budget is spent; the rest is left out", file=sys.stderr)
                    return


if __name__ == "__main__":
    main()
