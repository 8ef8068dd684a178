"""Write the tables of docs/works-with.md: what happens to pushes with each optimizer, and which test shows each framework.

python docs/matrix.py

Every optimizer trains a tiny network twice, without and with nowcasts. The gradients do not depend on the weights, so the two runs
differ by what is left of the pushes.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytorch_optimizer as more
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from trainer_worker import Nowcast, Push
from trainer_worker.errors import BadArgument
from trainer_worker.weights.optimizers import find_optimizers
from trainer_worker.weights.pushed import copies_of_weights
from trainer_worker.wiring import wire

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs/works-with.md"
MARKER: Final = "<!-- made by docs/matrix.py: do not edit below -->\n"
PUSHING, STEPS = 24, 48
"""Steps in which pushes are made, and all steps."""
INTERVAL: Final = 2

Make = Callable[[nn.Module], Optimizer | list[Optimizer]]


def network() -> nn.Module:
    """An MLP of 4-6-2, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


WIRING: Final = wire(network())


def by_class(library: Any, name: str, *arguments: Any, **options: Any) -> Make:
    """An optimizer of the whole network."""
    return lambda model: getattr(library, name)(list(model.parameters()), *arguments, **options)


def muon_and_adamw(model: nn.Module) -> list[Optimizer]:
    """As Muon is used: it takes matrices alone."""
    matrices, others = ([p for p in model.parameters() if (p.dim() == 2) is matrix] for matrix in (True, False))
    return [torch.optim.Muon(matrices, lr=1e-3), AdamW(others)]


def split_muon(name: str) -> Make:
    """An optimizer that does both by itself, told by groups."""

    def make(model: nn.Module) -> Optimizer:
        groups = [{"params": [p for p in model.parameters() if (p.dim() == 2) is muon], "use_muon": muon} for muon in (True, False)]
        made: Optimizer = getattr(more, name)(groups, lr=1e-3)
        return made

    return make


def train(optimizers: Sequence[Optimizer], model: nn.Module) -> Tensor:
    """Make all steps; the weights at the end."""
    for optimizer in optimizers:
        if hasattr(optimizer, "train"):
            optimizer.train()  # schedule-free asks for it
    sparse = any(type(optimizer).__name__ == "SparseAdam" for optimizer in optimizers)
    for step in range(STEPS):

        def closure(step: int = step) -> Tensor:
            generator = torch.Generator().manual_seed(step)
            for index, parameter in enumerate(model.parameters()):
                grad = torch.randn(parameter.shape, generator=generator) + (-1) ** index
                parameter.grad = grad.to_sparse() if sparse else grad
            return torch.ones(())

        closure()
        for optimizer in optimizers:
            optimizer.step(closure)
    return flat(model)


def flat(model: nn.Module) -> Tensor:
    """The weights as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def tried(make: Make) -> tuple[float, int, list[str]]:
    """Train without and with nowcasts.

    Returns:
        Share of the pushes that is in the weights at the end, how many were made, and what else was pushed.
    """
    model = network()
    without = train(_listed(make(model)), model)
    model = network()
    given = _listed(make(model))
    steps = find_optimizers(given)[-1]
    pushes = torch.zeros_like(without)
    with Nowcast(
        model, given, max_steps=PUSHING, interval=INTERVAL, wiring=WIRING, server="embedded", push=Push(start=0.0, fade=1.0)
    ) as nowcast:
        before = steps.register_step_post_hook(lambda *_: pushes.sub_(flat(model)))
        steps._optimizer_step_post_hooks.move_to_end(before.id, last=False)  # noqa: SLF001 -- as the push itself
        steps.register_step_post_hook(lambda *_: pushes.add_(flat(model)))
        difference = train(given, model) - without
    left = float(difference @ pushes / pushes.square().sum())
    return left, nowcast.summary()["nowcasts"]["used"], copies_of_weights(list(model.parameters()), given)


def _listed(made: Optimizer | list[Optimizer]) -> list[Optimizer]:
    return made if isinstance(made, list) else [made]


def outcome(make: Make) -> str:
    """What happens to pushes, in words."""
    try:
        left, used, copies = tried(make)
    except BadArgument as refused:
        return f"refused: {refused.detail.partition(': ')[2]}"
    if not used or not 0.9 < left < 1.1:
        return f"accepted, but {left:.0%} of {used} pushes are kept"
    return f"pushed, with what it keeps itself: {', '.join(f'`{name}`' for name in copies)}" if copies else "pushed"


OPTIMIZERS: Final[dict[str, dict[str, Make]]] = {
    "torch.optim": {
        name: by_class(torch.optim, name)
        for name, kind in sorted(vars(torch.optim).items())
        if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer and name != "Muon"
    }
    | {"Muon for matrices, AdamW for the rest": muon_and_adamw},
    "pytorch-optimizer": {
        name: by_class(more, name)
        for name in (
            "ADOPT", "AdEMAMix", "Adan", "Adalite", "AdaBelief", "CAME", "DAdaptAdaGrad", "DAdaptSGD", "FTRL", "FlashAdamW",
            "GaLore", "GrokFastAdamW", "Kron", "LARS", "Lamb", "Lion", "MADGRAD", "MARS", "Nero", "Ranger", "SCION", "SOAP",
            "ScheduleFreeAdamW", "ScheduleFreeRAdam", "ScheduleFreeSGD", "Shampoo", "StableAdamW", "Tiger", "Yogi",
        )
    }
    | {
        "DAdaptAdam": by_class(more, "DAdaptAdam", d0=0.001, growth_rate=1.02),
        "Lookahead of AdamW": lambda model: more.Lookahead(AdamW(model.parameters())),
        "Muon": split_muon("Muon"),
        "AdaMuon": split_muon("AdaMuon"),
        "Prodigy": by_class(more, "Prodigy", d0=0.001, growth_rate=1.02),
        "Ranger21": by_class(more, "Ranger21", num_iterations=STEPS),
        "SAM of AdamW, by `step(closure)`": by_class(more, "SAM", AdamW),
        "ScheduleFreeWrapper of AdamW": lambda model: more.ScheduleFreeWrapper(AdamW(model.parameters())),
    },
}  # fmt: skip

FRAMEWORKS: Final = (
    ("a plain loop", "pushed", "test_optimizers::test_steps_are_counted_and_pushes_land"),
    ("gradient accumulation, clipping, closures", "pushed", "test_optimizers::test_steps_are_counted_and_pushes_land"),
    (
        "two-step SAM, `p.data` loops, functional training",
        "pushed, if the loop calls `nowcast.step()`",
        "test_nowcast::test_steps_may_be_counted_by_hand",
    ),
    (
        "AMP with a `GradScaler`",
        "pushed; steps that it skips are not counted",
        "test_optimizers::test_steps_are_counted_and_pushes_land",
    ),
    (
        "weights in bfloat16 or float16",
        "pushed, nothing lost to rounding",
        "test_pushed::test_a_displacement_is_spread_over_the_steps_whatever_the_dtype",
    ),
    ("`torch.compile` of the model", "pushed", "test_optimizers::test_steps_are_counted_and_pushes_land"),
    (
        "`torch.compile` of the optimizer's step",
        "pushed",
        "test_optimizers::test_a_compiled_step_is_not_compiled_with_all_that_follows_it",
    ),
    ("DDP", "pushed, the same bits on all ranks", "test_distributed::test_ranks_push_or_skip_alike"),
    ("FSDP2 (`fully_shard`)", "pushed, by shards; `nino` needs `wiring=`", "test_distributed::test_a_sharded_run_is_the_same_run"),
    ("FSDP1", "refused: use FSDP2", "test_distributed::test_a_sharded_run_is_the_same_run"),
    ("Hugging Face Trainer", "pushed, the same bits as a plain loop", "test_huggingface::test_the_same_bits_as_a_loop_by_hand"),
    ("PEFT (LoRA)", "pushed: the trained weights alone", "test_examples::test_an_example_uses_forecasts"),
    ("TRL (`SFTTrainer` with LoRA)", "pushed: the trained weights alone", "test_trl::test_lora_with_sft"),
    (
        "Accelerate",
        "pushed, the same bits as a plain loop",
        "test_accelerate::test_the_same_bits_as_a_loop_by_hand_and_after_a_stop",
    ),
    ("Lightning Trainer", "pushed, the same bits as a plain loop", "test_lightning::test_the_same_bits_as_a_loop_by_hand"),
    ("Lightning Fabric", "pushed", "test_lightning::test_fabric"),
    ("Ray Train", "pushed", "test_examples::test_ray_train"),
)
"""What was tried, what happens, and the test that shows it (file::name)."""
NOT_COVERED: Final = "DeepSpeed, Megatron, tensor and pipeline parallelism, XLA devices"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def frameworks() -> list[tuple[str, str, str]]:
    """The rows of the frameworks.

    Raises:
        ValueError: a test is not there any more.
    """
    rows = []
    for name, happens, shown in FRAMEWORKS:
        file, test = shown.split("::")
        (path,) = (ROOT / "tests").rglob(f"{file}.py")
        if f"\ndef {test}(" not in path.read_text(encoding="utf-8"):
            raise ValueError(f"{name}: there is no test {test} in {path}")
        rows.append((name, happens, f"[{test.replace('_', ' ')}](../{path.relative_to(ROOT)})"))
    return [*rows, (NOT_COVERED, "not tried", "")]


def tables() -> str:
    """All that the page holds below the marker."""
    parts = ["## Frameworks\n", table(("with", "pushes", "shown by"), frameworks()), "## Optimizers\n"]
    for library, makes in OPTIMIZERS.items():
        rows = [(name, outcome(make)) for name, make in sorted(makes.items(), key=lambda item: item[0].lower())]
        parts.append(table((f"`{library}`", "pushes"), rows))
    return "\n" + "\n".join(parts)


def main() -> None:
    """Write the page."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # LR schedules and others of pytorch-optimizer
    head = PAGE.read_text(encoding="utf-8").partition(MARKER)[0]
    PAGE.write_text(head + MARKER + tables(), encoding="utf-8")


if __name__ == "__main__":
    main()
