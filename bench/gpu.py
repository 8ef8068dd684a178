"""What a device does with forecasts, by size of network and size of tile: one JSON.

    python bench/gpu.py [--device cuda] [--out gpu.json] [--budget 600]

First the checks of `nowcast-server selftest`; then edges a second by size with random weights of the published shape (128 hidden
channels; the package's own have 64), and what other tiles give.
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
from nowcast_server.nino.checkpoint import Checkpoint, ModelOptions, load_checkpoint, tensor_shapes
from nowcast_server.nino.engine import DEVICE_SIZES, StreamingEngine
from nowcast_server.selftest.checks import Setup, throughput
from nowcast_server.selftest.cli import as_json, outcomes, plain_model
from nowcast_server.selftest.networks import SIZES, snapshots

TILES = (1 << 14, 1 << 15, 1 << 16, 1 << 17, 1 << 18)


def published_shape() -> Checkpoint:
    generator, options = torch.Generator().manual_seed(0), ModelOptions()
    tensors = {name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in tensor_shapes(options).items()}
    return Checkpoint(options, tensors, "random weights of the published shape")


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
    setup = Setup(torch.device(arguments.device), load_checkpoint(SHIPPED / "nino-base.safetensors"), plain_model())
    done, report = [], dict[str, Any]()

    def keep(**figures: Any) -> None:
        report.update(figures)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")

    for outcome in outcomes(setup):
        done.append(outcome)
        print(f"{'ok' if outcome.ok else 'FAILED'} {outcome.name} {outcome.seconds:.1f} s {outcome.detail}", flush=True)
        keep(selftest=as_json(done, setup))
    published = replace(setup, checkpoint=published_shape())
    with torch.no_grad():
        keep(published_shape=throughput(published))
        tiles: list[dict[str, Any]] = []
        for figures in by_tile(published, "30M" if setup.cuda else "14k"):
            tiles.append(figures)
            keep(tiles=tiles)
            if time.monotonic() > end:
                print("the budget is spent; the rest is left out", file=sys.stderr)
                return
    if setup.cuda:
        properties = torch.cuda.get_device_properties(setup.device)
        keep(memory_bytes=properties.total_memory, processors=properties.multi_processor_count)


if __name__ == "__main__":
    main()
