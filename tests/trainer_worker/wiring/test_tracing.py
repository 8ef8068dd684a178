"""What tracing makes of the ways in which modules use their weights, and what it leaves alone."""

import random
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from architectures import Lambda
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from protos.wiring import Block, Wiring
from trainer_worker.wiring import describe, wire


def blocks(wiring: Wiring, name: str) -> list[Block]:
    index = [parameter.name for parameter in wiring.parameters].index(name)
    return [block for block in wiring.blocks if block.parameter == index]


def ends(wiring: Wiring, name: str) -> tuple[set[int], set[int]]:
    """Source and target neurons of a parameter."""
    own = blocks(wiring, name)
    sources = {neuron for block in own for neuron in range(block.source, block.source + block.sources)}
    targets = {neuron for block in own for neuron in range(block.target, block.target + block.targets)}
    return sources, targets


@pytest.mark.parametrize("channels_last", [False, True])
def test_many_positions_are_parallel_edges(*, channels_last: bool) -> None:
    """Kernels and feature maps of more than nine positions would lose weights, or could not be wired."""
    net = nn.Sequential(nn.Conv2d(3, 4, 7), nn.Conv2d(4, 4, 4), nn.Flatten(), nn.Linear(4 * 16, 2))
    if channels_last:
        flatten = Lambda(lambda _, x: x.permute(0, 2, 3, 1).flatten(1))
        net = nn.Sequential(net[0], net[1], flatten, net[3])
    wiring = wire(net, torch.randn(2, 3, 13, 13))
    assert [block.slots for block in blocks(wiring, "0.weight")] == [9, 9, 9, 9, 9, 4]
    assert sum(block.size for block in blocks(wiring, "3.weight")) == 4 * 16 * 2
    assert ends(wiring, "3.weight")[0] == ends(wiring, "1.weight")[1]


def test_kernel_shapes() -> None:
    """1d, 3d, grouped, depthwise, transposed and dilated convolutions would be wired as if they were plain."""
    nets = {
        nn.Sequential(nn.Conv1d(3, 4, 5, dilation=2), nn.ConvTranspose1d(4, 6, 3, groups=2)): torch.randn(1, 3, 20),
        nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), nn.Conv3d(4, 8, 1, groups=4)): torch.randn(1, 2, 4, 4, 4),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, groups=4), nn.ConvTranspose2d(8, 2, 2, groups=2)): torch.randn(
            1, 3, 9, 9
        ),
    }
    for net, example in nets.items():
        report = describe(net, example)
        assert report.coverage == 1.0
        assert sum(block.size for block in report.wiring.blocks) == report.wiring.size
    wiring = report.wiring
    assert [(block.sources, block.targets) for block in blocks(wiring, "1.weight")] == [(1, 2)] * 4
    assert [(block.sources, block.targets) for block in blocks(wiring, "2.weight")] == [(4, 1)] * 2


def test_shuffled_channels() -> None:
    """A channel shuffle between grouped convolutions would send weights to the wrong neurons."""
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ChannelShuffle(2), nn.Conv2d(6, 4, 1, groups=2))
    wiring = wire(net, torch.randn(1, 3, 4, 4))
    start = blocks(wiring, "0.weight")[0].target
    groups: dict[int, set[int]] = defaultdict(set)
    for block in blocks(wiring, "2.weight"):
        groups[block.target].update(range(block.source - start, block.source - start + block.sources))
    assert sorted(map(sorted, groups.values())) == [[0, 1, 3], [2, 4, 5]]  # the shuffled order is 0 3 1 4 2 5


def test_weight_and_spectral_norm() -> None:
    """Reparametrised layers would be cut off from their neighbours."""
    for wrap in (weight_norm, spectral_norm, nn.utils.weight_norm):
        report = describe(nn.Sequential(wrap(nn.Linear(5, 6)), nn.ReLU(), wrap(nn.Linear(6, 3))), torch.randn(4, 5))
        matrices = [row for row in report.rows if len(row.shape) == 2 and row.shape[1] > 1]
        assert report.coverage == 1.0
        assert matrices[0].targets == matrices[1].sources
    report = describe(nn.Sequential(weight_norm(nn.Conv1d(3, 4, 3), dim=1), nn.Conv1d(4, 2, 1)), torch.randn(2, 3, 9))
    assert report.coverage > 0.9  # gains that cannot be followed end no run before it begins


def test_written_out_recurrence() -> None:
    """States written into a preallocated tensor would lose their neurons."""

    def run(module: nn.Module, x: Tensor) -> Tensor:
        state, states = torch.zeros(len(x), 5), torch.zeros(*x.shape[:2], 5)
        for step in range(x.shape[1]):
            state = torch.tanh(module.read(x[:, step]) + module.keep(state))
            states[:, step] = state
        return module.out(states)

    wiring = wire(Lambda(run, read=nn.Linear(3, 5), keep=nn.Linear(5, 5), out=nn.Linear(5, 2)), torch.randn(2, 4, 3))
    hidden = ends(wiring, "read.weight")[1]
    assert hidden == ends(wiring, "keep.weight")[0] == ends(wiring, "keep.weight")[1] == ends(wiring, "out.weight")[0]


def test_merged_low_rank_adapters() -> None:
    """What is added to a layer's weights or bias (adapters, the noise of a NoisyNet) would not share its neurons."""
    down, up, noise = (nn.Parameter(torch.randn(*shape)) for shape in ((2, 4), (6, 2), (6,)))
    parts = {"base": nn.Linear(4, 6), "down": down, "up": up, "noise": noise, "out": nn.Linear(6, 3)}
    net = Lambda(lambda m, x: m.out(F.linear(x, m.base.weight + m.up @ m.down, m.base.bias + 0.1 * m.noise)), **parts)
    report = describe(net, torch.randn(3, 4))
    assert report.coverage == 1.0
    assert ends(report.wiring, "base.weight")[0] == ends(report.wiring, "noise")[1] == ends(report.wiring, "out.weight")[0]


def test_experts_in_one_tensor() -> None:
    """Experts applied by one grouped product would share their hidden neurons."""
    import transformers

    sizes = {"hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**sizes, vocab_size=20, num_local_experts=3, num_experts_per_tok=2)
    )
    report = describe(model, {"input_ids": torch.randint(0, 20, (2, 16))})
    assert report.coverage == 1.0
    assert len(ends(report.wiring, "model.layers.0.mlp.experts.down_proj")[0]) == 3 * 4


def test_what_never_runs_is_reported() -> None:
    """A parameter nobody uses would be lost, or counted as understood; a 0-d one has no neurons, but a place in the flat vector."""
    net = Lambda(
        lambda m, x: m.scale * (m.used(x) + x @ m.part[:3]),
        used=nn.Linear(3, 4),
        part=nn.Parameter(torch.randn(5, 4)),
        spare=nn.Parameter(torch.randn(7)),
        scale=nn.Parameter(torch.tensor(2.0)),
    )
    report = describe(net, torch.randn(2, 3))
    assert report.fallbacks == ("spare",)
    assert sum(block.size for block in report.wiring.blocks) == report.wiring.size - 1
    assert blocks(report.wiring, "scale") == []
    assert {row.name: row.followed for row in report.rows}["part"] == pytest.approx(0.6)
    assert report.coverage == pytest.approx((16 + 12 + 1) / (16 + 20 + 7 + 1))


def fail(*_: Any) -> Tensor:
    raise RuntimeError("needs a cluster")


def test_runs_in_parts_if_not_as_a_whole() -> None:
    """A forward that fails would leave the whole network without a graph."""
    net = Lambda(fail, body=nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), head=nn.Linear(2, 2))
    report = describe(net)
    assert report.fallbacks == ("head.weight", "head.bias")
    assert ends(report.wiring, "body.0.weight")[1] == ends(report.wiring, "body.2.weight")[0]
    assert "needs a cluster" in report.remarks[0]
    assert {row.how for row in report.rows} == {"traced apart", "fallback"}


def test_wrong_example_is_reported() -> None:
    """An example that does not fit would make wiring fail instead of making it guess."""
    report = describe(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 5))
    assert report.coverage == 1.0
    assert report.remarks[0].startswith("the example inputs do not run")


def test_module_is_left_as_it_was() -> None:
    """Wiring a model in the middle of training would change its weights, buffers, mode or random numbers."""

    def run(module: nn.Module, x: Tensor) -> Tensor:
        module.seen += 1
        module.out.weight.data.clamp_(-0.1, 0.1)
        return module.out(F.dropout(module.norm(x), 0.5)) * random.random() * np.random.rand()  # noqa: NPY002

    net = Lambda(run, norm=nn.BatchNorm1d(3), out=nn.Linear(3, 2)).train()
    net.seen = 0
    before = {name: value.clone() for name, value in net.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    wire(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert (net.training, net.seen) == (True, 0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002


def _odd_modules() -> dict[str, nn.Module]:
    """Modules whose inputs are not what their first layer alone suggests."""

    def condition(m: nn.Module, image: Tensor, condition: Tensor) -> Tensor:
        return m.out((m.conv(image) * m.scale(condition)[..., None, None]).mean((2, 3)))

    conditioned = Lambda(
        lambda m, sample, timestep, context: (
            m.first(sample) + m.place + (m.step(timestep[:, None].float()) + m.text(context).mean(1))[:, :, None, None]
        ),
        first=nn.Conv2d(3, 4, 3, padding=1),
        step=nn.Linear(1, 4),
        text=nn.Linear(6, 4),
        place=nn.Parameter(torch.zeros(4, 12, 12)),
    )
    conditioned.config = SimpleNamespace(sample_size=12, cross_attention_dim=6)  # as diffusion models say it
    return {
        "image and condition": Lambda(condition, conv=nn.Conv2d(3, 6, 3), scale=nn.Linear(7, 6), out=nn.Linear(6, 2)),
        "noise and label": Lambda(
            lambda m, z, label: m.out(torch.cat([z, m.label(label)], 1)), label=nn.Embedding(9, 4), out=nn.Linear(12, 3)
        ),
        "fixed length": Lambda(
            lambda m, ids, _=None: m.out(m.embed(ids).flatten(1)), embed=nn.Embedding(20, 4), out=nn.Linear(4 * 12, 6)
        ),
        "few positions": Lambda(
            lambda m, x, _=None: m.out(m.read(x) + m.places[: x.shape[1]]),
            read=nn.Linear(3, 8),
            out=nn.Linear(8, 2),
            places=nn.Parameter(torch.randn(6, 8)),
        ),
        "features made inside": Lambda(lambda m, x, _=None: m.out(torch.cat([x, x.sin(), x.cos()], -1)), out=nn.Linear(33, 4)),
        "stated sizes": conditioned,
        "named batch": Lambda(lambda m, batch, _=None: m.out(batch["x"]) + m.out(batch["other"]), out=nn.Linear(5, 4)),
        "signal": nn.Sequential(nn.Conv1d(2, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 46, 3)),
    }


@pytest.mark.parametrize("name", _odd_modules())
def test_guessed_inputs(name: str) -> None:
    """A module would be wired piece by piece because no input could be guessed for it."""
    report = describe(_odd_modules()[name])
    assert {row.how for row in report.rows} == {"traced"}
    assert report.remarks == ()


@pytest.mark.parametrize(
    "mode",
    [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16), lambda: torch.device("meta")],
    ids=["inference", "no_grad", "autocast", "device"],
)
def test_modes_of_the_caller(mode: Callable[[], AbstractContextManager[None]]) -> None:
    """A worker that wires its model inside one of torch's modes would get another graph, or an error."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    plain = wire(net).hash
    with mode():
        assert wire(net).hash == plain
    assert wire(net.to(torch.bfloat16)).hash == plain  # nor does its precision make it another job


def test_wrapped_modules() -> None:
    """Compiled or data-parallel modules would be wired otherwise than what they wrap, or compiled on the way."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    for wrapped in (torch.compile(net), Lambda(fail, module=net)):
        report = describe(wrapped)
        assert report.coverage == 1.0
        assert report.remarks == ()
        assert report.wiring.blocks == wire(net).blocks
        assert [parameter.name for parameter in report.wiring.parameters] == [name for name, _ in wrapped.named_parameters()]


def test_shapes_are_enough() -> None:
    """A network on the meta device, too large to hold, could not be wired."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert wire(layer.to("meta")).hash == wire(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).hash
    looked_up = Lambda(lambda m, x: m.out(x + m.table[m.index].sum(0)), table=nn.Parameter(torch.randn(9, 4)), out=nn.Linear(4, 2))
    looked_up.register_buffer("index", torch.arange(3))
    remarks = describe(looked_up.to("meta"), torch.randn(2, 4)).remarks  # labels looked up by them would be of memory's making
    assert remarks[0].startswith("operator index could not be followed")


def test_large_example() -> None:
    """A training batch given as the example would be run and labelled whole; or a layer that works in place write into it."""
    seen: list[int] = []

    def run(module: nn.Module, x: Tensor) -> Tensor:
        seen.append(len(x))
        return module.out(x.relu_().mean((2, 3)))

    batch = torch.randn(64, 3, 32, 32)
    before = batch.clone()
    assert describe(Lambda(run, out=nn.Linear(3, 2)), batch).coverage == 1.0
    assert max(seen) <= 4
    assert torch.equal(batch, before)


def _unusual() -> dict[str, nn.Module]:
    locked = nn.Sequential(nn.Linear(3, 2))
    locked.lock = threading.Lock()
    compiled = Lambda(lambda m, x: m.out(m.inner(x).relu()), inner=torch.compile(nn.Linear(3, 4)), out=nn.Linear(4, 2))
    scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    return {"a lock": locked, "a compiled part": compiled, "scripted": scripted, "a single layer": nn.Linear(4, 2)}


@pytest.mark.parametrize("what", _unusual())
def test_unusual_modules_are_traced(what: str) -> None:
    """What cannot be copied or shows no signature would cost a module its graph; or a compilation begin, of the tracer itself."""
    report = describe(_unusual()[what])
    assert (report.coverage, report.remarks) == (1.0, ())
