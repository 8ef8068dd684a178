"""Plain PyTorch: a convolutional network on Fashion-MNIST. Only the lines with `nowcast` are new to an ordinary loop.

python examples/convnet.py [STEPS]
"""

import sys

import torch
from torch import nn

from trainer_worker import Nowcast
from trainer_worker.tasks.data import fashion_mnist

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
torch.manual_seed(0)
pictures, test = ((torch.tensor(part.images)[:, None] / 255, torch.tensor(part.labels).long()) for part in fashion_mnist())

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10)
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

with Nowcast(model, optimizer, max_steps=steps) as nowcast:
    for _ in range(steps):
        batch = torch.randint(len(pictures[0]), (64,))
        loss = nn.functional.cross_entropy(model(pictures[0][batch]), pictures[1][batch])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        nowcast.observe(loss)  # for the server's page, and for `nowcast try`

with torch.no_grad():
    right = sum((model(part).argmax(1) == truth).sum() for part, truth in zip(*(half.split(1000) for half in test), strict=True))
print(f"test accuracy {right / len(test[0]):.1%}")
print(nowcast.summary())
