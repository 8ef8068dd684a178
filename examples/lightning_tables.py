"""A multilayer perceptron on a table (prices of diamonds) with Lightning. Only the callback is new.

pip install ".[embedded,lightning]"
python examples/lightning_tables.py [STEPS]
"""

import sys

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trainer_worker.adapters.lightning import NowcastCallback
from trainer_worker.metatrain.datasets import diamonds


class Prices(pl.LightningModule):
    """Nine features of a stone to the logarithm of its price."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Squared error of a batch."""
        return nn.functional.mse_loss(self.network(batch[0])[:, 0], batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


pl.seed_everything(0)
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
loader = DataLoader(TensorDataset(*map(torch.from_numpy, diamonds())), batch_size=128, shuffle=True)
callback = NowcastCallback()
trainer = pl.Trainer(
    max_steps=steps, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False
)
trainer.fit(Prices(), loader)
print(callback.nowcast.summary() if callback.nowcast else "")
