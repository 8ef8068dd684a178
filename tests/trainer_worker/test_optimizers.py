"""Whatever a training loop brings along, from accumulation to tied weights. `docs/matrix.py` tries all of torch's optimizers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import FIRST, FULL, INTERVAL, STEPS, TAKEN_UP, UNHELD, ScriptedEndpoint, flat, make, nowcasts, onward
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

import trainer_worker
from trainer_worker import Nowcast, Push
from trainer_worker.push import shape
from trainer_worker.weights.flat import FlatParameters

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


def sharpness_aware(loop: "Loop", index: int) -> None:
    """As the common implementation: the weights' memory is exchanged in between."""
    kept = {}
    loop.optimizer.zero_grad()
    loop.loss(index).backward()
    with torch.no_grad():
        for parameter in loop.model.parameters():
            kept[parameter] = parameter.data.clone()
            parameter.add_(0.01 * parameter.grad)
    loop.optimizer.zero_grad()
    loop.loss(index).backward()
    for parameter, values in kept.items():
        parameter.data = values
    loop.optimizer.step()


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


class Extending(torch.optim.AdamW):
    """Its `step` calls that of its base, whose hooks torch runs as well once there is an optimizer of that class."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def extending(params: Any) -> Optimizer:
    _of("AdamW")([torch.zeros(1)])
    return Extending(params, lr=1e-2)


ADAM = _of("AdamW")
CASES = [
    Case("AdamW", ADAM),
    Case("AdamW fused", _of("AdamW", fused=True)),
    Case("AdamW amsgrad foreach", _of("AdamW", amsgrad=True, foreach=True)),
    Case("AdamW with its rate in a tensor", _of("AdamW", lr=torch.tensor(1e-2))),
    Case("SGD", _of("SGD")),
    Case("SGD with momentum", _of("SGD", momentum=0.9, nesterov=True)),
    Case("a class that extends AdamW", extending),
    Case("a closure", ADAM, with_closure),
    Case("accumulation", ADAM, accumulated),
    Case("clipping", ADAM, clipped),
    Case("GradScaler", ADAM, scaled),
    Case("GradScaler, fused", _of("AdamW", fused=True), scaled),
    Case("GradScaler, SGD", _of("SGD", momentum=0.9), scaled),
    Case("torch.compile", ADAM, build=lambda: torch.compile(mlp(), backend="eager")),
    Case("torch.compile of a part", ADAM, build=compiled_inside),
    Case("groups", ADAM, params=groups),
    Case("frozen weights", ADAM, build=frozen),
    Case("frozen weights left out", ADAM, build=frozen, params=lambda model: [p for p in model.parameters() if p.requires_grad]),
    Case("tied weights", ADAM, build=tied),
    Case("SAM", ADAM, sharpness_aware),
]


class Loop:
    """A training loop of one case; the batches and dropout of a step depend on its index and torch's random state."""

    def __init__(self, case: Case, endpoint: ScriptedEndpoint | None) -> None:
        torch.manual_seed(0)
        self.case = case
        self.model = case.build()
        self.optimizer = case.optimizer(case.params(self.model))
        self.scaler = GradScaler("cpu", init_scale=8.0, growth_interval=3)
        self.nowcast = endpoint and make(self.model, self.optimizer, endpoint, push=UNHELD)
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
def test_steps_are_counted_and_pushes_land(case: Case) -> None:
    """A step miscounted shifts every snapshot; a push that misses a parameter leaves half a forecast in the network."""
    endpoint = ScriptedEndpoint()
    gliding, usual = Loop(case, endpoint), Loop(case, None)
    torch.manual_seed(1)
    usual.train(FIRST + INTERVAL)
    torch.manual_seed(1)
    with gliding.nowcast:
        gliding.train(FIRST + INTERVAL)
        assert gliding.nowcast.steps == FIRST + INTERVAL
        for after in range(INTERVAL, FULL + 1, INTERVAL):
            held = {id(each) for group in gliding.optimizer.param_groups for each in group["params"]}
            parts = [(p, id(p) in held and p.requires_grad) for p in gliding.model.parameters()]
            trained = torch.cat([torch.full((p.numel(),), is_trained) for p, is_trained in parts])
            assert torch.equal(endpoint.sent[after], usual.seen[after - 1][trained]), after
        pushed = gliding.seen[-1] - usual.seen[-1]
        expected = torch.zeros_like(pushed)
        states = [endpoint.sent[at] for at in range(INTERVAL, FULL + 1, INTERVAL)]
        pieces = FlatParameters(gliding.model, [gliding.optimizer]).pieces
        expected[trained] = shape(onward(states, 1), states, pieces, gain=0.5, hold_norms=False)
        torch.testing.assert_close(pushed, expected, rtol=1e-2, atol=1e-5)
        assert pushed.norm() > 0
        gliding.train(STEPS - FIRST - INTERVAL)
    assert nowcasts(gliding.nowcast) == [(at, "glided", "") for at in TAKEN_UP]
    assert flat(gliding.model).isfinite().all()


class AdEMAMix(torch.optim.AdamW):
    """Goes by the name of one with a slow momentum."""


@pytest.mark.parametrize(("kind", "gain"), [(torch.optim.AdamW, 0.85), (torch.optim.Muon, 0.7), (AdEMAMix, 0.5)])
def test_the_gain_suits_the_optimizer(kind: Callable[..., Optimizer], gain: float) -> None:
    """Beside an optimizer with a slow momentum of its own the gain that suits Adam breaks a run, and nobody would know why."""
    for push, expected in ((Push(start=0.0), gain), (Push(gain=0.3, start=0.0), 0.3)):
        loop, endpoint = Loop(Case("", ADAM), None), ScriptedEndpoint()
        matrices = [weight for weight in loop.model.parameters() if weight.dim() == 2]
        both = [kind(matrices, lr=1e-3), loop.optimizer]
        with Nowcast(loop.model, both, server=endpoint, max_steps=1000, interval=INTERVAL, push=push):
            for index in range(STEPS):
                loop.loss(index).backward()
                both[0].step()
                loop.optimizer.step()
        assert max(each.gain for each in endpoint.told) == expected


def test_a_compiled_step_is_not_compiled_with_all_that_follows_it() -> None:
    """The compiler would trace snapshots and pushes into the step, anew whenever something is due: minutes, and other bits."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    loop = Loop(Case("", ADAM), None)
    made = torch.compile(loop.optimizer.step, backend=backend)
    with Nowcast(loop.model, loop.optimizer, server=ScriptedEndpoint(), max_steps=1000, interval=INTERVAL) as nowcast:
        for index in range(50 + FIRST):
            loop.optimizer.zero_grad()
            loop.loss(index).backward()
            made()
    assert nowcast.summary()["nowcasts"]["used"] > 0
    traced = "".join(node.stack_trace or "" for graph in graphs for node in graph.graph.nodes)
    assert "adam.py" in traced
    assert str(Path(trainer_worker.__file__).parent) not in traced
