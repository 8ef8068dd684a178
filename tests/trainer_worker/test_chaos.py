"""Hundreds of faults in one run: it ends, as good as if there had been none, and leaves nothing behind."""

import os
import random
import threading
from collections import Counter
from typing import Any

import psutil
import pytest
from cut_network import CutNetwork
from faulty_server import FaultyServer
from teacher_task import train
from waiting import until

from trainer_worker import Nowcast, Server
from trainer_worker.endpoints import client, sender

FAULTS = int(os.environ.get("NOWCAST_CHAOS", "100"))
"""How many; a few thousand for a night."""
INTERVAL = 4
STEPS_BETWEEN = 2 * INTERVAL
PATIENCE_S = 0.2
"""For what is due at a boundary: a step of a network this small is over before anything can happen to it."""
ANSWERS = {
    "register": ["busy", "unavailable", "close", "html", "login", "moved", "internal", "out_of_memory_budget"],
    "send": ["busy", "unavailable", "close", "html", "internal", "unknown_job", "snapshot_conflict", "bad_frame", "too_large"],
    "forecast": [
        *("nan", "wrong_shape", "wrong_step", "garbage", "checksum", "no_end", "wild", "bad_forecast", "internal", "busy", "hang"),
        *("login", "moved"),
        *("unavailable", "close", "html", "history_missing", "unknown_job", "deadline_exceeded", "out_of_memory_budget"),
    ],
}


class Chaos:
    """Makes one fault after the other, by the numbers of a seed."""

    def __init__(self, server: FaultyServer, network: CutNetwork, *, seed: int) -> None:
        self.server, self.network = server, network
        self.random = random.Random(seed)
        self.made: Counter[str] = Counter()

    @property
    def faults(self) -> int:
        """That were made, or met if they are answers."""
        return self.made.total() + self.server.met.total()

    def strike(self) -> None:
        """The next fault, if it is not over. Answers wait for the call they are for, one for each at a time."""
        if self.faults >= FAULTS:
            return
        kind = self.random.choice(["killed", "cut", "held", "slow", *["answer"] * 6])
        if kind == "killed":
            self.server.jobs.clear()
            self.network.cut(down_s=0.05)
        elif kind == "cut":
            self.network.cut()
        elif kind == "held":
            self.network.hold(0.05)
        elif kind == "slow":
            self.network.slow(0.05)
        else:
            call = self.random.choice(["send", "forecast", "forecast", "register"])
            if not self.server.faults[call]:
                self.server.faults[call].append(self.random.choice(ANSWERS[call]))
            return
        self.made[kind] += 1


def left_behind(*ports: int) -> tuple[set[int | None], set[str], list[Any]]:
    """Threads, open files and connections to or from `ports` of this process; it may have a Ray cluster, whose descriptors vary."""
    process = psutil.Process()
    open_to = [each for each in process.net_connections() if {end.port for end in (each.laddr, each.raddr) if end} & set(ports)]
    return {thread.ident for thread in threading.enumerate()}, {file.path for file in process.open_files()}, open_to


def test_chaos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training that only survives one fault at a time does not survive a bad night."""
    monkeypatch.setattr(sender, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(sender, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.005)
    steps = FAULTS * STEPS_BETWEEN * 2
    judged = range(steps - 50, steps)
    plain, _ = train(steps, lr=1e-3, options=None, judged=judged)
    before = left_behind()
    server = FaultyServer()
    monkeypatch.setattr(server.listener, "handle_error", lambda *_: None)  # it would print of each cut
    network = CutNetwork(server.port)
    ports = server.port, network.port
    chaos = Chaos(server, network, seed=0)
    options = {"server": Server(network.url, timeout_s=0.3), "interval": INTERVAL}

    def strike(index: int, nowcast: Nowcast) -> None:
        if index % STEPS_BETWEEN == 0:
            chaos.strike()
        if nowcast._boundaries._asked is not None:
            nowcast._boundaries._asked.done.wait(PATIENCE_S)

    struck, summary = train(steps, lr=1e-3, options=options, judged=judged, after_step=strike)
    network.close()
    server.close()
    assert chaos.faults >= FAULTS
    assert min(chaos.made[kind] for kind in ("killed", "cut", "held", "slow")) > FAULTS // 20
    assert min(server.met[call] for call in ("register", "send", "forecast")) > FAULTS // 40, server.met
    assert sum(struck) <= 1.02 * sum(plain)
    assert summary["steps"] == steps
    assert summary["nowcasts"]["used"] > 0  # now and then something worked
    assert len(summary["reasons"]) > 3
    until(lambda: left_behind()[0] <= before[0])
    assert left_behind()[1] <= before[1]
    until(lambda: not left_behind(*ports)[2])
