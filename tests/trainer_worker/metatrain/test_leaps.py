"""Runs that jump, as those do that a forecaster is used in."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from nowcast_server.forecasters import load_forecaster
from nowcast_server.trajectories.store import trajectories
from trainer_worker.metatrain import collect, corpus
from trainer_worker.metatrain.collect import CollectConfig, run
from trainer_worker.metatrain.draw import Study, draw
from trainer_worker.metatrain.feeds import TableFeed
from trainer_worker.metatrain.leaps import Leaper, Leaps
from trainer_worker.metatrain.library import wiring_of
from trainer_worker.metatrain.networks import Design
from trainer_worker.metatrain.stack import Lane, Snapshots, train

MLP = Design(kind="mlp", inputs=5, outputs=1, widths=(7,))
LANES = tuple(Lane(lr=lr, weight_decay=0.0, beta1=0.9, beta2=0.999, warmup=0, seed=seed) for lr, seed in ((1e-2, 1), (3e-3, 2)))
WIDE = replace(MLP, inputs=10)
TABLE = Study(
    number=0, data="friedman-1", validation=False, design=WIDE, size=0, views=(), lanes=LANES, batch_size=16, steps=20, every=10
)
SHIPPED = Path(__file__).parents[3] / "nowcast_server" / "checkpoints" / "wnn-base.safetensors"


def leaping_run(leaps: Leaps | None) -> list[Snapshots]:
    """Forty steps, a snapshot every second one."""
    data = torch.Generator().manual_seed(0)
    feed = TableFeed(torch.randn(50, 5, generator=data), torch.randn(50, generator=data), 2)
    leap = Leaper(leaps, load_forecaster("wnn"), wiring_of(MLP)) if leaps else None
    return list(train(MLP, LANES, feed, batch_size=4, steps=40, every=2, seed=3, leap=leap))


def test_a_lane_goes_on_where_its_own_forecast_says() -> None:
    """A forecaster would be fitted to what follows upon jumps that nobody makes."""
    plain, jumped = leaping_run(None), leaping_run(Leaps(stride=2, horizons=(8, 3)))
    first, second = 10, 20  # each context is five snapshots, two apart; the first of all is none of its
    for before, same in zip(jumped[: first + 1], plain[: first + 1], strict=True):
        assert torch.equal(before.states, same.states)
    assert [snapshot.segment for snapshot in jumped] == [0] * (first + 1) + [1] * (second - first)
    assert not torch.equal(jumped[first + 1].states, plain[first + 1].states)
    for lane in range(2):
        context = torch.stack([snapshot.states[lane] for snapshot in jumped[2 : first + 1 : 2]])
        target = load_forecaster("wnn").forecast(wiring_of(MLP), context, (8,))[0]
        # two steps of Adam lead a little away from where the jump led to
        assert (jumped[first + 1].states[lane] - target).abs().max() <= 2.5 * LANES[lane].lr
        assert (plain[first + 1].states[lane] - target).abs().max() > 2.5 * LANES[lane].lr


def test_a_lane_that_diverges_is_left_out_alone(tmp_path: Path) -> None:
    """One bad learning rate would end the collection, and again each time it is started."""
    lanes = (LANES[0], replace(LANES[1], lr=1e30), LANES[1])
    study = replace(TABLE, lanes=lanes, steps=100, leaps=Leaps(stride=1, horizons=(4,)))
    assert run(study, tmp_path / "study", forecaster=SHIPPED) == 2
    assert sorted(run.path.name for run in trajectories(tmp_path)) == ["00.trajectory", "02.trajectory"]


@pytest.mark.parametrize("states", [(0.0, 1.0, torch.nan), (0.0, 1e6, 1.0)])
def test_weights_that_cannot_be_stored_end_no_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: tuple[float, ...]
) -> None:
    """A study would be trained anew at each start, to the same refusal by the writer."""
    went = [Snapshots(step, torch.full((1, 4), state), torch.zeros(1)) for step, state in enumerate(states)]
    monkeypatch.setattr(collect, "train", lambda *arguments, **options: went)
    assert run(replace(TABLE, lanes=LANES[:1]), tmp_path / "study") == 0


def test_only_some_studies_leap_and_the_rest_stay_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier collections, which weights were fitted to, could not be made again."""
    # which networks are drawn depends on how many tokens a text has, not on the text
    monkeypatch.setattr(corpus, "text", lambda name: (torch.zeros(500, dtype=torch.int64), 90))
    plain = [draw(5, number, lanes=1, validation_share=0.1) for number in range(30)]
    mixed = [draw(5, number, lanes=1, validation_share=0.1, leaping=0.5) for number in range(30)]
    assert 5 < sum(study.leaps is not None for study in mixed) < 25
    assert [replace(study, leaps=None) for study in mixed] == plain
    for study in mixed:
        if study.leaps:
            assert list(study.leaps.horizons) == sorted(study.leaps.horizons, reverse=True)
            assert 5 * study.leaps.stride * len(study.leaps.horizons) * study.every < study.steps


def test_stored_runs_are_cut_at_their_jumps(tmp_path: Path) -> None:
    """A jump would pass for what training does in an interval."""
    study = replace(TABLE, steps=150, leaps=Leaps(stride=1, horizons=(9, 4)))
    assert run(study, tmp_path / "study", forecaster=SHIPPED) == len(study.lanes)
    for trajectory in trajectories(tmp_path):
        pieces = [np.asarray(piece.steps).tolist() for piece in trajectory.pieces()]
        assert pieces == [[*range(0, 60, 10)], [*range(60, 110, 10)], [*range(110, 160, 10)]]
        assert trajectory.header["leaps"] == {"stride": 1, "horizons": [9, 4]}


def test_leaping_needs_a_forecaster() -> None:
    """The studies would be plain runs, and nobody the wiser."""
    with pytest.raises(ValidationError, match="forecaster"):
        CollectConfig(folder=Path("x"), leaping=0.5)
