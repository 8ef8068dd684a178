"""The engine against the reference: every option of a model, every form of a block, every horizon."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import published, published_wiring
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import mlp_wiring, random_checkpoint, random_states
from wirings import compare, drawn_wiring, node_pe, relative_error, transformer_wiring

from nowcast_server.nino.checkpoint import load_checkpoint
from nowcast_server.nino.engine import StreamingEngine
from nowcast_server.nino.engine.placement import Placement
from nowcast_server.nino.engine.plan import Sizes
from nowcast_server.nino.reference import NinoReference

TOLERANCE = 1e-5
TINY = Sizes(panel=96, tile=40, sources=16, bundle=30, small=20)
"""Cuts even small blocks into many panels, tiles and bundles of uneven sizes."""

OPTIONS: dict[str, dict[str, Any]] = {
    "published": {},
    "towers": {"towers": 4},
    "wide": {"hidden": 40},
    "one_layer": {"layers": 1},
    "two_layers": {"layers": 2},
    "five_layers": {"layers": 5},
    "one_layer_updates": {"layers": 1, "final_edge_update": True},
    "final_update": {"final_edge_update": True},
    "deep_inputs": {"input_layers": 2},
    "words": {"vocabulary": 100},
    "words_alone": {"vocabulary": 100, "laplacian": 0},
    "no_types": {"edge_types": 0},
    "relu": {"activation": "relu"},
    "gelu": {"activation": "gelu"},
    "tanh": {"activation": "tanh"},
    "per_weight": {"scaling": "std-param"},
    "range": {"scaling": "min-max"},
    "not_residual": {"residual": False},
    "scaled": {"update_scale": 0.3},
    "context": {"context": 3},
    "slots": {"slots": 1},
    "width_of_context": {"hidden": 5, "slots": 9},
    "width_of_features": {"hidden": 8},
    "wnn": {"graph": False},
    "wnn_plain": {"graph": False, "edge_types": 0},
    "wnn_deep_inputs": {"graph": False, "input_layers": 2, "scaling": "std-param"},
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Placement, "sizes", TINY)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.usefixtures("tiny")
def test_every_option(name: str) -> None:
    """A checkpoint with this option would be computed by another formula than it was trained with."""
    checkpoint = random_checkpoint(**OPTIONS[name])
    wiring = transformer_wiring(width=12, vocabulary=30) if checkpoint.options.slots == 1 else drawn_wiring(3)
    states = random_states(wiring, context=checkpoint.options.context)
    assert compare(checkpoint, wiring, states) <= TOLERANCE


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_every_form_of_block(seed: int) -> None:
    """Some layout, diagonal, parallel block or cut would read or write the wrong weights."""
    wiring = drawn_wiring(seed)
    before = Placement.sizes
    Placement.sizes = TINY if seed % 2 else before
    try:
        for graph in (True, False):
            assert compare(random_checkpoint(graph=graph, seed=seed), wiring, random_states(wiring, seed=seed)) <= TOLERANCE
    finally:
        Placement.sizes = before


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_for_a_small_network(name: str) -> None:
    """A network whose edges make one list would be forecast by another formula than larger ones."""
    checkpoint = random_checkpoint(**OPTIONS[name])
    wiring = transformer_wiring(width=12, vocabulary=30) if checkpoint.options.slots == 1 else drawn_wiring(5)
    states = random_states(wiring, context=checkpoint.options.context)
    assert wiring.edges < Placement.sizes.bundle
    assert compare(checkpoint, wiring, states) <= TOLERANCE


def test_features_given_are_not_written_to() -> None:
    """Features are kept for the next forecast of the same network, which would differ."""
    checkpoint, wiring = random_checkpoint(hidden=8), transformer_wiring()
    features, states = node_pe(wiring), random_states(wiring)
    kept = features.clone()
    StreamingEngine(checkpoint).forecast(wiring, states, horizons=(1,), node_pe=features)
    assert torch.equal(features, kept)


@pytest.mark.parametrize("graph", [True, False])
def test_full_size_panels(*, graph: bool) -> None:
    """Blocks larger than one panel would lose or repeat edges where they are cut."""
    wiring = transformer_wiring(width=80, vocabulary=700)
    checkpoint = random_checkpoint(graph=graph, hidden=32)
    assert compare(checkpoint, wiring, random_states(wiring)) <= TOLERANCE


@pytest.mark.parametrize("network", ["mlp", "conv", "conv_bn", "gpt2", "llama", "bert"])
def test_published_networks_cut_small(network: str, parity: Callable[[str], Any], shared: Path, tiny: None) -> None:
    """Published weights on published architectures would differ from the reference once blocks are cut into panels."""
    fixture = parity(network)
    wiring, states = published_wiring(fixture.params, published(fixture.arrays)), torch.from_numpy(fixture.arrays["states"])
    checkpoint = load_checkpoint(shared / "checkpoints" / "nino_no_posw.pt")
    assert compare(checkpoint, wiring, states, horizons=(1, 2, 5, 13, 40)) <= TOLERANCE


def test_weights_whose_mean_dwarfs_their_spread() -> None:
    """Norm weights near 1 would lose their digits in a folded standardisation."""
    wiring = mlp_wiring(20, 60, 40)
    states = 1 + 1e-3 * random_states(wiring)
    assert compare(random_checkpoint(), wiring, states) <= 5 * TOLERANCE  # the reference's own rounding is as large


def test_weights_in_no_block_keep_their_last_value() -> None:
    """Scalars and weights that no block holds would be lost or set to zero."""
    wiring = mlp_wiring(6, 30, 4)
    wiring = replace(wiring, blocks=tuple(replace(b, sources=b.sources - 1) if b.sources > 1 else b for b in wiring.blocks[1:]))
    states = random_states(wiring)
    out = StreamingEngine(random_checkpoint()).forecast(wiring, states, horizons=(3,), node_pe=None)[0]
    weight, held = wiring.parameters[0].size, wiring.parameters[2]
    assert torch.equal(out[:weight], states[-1][:weight])
    last_column = slice(wiring.offsets[2] + held.shape[1] - 1, wiring.offsets[2] + held.size, held.shape[1])
    assert torch.equal(out[last_column], states[-1][last_column])
    assert not torch.isclose(out, states[-1]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_snapshots_are_read_as_they_are(dtype: torch.dtype) -> None:
    """Half-precision snapshots would lose digits on the way, or be refused."""
    wiring = transformer_wiring(width=20, vocabulary=60)
    states = random_states(wiring).to(dtype)
    checkpoint = random_checkpoint()
    engine, features = StreamingEngine(checkpoint), node_pe(wiring)
    ours = engine.forecast(wiring, states, horizons=(5,), node_pe=features)
    wide = engine.forecast(wiring, states.float(), horizons=(5,), node_pe=features)
    assert torch.equal(ours, wide)
    theirs = NinoReference(checkpoint).forecast(wiring, states, horizons=(5,), node_pe=features)
    assert relative_error(ours, theirs, states[-1].float()) <= TOLERANCE


def test_snapshots_may_lie_anywhere() -> None:
    """A history that keeps its snapshots apart, or strided, would have to copy them together first."""
    wiring = transformer_wiring(width=20, vocabulary=60)
    states, features, engine = random_states(wiring), node_pe(wiring), StreamingEngine(random_checkpoint())
    kept = states.clone()
    together = engine.forecast(wiring, states, horizons=(1, 9), node_pe=features)
    apart = [torch.cat((torch.zeros(3), row))[3:] for row in states]
    assert torch.equal(engine.forecast(wiring, apart, horizons=(1, 9), node_pe=features), together)
    strided = torch.stack((states, states), dim=2).flatten(1)[:, ::2]
    assert torch.equal(engine.forecast(wiring, strided, horizons=(1, 9), node_pe=features), together)
    assert torch.equal(states, kept)


@pytest.mark.parametrize(("network", "error"), [("gpt2", 0.02), ("conv", 0.02), ("llama", 0.02)])
def test_bfloat16_is_as_near_as_documented(network: str, error: float, parity: Callable[[str], Any], shared: Path) -> None:
    """The optional narrow products would be further off than the documentation says, or secretly wide."""
    fixture = parity(network)
    wiring, states = published_wiring(fixture.params, published(fixture.arrays)), torch.from_numpy(fixture.arrays["states"])
    checkpoint = load_checkpoint(shared / "checkpoints" / "nino_no_posw.pt")
    exact, narrow = (
        StreamingEngine(checkpoint, precision=precision).forecast(wiring, states, horizons=(1, 40), node_pe=None)
        for precision in ("float32", "bfloat16")
    )
    assert 1e-4 < relative_error(narrow, exact, states[-1]) < error
