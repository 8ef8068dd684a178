"""Nowcasts in TRL's trainers: LoRA with `SFTTrainer`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from plain import HUGGING_FACE, OPTIONS
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from trainer_worker.adapters.huggingface import NowcastCallback

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
peft = pytest.importorskip("peft")

STEPS = 48
WORDS = 32


def tuned(folder: Path, callbacks: list[Any]) -> Any:
    """The trainer after a run on sequences that are tokens already: nothing has to be fetched."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=WORDS, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    settings = {"max_steps": STEPS, "per_device_train_batch_size": 2, "bf16": False, "gradient_checkpointing": False}
    tokens = Tokenizer(WordLevel({str(number): number for number in range(WORDS)}, unk_token="0"))
    trainer = trl.SFTTrainer(
        model=GPT2LMHeadModel(config),
        args=trl.SFTConfig(str(folder), **HUGGING_FACE, **settings),
        train_dataset=datasets.Dataset.from_list([{"input_ids": [(i + j) % WORDS for j in range(8)]} for i in range(2 * STEPS)]),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="0", pad_token="0"),
        peft_config=peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True),
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


def weights(trainer: Any, *, trained: bool) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad is trained])


def test_lora_with_sft(tmp_path: Path) -> None:
    """TRL's trainer wraps the model and reports in its own way: nothing would be pushed, or frozen weights would be."""
    callback = NowcastCallback(**OPTIONS)
    nowcast, plain = tuned(tmp_path / "with", [callback]), tuned(tmp_path / "without", [])
    summary = callback.nowcast.summary()
    assert summary["parameters"] == weights(nowcast, trained=True).numel() == 2 * (16 + 48)
    assert summary["nowcasts"]["used"] > 0
    assert not torch.equal(weights(nowcast, trained=True), weights(plain, trained=True))
    assert torch.equal(weights(nowcast, trained=False), weights(plain, trained=False))
