"""The loop that adapters are compared with: same network, data and optimizer, by hand."""

from collections.abc import Callable
from typing import Any

import torch
from small_runs import flat
from torch import Tensor, nn

from trainer_worker import Nowcast

STEPS, INTERVAL, BATCH = 72, 6, 4
OPTIONS: dict[str, Any] = {"server": "embedded", "forecaster": "linear", "interval": INTERVAL}
HUGGING_FACE: dict[str, Any] = {
    "learning_rate": 1e-2, "lr_scheduler_type": "constant", "report_to": [], "disable_tqdm": True, "use_cpu": True,
    "save_strategy": "no", "logging_strategy": "no",
}  # fmt: skip


class Network(nn.Module):
    """Gives a loss if it is given the truth, as Hugging Face's models do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        out = self.body(x)
        return {"logits": out} if labels is None else {"loss": (out - labels).pow(2).mean(), "logits": out}


def examples(count: int) -> tuple[Tensor, Tensor]:
    """Inputs (count, 8) and targets (count, 1)."""
    inputs = torch.randn(count, 8, generator=torch.Generator().manual_seed(1))
    return inputs, inputs.sum(1, keepdim=True)


def batches(count: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """The examples in their order."""
    inputs, targets = examples(count * BATCH)
    return list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))


def loop(model: Any, optimizer: Any, batches: list[tuple[Tensor, Tensor]], *, backward: Callable[[Tensor], Any]) -> None:
    for inputs, targets in batches:
        backward(model(inputs, targets)["loss"])
        optimizer.step()
        optimizer.zero_grad()


def plain_run(batches: list[tuple[Tensor, Tensor]], *, lr: float = 1e-2, nowcasts: bool = True) -> tuple[Tensor, int]:
    """The weights after a run of the loop by hand, and how many forecasts were used."""
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.0)
    nowcast = Nowcast(model, optimizer, max_steps=len(batches), **OPTIONS)
    if nowcasts:
        nowcast.start()
    loop(model, optimizer, batches, backward=Tensor.backward)
    nowcast.stop()
    return flat(model), nowcast.summary()["nowcasts"]["used"]
