"""A nowcast server in a subprocess, for the duration of one command."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx2

from trainer_worker.errors import CommandFailed

START_S = 60.0
STOP_S = 15.0


_CHILD: Final = f"""
import os, runpy, signal, sys, threading, time
def end_with_parent():
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({STOP_S})
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
runpy.run_module("nowcast_server", run_name="__main__", alter_sys=True)
"""
"""The server, which ends when its standard input does: a parent that was killed cannot stop it, but lets go of the pipe."""


class ServerFailed(CommandFailed):
    """The server process did not come up; the message ends with its last words."""


@contextmanager
def own_server(*, log: Path, checkpoint: Path | None = None) -> Iterator[str]:
    """Start `nowcast-server run` on a free loopback port, wait until it is ready, and stop it at the end; its address.

    Args:
        log: file for what it prints.
        checkpoint: weights for its forecasters.

    Raises:
        ServerFailed: it ended, or was not ready within `START_S`.
    """
    port = _free_port()
    command = [sys.executable, "-c", _CHILD, "run", "--host", "127.0.0.1", "--port", str(port)]
    if checkpoint is not None:
        command += ["--checkpoint", str(checkpoint)]
    with log.open("wb") as sink:
        # S603: our own interpreter and module; start_new_session: Ctrl-C reaches us first, and we stop it in order
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=sink, stderr=subprocess.STDOUT, env=_environment(), start_new_session=True
        )
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        _stop(process)


def _environment() -> dict[str, str]:
    """Without settings that are meant for another server, such as its tokens."""
    return {name: value for name, value in os.environ.items() if not name.startswith("NOWCAST_")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(
                f"the nowcast server ended with exit code {process.returncode}; the end of {log}:\n{_last_words(log)}"
            )
        try:
            if httpx2.get(f"{url}/readyz", timeout=2.0, trust_env=False).is_success:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise ServerFailed(f"the nowcast server was not ready within {START_S:.0f} s; the end of {log}:\n{_last_words(log)}")


def _last_words(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
