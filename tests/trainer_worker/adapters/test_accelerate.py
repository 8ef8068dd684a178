"""Nowcasts in loops with Accelerate."""

from pathlib import Path

import torch
from accelerate import Accelerator
from plain import OPTIONS, STEPS, Network, batches, loop, plain_run
from small_runs import flat
from torch import Tensor

from trainer_worker.adapters.accelerate import nowcast


def run(folder: Path, *, steps: slice, saved: bool) -> tuple[Tensor, int]:
    """Part of a run, from and to Accelerate's own checkpoint; the weights, and the steps counted."""
    accelerator = Accelerator(cpu=True)
    network = Network()
    model, optimizer = accelerator.prepare(network, torch.optim.AdamW(network.parameters(), 1e-2, weight_decay=0.0))
    made = nowcast(accelerator, model, optimizer, max_steps=STEPS, **OPTIONS)
    if saved:
        accelerator.load_state(str(folder))
    with made:
        loop(model, optimizer, batches()[steps], backward=accelerator.backward)
        accelerator.save_state(str(folder))
    return flat(network), made.steps


def test_the_same_bits_as_a_loop_by_hand_and_after_a_stop(tmp_path: Path) -> None:
    """Prepared optimizers would be refused or never counted; `save_state` would lose the context."""
    expected, _ = plain_run(batches())
    whole, steps = run(tmp_path / "whole", steps=slice(None), saved=False)
    assert steps == STEPS
    assert torch.equal(whole, expected)
    run(tmp_path / "parts", steps=slice(40), saved=False)
    resumed, steps = run(tmp_path / "parts", steps=slice(40, None), saved=True)
    assert steps == STEPS
    assert torch.equal(resumed, expected)


def test_accumulated_gradients_are_one_step() -> None:
    """Every micro-batch would count as a step, and the run's length be off by their number."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    network = Network()
    model, optimizer = accelerator.prepare(network, torch.optim.AdamW(network.parameters()))
    with nowcast(accelerator, model, optimizer, max_steps=STEPS // 4, server="embedded", forecaster="linear") as made:
        for inputs, targets in batches():
            with accelerator.accumulate(model):
                accelerator.backward(model(inputs, targets)["loss"])
                optimizer.step()
                optimizer.zero_grad()
    assert made.steps == STEPS // 4
