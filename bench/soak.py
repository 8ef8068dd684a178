"""A server under everything at once: jobs that come and go, training runs, kills and restarts, and clients that mean harm.

    python bench/soak.py                  # 10 minutes
    python bench/soak.py --seconds 1800   # half an hour

Until halfway the server is killed, ended and told to reload in turn; then it lives on, so that its memory can be judged. It fails
if that grows or is not given back in the end, if any call is answered by 500 or an error is logged, or if a job or a nowcast came
to nothing without a reason.
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
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import psutil
import torch
from attacks import Attack
from load import FLAT, SETTLE_S, Job, Record, Samples, growth, network, percentile

from protos.messages import JobSpec
from trainer_worker import Nowcast, Server
from trainer_worker.wiring import wire

TOKENS = {tenant: tenant * 8 for tenant in ("jobs", "hostile", "operator")}
OPTIONS = ("--memory", "256MiB", "--forecast-memory", "1GiB", "--threads", "1", "--idle-s", "40", "--drain-s", "5")
ENVIRONMENT = {"NOWCAST_TENANT_MEMORY": "128MiB", "NOWCAST_TOKENS": ",".join(map(":".join, TOKENS.items()))}
FORECASTERS = ("linear", "nino", "wnn", "average")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


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
        with Nowcast(model, optimizer, server=server, max_steps=600, forecaster=FORECASTERS[len(found) % 4]) as nowcast:
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
        memory.append((time.time(), {server.pid: psutil.Process(server.pid).memory_info().rss}))
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


def grows(memory: Samples) -> bool:
    """Show what the server's memory did in its last life."""
    judged = [each for each in memory if each[0] > memory[0][0] + SETTLE_S]
    ((first, last),) = growth(judged).values()
    slope = statistics.linear_regression([moment for moment, _ in judged], [sum(sizes.values()) for _, sizes in judged]).slope
    seconds, per_minute = judged[-1][0] - judged[0][0], slope * 60 / 2**20
    print(f"memory {first / 2**20:.0f} to {last / 2**20:.0f} MiB in {seconds:.0f} s, {per_minute:+.2f} MiB a minute")
    return last > FLAT * first


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
        jobs = [pool.submit(job, index, port, until) for index in range(3)]
        runs = pool.submit(training, 0, port, until)
        attacks = [pool.submit(Attack(port, token=TOKENS["hostile"], seed=index).run, until) for index in range(2)]
        server, calls, memory = live(server, port, log, until=until, every_s=arguments.every_s)
        records, summaries = [record for each in jobs for record in each.result()], runs.result()
        answers = sum((each.result() for each in attacks), Counter[int]())
        given_back = time.time() + 90
        while (left := held(port)) != empty and time.time() < given_back:
            time.sleep(1)
        server.terminate()
        ended = server.wait(60)
        log.seek(0)
        errors = [line for line in log if re.search(r"^\S+ error |^Traceback|^\w+Error", line)]
    told = [*explained(records, summaries), *errors[:9]]
    print(f"hostile clients were answered {dict(sorted(answers.items()))}")
    print(f"/livez p50 {percentile(calls, 0.5):.0f} ms, p99 {percentile(calls, 0.99):.0f} ms, most {percentile(calls, 1):.0f} ms")
    print(f"budgets {left}, empty {empty}; {len(errors)} errors logged, exit status {ended}", *told, sep="\n")
    return 1 if grows(memory) or told or answers[500] or left != empty or ended else 0


if __name__ == "__main__":
    sys.exit(main())
