"""Data-parallel training in real processes: all ranks glide along the same push and stay equal, bit for bit."""

from typing import Any

import pytest
import torch
from ranks import run_scenarios
from server_process import ServerProcess
from small_runs import STEPS, TAKEN_UP

Told = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, server: ServerProcess) -> Told:
    """What the ranks of every scenario of `ranks.py` told: they run in one pair of processes, as starting one takes seconds."""
    return run_scenarios(tmp_path_factory.mktemp("ranks"), server.url)


@pytest.mark.parametrize(
    ("scenario", "outcome", "steps"),
    [
        ("wrapped", "glided", TAKEN_UP),
        ("http", "glided", TAKEN_UP),
        ("double", "glided", TAKEN_UP),
        ("failing", "skipped", TAKEN_UP),
        ("jump", "jumped", [5, 10, 15, 20]),
    ],
)
def test_ranks_push_or_skip_alike(ranks: Told, scenario: str, outcome: str, steps: list[int]) -> None:
    """Ranks that hold different weights average gradients of different networks; one that waits alone waits for ever."""
    first, second = (rank[scenario] for rank in ranks)
    assert torch.equal(first["weights"], second["weights"])
    assert not torch.equal(first["buffers"], second["buffers"])  # of each rank's own batches: left alone
    for rank in (first, second):
        assert [(event["step"], event["outcome"]) for event in rank["events"]] == [(at, outcome) for at in steps]
        assert rank["broadcasts"] == steps  # one, and no collective at any other step
    same = torch.equal(first["weights"][-1], ranks[0]["shadow"]["weights"][-1])
    assert same == (outcome == "skipped")
    reason = "server_unavailable" if outcome == "skipped" else ""
    assert first["events"][0]["reason"] == second["events"][0]["reason"] == reason


def test_the_interval_grows_alike_on_all_ranks(ranks: Told) -> None:
    """Rank 0 alone knows how slow the server is; a rank that goes on by the old interval waits for a broadcast that never comes."""
    first, second = (rank["late"] for rank in ranks)
    assert [event["step"] for event in first["events"]][:2] == TAKEN_UP[:2]
    assert first["nowcast"]["stretch"] == second["nowcast"]["stretch"] > 1
    assert first["broadcasts"] == second["broadcasts"]


def test_a_shadow_needs_no_collective(ranks: Told) -> None:
    """Nothing is shared where nothing is used."""
    assert [rank["shadow"]["broadcasts"] for rank in ranks] == [[], []]
    assert [len(rank["shadow"]["events"]) for rank in ranks] == [len(TAKEN_UP), 0]
    first, second = (rank["late shadow"]["nowcast"]["next"] for rank in ranks)
    assert first == second  # at a boundary all notice that other parameters are trained, and then have to talk


def test_rank_0s_state_resumes_all_ranks(ranks: Told) -> None:
    """Elastic trainers keep one checkpoint for ranks that come and go."""
    for rank in ranks:
        assert torch.equal(rank["resumed"]["weights"][-1], rank["wrapped"]["weights"][-1])
        assert len(rank["resumed"]["weights"]) == STEPS - 15


def test_ranks_notice_an_unfrozen_layer_alike(ranks: Told) -> None:
    """One that begins anew by itself would broadcast vectors of another length."""
    first, second = (rank["unfrozen"] for rank in ranks)
    assert torch.equal(first["weights"], second["weights"])
    assert first["broadcasts"] == second["broadcasts"] == [18, 20, 22]


def test_ranks_that_differ_are_told_at_the_first_step(ranks: Told) -> None:
    """Pushing models that have nothing to do with each other would destroy them."""
    assert all("ranks differ in weights" in rank["apart"] for rank in ranks)
    assert all("ranks differ in taken, asking" in rank["half resumed"] for rank in ranks)  # else one waits for the other for ever


def test_a_nowcast_made_before_the_process_group_says_so(ranks: Told) -> None:
    """Each rank would take itself for the only one, and push by a forecast of its own."""
    assert all("initialised after this Nowcast" in rank["early"] for rank in ranks)


def test_what_rank_0_refuses_all_ranks_refuse(ranks: Told) -> None:
    """The others would wait for it at their first step until the process group gives up."""
    first, second = (rank["refused"] for rank in ranks)
    assert first == second
    assert [told.split(":")[0] for told in first] == ["forecaster", "job"]


def test_ranks_may_train_a_model_each(ranks: Told) -> None:
    """A sweep or a population under torch.distributed is no data-parallel run."""
    assert not torch.equal(ranks[0]["alone"]["weights"], ranks[1]["alone"]["weights"])
    assert [rank["alone"]["used"] for rank in ranks] == [len(TAKEN_UP)] * 2


@pytest.mark.parametrize(("scenario", "tolerance"), [("sharded", 1e-5), ("sharded bfloat16", 0.05)])
def test_a_sharded_run_is_the_same_run(ranks: Told, scenario: str, tolerance: float) -> None:
    """Shards gathered in another order than they are scattered, or padded, would shuffle the weights at the first push."""
    for rank in ranks:
        told = rank[scenario]
        assert told["events"][True] == told["events"][False] == [(at, "glided") for at in TAKEN_UP]
        torch.testing.assert_close(told["weights"][True], told["weights"][False], atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(told["pushed"][True], told["pushed"][False], atol=tolerance, rtol=tolerance)  # on any ranks
        says = ("_flat_param", "or nothing; not split are 2.weight, 2.bias", "before fully_shard")
        assert [word in why for word, why in zip(says, told["refused"], strict=True)] == [True] * 3
    parts = [rank[scenario]["parts"] for rank in ranks]
    assert [part[0] for part in parts] == [(9, 8), (8, 8)]


def test_no_rank_but_the_first_holds_a_whole_sharded_model(ranks: Told) -> None:
    """Models are sharded because no rank has room for all of them."""
    layer, layers = 4 << 20, 8
    assert ranks[0]["large"]["moved"] > 0
    assert [rank["large"]["dropped"] for rank in ranks] == [1, 0]  # by rank 0, which has to take part for the others nevertheless
    assert ranks[1]["large"]["bytes"] < layers * layer / 2 + 3 * layer  # its half of the push, and a layer under way
