"""A user's own script: a GPT-2 under Hugging Face's Trainer, with its checkpoints. It knows nothing of Ray.

finetune.py STEPS PAUSE_S
"""

# ruff: noqa: T201 -- it talks to its owner
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from trainer_worker import Nowcast

STEPS, PAUSE_S, EVERY = int(sys.argv[1]), float(sys.argv[2]), 25
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
FOLDER = Path(os.environ["NOWCAST_STORAGE"])


class Counting(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Token sequences that count upwards, each from a place of its own."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = (index + torch.arange(12)) % 48
        return {"input_ids": tokens, "labels": tokens}


class KeepNowcast(TrainerCallback):
    """Keeps the state of the nowcasts beside each of Trainer's checkpoints, as the last of its files."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        time.sleep(PAUSE_S)

    def on_save(self, args: Any, state: Any, control: Any, **__: Any) -> None:
        if state.is_world_process_zero:
            torch.save(nowcast.state_dict(), FOLDER / f"checkpoint-{state.global_step}" / "nowcast.pt")
            print(f"saved {state.global_step}", flush=True)


set_seed(0)
config = GPT2Config(vocab_size=48, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
arguments = TrainingArguments(
    output_dir=str(FOLDER), max_steps=STEPS, per_device_train_batch_size=4, save_steps=EVERY, use_cpu=True, ddp_backend="gloo",
    report_to=[], lr_scheduler_type="constant", disable_tqdm=True, logging_strategy="no",
)  # fmt: skip
trainer = Trainer(model, arguments, train_dataset=Counting(), optimizers=(optimizer, None), callbacks=[KeepNowcast()])
nowcast = Nowcast(model, optimizer, max_steps=STEPS, interval=10, forecaster="linear")
whole = sorted((path.parent for path in FOLDER.glob("checkpoint-*/nowcast.pt")), key=lambda path: int(path.name.split("-")[1]))
if whole:
    nowcast.load_state_dict(torch.load(whole[-1] / "nowcast.pt", weights_only=True))
print(f"rank {RANK} of {WORLD} from step {whole[-1].name.split('-')[1] if whole else 0}", flush=True)
with nowcast:
    trainer.train(resume_from_checkpoint=str(whole[-1]) if whole else None)
if RANK == 0:
    print(f"end at {nowcast.step}: {nowcast.summary()['nowcasts']}", flush=True)
