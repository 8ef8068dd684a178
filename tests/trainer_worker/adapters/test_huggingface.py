"""Nowcasts in Hugging Face's Trainer."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from plain import BATCH, HUGGING_FACE, OPTIONS, STEPS, Network, batches, examples, plain_run
from small_runs import flat
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from trainer_worker import Nowcast
from trainer_worker.adapters.huggingface import FILE, NowcastCallback


class InOrder(Trainer):  # type: ignore[misc]
    """Takes the examples as they come, as the loop by hand does."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def trained(folder: Path, *, callback: NowcastCallback | None = None, resume: bool = False, **changes: Any) -> Tensor:
    settings = {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "max_grad_norm": 0, "weight_decay": 0}
    arguments = TrainingArguments(str(folder), **{**HUGGING_FACE, **settings, "optim": "adamw_torch", **changes})
    rows = [{"x": inputs, "labels": targets} for inputs, targets in zip(*examples(STEPS * BATCH), strict=True)]
    trainer = InOrder(Network(), arguments, train_dataset=rows, callbacks=[callback] if callback else [])
    trainer.train(resume_from_checkpoint=resume)
    return flat(trainer.model)


def test_the_same_bits_as_a_loop_by_hand(tmp_path: Path) -> None:
    """The adapter would count other steps than the Trainer makes, or push at another moment."""
    callback = NowcastCallback(**OPTIONS)
    weights = trained(tmp_path, callback=callback)
    expected, used = plain_run(batches())
    assert callback.nowcast.steps == STEPS
    assert callback.nowcast.summary()["nowcasts"]["used"] == used > 3
    assert torch.equal(weights, expected)
    without = plain_run(batches(), nowcasts=False)[0]
    assert not torch.equal(weights, without)
    assert torch.equal(trained(tmp_path / "without"), without)


def test_a_resumed_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    """A run that is stopped and resumed from the Trainer's checkpoint would lose its context, and end with other weights."""
    whole = trained(tmp_path / "whole", callback=NowcastCallback(**OPTIONS))
    saving = {"save_strategy": "steps", "save_steps": 40}
    first = NowcastCallback(**OPTIONS)
    first.on_step_end = lambda args, state, control, **_: setattr(control, "should_training_stop", state.global_step == 40)
    trained(tmp_path / "parts", callback=first, **saving)
    assert (tmp_path / "parts" / "checkpoint-40" / FILE).is_file()
    second = NowcastCallback(**OPTIONS)
    saving |= {"resume_from_checkpoint": True}  # in the arguments as well, as many scripts have it
    assert torch.equal(trained(tmp_path / "parts", callback=second, resume=True, **saving), whole)


def test_every_node_that_keeps_checkpoints_keeps_the_state(tmp_path: Path) -> None:
    """With `save_on_each_node` the other nodes would resume without one, and push other weights than the first."""
    callback, arguments = NowcastCallback(), TrainingArguments(str(tmp_path), use_cpu=True, save_on_each_node=True)
    network = Network()
    callback.nowcast = Nowcast(network, torch.optim.SGD(network.parameters()), server="embedded")
    (tmp_path / "checkpoint-40").mkdir()
    callback.on_save(arguments, TrainerState(global_step=40, is_world_process_zero=False), TrainerControl())
    assert (tmp_path / "checkpoint-40" / FILE).is_file()


def test_a_checkpoint_without_state_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint from before the callback was added could not be resumed."""
    trained(tmp_path, save_strategy="steps", save_steps=40)
    for folder in tmp_path.glob("checkpoint-7*"):
        folder.rename(tmp_path / "last")
    caplog.set_level(logging.WARNING)
    callback = NowcastCallback(**OPTIONS)
    trained(tmp_path, callback=callback, resume=True)
    assert "nowcasts start over at step 40; if it lies elsewhere, name its folder" in caplog.text
    assert callback.nowcast.steps == STEPS  # else pushes would begin late, and not fade by the end


def test_the_loss_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's page would show no loss, and `nowcast try` have nothing to compare."""
    told: list[float] = []
    monkeypatch.setattr(Nowcast, "observe", lambda _, loss: told.append(loss))
    trained(tmp_path, callback=NowcastCallback(**OPTIONS), logging_strategy="steps", logging_steps=12)
    assert len(told) == STEPS // 12
    assert told[0] > told[-1] > 0
