"""Running jobs on the map of training: what is embedded when, and what is shown of it."""

from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from server_kit import TOKENS, Caller, Last, Start, bearer, dense, frames, until

from nowcast_server import training_map
from nowcast_server.forecasters import load_forecaster
from nowcast_server.forecasters.learned import Nino
from nowcast_server.jobs.course import EVERY, MOST, Place, Places
from nowcast_server.map_picture import Embedded, draw, sentence


@pytest.fixture(scope="module")
def nino() -> Nino:
    return load_forecaster("nino")


def nowcasts(caller: Caller, *steps: int) -> None:
    """Have the job send these snapshots, and ask for a forecast after each."""
    for step in steps:
        caller.fill(step)
        assert caller.nowcast(context=list(range(step - 40, step + 1, 10)), horizons=[1]).status_code == 200
        until(lambda: caller.service.device.idle)


def trained(start: Start, nino: Nino) -> Caller:
    """A job with two nowcasts."""
    caller = start(nino)
    assert caller.register(context=5, forecaster="nino", about={"lr": 0.01}).status_code == 201
    caller.fill(10, 20, 30, 40)
    nowcasts(caller, 50, 60)
    return caller


def places(caller: Caller) -> list[Place]:
    return caller.entry.places.kept


def test_contexts_are_embedded_now_and_then(start: Start, nino: Nino) -> None:
    """The map would stay empty; or it would take as much of the device as the forecasts."""
    caller = trained(start, nino)
    until(lambda: places(caller))
    nowcasts(caller, *range(70, 60 + 10 * EVERY, 10))
    until(lambda: len(places(caller)) == 2)
    assert [place.step for place in places(caller)] == [50, 50 + 10 * EVERY]
    assert all(np.isfinite(place.vector).all() for place in places(caller))
    until(lambda: not caller.entry.users and not caller.entry.history.in_use)
    until(lambda: caller.service.forecasts.used_bytes == nino.weights_bytes)


def test_a_network_that_takes_long_is_left_out(start: Start, nino: Nino, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training runs would wait seconds for a picture, which is made on the CPU however fast forecasts are."""
    monkeypatch.setattr(training_map, "LONGEST_S", 1e-9)
    monkeypatch.setattr(Nino, "work_s", lambda *_, **__: 0.0)
    caller = trained(start, nino)
    assert places(caller) == []
    assert "No run has a place yet" in caller.client.get("/map").text
    assert "This server has no graph network" in start().client.get("/map").text


def test_networks_of_many_neurons_are_not_all_kept(start: Start, nino: Nino) -> None:
    """Sixteen networks of millions of neurons, each a few megabytes to upload, would fill the memory beside every budget."""
    kept = start(nino).service.map._embedders
    for index in range(4):
        kept.get(str(index), lambda: Mock(nbytes=40 * 2**20))
    assert len(kept._values) == 1


def test_a_run_that_diverged_is_not_on_the_map(start: Start, nino: Nino) -> None:
    """One place that is no number, and nobody of the tenant would see the map any more."""
    caller = start(nino, wiring=dense(70, 80))
    assert caller.register(context=5, forecaster="nino").status_code == 201
    for step in range(10, 60, 10):
        assert caller.upload(step, frames(3e38 * caller.values(step).sign(), step=step, chunk_bytes=10_000)).status_code == 200
    assert caller.nowcast(context=[10, 20, 30, 40, 50], horizons=[1]).status_code == 200
    until(lambda: not caller.entry.users)
    assert places(caller) == []


def test_memory_that_is_not_there_is_not_waited_for(start: Start, nino: Nino) -> None:
    """One network that is too large to be embedded would keep its history after its job has gone, and all others off the map."""
    caller = start(nino, Last(), forecast_memory=nino.weights_bytes + 10_000)
    assert caller.register(context=5).status_code == 201
    caller.fill(10, 20, 30, 40)
    nowcasts(caller, 50, 60)
    assert caller.client.delete("/v1/jobs/job").status_code == 204
    until(lambda: caller.service.histories.used_bytes == 0)
    assert caller.service.forecasts.used_bytes == nino.weights_bytes


def test_places_are_thinned_and_go_back_with_the_run() -> None:
    """A long run would take ever more memory, or one that was resumed be in two places."""
    held = Places()
    for count in range(1, 100 * EVERY):
        if held.due(count):
            held.add(Place(count, 0.0, np.empty(0)))
    assert MOST // 2 <= len(held.kept) < MOST
    held.add(Place(held.kept[3].step, 1.0, np.empty(0)))
    assert [place.loss for place in held.kept] == [0.0] * 3 + [1.0]


def run(name: str, *, at: float, **about: Any) -> Embedded:
    """Three contexts in a row."""
    vectors = np.array([[at, 0.0], [at, 1.0], [at, 2.0]])
    return Embedded(name, about, np.array([10, 20, 30]), np.array([3.0, 2.0, 1.0 + at]), vectors)


@pytest.mark.parametrize("by", ["loss", "step", "lr", "seed"])
def test_picture_and_sentence_whatever_is_known(by: str) -> None:
    """One run without a seed, or a name with markup, and there would be no map, or a script on it; people be sent to a far run."""
    runs = [run("far", at=9.0), run("<script>", at=0.5, lr=0.1, seed=0), run("mine", at=0.0)]
    picture = draw(runs, [each.vectors for each in runs], by=by, shares=(0.7, 0.2))
    assert picture.count("<circle") >= 9
    assert "<script" not in picture
    assert "nan" not in picture
    end = "nearest to step 30 of <script>, which came to a loss of 1.5 at step 30."
    assert sentence(runs[2], runs[:2]) == f"At step 30 mine is {end}"
    assert sentence(runs[0], []) is None


def test_page_shows_the_map_of_the_tenants_own_runs(start: Start, nino: Nino) -> None:
    """A tenant would see where others' runs are."""
    alice, bob = map(bearer, ("alice", "bob"))
    caller = start(nino, tokens=TOKENS)
    for index, job in enumerate(("one", "two")):
        assert caller.as_job(job, **alice).register(context=5, forecaster="nino", about={"lr": 0.1 * index}).status_code == 201
        for step in range(3):
            vector = np.random.default_rng(step).normal(size=4).astype(np.float32)
            caller.service.jobs.get("alice", job).places.add(Place(step, 0.5, vector))
    mine = caller.client.get("/map?by=lr", headers=alice).text
    assert mine.count("<polyline") == 2
    assert "two is nearest to step 2 of one" in mine
    assert dense().hash[:12] in mine
    assert "<polyline" not in caller.client.get("/map", headers=bob).text
    assert "<polyline" in caller.client.get("/map/picture?by=seed", headers=alice).text
    assert caller.client.get("/map/picture").status_code == 401
