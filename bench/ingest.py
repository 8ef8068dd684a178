"""How fast does a snapshot get into the server, against a bare socket copy with the same checksum?

Both ways are timed in one run, in turns, from the same sender: it checksums each chunk and writes it to a loopback socket.
`bare` is a process that receives into one buffer and checks each chunk's CRC32, nothing else; `server` is `nowcast-server run`.
`--serve` adds one replica behind Ray Serve's proxy. A third process asks `/livez`, first while nothing else is going on (what the
machine itself takes), then while further uploads run. Memory is the growth
of the resident set of the process that holds the history, over its first upload.

    python bench/ingest.py [--megabytes 400] [--rounds 7] [--serve] [--json FILE]
"""

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np

from protos.frames import CHUNK_BYTES, MEDIA_TYPE, Header, framed_bytes, write_frames
from protos.wiring import Block, Parameter, Wiring

HOST = "127.0.0.1"
MARK = "NOWCAST_BENCH_SERVER"
PRELUDE = struct.Struct(">II")  # length, crc32


@dataclass(frozen=True)
class Way:
    """How one way took the snapshots in; seconds.

    Args:
        upload_s: median.
        ratio: median over the rounds of the bare copy's time to this one's.
        first_s: the first upload, which touches the history's memory.
        growth: of the process that holds the history over its first upload, to the snapshot's size.
        rest_s: of `/livez` with no upload, sorted.
        health_s: of `/livez` during uploads, sorted.
    """

    upload_s: float
    ratio: float
    first_s: float
    growth: float
    rest_s: list[float]
    health_s: list[float]


def quantile_ms(seconds: list[float], share: float) -> float:
    """Of sorted latencies."""
    return 1e3 * seconds[min(len(seconds) - 1, int(share * len(seconds)))]


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    megabytes: float
    rounds: int
    bare_s: float
    ways: dict[str, Way]


def bare_receiver(ready: Connection, size_bytes: int) -> None:
    """Receive streams of `size_bytes` into one buffer, for ever; answer each with one byte."""
    listener = socket.create_server((HOST, 0))
    ready.send(listener.getsockname()[1])
    connection, _ = listener.accept()
    buffer = memoryview(bytearray(size_bytes))
    prelude = memoryview(bytearray(PRELUDE.size))
    while True:
        offset = 0
        while offset < size_bytes:
            if not _receive_all(connection, prelude):
                return
            length, crc = PRELUDE.unpack(prelude)
            chunk = buffer[offset : offset + length]
            _receive_all(connection, chunk)
            assert zlib.crc32(chunk) == crc
            offset += length
        connection.sendall(b"k")


def _receive_all(connection: socket.socket, view: memoryview) -> bool:
    while view.nbytes:
        received = connection.recv_into(view)
        if not received:
            return False
        view = view[received:]
    return True


def send_bare(connection: socket.socket, payload: memoryview) -> float:
    """One stream to the bare receiver; seconds until its answer."""
    start = time.perf_counter()
    for offset in range(0, payload.nbytes, CHUNK_BYTES):
        chunk = payload[offset : offset + CHUNK_BYTES]
        connection.sendall(PRELUDE.pack(chunk.nbytes, zlib.crc32(chunk)))
        connection.sendall(chunk)
    assert connection.recv(1) == b"k"
    return time.perf_counter() - start


def send_snapshot(connection: HTTPConnection, payload: memoryview, step: int) -> float:
    """One upload to the server; seconds until its answer."""
    header = Header("snapshot", "float32", (payload.nbytes // 4,), step)
    start = time.perf_counter()
    connection.putrequest("PUT", f"/v1/jobs/bench/snapshots/{step}")
    connection.putheader("content-type", MEDIA_TYPE)
    connection.putheader("content-length", str(framed_bytes(header)))
    connection.endheaders()
    for piece in write_frames(header, payload):
        connection.send(piece)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, body
    return time.perf_counter() - start


def health_prober(results: Connection, port: int) -> None:
    """Ask `/livez` every few milliseconds until told to stop; send all the latencies."""
    connection, latencies = HTTPConnection(HOST, port), []
    results.send(None)
    while not results.poll():
        start = time.perf_counter()
        connection.request("GET", "/livez")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        latencies.append(time.perf_counter() - start)
        time.sleep(0.005)
    results.send(latencies)


@contextmanager
def server(*command: str) -> Iterator[int]:
    """A server process; its port."""
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    environment = {**os.environ, "NOWCAST_LOG_LEVEL": "warning", MARK: str(port), "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen([sys.executable, "-m", "nowcast_server", *command, "--port", str(port)], env=environment)
    try:
        for _ in range(1200):
            assert process.poll() is None, f"{command} ended with {process.returncode}"
            try:
                urlopen(f"http://{HOST}:{port}/readyz", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def holder(port: int) -> int:
    """The process that holds the histories: the server's, or its replica on Ray."""
    mark, found = f"{MARK}={port}".encode(), dict[int, bytes]()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "environ").read_bytes().split(b"\0"):
                found[int(path.name)] = (path / "cmdline").read_bytes()
        except OSError:
            continue
    replicas = [process for process, line in found.items() if b"ServeReplica" in line]
    return replicas[0] if replicas else min(found)


@contextmanager
def child(target: Callable[..., object], *arguments: object) -> Iterator[Connection]:
    """A process of this script, and our end of its pipe."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        process.kill()
        process.join()


def register(port: int, size: int) -> None:
    """A job whose one layer has `size` weights."""
    block = Block(1, 0, size, size, 1, parameter=0, source_stride=1, target_stride=1)
    wiring = Wiring((Parameter("weight", (1, size)),), size + 1, (block,))
    spec = json.dumps({"wiring": wiring.to_dict(), "context": 2, "forecaster": "last"}).encode()
    request = Request(f"http://{HOST}:{port}/v1/jobs/bench", data=spec, method="PUT", headers={"content-type": "application/json"})
    urlopen(request).close()


def resident_bytes(process_id: int) -> int:
    return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(megabytes: float, rounds: int, servers: dict[str, tuple[str, ...]]) -> Figures:
    size = int(megabytes * 1e6) // 4
    values = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    payload = values.data.cast("B")
    ways, all_bare_s = {}, []
    for name, command in servers.items():
        with child(bare_receiver, payload.nbytes) as receiver, server(*command) as port:
            bare = socket.create_connection((HOST, receiver.recv()))
            ways[name], bare_s = one_way(port, bare, payload, rounds)
            all_bare_s += bare_s
    return Figures(payload.nbytes / 1e6, rounds, statistics.median(all_bare_s), ways)


def one_way(port: int, bare: socket.socket, payload: memoryview, rounds: int) -> tuple[Way, list[float]]:
    """A server against the bare copy, in turns; the bare copy's times as well."""
    register(port, payload.nbytes // 4)
    connection, process_id = HTTPConnection(HOST, port), holder(port)
    before = resident_bytes(process_id)
    first_s = send_snapshot(connection, payload, 1)
    growth = (resident_bytes(process_id) - before) / payload.nbytes
    for step in (2, 3):  # every row of the history has been touched once
        send_snapshot(connection, payload, step)
        send_bare(bare, payload)
    bare_s, server_s = [], []
    for step in range(4, 4 + rounds):
        bare_s.append(send_bare(bare, payload))
        server_s.append(send_snapshot(connection, payload, step))
    rest_s = probed(port, lambda: time.sleep(2.0))
    health_s = probed(port, lambda: [send_snapshot(connection, payload, step) for step in range(4 + rounds, 7 + rounds)])
    ratio = statistics.median(fast / slow for fast, slow in zip(bare_s, server_s, strict=True))
    return Way(statistics.median(server_s), ratio, first_s, growth, rest_s, health_s), bare_s


def probed(port: int, work: Callable[[], object]) -> list[float]:
    """Latencies of `/livez` while work is done, sorted."""
    with child(health_prober, port) as prober:
        prober.recv()  # it has begun
        work()
        prober.send(None)
        return sorted(prober.recv())


def show(figures: Figures) -> None:
    gigabytes = figures.megabytes / 1e3
    print(f"{figures.megabytes:.0f} MB snapshots, medians of {figures.rounds} rounds in turns")
    columns = f"{'s':>6} {'GB/s':>6} {'of bare':>8} {'first s':>8} {'growth':>7}"
    print(f"{'':22} {columns}   /livez ms, p50 p99 worst: {'at rest':>20} {'uploading':>20}")
    print(f"{'bare socket + crc32':22} {figures.bare_s:6.3f} {gigabytes / figures.bare_s:6.2f}")
    for name, way in figures.ways.items():
        health = " ".join(f"{quantile_ms(each, share):6.1f}" for each in (way.rest_s, way.health_s) for share in (0.5, 0.99, 1.0))
        speed = f"{way.upload_s:6.3f} {gigabytes / way.upload_s:6.2f} {way.ratio:8.0%} {way.first_s:8.3f} {way.growth:7.3f}"
        print(f"{name:22} {speed}   {'':25} {health}")
    print("aims, without Serve: 70% of bare, growth 1.1, /livez 50 ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=400.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--serve", action="store_true", help="through Ray Serve as well")
    arguments = parser.parse_args()
    servers = {"nowcast-server run": ("run",)}
    if arguments.serve:
        servers["serve-on-ray"] = ("serve-on-ray", "--memory", "8GiB")
    figures = measure(arguments.megabytes, arguments.rounds, servers)
    show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(figures), indent=2) + "\n")


if __name__ == "__main__":
    main()
