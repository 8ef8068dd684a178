"""The Laplacian features: true eigenvectors, and always the same ones."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nowcast_server.interruption import Cancelled, interruptible
from nowcast_server.nino.engine.bundles import block_edges
from nowcast_server.nino.laplacian import NeuronClasses, compute_features, features_bytes, laplacian_features
from protos.wiring import Block, EdgeType, Parameter, Wiring

BIAS = Parameter("bias", (1,))


def structure(kind: EdgeType, source: int, sources: int, target: int, targets: int, *, diagonal: bool = False) -> Block:
    return Block(int(kind), source, sources, target, targets, diagonal=diagonal)


def layered(*widths: int, residual: bool = False) -> Wiring:
    """Layers of the given widths, each joined to the next in full, and to the one after by a diagonal if it is as wide."""
    starts = np.cumsum((0, *widths)).tolist()
    blocks = [
        structure(EdgeType.HEAD, start, width, start + width, after)
        for start, width, after in zip(starts, widths, widths[1:], strict=False)
    ]
    if residual:
        blocks += [
            structure(EdgeType.RESIDUAL, starts[index], width, starts[index + 2], width, diagonal=True)
            for index, width in enumerate(widths[:-2])
            if width == widths[index + 2]
        ]
    return Wiring((BIAS,), sum(widths), tuple(blocks))


def attention(heads: int, *, width: int = 3) -> Wiring:
    """Heads of a layer, all alike."""
    blocks = [structure(EdgeType.HEAD, 0, 2, 2, heads * width)]
    blocks += [structure(EdgeType.HEAD, 2 + head * width, width, 2 + (heads + head) * width, width) for head in range(heads)]
    blocks.append(structure(EdgeType.HEAD, 2 + heads * width, heads * width, 2 + 2 * heads * width, 5))
    return Wiring((BIAS,), 7 + 2 * heads * width, tuple(blocks))


def outputs(count: int) -> Wiring:
    """So many outputs, each a layer of its own, of one layer."""
    return Wiring((BIAS,), 32 + count, tuple(structure(EdgeType.HEAD, 0, 32, 32 + index, 1) for index in range(count)))


def joined(wiring: Wiring) -> np.ndarray:
    """The binary adjacency, edge by edge, undirected, without self loops."""
    adjacency = np.zeros((wiring.neurons, wiring.neurons))
    for block in wiring.blocks:
        source, target = block_edges(block).numpy()
        adjacency[source, target] = adjacency[target, source] = 1
    np.fill_diagonal(adjacency, 0)
    return adjacency


def normalised_laplacian(wiring: Wiring) -> np.ndarray:
    """As PyTorch Geometric's AddLaplacianEigenvectorPE defines it."""
    adjacency = joined(wiring)
    degree = adjacency.sum(0)
    inverse = np.divide(1, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    return np.eye(wiring.neurons) - inverse[:, None] * adjacency * inverse


def check(wiring: Wiring, *, count: int = 8, tolerance: float = 1e-5) -> None:
    """The features are orthonormal eigenvectors of the smallest eigenvalues but the first; those beyond the graph's are 0."""
    features = compute_features(wiring, count=count).numpy().astype(np.float64)
    matrix = normalised_laplacian(wiring)
    real = min(count, wiring.neurons - 1)
    values = np.linalg.eigvalsh(matrix)[1 : real + 1]
    trivial = np.sqrt(joined(wiring).sum(0))
    assert not features[:, real:].any()
    features = features[:, :real]
    assert np.allclose(features.T @ features, np.eye(real), atol=tolerance)
    assert np.allclose(matrix @ features, features * values, atol=tolerance)
    assert np.allclose(trivial @ features, 0, atol=10 * tolerance)


@st.composite
def wirings(draw: st.DrawFn) -> Wiring:
    """Any mixture of rectangles and diagonals, overlapping, touching themselves, leaving neurons alone."""
    neurons = draw(st.integers(1, 24))
    blocks = []
    for _ in range(draw(st.integers(0, 6))):
        source, target = draw(st.integers(0, neurons - 1)), draw(st.integers(0, neurons - 1))
        diagonal = draw(st.booleans())
        if diagonal:
            count = draw(st.integers(1, neurons - max(source, target)))
            blocks.append(structure(EdgeType.RESIDUAL, source, count, target, count, diagonal=True))
        else:
            sources, targets = draw(st.integers(1, neurons - source)), draw(st.integers(1, neurons - target))
            blocks.append(structure(EdgeType.HEAD, source, sources, target, targets))
    return Wiring((BIAS,), neurons, tuple(blocks))


@given(wirings())
@example(Wiring((BIAS,), 12, layered(3, 4, 2).blocks))  # neurons without edges
@example(Wiring((BIAS,), 12, ()))
@example(layered(2, 9, 9, 9, 4, 9, 9, 3, residual=True))
@example(attention(40))  # heads are alike: eigenvalues repeat
@example(outputs(300))
@example(Wiring((BIAS,), 400, (structure(EdgeType.RESIDUAL, 0, 399, 1, 399, diagonal=True),)))  # shifts onto itself
@settings(max_examples=60, deadline=None)
def test_features_are_eigenvectors_of_any_graph(wiring: Wiring) -> None:
    """The reduction to classes of neurons loses an eigenvector, or invents one, for some way blocks can overlap."""
    check(wiring)


@pytest.mark.parametrize("wiring", [layered(6, 6, 6, 6, 6, residual=True), layered(1, 9, 1), layered(4, 4)])
def test_the_solver_does_not_matter(wiring: Wiring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another LAPACK, which returns other signs and other bases of repeated eigenvalues, would change every forecast."""
    features = compute_features(wiring, count=8)
    solve, random = np.linalg.eigh, np.random.default_rng(0)

    def other(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = solve(matrix)
        for value in np.unique(values.round(9)):
            same = np.abs(values - value) < 1e-8
            rotation, _ = np.linalg.qr(random.standard_normal((same.sum(), same.sum())))
            vectors[:, same] = vectors[:, same] @ -rotation
        return values, vectors

    monkeypatch.setattr(np.linalg, "eigh", other)
    assert torch.allclose(compute_features(wiring, count=8), features, atol=1e-5)


def test_a_network_in_two_pieces() -> None:
    """A GAN pair has two eigenvalues 0: which vector is left out must not be chance, and the other must tell the nets apart."""
    generator, discriminator = layered(3, 8, 5), layered(6, 4, 2)
    moved = [
        Block(block.edge_type, block.source + 16, block.sources, block.target + 16, block.targets) for block in discriminator.blocks
    ]
    pair = Wiring((BIAS,), 28, (*generator.blocks, *moved))
    check(pair)
    first = compute_features(pair, count=8)[:, 0]
    assert (first[:16].sign() == first[0].sign()).all()
    assert (first[16:].sign() == -first[0].sign()).all()


def test_features_are_computed_once_a_wiring() -> None:
    """Every forecast would pay for the features again, although the wiring has the same hash."""
    first, again = layered(3, 5, 4), layered(3, 5, 4)
    assert laplacian_features(first) is laplacian_features(again)
    assert laplacian_features(first, count=2) is not laplacian_features(first)


def test_large_networks_cost_little() -> None:
    """Features of a network with 10^10 edges would never come, or those of 200 layers take a sweep for each."""
    features = compute_features(layered(50_000, 100_000, 50_000, 10), count=4)
    assert features.shape == (200_010, 4)
    assert torch.allclose(features.T @ features, torch.eye(4), atol=1e-3)
    layers, width = 200, 6
    blocks = [
        structure(EdgeType.RESIDUAL, layer * width, width, (layer + 1) * width, width, diagonal=True) for layer in range(layers - 1)
    ]
    last = structure(EdgeType.HEAD, (layers - 1) * width, width // 2, layers * width, 3)
    wiring = Wiring((BIAS,), layers * width + 3, (*blocks, last))
    assert len(NeuronClasses.of(wiring).sizes) == 2 * layers + 1


def test_features_can_be_interrupted() -> None:
    """The device would go on with them for a client that has hung up."""

    def check() -> None:
        raise Cancelled

    with interruptible(check), pytest.raises(Cancelled):
        compute_features(layered(4, 4), count=2)


SINGLE = [structure(EdgeType.HEAD, neuron, 1, neuron, 1) for neuron in range(0, 8000, 2)]
SHIFTED = [structure(EdgeType.RESIDUAL, index, 2_000_000, index + 1, 2_000_000, diagonal=True) for index in range(64)]


@pytest.mark.parametrize(
    ("neurons", "blocks"),
    [
        (12_001, [structure(EdgeType.RESIDUAL, 0, 12_000, 1, 12_000, diagonal=True)]),
        (8000, [structure(EdgeType.HEAD, 0, 4000, 4000, 4000), *SINGLE]),
        (2_000_064, SHIFTED),
        (5000, [structure(EdgeType.HEAD, 0, 5000, 0, 5000)] * 1000 + SINGLE[:900]),
    ],
    ids=["one-diagonal", "single-neurons", "huge-diagonals", "many-pairs"],
)
def test_hostile_graphs_have_no_features(neurons: int, blocks: list[Block], caplog: pytest.LogCaptureFixture) -> None:
    """A few kilobytes of wiring would take the device thread for minutes, and gigabytes that nobody set aside."""
    wiring = Wiring((BIAS,), neurons, tuple(blocks))
    tracemalloc.start()
    try:
        assert not compute_features(wiring, count=8).any()
        assert tracemalloc.get_traced_memory()[1] < features_bytes(wiring, count=8) < 1_000_000_000
    finally:
        tracemalloc.stop()
    assert "has no Laplacian features" in caplog.text
