"""What every forecaster promises, and those without weights against what they should say."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import mlp_wiring, random_checkpoint, random_states
from torch import nn

from nowcast_server.forecasters import FORECASTERS, Forecaster, load_forecaster, simple
from nowcast_server.forecasters.simple import BLOCK
from nowcast_server.nino.checkpoint import CheckpointError, save_checkpoint
from protos.errors import BadRequest, BadValue
from protos.wiring import Parameter, Wiring
from trainer_worker.push import GRAPH_FREE
from trainer_worker.wiring import describe, wire

WIRING = mlp_wiring(3, 5, 2)
LEARNED = ("nino", "wnn")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    paths = {name: folder / f"{name}-base.safetensors" for name in LEARNED}
    for name, path in paths.items():
        save_checkpoint(random_checkpoint(graph=name == "nino", gain=2.0), path)
    return paths


@pytest.fixture(params=list(FORECASTERS))
def forecaster(request: pytest.FixtureRequest, weights: dict[str, Path]) -> Forecaster:
    return load_forecaster(request.param, checkpoint=weights.get(request.param))


def test_nothing_is_written_to_and_nothing_aliased(forecaster: Forecaster) -> None:
    """A worker's history would change under it, or change the forecast it was given."""
    states = random_states(WIRING)
    before = states.clone()
    forecasts = forecaster.forecast(WIRING, states, (1, 2))
    kept = forecasts.clone()
    assert torch.equal(states, before)
    states.fill_(7)
    assert torch.equal(forecasts, kept)
    forecasts[0].fill_(7)
    assert torch.equal(forecasts[1], kept[1])


def test_deterministic_and_safe_for_threads(forecaster: Forecaster) -> None:
    """Two jobs at once would get each other's forecasts, and DDP ranks with servers of their own different ones."""
    wirings = [WIRING, mlp_wiring(20, 30, 10), mlp_wiring(2, 40)]
    states = [random_states(wiring, seed=seed) for seed, wiring in enumerate(wirings)]
    alone = [forecaster.forecast(wiring, state) for wiring, state in zip(wirings, states, strict=True)]
    with ThreadPoolExecutor(3) as pool:
        for index, together in enumerate(pool.map(lambda i: forecaster.forecast(wirings[i % 3], states[i % 3]), range(18))):
            assert torch.equal(together, alone[index % 3])


def test_forecasts_stay_finite(forecaster: Forecaster) -> None:
    """A network that is diverging would be sent NaN, and a constant one divided by zero."""
    states = random_states(WIRING)
    for extreme in (states * 1e38 / states.abs().max(), torch.zeros_like(states), torch.ones_like(states) * 3e38):
        assert forecaster.forecast(WIRING, extreme).isfinite().all()


def test_forecasts_move(forecaster: Forecaster) -> None:
    """A forecaster that answers with the last snapshot would pass every other test here."""
    states = random_states(WIRING)
    moved = not torch.allclose(forecaster.forecast(WIRING, states, (5,))[0], states[-1], atol=1e-3)
    assert moved == (forecaster.name != "last")


def test_which_forecasters_need_no_network(forecaster: Forecaster) -> None:
    """A worker wires a model that is split over ranks by its shapes alone for these, and would not tell that others do badly."""
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 2))
    traced, by_shape = (describe(model, by_shape=choice).wiring for choice in (False, True))
    states = random_states(traced)
    alike = torch.allclose(forecaster.forecast(traced, states), forecaster.forecast(by_shape, states), rtol=1e-4)
    assert alike == (forecaster.name in GRAPH_FREE)


BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"states": torch.zeros(5, WIRING.size + 1)}, "states"),
    ({"states": torch.zeros(WIRING.size)}, "states"),
    ({"states": torch.zeros(1, WIRING.size)}, "states"),
    ({"states": torch.zeros(5, WIRING.size, dtype=torch.int32)}, "states"),
    ({"states": torch.full((5, WIRING.size), torch.nan)}, "states"),
    ({"states": torch.full((5, WIRING.size), torch.inf)}, "states"),
    ({"horizons": ()}, "horizons"),
    ({"horizons": (0,)}, "horizons"),
    ({"horizons": (1, -3)}, "horizons"),
    ({"horizons": (1.5,)}, "horizons"),
    ({"horizons": 4}, "horizons"),
]


@pytest.mark.parametrize(("arguments", "field"), BAD_ARGUMENTS)
def test_bad_arguments_are_named(forecaster: Forecaster, arguments: dict[str, Any], field: str) -> None:
    """A caller's mistake would end in a traceback from inside torch, or in a forecast of something else."""
    with pytest.raises((BadRequest, BadValue), check=lambda error: error.field == field):
        forecaster.forecast(WIRING, **{"states": random_states(WIRING), **arguments})


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize(
    ("arguments", "field"), [({"states": torch.zeros(4, WIRING.size)}, "context"), ({"horizons": (41,)}, "horizons")]
)
def test_limits_of_a_checkpoint(name: str, arguments: dict[str, Any], field: str, weights: dict[str, Path]) -> None:
    """A context or horizon the weights were not made for would be forecast from the wrong columns."""
    forecaster = load_forecaster(name, checkpoint=weights[name])
    assert (forecaster.context, forecaster.max_horizon) == (5, 40)
    with pytest.raises(BadRequest, check=lambda error: error.field == field):
        forecaster.forecast(WIRING, **{"states": random_states(WIRING), **arguments})


def test_a_checkpoint_for_the_other_forecaster(weights: dict[str, Path]) -> None:
    """WNN's weights in NiNo's place would fail on a missing tensor, which says nothing."""
    for name, other in (("nino", "wnn"), ("wnn", "nino")):
        with pytest.raises(CheckpointError, match=repr(other)):
            load_forecaster(name, checkpoint=weights[other])


def test_average() -> None:
    """The weight-averaging baseline would be another, or depend on the horizon."""
    states = random_states(WIRING, context=4)
    forecasts = load_forecaster("average").forecast(WIRING, states, (1, 7, 40))
    assert torch.allclose(forecasts, states.mean(0).repeat(3, 1), atol=1e-6)


@pytest.mark.parametrize("context", [2, 3, 5, 8])
def test_linear_is_least_squares(context: int) -> None:
    """The extrapolation baseline would fit another line than numpy does, or extrapolate by the wrong count of intervals."""
    states = random_states(WIRING, context=context)
    slope, level = np.polynomial.polynomial.polyfit(np.arange(context), states.double().numpy(), 1)[::-1]
    expected = np.stack([level + slope * (context - 1 + horizon) for horizon in (1, 7, 40)])
    assert np.allclose(load_forecaster("linear").forecast(WIRING, states, (1, 7, 40)), expected, atol=1e-4)


def test_spectral_takes_fourth_roots() -> None:
    """Pushes would go where `linear`'s go, or matrices be pushed at another length."""
    module = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(6, 150), nn.Linear(150, 160))
    size = sum(parameter.numel() for parameter in module.parameters())
    wiring, states = wire(module), torch.randn(5, size, generator=torch.Generator().manual_seed(0))
    lines, found = (load_forecaster(name).forecast(wiring, states, (1, 40)) - states[-1] for name in ("linear", "spectral"))
    for start, parameter in zip(wiring.offsets, wiring.parameters, strict=True):
        for line, even in zip(*(moves[:, start : start + parameter.size] for moves in (lines, found)), strict=True):
            if len(parameter.shape) == 1:
                torch.testing.assert_close(even, line)
                continue
            both = (rows.view(parameter.shape[0], -1) for rows in (line, even))
            for block, evened in zip(*((wide if len(wide) < wide.shape[1] else wide.T).split(BLOCK) for wide in both), strict=True):
                u, s, v = torch.linalg.svd(block, full_matrices=False)
                expected = (u * s**0.25) @ v
                torch.testing.assert_close(evened, expected * s.norm() / expected.norm(), rtol=1e-3, atol=1e-4)


def test_spectral_takes_blocks_of_one_shape_together_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, eigenvalue problems cost a GPU as much as one core: a server with a GPU would be no faster than without."""
    solve, shapes = torch.linalg.eigh, list[tuple[int, ...]]()

    def eigh(matrices: torch.Tensor) -> Any:
        shapes.append(tuple(matrices.shape))
        return solve(matrices)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    wiring = Wiring(tuple(Parameter(str(i), (256, 128 + 512 * (i % 2))) for i in range(20)), 10, ())
    load_forecaster("spectral").predict(wiring, torch.empty(5, wiring.size, device="meta"), horizons=(1, 40))
    assert shapes == 2 * [(10, 128, 128), (20, 128, 128)]  # of 128 x 256 and of 128 x 640
    tiny = Wiring(tuple(Parameter(str(i), (2, 2)) for i in range(5000)), 10, ())
    load_forecaster("spectral").predict(tiny, torch.empty(5, tiny.size, device="meta"), horizons=(1,))
    assert [shapes.pop() for _ in range(2)] == [(904, 2, 2), (4096, 2, 2)]
    states = torch.randn(5, wiring.size, generator=torch.Generator().manual_seed(0))
    alone = load_forecaster("spectral").forecast(wiring, states, (1, 40)) - states[-1]
    assert shapes[4:] == 60 * [(128, 128)]  # on the CPU, where they are sooner done one by one
    monkeypatch.setattr(simple, "CPU", torch.device("meta"))  # which is left: as on a device
    together = load_forecaster("spectral").forecast(wiring, states, (1, 40)) - states[-1]
    assert shapes[64:] == shapes[:4]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_spectral_works_in_little_beside_its_forecast() -> None:
    """A network of a billion weights would ask for 20 GB besides its snapshots: of a server, or of the machine that trains it."""
    wiring = Wiring((Parameter("weight", (32_000, 32_000)),), 10, ())
    assert load_forecaster("spectral").working_bytes(wiring, context=5) < wiring.size / 10


def test_spectral_leaves_what_it_cannot_even_out() -> None:
    """A layer that does not move, or overflows, would end a forecast with an error of LAPACK's, or NaN in other layers."""
    wiring = wire(nn.Sequential(nn.Linear(4, 40), nn.Linear(40, 3), nn.Linear(3, 2)))
    states = torch.randn(5, wiring.size, generator=torch.Generator().manual_seed(0))
    states[:, : 4 * 33] = states[0, : 4 * 33].clone()
    states[::2, 200:320] = 3e38
    forecasts = load_forecaster("spectral").forecast(wiring, states, (1, 40))
    assert forecasts.isfinite().all()
    assert torch.equal(forecasts[:, : 4 * 33], states[:2, : 4 * 33])
    assert not torch.equal(forecasts[:, 4 * 33 : 160], load_forecaster("linear").forecast(wiring, states, (1, 40))[:, 4 * 33 : 160])


def test_linear_leaves_alone_what_does_not_move() -> None:
    """Frozen parameters would drift by rounding, forty intervals far."""
    states = random_states(WIRING)[:1].repeat(5, 1)
    assert torch.equal(load_forecaster("linear").forecast(WIRING, states, (1, 7, 40)), states[:3])


MEASURED = """
import torch
from itertools import product
from pathlib import Path
from nowcast_server.forecasters import load_forecaster
from protos.wiring import Block, Parameter, Wiring

def status(field):
    return next(int(l.split()[1]) * 1024 for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))

def layer(rows, columns):
    block = Block(1, 0, columns, columns, rows, parameter=0, source_stride=1, target_stride=columns)
    return Wiring((Parameter("weight", (rows, columns)),), rows + columns, (block,))

small = layer(40, 40)
for name, context, dtype in product(
    ("last", "average", "linear", "spectral", "wnn", "nino"), (5, 2), (torch.float32, torch.bfloat16, torch.float16)
):
    forecaster, wiring = load_forecaster(name), layer(100 if name in ("wnn", "nino") else 500, 14400)
    if forecaster.context in (None, context):
        forecaster.forecast(small, torch.randn(context, small.size), horizons=(1,))
        states = [(100 + torch.randn(wiring.size)).to(dtype) for _ in range(context)]  # a sum of theirs is beyond float16
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        forecaster.forecast(wiring, states, horizons=(1,))
        promised = 4 * wiring.size + forecaster.working_bytes(wiring, context=context)
        print(name, dtype, status("VmHWM") - before, promised + 4 * 2**20)
"""


def test_no_forecaster_takes_more_memory_than_it_says() -> None:
    """A server would set too little aside, and large networks that it admitted would end it: all jobs of all tenants."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "100000"}  # what is freed is gone
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", MEASURED], cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 30
    assert [line for line in lines if int(line[2]) > int(line[3])] == []
