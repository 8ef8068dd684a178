"""The wiring is the published graph, edge for edge."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import digest, expand, match, published
from published_networks import build

from trainer_worker.wiring import describe, wire

DIGESTS = json.loads((Path(__file__).parent / "published_digests.json").read_text())
"""Digests of the published code's graphs for further sizes and heads: facts computed with it, see `graphs.digest`."""


@pytest.mark.parametrize("name", ["mlp", "conv", "conv_bn", "gpt2", "llama", "bert"])
def test_graph_identity(parity: Callable[[str], Any], name: str) -> None:
    """Forecasts would differ from the published ones if a single edge, type or structural tie differed."""
    fixture = parity(name)
    model = build(fixture.meta)
    assert [(label, tuple(p.shape)) for label, p in model.named_parameters()] == fixture.params
    match(expand(wire(model, layout="published")), published(fixture.arrays))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_words_come_first(parity: Callable[[str], Any], name: str) -> None:
    """The word-position feature of a checkpoint would go to the wrong neurons."""
    fixture = parity(name)
    wiring = wire(build(fixture.meta), layout="published")
    mapping = match(expand(wiring), published(fixture.arrays))
    assert np.array_equal(mapping[wiring.words.start : wiring.words.stop], np.arange(fixture.meta["vocab_size"]))


@pytest.mark.parametrize("case", DIGESTS, ids=[f"{case['meta']['family']}-{case['changes']}" for case in DIGESTS])
def test_other_sizes(case: dict[str, Any]) -> None:
    """A rule read off one fixture need not hold for other heads, ratios, depths or output layers."""
    report = describe(build(case["meta"]), layout="published")
    assert report.family is not None
    assert (report.wiring.neurons, report.wiring.edges) == (case["neurons"], case["edges"])
    assert digest(expand(report.wiring)) == case["digest"]


@pytest.mark.parametrize("name", ["mlp", "conv", "conv_bn"])
def test_digest_ignores_numbering(parity: Callable[[str], Any], name: str) -> None:
    """The digests would accept only one numbering, or any graph at all."""
    fixture = parity(name)
    graph = published(fixture.arrays)
    assert digest(expand(wire(build(fixture.meta)))) == digest(graph)
    graph.edge_type[graph.param_edge[0]] = 2
    assert digest(expand(wire(build(fixture.meta)))) != digest(graph)


def test_tracing_finds_gpt2(parity: Callable[[str], Any]) -> None:
    """Tracing alone would not find heads, residuals and tied embeddings: its GPT-2 is the published one but for key biases."""
    fixture = parity("gpt2")
    traced, theirs = expand(wire(build(fixture.meta))), published(fixture.arrays)
    assert traced.neurons == theirs.neurons
    assert np.array_equal(np.bincount(traced.edge_type), np.bincount(theirs.edge_type))
    assert np.array_equal(traced.edge_type[traced.param_edge], theirs.edge_type[theirs.param_edge])
