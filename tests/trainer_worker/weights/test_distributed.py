"""Data-parallel training in real processes: all ranks jump at the same step and stay equal, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ranks import run_scenarios
from server_process import ServerProcess
from small_runs import PERIOD

JUMPS = [PERIOD, 2 * PERIOD]
Told = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., ServerProcess]) -> Told:
    """What the ranks of every scenario of `ranks.py` told: they run in one pair of processes, as starting one takes seconds."""
    server = start_server("--threads", "1")
    told = run_scenarios(tmp_path_factory.mktemp("ranks"), server.url)
    server.kill()
    return told


@pytest.mark.parametrize(
    ("scenario", "outcome"),
    [("wrapped", "accepted"), ("bare", "accepted"), ("http", "accepted"), ("failing", "skipped"), ("double", "accepted")],
)
def test_ranks_jump_or_skip_alike(ranks: Told, scenario: str, outcome: str) -> None:
    """Ranks that hold different weights average gradients of different networks; one that waits alone waits for ever."""
    first, second = (rank[scenario] for rank in ranks)
    assert torch.equal(first["weights"], second["weights"])
    assert not torch.equal(first["buffers"], second["buffers"])  # of each rank's own batches: left alone
    for rank in (first, second):
        assert [(event["step"], event["outcome"]) for event in rank["events"]] == [(at, outcome) for at in JUMPS]
        assert rank["broadcasts"] == JUMPS  # no collective at any other step
    change = (first["weights"][PERIOD - 1] - first["weights"][PERIOD - 2]).abs().max()
    assert (change > 0.05) == (outcome == "accepted")  # a jump is no step of Adam
    reason = "server_unavailable" if outcome == "skipped" else ""
    assert first["events"][0]["reason"] == second["events"][0]["reason"] == reason


def test_ranks_roll_back_alike(ranks: Told) -> None:
    """A verdict from one rank's probe alone would leave the ranks on two sides of the jump."""
    first, second = (rank["tried"] for rank in ranks)
    assert torch.equal(first["weights"], second["weights"])
    for rank in (first, second):
        event = rank["events"][0]
        assert (event["step"], event["outcome"]) == (PERIOD, "rejected")
        assert event["cost_steps"] == first["events"][0]["cost_steps"] > 0
        assert rank["broadcasts"] == [PERIOD]  # the pause after it lasts to the end
    jumped, back = first["weights"][PERIOD - 1], first["weights"][PERIOD + first["events"][0]["cost_steps"] - 1]
    before = first["weights"][PERIOD - 2]
    assert (jumped - before).abs().max() > 0.05
    assert (back - before).abs().max() < 0.05


def test_ranks_compare_horizons_alike(ranks: Told) -> None:
    """The later candidates are on rank 0 alone; a rank that keeps to its own, or finds another one best, trains another network."""
    first, second = (rank["compared"] for rank in ranks)
    assert torch.equal(first["weights"], second["weights"])
    for rank in (first, second):
        event = rank["events"][0]
        assert (event["step"], event["outcome"], event["horizon"], event["cost_steps"]) == (PERIOD, "accepted", 2, 8)
        assert rank["broadcasts"] == [PERIOD, PERIOD + 4, PERIOD + 8]
    assert not torch.equal(first["buffers"], second["buffers"])
    for rank in ranks:  # rank 0's state, taken in the second candidate's window, holds what is still to be shared
        assert torch.equal(rank["compared resumed"]["weights"][-1], rank["compared"]["weights"][-1])


def test_a_sharded_run_compares_horizons_too(ranks: Told) -> None:
    """Candidates are scattered one at a time, and the best one's shards have to come back on every rank."""
    for rank in ranks:
        told = rank["sharded compared"]
        assert told["events"][True] == told["events"][False] == [(20, "accepted")]
        assert told["horizons"] == [2]
        torch.testing.assert_close(told["weights"][True], told["weights"][False], atol=1e-6, rtol=1e-5)


def test_ranks_jump_alike_while_training_goes_on(ranks: Told) -> None:
    """Whoever learns of the forecast first must not jump first; nor may every step cost a collective."""
    first, second = (rank["overlap"] for rank in ranks)
    assert torch.equal(first["weights"], second["weights"])
    assert first["events"][0]["outcome"] == second["events"][0]["outcome"]
    assert set(first["broadcasts"]) <= {PERIOD + 1, 2 * PERIOD + 1}  # an interval of two steps leaves one look


def test_rank_0s_state_resumes_all_ranks(ranks: Told) -> None:
    """Elastic trainers keep one checkpoint for ranks that come and go."""
    for rank in ranks:
        assert torch.equal(rank["resumed"]["weights"][-1], rank["wrapped"]["weights"][-1])


def test_ranks_that_differ_are_told_at_the_first_step(ranks: Told) -> None:
    """Broadcasting rank 0's weights over models that have nothing to do with each other would destroy them."""
    assert all("ranks differ in weights" in rank["apart"]["told"] for rank in ranks)


def test_what_rank_0_refuses_all_ranks_refuse(ranks: Told) -> None:
    """The others would wait for it at their first step until the process group gives up."""
    first, second = (rank["refused"] for rank in ranks)
    assert first == second
    assert [told.split(":")[0] for told in first] == ["forecaster", "policy", "job"]


def test_ranks_may_train_a_model_each(ranks: Told) -> None:
    """A sweep or a population under torch.distributed is no data-parallel run."""
    for rank in ranks:
        assert torch.equal(rank["alone"]["weights"], rank["alone"]["forecast"])


@pytest.mark.parametrize("scenario", ["sharded", "sharded double"])
def test_a_sharded_run_is_the_same_run(ranks: Told, scenario: str) -> None:
    """Shards gathered in another order than they are scattered, or padded, would shuffle the weights at the first jump."""
    for rank in ranks:
        told = rank[scenario]
        assert told["events"][True] == told["events"][False] == [(20, "accepted"), (40, "rejected")]
        torch.testing.assert_close(told["weights"][True], told["weights"][False], atol=1e-6, rtol=1e-5)
        assert "before fully_shard" in told["refused"]
    parts = [rank[scenario]["parts"] for rank in ranks]
    assert [part[0] for part in parts] == [(9, 8), (8, 8)]


def test_no_rank_but_the_first_holds_a_whole_sharded_model(ranks: Told) -> None:
    """Models are sharded because no rank has room for all of them."""
    layer, layers = 4 << 20, 8
    assert ranks[0]["large"]["moved"] == pytest.approx(0.01, abs=1e-6)
    assert ranks[0]["large"]["bytes"] > layers * layer / 2  # of the forecast
    assert ranks[1]["large"]["bytes"] < 3 * layer
