"""A server under everything at once: jobs that come and go, training runs, kills and restarts, and clients that mean harm.

    python bench/soak.py                  # 10 minutes
    python bench/soak.py --seconds 1800   # half an hour

Until halfway the server is killed, ended and told to reload in turn; then it lives on, so that its memory can be judged. When all
have gone, they come once more, for a minute. It fails if memory exceeds the budgets by more than a fifth and 150 MB, grows, or is
larger by a tenth after the second time than after the first; if any call is answered by 500 or an error is logged; or if a job or a
nowcast came to nothing without a reason.
"""

import argparse
import http.client
import itertools
import logging
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import psutil
import torch
from attacks import Attack
from load import FLAT, Job, Record, Samples, growth, network, percentile

from nowcast_server.running import TRIM_EVERY_S
from protos.messages import JobSpec
from trainer_worker import Nowcast, Server
from trainer_worker.wiring import wire

TOKENS = {tenant: tenant * 8 for tenant in ("jobs", "hostile", "operator")}
OPTIONS = ("--memory", "256MiB", "--forecast-memory", "256MiB", "--threads", "1", "--idle-s", "40", "--drain-s", "5")
ENVIRONMENT = {"NOWCAST_TENANT_MEMORY": "128MiB", "NOWCAST_TOKENS": ",".join(map(":".join, TOKENS.items()))}
FORECASTERS = ("spectral", "linear", "nino", "wnn", "average")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
LIMIT = 1.2 * (256 + 256) * 2**20 + 150e6
"""Memory above that of a server with nothing to do."""
SETTLE_S, JUDGED_S = 120.0, 120.0
"""After a start, jobs only come until the first expire. Growth is judged after that, over so long at least."""
AGAIN_S = 60.0
"""How long the clients come once more."""
CUT_OFF = re.compile("timeout graceful shutdown exceeded|returned without completing response")
"""uvicorn's errors for calls that outlast the drain, as those of hostile clients may: they are answered 503, or cut short."""


def job(index: int, port: int, until: float) -> list[Record]:
    """Jobs one after the other, each of which vanishes some day."""
    torch.set_num_threads(1)
    records: list[Record] = []
    draw = random.Random(index)
    while (left := until - time.time()) > 0:
        size = draw.choice(("14k", "56k", "222k"))
        spec = JobSpec(wiring=wire(network(size)), forecaster=draw.choice(FORECASTERS))
        record = Record(f"job-{index}-{len(records)}", size, seed=draw.randrange(10**6))
        one = Job(record, url=f"http://127.0.0.1:{port}", spec=spec, token=TOKENS["jobs"])
        one.run(until=time.time() + min(left, draw.uniform(5, 40)))
        records.append(record)
    return records


def training(index: int, port: int, until: float) -> list[dict[str, Any]]:
    """Runs one after the other, as users have them; their summaries."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    found: list[dict[str, Any]] = []
    while time.time() < until:
        model = network("14k")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        server = Server(f"http://127.0.0.1:{port}", token=TOKENS["jobs"], job=f"run-{index}-{len(found)}", timeout_s=5)
        with Nowcast(
            model, optimizer, server=server, max_steps=600, forecaster=FORECASTERS[len(found) % len(FORECASTERS)]
        ) as nowcast:
            while nowcast.steps < 600 and time.time() < until:
                optimizer.zero_grad()
                model(torch.randn(16, 64)).square().mean().backward()
                optimizer.step()
                time.sleep(0.02)
        found.append(nowcast.summary())
    return found


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body; 0 if there is no answer within 10 s."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {TOKENS['operator']}"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def start(port: int, log: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "nowcast_server", "run", "--port", str(port), "--log-level", "error", *OPTIONS]
    server = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stderr=log)
    while get(port, "/readyz")[0] != 200:
        assert server.poll() is None, "the server ended"
        time.sleep(0.1)
    return server


def live(
    server: subprocess.Popen[bytes], port: int, log: Any, *, until: float, every_s: float
) -> tuple[subprocess.Popen[bytes], list[float], Samples]:
    """Kill, end and reload the server until halfway; it, the times of /livez (10 for none in 10 s), memory since the last start."""
    calls, memory = list[float](), Samples()
    signs, half, due = itertools.cycle(SIGNALS), (time.time() + until) / 2, time.time() + every_s
    while time.time() < until:
        if due < time.time() < half:
            server.send_signal(sign := next(signs))
            if sign != signal.SIGHUP:
                server.wait(60)
                server, memory = start(port, log), []
            due = time.time() + every_s
        begin = time.perf_counter()
        assert get(port, "/livez")[0] in {0, 200}
        calls.append(time.perf_counter() - begin)
        memory.append((time.time(), {server.pid: resident(server)}))
        time.sleep(0.1)
    return server, calls, memory


def held(port: int) -> dict[str, float]:
    """Bytes that the server's budgets count, by use."""
    found = re.findall(r'^nowcast_memory_bytes{use="(\w+)"} (\S+)$', get(port, "/metrics")[1], re.MULTILINE)
    return {use: float(size) for use, size in found}


def explained(records: list[Record], summaries: list[dict[str, Any]]) -> list[str]:
    """Show what jobs and runs came to; those that came to less than they should, and do not say why."""
    recovered = sum((record.recovered for record in records), Counter[str]())
    made, used = sum(len(record.nowcasts) for record in records), sum(each["nowcasts"]["used"] for each in summaries)
    reasons = sum((Counter(each["reasons"]) for each in summaries), Counter[str]())
    print(f"{len(records)} jobs, {made} nowcasts, recovered from {dict(recovered)}")
    print(f"{len(summaries)} runs, {used} nowcasts used, skipped {dict(reasons)}")
    wrong = [f"{record.job}: {record.failed or 'nothing'}" for record in records if record.failed or not record.nowcasts]
    for each in summaries:
        used, skipped = each["nowcasts"].values()
        if skipped != sum(each["reasons"].values()) or (each["steps"] == 600 and not used + skipped):
            wrong.append(f"{each['job']}: {each}")
    return wrong + ["a call was answered by an error of the server's own"] * recovered["internal"]


class Clients:
    """All kinds of clients at once, until a time.

    Args:
        times: that others like them came before.
    """

    def __init__(self, pool: ProcessPoolExecutor, port: int, *, until: float, times: int = 0) -> None:
        self._jobs = [pool.submit(job, 3 * times + index, port, until) for index in range(3)]
        self._runs = pool.submit(training, times, port, until)
        attack = partial(Attack, port, token=TOKENS["hostile"])
        self._attacks = [pool.submit(attack(seed=2 * times + index).run, until) for index in range(2)]

    def wait(self) -> None:
        """Wait for all of them; then they can be asked what came of them."""
        self.records = [record for each in self._jobs for record in each.result()]
        self.summaries = self._runs.result()
        self.answers = sum((each.result() for each in self._attacks), Counter[int]())


def rests(server: subprocess.Popen[bytes], port: int, empty: dict[str, float]) -> tuple[dict[str, float], int]:
    """What the budgets count and the memory in use, once all jobs have expired and freed memory has been returned."""
    given_back = time.time() + 90
    while (left := held(port)) != empty and time.time() < given_back:
        time.sleep(1)
    time.sleep(TRIM_EVERY_S + 5)
    return left, resident(server)


def resident(server: subprocess.Popen[bytes]) -> int:
    return int(psutil.Process(server.pid).memory_info().rss)


def too_much(memory: Samples, after: list[int]) -> list[str]:
    """Show what the server's memory did in its last life, and `after` each time all had gone; what is wrong with that."""
    sizes = [sum(each.values()) for _, each in memory]
    shown = ", then ".join(f"{size / 2**20:.0f}" for size in after)
    print(f"memory {sizes[0] / 2**20:.0f} MiB at the start, {max(sizes) / 2**20:.0f} at most, when all had gone {shown}")
    wrong = ["memory exceeds the budgets"] if max(sizes) > sizes[0] + LIMIT else []
    wrong += ["memory is not given back"] if after[-1] > FLAT * after[0] else []
    judged = [each for each in memory if each[0] > memory[0][0] + SETTLE_S]
    if not judged or judged[-1][0] - judged[0][0] < JUDGED_S:
        print(f"growth is not judged: take more --seconds than {2 * (SETTLE_S + JUDGED_S):.0f}")
        return wrong
    ((first, last),) = growth(judged).values()
    print(f"from {first / 2**20:.0f} to {last / 2**20:.0f} MiB in {judged[-1][0] - judged[0][0]:.0f} s")
    return wrong + (["memory grows"] if last > FLAT * first else [])


def main() -> int:
    """Run it all; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--every-s", type=float, default=40, help="between two signals")
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log, ProcessPoolExecutor(6, multiprocessing.get_context("spawn")) as pool:
        server = start(port, log)
        empty, until = held(port), time.time() + arguments.seconds
        rounds = [Clients(pool, port, until=until)]
        server, calls, memory = live(server, port, log, until=until, every_s=arguments.every_s)
        rounds[0].wait()
        left, first = rests(server, port, empty)
        rounds.append(Clients(pool, port, until=time.time() + AGAIN_S, times=1))
        rounds[1].wait()
        left, again = rests(server, port, empty)
        server.terminate()
        ended = server.wait(60)
        log.seek(0)
        errors = [line for line in log if re.search(r"^\S+ error |^Traceback|^\w+Error", line) and not CUT_OFF.search(line)]
    records = [record for each in rounds for record in each.records]
    summaries = [summary for each in rounds for summary in each.summaries]
    answers = rounds[0].answers + rounds[1].answers
    told = [*explained(records, summaries), *errors[:9], *too_much(memory, [first, again])]
    print(f"hostile clients were answered {dict(sorted(answers.items()))}")
    print(f"/livez p50 {percentile(calls, 0.5):.0f} ms, p99 {percentile(calls, 0.99):.0f} ms, most {percentile(calls, 1):.0f} ms")
    print(f"budgets {left}, empty {empty}; {len(errors)} errors logged, exit status {ended}", *told, sep="\n")
    return 1 if told or answers[500] or left != empty or ended else 0


if __name__ == "__main__":
    sys.exit(main())
