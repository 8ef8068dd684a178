"""What 1, 10 and 100 training jobs need of nowcast servers: bandwidth, memory and servers, by size of model and length of run.

    python bench/sizing.py [--memory-gib 48] [--gbits 10] [--spectral-ns 2.5] [--nino-ns 12.5]

Prints a Markdown table. A job is one training run on any number of GPUs: only one rank sends snapshots. An interval is 1/200 of the
run; in each, a snapshot goes up and a forecast comes down, four bytes a weight. Servers are planned to be busy half of the time.

Defaults: a server has 48 GiB for histories and 10 Gbit/s. `spectral` takes 39 ns a weight on one core (measured, matrices 2,048
wide), so about 2.5 ns on 16. `nino` takes 12.5 ns a weight on a GPU (80M weights a second, an estimate:
nowcast_server/nino/engine/workers.py); a core takes 1,900 ns, measured by `bench/forecast.py --cpu-time`.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nowcast_server.jobs.history import history_bytes
from nowcast_server.settings import GIB

SIZES: Final = {"1M": 10**6, "10M": 10**7, "100M": 10**8, "1B": 10**9}
RUNS_H: Final = {"1 h": 1, "24 h": 24}
JOBS: Final = (1, 10, 100)
INTERVALS: Final = 200
CONTEXT: Final = 5
BUSY: Final = 0.5


@dataclass(frozen=True)
class Server:
    """What one server has.

    Args:
        memory_bytes: for histories.
        bits_s: of its network, each way.
        ns: of its device for each weight of a forecast.
    """

    memory_bytes: float
    bits_s: float
    ns: float


@dataclass(frozen=True)
class Job:
    """One training run: its weights, and the seconds between two snapshots."""

    weights: int
    interval_s: float

    @property
    def bits_s(self) -> float:
        """Up; and down the same."""
        return 32 * self.weights / self.interval_s

    @property
    def memory_bytes(self) -> int:
        return history_bytes(self.weights, context=CONTEXT, dtype="float32")


def servers(job: Job, count: int, server: Server) -> int | None:
    """How many servers so many jobs need; None if a forecast takes longer than an interval, or a history more than a server."""
    forecast_s = job.weights * server.ns / 1e9
    if forecast_s > job.interval_s or job.memory_bytes > server.memory_bytes:
        return None
    by_memory = math.ceil(count / (server.memory_bytes // job.memory_bytes))
    by_device = count * forecast_s / job.interval_s / BUSY
    by_network = count * job.bits_s / server.bits_s / BUSY
    return max(by_memory, math.ceil(by_device), math.ceil(by_network))


def table(spectral: Server, nino: Server) -> Iterator[str]:
    """Lines of Markdown."""
    columns = ("weights", "run", "interval", "Mbit/s a job, each way", "GiB of histories", "`spectral` servers", "`nino` servers")
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for size, weights in SIZES.items():
        for run, hours in RUNS_H.items():
            job = Job(weights, hours * 3600 / INTERVALS)
            memory = " / ".join(rounded(count * job.memory_bytes / GIB) for count in JOBS)
            counts = (" / ".join(str(servers(job, count, each) or "-") for count in JOBS) for each in (spectral, nino))
            yield f"| {size} | {run} | {job.interval_s:g} s | {rounded(job.bits_s / 1e6)} | {memory} | {' | '.join(counts)} |"


def rounded(value: float) -> str:
    """Two digits of small values, no fraction of large ones."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-gib", type=float, default=48, help="for histories, a server")
    parser.add_argument("--gbits", type=float, default=10, help="of a server's network")
    parser.add_argument("--spectral-ns", type=float, default=2.5, help="a weight of a `spectral` forecast, on the whole server")
    parser.add_argument("--nino-ns", type=float, default=12.5, help="the same of nino")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    spectral, nino = (Server(options.memory_gib * GIB, options.gbits * 1e9, ns) for ns in (options.spectral_ns, options.nino_ns))
    print("\n".join(table(spectral, nino)))


if __name__ == "__main__":
    main()
