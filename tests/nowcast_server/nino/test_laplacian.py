"""The Laplacian features: true eigenvectors, and always the same ones."""

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nowcast_server.interruption import Cancelled, interruptible
from nowcast_server.nino import laplacian
from nowcast_server.nino.classes import NeuronClasses
from nowcast_server.nino.graph import block_edges
from nowcast_server.nino.laplacian import compute_features, laplacian_features
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


def degrees(wiring: Wiring) -> np.ndarray:
    return joined(wiring).sum(0)


def normalised_laplacian(wiring: Wiring) -> np.ndarray:
    """As PyTorch Geometric's AddLaplacianEigenvectorPE defines it."""
    adjacency, degree = joined(wiring), degrees(wiring)
    inverse = np.divide(1, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    return np.eye(wiring.neurons) - inverse[:, None] * adjacency * inverse


def check(wiring: Wiring, *, count: int = 8, tolerance: float = 1e-5) -> None:
    """The features are orthonormal eigenvectors of the smallest eigenvalues but the first; those beyond the graph's are 0."""
    features = compute_features(wiring, count=count).numpy().astype(np.float64)
    matrix = normalised_laplacian(wiring)
    real = min(count, wiring.neurons - 1)
    values = np.linalg.eigvalsh(matrix)[1 : real + 1]
    trivial = np.sqrt(degrees(wiring))
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
@settings(max_examples=80, deadline=None)
def test_features_are_eigenvectors_of_any_graph(wiring: Wiring) -> None:
    """The reduction to classes of neurons loses an eigenvector, or invents one, for some way blocks can overlap."""
    check(wiring)


def test_features_are_those_of_pytorch_geometric() -> None:
    """The eigenvalues belong to another Laplacian than the one the checkpoints were trained with."""
    from torch_geometric.data import Data
    from torch_geometric.transforms import AddLaplacianEigenvectorPE
    from torch_geometric.utils import to_undirected

    wiring = layered(3, 4, 6, 5, 2, 7, 4, 3, 8, 5, 2)
    edges = to_undirected(torch.cat([block_edges(block) for block in wiring.blocks], dim=1))
    data = AddLaplacianEigenvectorPE(k=3, is_undirected=True)(Data(edge_index=edges, num_nodes=wiring.neurons))
    theirs = data.laplacian_eigenvector_pe.float()
    ours = laplacian_features(wiring, count=3)
    assert torch.allclose((ours.T @ theirs).abs(), torch.eye(3), atol=1e-5)


@pytest.mark.parametrize("wiring", [layered(6, 6, 6, 6, 6, residual=True), layered(1, 9, 1), layered(4, 4)])
def test_the_solver_does_not_matter(wiring: Wiring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another LAPACK, which returns other signs and other bases of repeated eigenvalues, would change every forecast."""
    features = compute_features(wiring, count=8)
    solve, random = laplacian.eigh, np.random.default_rng(0)

    def other(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = solve(matrix)
        for value in np.unique(values.round(9)):
            same = np.abs(values - value) < 1e-8
            rotation, _ = np.linalg.qr(random.standard_normal((same.sum(), same.sum())))
            vectors[:, same] = vectors[:, same] @ -rotation
        return values, vectors

    monkeypatch.setattr(laplacian, "eigh", other)
    assert torch.allclose(compute_features(wiring, count=8), features, atol=1e-5)


def test_lanczos_finds_what_diagonalising_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of many layers and heads, whose classes are too many to diagonalise, would get wrong features."""
    wiring = layered(*(2 + (7 * index) % 11 for index in range(60)), residual=True)
    features = compute_features(wiring, count=8)
    monkeypatch.setattr(laplacian, "DENSE", 20)
    assert torch.allclose(compute_features(wiring, count=8), features, atol=1e-4)
    check(wiring)


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


def test_neurons_without_edges() -> None:
    """A network with an isolated neuron, or nothing but such, would get NaN features."""
    check(Wiring((BIAS,), 12, layered(3, 4, 2).blocks))
    check(Wiring((BIAS,), 12, ()))


def test_features_are_computed_once_a_wiring() -> None:
    """Every forecast would pay for the features again, although the wiring has the same hash."""
    first, again = layered(3, 5, 4), layered(3, 5, 4)
    assert laplacian_features(first) is laplacian_features(again)
    assert laplacian_features(first, count=2) is not laplacian_features(first)


def test_a_wide_network_costs_its_neurons_not_its_edges() -> None:
    """Features of a network with 10^10 edges would never come."""
    wiring = layered(50_000, 100_000, 50_000, 10)
    features = compute_features(wiring, count=4)
    assert features.shape == (200_010, 4)
    assert torch.allclose(features.T @ features, torch.eye(4), atol=1e-3)


def test_lanczos_finds_every_copy_of_a_repeated_eigenvalue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads are alike, so a large transformer's eigenvalues repeat; Lanczos by itself overlooks copies."""
    wiring = attention(40)
    features = compute_features(wiring, count=8)
    monkeypatch.setattr(laplacian, "DENSE", 20)
    monkeypatch.setattr(laplacian, "SPARE", 4)
    assert torch.allclose(compute_features(wiring, count=8), features, atol=1e-4)
    check(wiring)


@pytest.mark.parametrize("wiring", [attention(60), outputs(300)])
def test_what_lanczos_does_not_find_is_diagonalised(wiring: Wiring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of experts or outputs repeat an eigenvalue so often that their network would have no features, or other ones."""
    features = compute_features(wiring, count=8)
    check(wiring)
    monkeypatch.setattr(laplacian, "DENSE", 20)
    monkeypatch.setattr(laplacian, "MOST", 30)
    again = compute_features(wiring, count=8)
    assert torch.allclose(again, features, atol=1e-4)
    assert torch.equal(compute_features(wiring, count=8), again)


@pytest.mark.parametrize("heads", [30, 300])
def test_lanczos_finds_the_same_each_time(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas, and a server started again, would forecast something else for the same network."""
    monkeypatch.setattr(laplacian, "DENSE", 20)
    wiring = attention(heads)
    assert torch.equal(compute_features(wiring, count=8), compute_features(wiring, count=8))


def test_what_cannot_be_found_is_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A network too large to diagonalise would get the part of an eigenspace that a solver came upon, or end in an error."""
    wiring = Wiring((BIAS,), 372, (*attention(60).blocks, *(Block(10, 367 + i, 1, 368 + i, 1) for i in range(4))))
    features = compute_features(wiring, count=8)
    monkeypatch.setattr(laplacian, "DENSE", 20)
    monkeypatch.setattr(laplacian, "DENSEST", 20)
    monkeypatch.setattr(laplacian, "MOST", 30)
    found = compute_features(wiring, count=8)
    held = int(found.any(dim=0).sum())
    assert 0 < held < 8
    assert torch.allclose(found[:, :held], features[:, :held], atol=1e-4)
    assert not found[:, held:].any()
    assert f"has {held} of 8 Laplacian features" in caplog.text
    assert not compute_features(outputs(300), count=8).any()


def test_a_deep_network_has_few_classes() -> None:
    """The heads of the last of 200 layers split the residual stream of them all: in one sweep, not one layer a sweep."""
    layers, width = 200, 6
    blocks = [
        structure(EdgeType.RESIDUAL, layer * width, width, (layer + 1) * width, width, diagonal=True) for layer in range(layers - 1)
    ]
    last = structure(EdgeType.HEAD, (layers - 1) * width, width // 2, layers * width, 3)
    wiring = Wiring((BIAS,), layers * width + 3, (*blocks, last))
    assert len(NeuronClasses.of(wiring).sizes) == 2 * layers + 1


def test_diagonals_that_shift_cannot_hold_up_the_server() -> None:
    """A diagonal onto its own neighbours carries cuts one neuron a sweep: a million neurons would take hours."""
    path = structure(EdgeType.RESIDUAL, 0, 399, 1, 399, diagonal=True)
    started = time.perf_counter()
    check(Wiring((BIAS,), 400, (path,)))
    long = structure(EdgeType.RESIDUAL, 0, 49_999, 1, 49_999, diagonal=True)
    assert len(NeuronClasses.of(Wiring((BIAS,), 50_000, (long,))).sizes) == 50_000
    assert time.perf_counter() - started < 20


def test_one_long_diagonal_cannot_hold_up_the_server(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A job of 20,000 weights would have the device for seven minutes, and one of more for hours."""
    monkeypatch.setattr(laplacian, "WORK", 1e9)  # as much less as this diagonal is shorter than what a snapshot may hold
    wiring = Wiring((Parameter("w", (12_000,)),), 12_001, (Block(1, 0, 12_000, 1, 12_000, True, 0, 0, 1),))
    products, operator = 0, laplacian.LinearOperator

    def counting(shape: tuple[int, int], matvec: Callable[[Any], Any], dtype: type) -> Any:
        def counted(vector: Any) -> Any:
            nonlocal products
            products += 1
            return matvec(vector)

        return operator(shape, matvec=counted, dtype=dtype)

    monkeypatch.setattr(laplacian, "LinearOperator", counting)
    assert not compute_features(wiring, count=8).any()
    assert 1 < products <= laplacian.WORK / (laplacian.PER_CLASS * 12_000) + 1  # the last is the one that is refused
    assert "multiplications" in caplog.text


def test_features_can_be_interrupted() -> None:
    """The device would go on with them for a client that has hung up."""

    def check() -> None:
        raise Cancelled

    with interruptible(check), pytest.raises(Cancelled):
        compute_features(layered(4, 4), count=2)


@pytest.mark.parametrize("diagonals", [1, 64])
def test_features_of_huge_diagonals_are_refused(diagonals: int, caplog: pytest.LogCaptureFixture) -> None:
    """A few hundred bytes of blocks would take gigabytes for classes of single neurons."""
    size = 2_000_000
    blocks = [structure(EdgeType.RESIDUAL, index, size, index + 1, size, diagonal=True) for index in range(diagonals)]
    tracemalloc.start()
    try:
        assert not compute_features(Wiring((BIAS,), size + diagonals, tuple(blocks)), count=8).any()
        assert tracemalloc.get_traced_memory()[1] < 300_000_000
    finally:
        tracemalloc.stop()
    assert "has no Laplacian features" in caplog.text


def test_what_lapack_gives_up_on_has_features() -> None:
    """Every nowcast of a network would fail in the server, for `eigh` ends in an internal error on some repeated eigenvalues."""
    blocks = [
        structure(EdgeType.HEAD, 1, 211, 14, 262),
        structure(EdgeType.HEAD, 90, 182, 32, 257),
        structure(EdgeType.RESIDUAL, 3, 295, 1, 295, diagonal=True),
        structure(EdgeType.HEAD, 88, 196, 32, 133),
    ]
    check(Wiring((BIAS,), 300, tuple(blocks)))


def test_a_network_cut_into_single_neurons_cannot_hold_up_the_server(caplog: pytest.LogCaptureFixture) -> None:
    """A hundred kilobytes of wiring would take the device thread for minutes, and gigabytes that nobody set aside."""
    width = 4000
    cuts = (structure(EdgeType.HEAD, neuron, 1, neuron, 1) for neuron in range(0, 2 * width, 2))
    wiring = Wiring((BIAS,), 2 * width, (structure(EdgeType.HEAD, 0, width, width, width), *cuts))
    started = time.perf_counter()
    assert not compute_features(wiring, count=8).any()
    assert time.perf_counter() - started < 5
    assert "no Laplacian features" in caplog.text
