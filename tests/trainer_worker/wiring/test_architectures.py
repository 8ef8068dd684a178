"""Automatic wiring of networks that no builder names: nothing left out, and every symmetry of the graph one of the network."""

from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, GAN
from permutations import check_symmetry, hidden_groups, rolled, targets
from torch import Tensor, nn

from trainer_worker.wiring import describe

APART = {
    "mixer": {"blocks.0.tokens.2.weight"},  # tokens keep their places: the first block reads them in order
    "numbers": {"scale"},  # its targets are the inputs, which are in order, too
    "batched_experts": {"up"},  # neurons of one expert may change places, not across experts
}
"""Groups whose neurons the graph lets move more freely than the network does."""


def output(model: nn.Module, inputs: tuple[Tensor, ...] | None) -> Tensor:
    if isinstance(model, GAN):
        return model.discriminator(model.generator(torch.ones(3, 4).double()))
    out = model(*inputs)
    return getattr(out, "logits", out)


def made(name: str) -> tuple[nn.Module, Any]:
    """A network in double precision with weights everywhere, and its inputs."""
    make_model, make_inputs = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = make_model().eval().double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    inputs = make_inputs()
    if inputs is not None:
        inputs = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
    return model, inputs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_is_wired_and_hidden_neurons_may_be_permuted(name: str) -> None:
    """Parts would be forecast without their neighbours, wirings depend on the batch, or ties be missing or made up."""
    model, inputs = made(name)
    report = describe(model, inputs)
    wiring = report.wiring
    assert (report.coverage >= 0.95, report.fallbacks) == (True, ())
    assert sum(block.size for block in wiring.blocks) == wiring.size
    assert describe(model).wiring.hash == wiring.hash  # without an example
    groups = [group for group in hidden_groups(wiring) if group not in APART.get(name, set()) and "in_proj" not in group]
    assert groups
    for group in groups:
        check_symmetry(model, wiring, rolled(targets(wiring, group)), lambda: output(model, inputs))


def test_neurons_within_an_expert() -> None:
    """Neurons of one expert among many in one tensor would be tied to those of the others."""
    model, inputs = made("batched_experts")
    wiring = describe(model, inputs).wiring
    check_symmetry(model, wiring, rolled(targets(wiring, "up")[5:10]), lambda: output(model, inputs))
