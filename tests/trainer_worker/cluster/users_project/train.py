"""A user's own script: plain PyTorch, DDP if there are several processes, checkpoints in a folder. It knows nothing of Ray.

train.py STEPS PAUSE_S
"""

# ruff: noqa: T201 -- it talks to its owner
import os
import sys
import time
from pathlib import Path

import torch
from network import build
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer_worker import Nowcast

STEPS, PAUSE_S = int(sys.argv[1]), float(sys.argv[2])
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
LAST = Path(os.environ["NOWCAST_STORAGE"]) / "last.pt"

torch.manual_seed(0)
network = build()
replica = DistributedDataParallel(network) if dist.is_initialized() and WORLD > 1 else network
optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
nowcast = Nowcast(network, optimizer, max_steps=STEPS, interval=10, forecaster="linear")
done = 0
if LAST.exists():
    held = torch.load(LAST, weights_only=True)
    network.load_state_dict(held["network"])
    optimizer.load_state_dict(held["optimizer"])
    nowcast.load_state_dict(held["nowcast"])
    done = held["step"]
print(f"rank {RANK} of {WORLD} from step {done}", flush=True)
with nowcast:
    for step in range(done, STEPS):
        inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(step * WORLD + RANK))
        nn.functional.cross_entropy(replica(inputs), (inputs.sum(1) > 0).long()).backward()
        optimizer.step()
        optimizer.zero_grad()
        time.sleep(PAUSE_S)
        if RANK == 0 and (step + 1) % 25 == 0:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "nowcast": nowcast.state_dict(), "step": step + 1}, LAST.with_suffix(".new"))
            LAST.with_suffix(".new").replace(LAST)
            print(f"saved {step + 1}", flush=True)
if RANK == 0:
    print(f"end at {nowcast.steps}: {nowcast.summary()['nowcasts']}", flush=True)
