"""A nowcast server in a subprocess, for the duration of one command."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer_worker.errors import CommandFailed

START_S = 180.0
STOP_S = 15.0

# the server, which ends when its standard input does: a parent that was killed cannot stop it, but lets go of the pipe
_CHILD: Final = f"""
import os, runpy, signal, sys, threading, time
def end_with_parent():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({STOP_S})
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
runpy.run_module("nowcast_server", run_name="__main__", alter_sys=True)
"""


@contextmanager
def own_server(*, log: Path, checkpoint: str | None = None) -> Iterator[str]:
    """Start `nowcast-server run` on a free loopback port, wait until it is ready, and stop it at the end; its address. What it
    prints goes to the file `log`. Raises CommandFailed: it ended, or was not ready within `START_S`.
    """
    command = [sys.executable, "-c", _CHILD, "run", "--host", "127.0.0.1", "--port", "0"]
    if checkpoint is not None:
        command += ["--checkpoint", checkpoint]
    # without settings that are meant for another server, such as its tokens
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NOWCAST_")}
    with log.open("wb") as sink:
        # S603: our own interpreter and module; start_new_session: Ctrl-C reaches us first, and we stop it in order
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=sink, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the server has written that it is ready; where it listens, on a free port that it took itself."""
    deadline = time.monotonic() + START_S
    while (ended := process.poll()) is None and time.monotonic() < deadline:
        said = log.read_text(errors="replace")
        if (listens := re.search(r" listening address=(\S+)\n", said)) and re.search(r"^\S+ info +ready ", said, re.MULTILINE):
            return f"http://{listens[1]}"
        time.sleep(0.1)
    why = f"was not ready within {START_S:.0f} s" if ended is None else f"ended with exit code {ended}"
    last = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
    raise CommandFailed(f"the nowcast server {why}; the end of {log}:\n{last}")
