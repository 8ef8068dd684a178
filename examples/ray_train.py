"""Your own loop on Ray Train: data-parallel workers, and a checkpoint that holds the state of `Nowcast` too.

pip install ".[embedded,ray]"
python examples/ray_train.py [STEPS]
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchTrainer, prepare_model
from torch import nn

from trainer_worker import Nowcast
from trainer_worker.metatrain.datasets import diamonds


def train(config: dict[str, Any]) -> None:
    """Run in every worker: each has its own examples, gradients are averaged, and all ranks get the same pushes."""
    rank = ray.train.get_context().get_world_rank()
    features, prices = map(torch.from_numpy, diamonds())
    torch.manual_seed(0)
    model = prepare_model(nn.Sequential(nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    nowcast = Nowcast(model, optimizer, max_steps=config["steps"], server="embedded")  # or the URL of a shared server
    torch.manual_seed(rank)
    with nowcast:
        for _ in range(config["steps"]):
            batch = torch.randint(len(features), (64,))
            loss = nn.functional.mse_loss(model(features[batch])[:, 0], prices[batch])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            nowcast.observe(loss)
    with tempfile.TemporaryDirectory() as folder:  # a run that is resumed loads the three of them, before the `with` block
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "nowcast": nowcast.state_dict()}
        torch.save(state, Path(folder) / "state.pt")
        used = nowcast.summary()["nowcasts"]["used"]
        ray.train.report({"loss": loss.item(), "used": used}, checkpoint=ray.train.Checkpoint.from_directory(folder))


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    with tempfile.TemporaryDirectory() as results:
        trainer = TorchTrainer(
            train,
            train_loop_config={"steps": steps},
            scaling_config=ray.train.ScalingConfig(num_workers=2),
            run_config=ray.train.RunConfig(storage_path=results),
        )
        print(trainer.fit().metrics)
