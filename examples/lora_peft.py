"""LoRA with PEFT: a frozen GPT with small trained matrices. Only the trained weights are sent and forecast.

pip install ".[embedded,huggingface]" peft
python examples/lora_peft.py [STEPS]
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from trainer_worker import Nowcast
from trainer_worker.metatrain.datasets import king_james

WINDOW = 64
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
letters = torch.tensor(list(king_james()[:1_000_000].encode("ascii", "replace")))

torch.manual_seed(0)
config = GPT2Config(vocab_size=128, n_positions=WINDOW, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
base = GPT2LMHeadModel(config)  # stands for your pretrained model
model = get_peft_model(base, LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True))
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=3e-3)

with Nowcast(model, optimizer, max_steps=steps) as nowcast:
    for _ in range(steps):
        starts = torch.randint(len(letters) - WINDOW, (16, 1))
        batch = letters[starts + torch.arange(WINDOW)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        nowcast.observe(loss)

whole = sum(parameter.numel() for parameter in model.parameters())
print(f"{nowcast.summary()['parameters']:,} of {whole:,} weights are trained, sent and forecast")
print(nowcast.summary())
