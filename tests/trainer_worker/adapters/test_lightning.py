"""Nowcasts in Lightning's Trainer, and with Fabric."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric import Fabric
from plain import BATCH, OPTIONS, STEPS, Network, batches, examples, loop, plain_run
from small_runs import flat
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from trainer_worker import Nowcast
from trainer_worker.adapters.lightning import NowcastCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and loggers

QUIET: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
QUIET |= {"accelerator": "cpu", "devices": 1}


class Module(pl.LightningModule):
    """The network, as Lightning wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return self.network(*batch)["loss"]  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2, weight_decay=0.0)


def trained(folder: Path, *, callback: NowcastCallback | None = None, resume: str | None = None, **changes: Any) -> Tensor:
    module = Module()
    settings = {"max_epochs": 2, **QUIET, **changes}
    trainer = pl.Trainer(default_root_dir=folder, callbacks=[callback] if callback else [], **settings)
    trainer.fit(module, DataLoader(TensorDataset(*examples(STEPS * BATCH // 2)), BATCH), ckpt_path=resume)
    if settings["max_epochs"] == 1:
        trainer.save_checkpoint(folder / "stopped.ckpt")
    return flat(module)


def test_the_same_bits_as_a_loop_by_hand(tmp_path: Path) -> None:
    """The adapter would count other steps than the Trainer makes, or push at another moment."""
    callback = NowcastCallback(**OPTIONS)
    weights = trained(tmp_path, callback=callback)
    expected, used = plain_run(2 * batches(STEPS // 2))
    assert callback.nowcast.steps == STEPS
    assert callback.nowcast.summary()["nowcasts"]["used"] == used > 3
    assert torch.equal(weights, expected)
    assert torch.equal(trained(tmp_path), plain_run((2 * batches(STEPS // 2)), nowcasts=False)[0])


def test_a_resumed_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    """A run that is resumed from Lightning's checkpoint would lose its context; read safely, without pickle, it must come back."""
    options = {**OPTIONS, "max_steps": STEPS}
    trained(tmp_path, callback=NowcastCallback(**options), max_epochs=1)
    resumed = trained(tmp_path, callback=NowcastCallback(**options), resume=str(tmp_path / "stopped.ckpt"))
    assert torch.equal(resumed, plain_run(2 * batches(STEPS // 2))[0])


def test_a_checkpoint_without_state_goes_on_at_its_step(tmp_path: Path) -> None:
    """Pushes would begin late, and not fade by the end of the run."""
    trained(tmp_path, max_epochs=1)
    callback = NowcastCallback(**OPTIONS)
    trained(tmp_path, callback=callback, resume=str(tmp_path / "stopped.ckpt"))
    assert callback.nowcast.steps == STEPS


def test_the_loss_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With accumulated gradients the live page and `nowcast try` would show a fraction of the loss."""
    told: list[float] = []
    monkeypatch.setattr(Nowcast, "observe", lambda _, loss: told.append(float(loss)))
    trained(tmp_path, callback=NowcastCallback(**OPTIONS), max_epochs=1, accumulate_grad_batches=STEPS // 2)
    first = [float(Network()(*batch)["loss"]) for batch in batches(STEPS // 2)]  # no weight moves before the last
    assert told == pytest.approx(first)


def test_an_error_in_training_stops_it(tmp_path: Path) -> None:
    """A crashed cell of a notebook would leave a thread behind, and hooks on the optimizer."""

    class Failing(Module):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            if index == 20:
                raise ZeroDivisionError
            return super().training_step(batch, index)

    callback = NowcastCallback(**OPTIONS)
    trainer = pl.Trainer(default_root_dir=tmp_path, max_epochs=1, callbacks=[callback], **QUIET)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(Failing(), DataLoader(TensorDataset(*examples(STEPS * BATCH)), BATCH))
    assert callback.nowcast._over


def test_steps_of_two_optimizers_make_one() -> None:
    """Lightning's `max_steps` counts them all: the run would be over when pushes are longest."""

    class Adversaries(Module):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor], index: int) -> None:
            self.manual_backward(super().training_step(batch, index))
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:  # type: ignore[override]
            return [torch.optim.SGD(layer.parameters(), 1e-3) for layer in self.network.body[::2]]

    callback = NowcastCallback(**OPTIONS)
    pl.Trainer(max_steps=STEPS, callbacks=[callback], **QUIET).fit(Adversaries(), DataLoader(TensorDataset(*examples(STEPS))))
    assert callback.nowcast.steps == callback.nowcast._max_steps == STEPS // 2


def test_fabric(tmp_path: Path) -> None:
    """With Fabric, whose wrappers are neither module nor optimizer, no step would be counted, or no state saved."""
    fabric = Fabric(accelerator="cpu", devices=1)

    def run(*, steps: slice, saved: bool) -> Tensor:
        network = Network()
        model, optimizer = fabric.setup(network, torch.optim.AdamW(network.parameters(), 1e-2, weight_decay=0.0))
        nowcast = Nowcast(model, optimizer, max_steps=STEPS, **OPTIONS)
        state = {"model": model, "optimizer": optimizer, "nowcast": nowcast}
        if saved:
            fabric.load(tmp_path / "run.ckpt", state)
        with nowcast:
            loop(model, optimizer, (2 * batches(STEPS // 2))[steps], backward=fabric.backward)
            fabric.save(tmp_path / "run.ckpt", state)
        return flat(network)

    run(steps=slice(40), saved=False)
    assert torch.equal(run(steps=slice(40, None), saved=True), plain_run(2 * batches(STEPS // 2))[0])
