"""A small character-level GPT on the King James Bible with the Hugging Face Trainer. Only the callback is new.

pip install ".[embedded,huggingface]"
python examples/gpt_huggingface.py [STEPS]
"""

import sys
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from trainer_worker.adapters.huggingface import NowcastCallback
from trainer_worker.metatrain.datasets import king_james

WINDOW = 64
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
letters = torch.tensor(list(king_james()[:1_000_000].encode("ascii", "replace")))
windows = letters[: len(letters) // WINDOW * WINDOW].view(-1, WINDOW)
data = [{"input_ids": window, "labels": window} for window in windows]

torch.manual_seed(0)
config = GPT2Config(vocab_size=128, n_positions=WINDOW, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config)
callback = NowcastCallback()
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-3, report_to=[], logging_steps=max(1, steps // 10)
    )
    Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
print(callback.nowcast.summary() if callback.nowcast else "")
