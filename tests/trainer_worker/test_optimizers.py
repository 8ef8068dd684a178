"""Whatever a training loop brings along: optimizers, accumulation, scaling, clipping, compilation, groups, tied weights."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import CONTEXT, INTERVAL, PERIOD, WHOLE, ShiftingEndpoint, flat
from torch import Tensor, nn
from torch import distributed as dist
from torch.amp import GradScaler
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

import trainer_worker
from trainer_worker import FixedHorizon, Guard, Nowcast

RECOVERY = 4
Step = Callable[["Loop", int], None]


def batch(index: int) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(index))
    return inputs, (inputs.sum(1) > 0).long()


def plain(loop: "Loop", index: int) -> None:
    loop.optimizer.zero_grad()
    loop.loss(index).backward()
    loop.optimizer.step()


def accumulated(loop: "Loop", index: int) -> None:
    loop.optimizer.zero_grad()
    for part in range(3):
        (loop.loss(10 * index + part) / 3).backward()
    loop.optimizer.step()


def clipped(loop: "Loop", index: int) -> None:
    loop.optimizer.zero_grad()
    loop.loss(index).backward()
    clip_grad_norm_(loop.model.parameters(), 0.1)
    loop.optimizer.step()


def with_closure(loop: "Loop", index: int) -> None:
    def closure() -> Tensor:
        loop.optimizer.zero_grad()
        loss = loop.loss(index)
        loss.backward()
        return loss

    loop.optimizer.step(closure)


def scaled(loop: "Loop", index: int) -> None:
    """Every fifth batch overflows, and the scaler leaves the step out."""
    loop.optimizer.zero_grad()
    loop.scaler.scale(loop.loss(index) * (torch.inf if index % 5 == 4 else 1.0)).backward()
    loop.scaler.unscale_(loop.optimizer)
    clip_grad_norm_(loop.model.parameters(), 1.0)
    loop.scaler.step(loop.optimizer)
    loop.scaler.update()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    model[2].weight = model[0].weight
    return model


def frozen() -> nn.Module:
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


def compiled() -> nn.Module:
    return torch.compile(mlp(), backend="eager")  # type: ignore[return-value]


def compiled_inside() -> nn.Module:
    model = mlp()
    model[0] = torch.compile(model[0], backend="eager")  # type: ignore[assignment]
    return model


def groups(model: nn.Module) -> list[dict[str, Any]]:
    first, *others = model.parameters()
    return [{"params": [first], "lr": 1e-3, "weight_decay": 0.1}, {"params": others}]


@dataclass(frozen=True)
class Case:
    """One way to train."""

    name: str
    optimizer: Callable[[Any], Optimizer]
    step: Step = plain
    build: Callable[[], nn.Module] = mlp
    params: Callable[[nn.Module], Any] = field(default=lambda model: list(model.parameters()))


def _of(name: str, **options: Any) -> Callable[[Any], Optimizer]:
    return lambda params: getattr(torch.optim, name)(params, **{"lr": 1e-2, **options})


ADAM = _of("AdamW")
CASES = [
    Case("AdamW", ADAM),
    Case("AdamW fused", _of("AdamW", fused=True)),
    Case("AdamW amsgrad foreach", _of("AdamW", amsgrad=True, foreach=True)),
    Case("AdamW with its rate in a tensor", _of("AdamW", lr=torch.tensor(1e-2))),
    Case("SGD", _of("SGD")),
    Case("SGD with momentum", _of("SGD", momentum=0.9, nesterov=True)),
    *(
        Case(name, _of(name))
        for name in ("RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "Adadelta", "Rprop", "ASGD", "Adafactor")
    ),
    Case("LBFGS", _of("LBFGS", max_iter=2), with_closure),
    Case("a closure", ADAM, with_closure),
    Case("accumulation", ADAM, accumulated),
    Case("clipping", ADAM, clipped),
    Case("GradScaler", ADAM, scaled),
    Case("GradScaler, fused", _of("AdamW", fused=True), scaled),
    Case("GradScaler, SGD", _of("SGD", momentum=0.9), scaled),
    Case("torch.compile", ADAM, build=compiled),
    Case("torch.compile of a part", ADAM, build=compiled_inside),
    Case("groups", ADAM, params=groups),
    Case("frozen weights", ADAM, build=frozen),
    Case("frozen weights left out", ADAM, build=frozen, params=lambda model: [p for p in model.parameters() if p.requires_grad]),
    Case("tied weights", ADAM, build=tied),
]


class Loop:
    """A training loop of one case; the batches and dropout of a step depend on its index and torch's random state."""

    def __init__(self, case: Case, endpoint: ShiftingEndpoint | None, *, probe: Callable[[], float] | None = None) -> None:
        torch.manual_seed(0)
        self.case = case
        self.model = case.build()
        self.optimizer = case.optimizer(case.params(self.model))
        self.scaler = GradScaler("cpu", init_scale=8.0, growth_interval=3)
        self.nowcast = endpoint and Nowcast(
            self.model, self.optimizer, server=endpoint, max_steps=1000, interval=INTERVAL, context=CONTEXT, policy=FixedHorizon(3),
            jump=WHOLE, probe=probe, guard=Guard(recovery=RECOVERY, also=(self.scaler,)) if probe else None,
        )  # fmt: skip
        self.index = 0
        self.seen: list[Tensor] = []  # weights after each step that was made

    def loss(self, index: int) -> Tensor:
        inputs, targets = batch(index)
        return functional.cross_entropy(self.model(inputs), targets)

    def train(self, steps: int) -> None:
        """So many optimizer steps that are made; those a scaler leaves out come on top."""
        while steps:
            before = flat(self.model)
            self.case.step(self, self.index)
            made = self.case.step is not scaled or self.index % 5 != 4
            assert made or torch.equal(flat(self.model), before)
            self.index += 1
            if made:
                steps -= 1
                self.seen.append(flat(self.model))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_steps_are_counted_and_jumps_land(case: Case) -> None:
    """A step miscounted shifts every snapshot; a jump that misses a parameter leaves half a forecast in the network."""
    endpoint = ShiftingEndpoint()
    jumping, usual = Loop(case, endpoint), Loop(case, None)
    assert jumping.nowcast is not None
    torch.manual_seed(1)
    usual.train(PERIOD)
    torch.manual_seed(1)
    with jumping.nowcast:
        jumping.train(PERIOD)
        assert jumping.nowcast.step == PERIOD
        for after in range(INTERVAL, PERIOD + 1, INTERVAL):
            assert torch.equal(endpoint.sent[after], usual.seen[after - 1]), after
        jumps = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in jumping.model.parameters()])
        assert torch.equal(jumping.seen[-1], torch.where(jumps, endpoint.sent[PERIOD] + 0.01 * 3, endpoint.sent[PERIOD]))
        jumping.train(PERIOD)  # goes on, and jumps again
    assert [event.outcome for event in jumping.nowcast.events] == ["accepted", "accepted"]
    assert flat(jumping.model).isfinite().all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_rollback_leaves_no_trace(case: Case) -> None:
    """Some state kept outside `optimizer.state` would make every later step another one."""
    loops: list[Loop] = []
    probe = lambda: 1.5 if loops and loops[0].nowcast._cycle._trials._trial else 1.0  # type: ignore[union-attr]  # noqa: E731
    tried, usual = Loop(case, ShiftingEndpoint(shift=0.05), probe=probe), Loop(case, None)
    loops.append(tried)
    assert tried.nowcast is not None
    torch.manual_seed(1)
    with tried.nowcast:
        tried.train(PERIOD)
        while not tried.nowcast.events:
            tried.train(1)
        later = tried.index
        tried.train(5)
    assert [event.outcome for event in tried.nowcast.events] == ["rejected"]
    assert later > PERIOD
    torch.manual_seed(1)
    usual.train(PERIOD)
    usual.index = later  # the batches of the trial are gone
    usual.train(5)
    assert torch.equal(flat(tried.model), flat(usual.model))


def test_a_rollback_reaches_the_moments_that_ranks_share_out() -> None:
    """`ZeroRedundancyOptimizer` has them in an optimizer inside; left there they would be those of the jump that was undone."""
    case = Case("", lambda params: ZeroRedundancyOptimizer(params, torch.optim.Adam, lr=1e-2))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        test_a_rollback_leaves_no_trace(case)
    finally:
        dist.destroy_process_group()


def test_a_compiled_step_is_not_compiled_with_all_that_follows_it() -> None:
    """The compiler would trace snapshots and averages into the step, anew whenever something is due: minutes, and other bits."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    loop = Loop(Case("", ADAM), None)
    made = torch.compile(loop.optimizer.step, backend=backend)
    options = {"interval": INTERVAL, "context": CONTEXT, "quiet": INTERVAL, "policy": FixedHorizon(3)}
    with Nowcast(loop.model, loop.optimizer, server=ShiftingEndpoint(), max_steps=1000, **options) as nowcast:
        for index in range(PERIOD + 1):
            loop.optimizer.zero_grad()
            loop.loss(index).backward()
            made()
    assert nowcast.summary()["nowcasts"]["accepted"] == 1
    traced = "".join(node.stack_trace or "" for graph in graphs for node in graph.graph.nodes)
    assert "adam.py" in traced
    assert str(Path(trainer_worker.__file__).parent) not in traced
