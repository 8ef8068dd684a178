"""The streaming engine against the published code, alternating, one forecast each.

    python bench/published.py --code DIR --checkpoint FILE [--only NAME ...] [--rounds 5]

DIR is a checkout of the published code (github.com/SamsungSAILMontreal/nino), FILE its `nino_no_posw.pt`; neither is part of this
project. The published code forecasts one horizon; the engine is timed with one and with four. Both get the same context and
write where they would in training. The published code's graph is built beforehand, as are the engine's plan and features.
"""

import argparse
import contextlib
import io
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from forecast import HORIZONS, NETWORKS, context_of, relative_error

from nowcast_server.nino.checkpoint import load_checkpoint
from nowcast_server.nino.engine import StreamingEngine
from trainer_worker.wiring import wire

PERIOD, HORIZON = 1000, 40


def published(code: Path, checkpoint: Path, model: torch.nn.Module) -> Any:
    """The published optimizer wrapper for `model`."""
    import transformers

    assert transformers.Qwen3PreTrainedModel  # imported before the published code's own module `utils` is found
    stand_in: Any = ModuleType("torchvision")  # it only asks whether a model is one of torchvision's
    stand_in.models = SimpleNamespace(VisionTransformer=type("VisionTransformer", (), {}))
    stand_in.transforms = stand_in.datasets = SimpleNamespace()
    sys.modules.setdefault("torchvision", stand_in)
    sys.path.insert(0, str(code))
    try:
        from optim import NiNo  # type: ignore[import-not-found]  # the published code's
    finally:
        sys.path.remove(str(code))
    with contextlib.redirect_stdout(io.StringIO()):
        nino = NiNo(None, None, ckpt=str(checkpoint), verbose=0, period=PERIOD)
        nino.set_model(model)
    return nino


def measure(name: str, arguments: argparse.Namespace) -> None:
    model = NETWORKS[name]()
    wiring, states = wire(model), context_of(model)
    nino = published(arguments.code, arguments.checkpoint, model)
    engine = StreamingEngine(load_checkpoint(arguments.checkpoint))
    features = torch.randn(wiring.neurons, 8, generator=torch.Generator().manual_seed(1)) / math.sqrt(wiring.neurons)

    def theirs() -> torch.Tensor:
        torch.nn.utils.vector_to_parameters(states[-1].clone(), model.parameters())
        nino.states, nino.step_idx = list(states[:-1]), PERIOD - 1
        with contextlib.redirect_stdout(io.StringIO()):
            nino.step(k=HORIZON)
        return torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    def ours(horizons: tuple[int, ...]) -> torch.Tensor:
        return engine.forecast(wiring, states, horizons=horizons, node_pe=features)[-1]

    makers: dict[str, Callable[[], torch.Tensor]] = {
        "published": theirs,
        "engine, one horizon": lambda: ours((HORIZON,)),
        f"engine, {len(HORIZONS)} horizons": lambda: ours(HORIZONS),
    }
    times: dict[str, list[float]] = {key: [] for key in makers}
    forecasts: dict[str, torch.Tensor] = {}
    for turn in range(arguments.rounds + 1):  # the first warms up
        for key, make in makers.items():
            start = time.perf_counter()
            forecasts[key] = make()
            if turn:
                times[key].append(time.perf_counter() - start)
    medians = {key: statistics.median(values) for key, values in times.items()}
    # they use Laplacian features of their own signs, so forecasts agree only roughly: that both did the work is all this shows
    apart = relative_error(forecasts["engine, one horizon"][None], forecasts["published"][None], states[-1])
    for key, median in medians.items():
        print(f"{name:<10} {key:<20} {median:9.4f} s   published / this {medians['published'] / median:5.1f}", flush=True)
    print(f"{name:<10} forecasts differ by {apart:.1%} (other features); {torch.get_num_threads()} threads")


def main() -> None:
    sys.path.remove(str(Path(__file__).resolve().parent))  # transformers would take accelerate.py here for the package accelerate
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["fm16 14k", "gpt2 0.2M", "gpt2 1.4M"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name in arguments.only:
        measure(name, arguments)


if __name__ == "__main__":
    main()
