"""How fast does a snapshot get into the server, against a bare socket copy with the same checksum?

Both ways are timed in one run, in turns, from the same sender: it checksums each chunk and writes it to a loopback socket.
`bare` is a process that receives into one buffer and checks each chunk's CRC32, nothing else; `server` is `nowcast-server run`.
A third process asks `/livez` while further uploads run. Memory is the growth of the server's resident set over its first upload.

    python bench/ingest.py [--megabytes 400] [--rounds 7] [--json FILE]
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
PRELUDE = struct.Struct(">II")  # length, crc32


@dataclass(frozen=True)
class Figures:
    """What was measured; times in seconds."""

    megabytes: float
    rounds: int
    bare_s: float
    server_s: float
    bare_gb_per_s: float
    server_gb_per_s: float
    ratio: float
    first_upload_s: float
    growth_over_snapshot: float
    health_median_s: float
    health_max_s: float
    health_calls: int


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
    connection = HTTPConnection(HOST, port)
    latencies = []
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
def nowcast_server() -> Iterator[tuple[int, int]]:
    """A server process; its port and process id."""
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "nowcast_server", "run", "--port", str(port), "--log-level", "warning"])
    try:
        for _ in range(600):
            try:
                urlopen(f"http://{HOST}:{port}/readyz", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


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
    spec = json.dumps({"wiring": wiring.to_dict(), "context": 2, "interval": 1, "forecaster": "last"}).encode()
    request = Request(f"http://{HOST}:{port}/v1/jobs/bench", data=spec, method="PUT", headers={"content-type": "application/json"})
    urlopen(request).close()


def resident_bytes(process_id: int) -> int:
    return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(megabytes: float, rounds: int) -> Figures:
    size = int(megabytes * 1e6) // 4
    values = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    payload = values.data.cast("B")
    with child(bare_receiver, payload.nbytes) as receiver, nowcast_server() as (port, process_id):
        register(port, size)
        bare = socket.create_connection((HOST, receiver.recv()))
        connection = HTTPConnection(HOST, port)
        before = resident_bytes(process_id)
        first_s = send_snapshot(connection, payload, 1)
        growth = (resident_bytes(process_id) - before) / payload.nbytes
        for step in (2, 3):  # every row of the history has been touched once
            send_snapshot(connection, payload, step)
            send_bare(bare, payload)
        bare_s, server_s, health_s = [], [], []
        for step in range(4, 4 + rounds):
            bare_s.append(send_bare(bare, payload))
            server_s.append(send_snapshot(connection, payload, step))
        with child(health_prober, port) as prober:
            time.sleep(1.0)
            for step in range(4 + rounds, 7 + rounds):
                send_snapshot(connection, payload, step)
            prober.send(None)
            health_s = prober.recv()
    ratio = statistics.median(fast / slow for fast, slow in zip(bare_s, server_s, strict=True))
    bare_median_s, server_median_s = statistics.median(bare_s), statistics.median(server_s)
    return Figures(
        megabytes=payload.nbytes / 1e6,
        rounds=rounds,
        bare_s=bare_median_s,
        server_s=server_median_s,
        bare_gb_per_s=payload.nbytes / bare_median_s / 1e9,
        server_gb_per_s=payload.nbytes / server_median_s / 1e9,
        ratio=ratio,
        first_upload_s=first_s,
        growth_over_snapshot=growth,
        health_median_s=statistics.median(health_s),
        health_max_s=max(health_s),
        health_calls=len(health_s),
    )


def show(figures: Figures) -> None:
    bare = f"{figures.bare_s:7.3f} s   {figures.bare_gb_per_s:5.2f} GB/s"
    server = f"{figures.server_s:7.3f} s   {figures.server_gb_per_s:5.2f} GB/s"
    health = f"{figures.health_median_s * 1e3:.1f} ms median, {figures.health_max_s * 1e3:.1f} ms worst of {figures.health_calls}"
    print(f"{figures.megabytes:.0f} MB snapshot, {figures.rounds} rounds in turns, medians")
    print(f"  bare socket + crc32   {bare}")
    print(f"  nowcast-server        {server}   {figures.ratio:.0%} of bare (aim: 70%)")
    growth = f"memory grew by {figures.growth_over_snapshot:.3f} of it"
    print(f"  first upload          {figures.first_upload_s:7.3f} s   {growth} (aim: 1.1)")
    print(f"  /livez meanwhile      {health} (aim: 50 ms)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=400.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    figures = measure(arguments.megabytes, arguments.rounds)
    show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(figures), indent=2) + "\n")


if __name__ == "__main__":
    main()
