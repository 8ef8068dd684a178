"""The server process: uvicorn with our app and logs; on SIGTERM it fails `/readyz` before it stops."""

import asyncio
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
from nowcast_server.malloc import keep_freed_memory
from nowcast_server.service import Service
from nowcast_server.settings import Settings
from nowcast_server.tokens import Tokens
from nowcast_server.web.connections import SPARE, Connections, protocol_for

KEEP_ALIVE_S: Final = 75
BACKLOG: Final = 512  # connections that wait to be accepted
OTHER_FILES: Final = BACKLOG + SPARE + 192
"""Open files besides the connections within the limit: those accepted in one go before any is ended, spare ones, and the rest."""
END_S: Final = 10.0  # after the drain, how long the process may take to end
SWITCH_INTERVAL_S: Final = 0.0002
"""How long Python code on the device thread may hold up the event loop, at most, when both want to run (Python's own is 5 ms)."""


class Server(uvicorn.Server):
    """On the first signal it drains: `/readyz` says no and new work is refused, while forecasts in flight are made and fetched.

    `on_drain` is told how long that may take, in seconds, when it begins.
    """

    def __init__(self, config: uvicorn.Config, *, service: Service, on_drain: Callable[[float], None] = lambda _: None) -> None:
        super().__init__(config)
        self._service = service
        self._on_drain = on_drain
        self._drain_until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain_until is not None:
            super().handle_exit(sig, frame)
            return
        drain_s = self._service.settings.drain_s
        self._drain_until = time.monotonic() + drain_s
        self._service.draining = True
        self._on_drain(drain_s)

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
            self._service.tokens = Tokens.load(settings)
            if self.config.ssl is not None and settings.tls_cert is not None:
                settings.tls_options()  # looks at the files first
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


def end_by(seconds: float) -> None:
    """End this process after so many seconds, whatever its threads do: some may be in code that nothing interrupts."""
    watchdog = threading.Timer(seconds, os._exit, args=(1,))
    watchdog.daemon = True
    watchdog.start()


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files to so many, as far as its hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard))


def prepare_process(settings: Settings) -> None:
    """What a process that serves needs, whoever calls its app: logs, threads, memory and files."""
    configure_logging(level=settings.log_level, style=settings.log_format, audit_log=settings.audit_log)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    keep_freed_memory()
    records = settings.max_jobs if settings.record is not None else 0  # each keeps a file open
    allow_open_files(settings.max_connections + OTHER_FILES + records)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()  # what was imported stays; to look at it all again would hold up the event loop for 0.1 s


def server_for(app: FastAPI, settings: Settings, *, on_drain: Callable[[float], None] = lambda _: None) -> Server:
    """The app as uvicorn shall serve it; `on_drain` as `Server` has it."""
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
    return Server(config, service=app.state.service, on_drain=on_drain)


def serve(settings: Settings) -> int:
    """Serve until a signal; the exit status. The settings have passed `tokens.check_exposure`."""
    prepare_process(settings)
    app = create_app(settings, on_failure=lambda: server.handle_exit(0, None))
    service: Service = app.state.service
    server = server_for(app, settings, on_drain=lambda drain_s: end_by(drain_s + END_S))
    log.info("starting", extra={"tenants": len(service.tokens.names)})
    server.run()
    log.info("stopped")
    status = 1 if service.failure is not None else 0
    if not service.device.idle:  # Python would wait for the thread of a forecast that does not let itself be stopped
        os._exit(status)
    return status
