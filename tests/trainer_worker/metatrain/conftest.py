"""A small store of real runs, made once."""

from pathlib import Path

import pytest

from trainer_worker.metatrain.collect import run
from trainer_worker.metatrain.draw import Study
from trainer_worker.metatrain.networks import Design
from trainer_worker.metatrain.stack import Lane


def study(number: int, data: str, *, held: bool) -> Study:
    """An MLP on synthetic tables, which need no download."""
    lanes = tuple(
        Lane(lr=lr, weight_decay=0.01, beta1=0.9, beta2=0.999, warmup=0, seed=number * 10 + index)
        for index, lr in enumerate((1e-3, 1e-2))
    )
    design = Design(kind="mlp", inputs=10, outputs=1, widths=(6 + number,), norm="layer")
    return Study(
        number=number, data=data, validation=held, design=design, size=0, views=(), lanes=lanes, batch_size=16, steps=300, every=10
    )


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training studies and one for validation, two runs of 31 snapshots each."""
    folder = tmp_path_factory.mktemp("trajectories")
    for number, data in enumerate(("friedman-1", "friedman-2", "friedman-3")):
        run(study(number, data, held=number == 2), folder / f"{number}")
    return folder
