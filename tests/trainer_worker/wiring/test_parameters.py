"""The wiring of some of a model's parameters: those that are trained."""

import logging
from copy import deepcopy
from typing import Any

import pytest
import torch
from architectures import Lambda
from torch import nn

from protos.errors import BadWiring
from protos.wiring import STRUCTURE, EdgeType
from trainer_worker import Nowcast
from trainer_worker.wiring import describe, wire


def low_rank(width: int, rank: int = 4, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A frozen matrix and two small trained ones beside it."""
    base = nn.Parameter(torch.zeros(width, width, dtype=dtype), requires_grad=False)
    down, up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
    return Lambda(lambda m, inputs: inputs @ m.base.float().t() + m.up(m.down(inputs)), base=base, down=down, up=up)


def trained(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_a_lora_has_the_wiring_of_its_trained_weights(dtype: torch.dtype) -> None:
    """A snapshot would carry a million frozen weights for eight thousand trained ones, or a quantised base refuse the model."""
    model = low_rank(1000, dtype=dtype)
    wiring = wire(model, parameters=trained(model))
    assert [parameter.name for parameter in wiring.parameters] == ["down.weight", "up.weight"]
    assert wiring.size == sum(block.size for block in wiring.blocks) == 8000
    assert wiring.neurons <= 2004
    down, up = wiring.blocks
    assert (down.target, down.targets) == (up.source, up.sources)  # else an adapter would be two networks to the forecaster


def test_order_and_names_are_those_of_the_model() -> None:
    """The vector of weights follows `named_parameters()`; a wiring in the order of the caller's set would shuffle it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    wiring = wire(model, parameters={"4.bias", "0.weight", "2.weight"})
    assert [parameter.name for parameter in wiring.parameters] == ["0.weight", "2.weight", "4.bias"]
    assert wiring.blocks[0].target == wiring.blocks[1].source


class Rebuilt(nn.Module):
    """Copies itself with its layers in another order."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.second(self.first(inputs))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Rebuilt":
        return Rebuilt(**{name: deepcopy(layer, memo) for name, layer in reversed([*self.named_children()])})


def test_a_copy_in_another_order_is_matched_by_name() -> None:
    """Layers of one shape would change places, and nobody be told."""
    model = Rebuilt(second=nn.Linear(4, 4), first=nn.Linear(4, 4))
    second, first = wire(model, parameters=["first.weight", "second.weight"]).blocks
    assert first.target == second.source


def test_all_names_give_the_whole_wiring() -> None:
    """A model whose parameters are all trained would be another job than one wired without names."""
    model = nn.TransformerEncoderLayer(16, 4, 32)
    assert wire(model, parameters=trained(model)).hash == wire(model).hash


def test_structure_between_trained_neurons_stays() -> None:
    """Residual connections that join two adapters, and the heads of trained queries, would be lost with the frozen layers."""
    model = nn.TransformerEncoderLayer(16, 4, 32)
    names = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear2.weight"]
    wiring = wire(model, parameters=names)
    kinds = {EdgeType(block.edge_type) for block in wiring.blocks if block.parameter == STRUCTURE}
    assert kinds == {EdgeType.RESIDUAL, EdgeType.HEAD}
    assert wiring.neurons < wire(model).neurons


def test_structure_of_frozen_layers_goes() -> None:
    """A trained head on a frozen transformer would carry the transformer's graph along."""
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 4, 32), nn.Linear(16, 3))
    wiring = wire(model, parameters=["1.weight", "1.bias"])
    assert wiring.neurons == 16 + 3 + 1
    assert all(block.parameter != STRUCTURE for block in wiring.blocks)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.uint8])
def test_numbers_that_cannot_be_forecast_are_left_out(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    """One quantised or complex parameter would refuse a whole model that trains well without it."""
    model = nn.Linear(2, 2)
    model.phase = nn.Parameter(torch.zeros(3, dtype=dtype), requires_grad=False)
    caplog.set_level(logging.INFO)
    report = describe(model)
    assert [parameter.name for parameter in report.wiring.parameters] == ["weight", "bias"]
    assert report.left_out == (f"phase ({str(dtype)[6:]})",)
    assert [record.getMessage() for record in caplog.records if "phase" in record.getMessage()] == [
        f"not wired and not forecast, as they are not real floating-point numbers: phase ({str(dtype)[6:]})"
    ]


COMPLEX = nn.Module()
COMPLEX.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("model", "names", "says", "field"),
    [
        (nn.Linear(2, 2), ["wieght"], "no parameter 'wieght'", "wieght"),
        (nn.Sequential(nn.LazyLinear(3)), None, "run one batch", "0.weight"),
        (nn.ReLU(), None, "no real floating-point parameters", "model"),
        (COMPLEX, None, "no real floating-point parameters", "model"),
    ],
)
def test_what_cannot_be_wired_is_named(model: nn.Module, names: list[str] | None, says: str, field: str) -> None:
    """A misspelt name would silently stay out of the nowcasts; a lazy module fail somewhere inside; a job of nothing register."""
    with pytest.raises(BadWiring, match=says, check=lambda error: error.field == field):
        wire(model, parameters=names)


def test_coverage_in_one_line() -> None:
    """Nobody would see in the log what was guessed, or that most of a network is not understood."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model.spare = nn.Parameter(torch.zeros(5))
    nowcast = Nowcast(model, torch.optim.Adam(model.parameters()), server="embedded", max_steps=10)
    assert nowcast.summary()["wiring"] == {"coverage": 0.8387, "inputs": "guessed inputs 2x3 float32", "apart": 1}
    assert describe(model).sentence == (
        "83.9% of 31 weights are wired into the network (traced with guessed inputs 2x3 float32); "
        "1 parameters have neurons of their own, first 'spare'"
    )
    assert "traced with the given inputs 7x3 float32" in describe(model, torch.randn(7, 3)).sentence
    scalar = nn.Module()
    scalar.gain = nn.Parameter(torch.tensor(1.0))
    assert describe(scalar).sentence == "100.0% of 1 weights are wired into the network"  # nothing had to be run
    parts = nn.ModuleList([nn.Linear(3, 4)])
    assert "the model has no forward of its own" in describe(parts).sentence  # example inputs would not help
