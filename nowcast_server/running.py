"""The server process: uvicorn with our app and logs; on SIGTERM it fails `/readyz` before it stops."""

import asyncio
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

import torch
import uvicorn
from fastapi import FastAPI

from nowcast_server.app import create_app
from nowcast_server.logs import configure_logging, log
from nowcast_server.service import Service
from nowcast_server.settings import MIB, Settings
from nowcast_server.web.connections import SPARE, Connections, protocol_for

KEEP_ALIVE_S: Final = 75
BACKLOG: Final = 512  # connections that wait to be accepted
OTHER_FILES: Final = BACKLOG + SPARE + 192  # open besides the connections within the limit: accepted in one go, spare, and the rest
END_S: Final = 10.0  # after the drain, how long the process may take to end
SWITCH_INTERVAL_S: Final = 0.0002  # that code on the device thread may hold up the event loop, at most (Python's own is 5 ms)
TRIM_EVERY_S: Final = 30.0
_MALLOPT: Final = {-1: 32 * MIB, -2: 16 * MIB, -3: 8 * MIB, -8: 2}  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX


class Server(uvicorn.Server):
    """On the first signal it drains: `/readyz` says no and new work is refused, while forecasts in flight are made and fetched."""

    def __init__(self, config: uvicorn.Config, *, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self.on_drain: Callable[[float], None] = lambda _: None  # told how long that may take, in seconds, when it begins
        self._drain_until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain_until is not None:
            super().handle_exit(sig, frame)
            return
        drain_s = self._service.settings.drain_s
        self._drain_until = time.monotonic() + drain_s
        self._service.draining = True
        self.on_drain(drain_s)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            address = server.sockets[0].getsockname()
            shown = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else address  # of a Unix socket its path
            log.info("listening", extra={"address": shown})
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)

    def reload(self) -> None:
        """Read tokens and certificates anew, for calls and connections to come. If that fails, what there was stays."""
        settings = self._service.settings
        try:
            settings.tls_options()  # looks at the files, before anything has changed
            self._service.load_tokens()
            if self.config.ssl is not None and settings.tls_cert is not None:
                self.config.ssl.load_cert_chain(settings.tls_cert, settings.tls_key)
        except (OSError, ValueError) as error:
            log.error("cannot reload: %s", error)
        else:
            log.info("reloaded", extra={"tenants": len(self._service.tokens.names)})

    async def on_tick(self, counter: int) -> bool:
        if self._drain_until is not None:
            left_s = self._drain_until - time.monotonic()
            self.should_exit |= self._service.device.idle or left_s < 0
            self.config.timeout_graceful_shutdown = max(1, int(left_s))  # it has what is left, not all of it again
        return await super().on_tick(counter)


def tune_malloc() -> None:
    """Have glibc's malloc keep up to 32 MiB that was freed: to take it anew for each piece of a body cost two thirds of uvicorn's
    time in page faults (bench/ingest.py). Now and then return all freed pages, which free() alone never does.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        return  # not glibc

    def trim() -> None:
        while True:
            time.sleep(TRIM_EVERY_S)
            libc.malloc_trim(0)  # releases the GIL

    for parameter, value in _MALLOPT.items():
        libc.mallopt(parameter, value)
    threading.Thread(target=trim, name="trim", daemon=True).start()


def prepare_process(settings: Settings) -> None:
    """What a process that serves needs, whoever calls its app: logs, threads, memory and files."""
    configure_logging(level=settings.log_level, style=settings.log_format, audit_log=settings.audit_log)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    tune_malloc()
    records = settings.max_jobs if settings.record is not None else 0  # each keeps a file open
    files, (soft, hard) = settings.max_connections + OTHER_FILES + records, resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files if hard == resource.RLIM_INFINITY else min(files, hard), hard))
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()  # what was imported stays; to look at it all again would hold up the event loop for 0.1 s


def server_for(app: FastAPI, settings: Settings) -> Server:
    """The app as uvicorn shall serve it."""
    limit = min(settings.max_connections, max(SPARE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OTHER_FILES))
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        uds=None if settings.uds is None else str(settings.uds),
        http=protocol_for(Connections(limit, settings.peer_connections)),
        backlog=BACKLOG,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(settings.drain_s)),
        **settings.tls_options(),
    )
    return Server(config, service=app.state.service)


def serve(settings: Settings) -> int:
    """Serve until a signal; the exit status. The settings have passed `tokens.check_exposure`."""

    def end_in_time(drain_s: float) -> None:
        """Whatever threads do: some may be in code that nothing interrupts."""
        watchdog = threading.Timer(drain_s + END_S, os._exit, args=(1,))
        watchdog.daemon = True
        watchdog.start()

    prepare_process(settings)
    app = create_app(settings, on_failure=lambda: server.handle_exit(0, None))
    service: Service = app.state.service
    server = server_for(app, settings)
    server.on_drain = end_in_time
    log.info("starting", extra={"tenants": len(service.tokens.names)})
    server.run()
    log.info("stopped")
    status = int(service.failure is not None)
    if not service.device.idle:  # Python would wait for the thread of a forecast that does not let itself be stopped
        os._exit(status)
    return status
