"""The engine against the reference: every option of a model, every form of a block, every horizon."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import mlp_wiring, random_checkpoint, random_states
from wirings import TINY, compare, drawn_wiring, node_pe, relative_error, transformer_wiring

from nowcast_server.nino.engine import CPU_SIZES, Sizes, StreamingEngine
from trainer_worker.metatrain.reference import Reference

TOLERANCE = 1e-5
OPTIONS: dict[str, dict[str, Any]] = {
    "published": {},
    "wide": {"hidden": 40},
    "one_layer": {"layers": 1},
    "two_layers": {"layers": 2},
    "five_layers": {"layers": 5},
    "words": {"vocabulary": 100},
    "horizons": {"max_horizon": 50},
    "context": {"context": 3},
    "slots": {"slots": 1},
    "width_of_context": {"hidden": 5, "slots": 9},
    "width_of_features": {"hidden": 8},
    "wnn": {"graph": False},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("sizes", [TINY, None], ids=["tiny", "one-list"])
def test_every_option(name: str, sizes: Sizes | None) -> None:
    """A checkpoint with this option would be computed by another formula than it was trained with."""
    checkpoint = random_checkpoint(**OPTIONS[name])
    wiring = transformer_wiring(width=10, vocabulary=30) if checkpoint.options.slots == 1 else drawn_wiring(5)
    assert wiring.edges < CPU_SIZES.bundle
    states = random_states(wiring, context=checkpoint.options.context)
    assert compare(checkpoint, wiring, states, sizes=sizes) <= TOLERANCE


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_every_form_of_block(seed: int) -> None:
    """Some layout, diagonal, parallel block or cut would read or write the wrong weights."""
    wiring = drawn_wiring(seed)
    for graph in (True, False):
        checkpoint, states = random_checkpoint(graph=graph, seed=seed), random_states(wiring, seed=seed)
        assert compare(checkpoint, wiring, states, sizes=TINY if seed % 2 else None) <= TOLERANCE


@pytest.mark.parametrize("graph", [True, False])
def test_full_size_panels(*, graph: bool) -> None:
    """Blocks larger than one panel would lose or repeat edges where they are cut."""
    wiring = transformer_wiring(width=80, vocabulary=700)
    checkpoint = random_checkpoint(graph=graph, hidden=32)
    assert compare(checkpoint, wiring, random_states(wiring)) <= TOLERANCE


def test_weights_whose_mean_dwarfs_their_spread() -> None:
    """Norm weights near 1 would lose their digits in a folded standardisation."""
    wiring = mlp_wiring(20, 60, 40)
    states = 1 + 1e-3 * random_states(wiring)
    assert compare(random_checkpoint(), wiring, states) <= 5 * TOLERANCE  # the reference's own rounding is as large


@pytest.mark.parametrize("sizes", [CPU_SIZES, replace(CPU_SIZES, span=64)], ids=["small", "cut"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_snapshots_are_read_as_they_are(dtype: torch.dtype, sizes: Sizes) -> None:
    """Half-precision snapshots would lose digits on the way, as in sums over a large tensor, or be refused."""
    wiring = transformer_wiring(width=20, vocabulary=60)
    states = random_states(wiring).to(dtype)
    checkpoint = random_checkpoint()
    engine, features = StreamingEngine(checkpoint, sizes=sizes), node_pe(wiring)
    ours = engine.forecast(wiring, states, horizons=(5,), node_pe=features)
    wide = engine.forecast(wiring, states.float(), horizons=(5,), node_pe=features)
    assert torch.equal(ours, wide)
    theirs = Reference(checkpoint).forecast(wiring, states, horizons=(5,), node_pe=features)
    assert relative_error(ours, theirs, states[-1].float()) <= TOLERANCE


def test_snapshots_may_lie_anywhere() -> None:
    """A history that keeps its snapshots apart, or strided, would have to copy them together first."""
    wiring = transformer_wiring(width=20, vocabulary=60)
    states, features, engine = random_states(wiring), node_pe(wiring), StreamingEngine(random_checkpoint())
    kept, kept_features = states.clone(), features.clone()
    together = engine.forecast(wiring, states, horizons=(1, 9), node_pe=features)
    apart = [torch.cat((torch.zeros(3), row))[3:] for row in states]
    assert torch.equal(engine.forecast(wiring, apart, horizons=(1, 9), node_pe=features), together)
    strided = torch.stack((states, states), dim=2).flatten(1)[:, ::2]
    assert torch.equal(engine.forecast(wiring, strided, horizons=(1, 9), node_pe=features), together)
    assert torch.equal(states, kept)
    assert torch.equal(features, kept_features)  # they serve the next forecast as well
