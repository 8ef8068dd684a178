"""Settings of a server: options of `nowcast-server run`, else `NOWCAST_*` variables, else the defaults."""

import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import ByteSize, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

GIB: Final = 2**30
MIB: Final = 2**20

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Size = Annotated[ByteSize, Field(gt=0)]

FORECASTER_NAMES: Final = ("last", "linear", "spectral", "average", "wnn", "nino")  # that every server has, or can have
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class CheckpointFile:
    """Weights to serve."""

    path: Path
    name: str | None = None  # by which jobs ask for it; None: it takes the place of `nino` or `wnn`, whichever it holds

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `FILE` or `NAME=FILE`; what stands before the first `=` is a name unless it holds a `/`."""
        name, given, path = text.partition("=")
        if not given or "/" in name:
            return cls(Path(text))
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a checkpoint: 1 to 64 letters, digits, '.', '_' and '-', the first no sign")
        if name in FORECASTER_NAMES:
            raise ValueError(f"{name!r} is a forecaster of every server: take another name, or none to replace nino or wnn")
        if not path:
            raise ValueError(f"the file of checkpoint {name!r} is missing: give {name}=FILE")
        return cls(Path(path), name)


class Settings(BaseSettings):
    """Settings and limits of a server. Sizes take units (`8GiB`).

    Args:
        host: Address to listen on. Any but loopback needs tokens, or `allow_anonymous`.
        port: Port to listen on; 0 takes a free one.
        uds: Path of a Unix socket to listen on instead of a port.
        device: Where forecasts are made: `auto` (the first CUDA device, else the CPU), `cpu`, `cuda`, `cuda:1`, ….
        checkpoints: Weights of forecasters. `FILE` replaces the package's `nino` or `wnn`, whichever it holds; `NAME=FILE` adds a
            forecaster that jobs ask for by that name. Separate several by `:` (`;` on Windows).
        memory: Memory for the histories and wirings of all jobs.
        evict_idle_s: A full server may evict the history of a job that has been idle for this long, and for 2.5 times the time
            between its snapshots. Its worker sends it again.
        max_snapshot: Largest snapshot.
        forecast_memory: Memory for the forecasters' weights, their work space, and forecasts being made or sent. With a CUDA
            device, for the forecasts alone.
        device_memory: Memory of a CUDA device, for snapshots and the forecasters' work space. None: nine tenths of what is free at
            the start.
        forecast_limit_s: Longest time a forecast may use the device. Longer ones are refused or stopped; `/livez` fails while one
            runs over.
        max_registration: Largest JSON body that registers a job. Bodies being received take at most 16 times as much memory, and
            the one being parsed 30 times.
        max_jobs: Most jobs known at once.
        tenant_jobs: Most jobs of one tenant.
        tenant_memory: Share of `memory` that one tenant may use. None: no limit.
        queue: Most forecasts waiting for the device. More are answered `busy`.
        tenant_queue: Most forecasts of one tenant waiting for the device.
        job_queue: Most forecasts of one job waiting for the device.
        max_connections: Most open connections. Beyond that, the one that has been idle longest is closed.
        peer_connections: Most open connections from one address. Behind a proxy, that is the proxy's address.
        idle_s: A job is forgotten after this long without a call.
        upload_grace_s: How far a transfer may fall behind `upload_min_rate` before it is cut off.
        upload_min_rate: Slowest transfer allowed, in bytes a second.
        drain_s: Time for work in flight to finish after SIGTERM.
        token_file: File with lines `tenant:token` or `tenant:sha256:HEX`.
        tokens: The same as a variable, separated by commas.
        tls_cert: Certificate for HTTPS.
        tls_key: Its key, unless it is in the same file.
        tls_ca: Accept only clients with a certificate of this authority.
        allow_anonymous: Listen on any address without tokens.
        threads: Threads of torch; 0 leaves the choice to torch.
        log_level: Level of the server's log.
        log_format: `text` (key=value) or `json`.
        otel: Send traces and metrics of all calls by OpenTelemetry; its own variables configure it (`OTEL_EXPORTER_OTLP_ENDPOINT`).
        audit_log: File that records who registered and deleted which job, as JSON lines.
        record: Folder in which to keep the snapshots of jobs registered with `record: true`. None: no job is recorded.
    """

    model_config = SettingsConfigDict(env_prefix="NOWCAST_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, lt=65536)] = 8440
    uds: Path | None = None
    device: str = "auto"
    checkpoints: Annotated[tuple[CheckpointFile, ...], NoDecode] = ()
    memory: Size = ByteSize(8 * GIB)
    evict_idle_s: Seconds = 30.0
    max_snapshot: Size = ByteSize(4 * GIB)
    forecast_memory: Size = ByteSize(8 * GIB)
    device_memory: Size | None = None
    forecast_limit_s: Seconds = 300.0
    max_registration: Size = ByteSize(4 * MIB)
    max_jobs: Count = 1024
    tenant_jobs: Count = 256
    tenant_memory: Size | None = None
    queue: Count = 256
    tenant_queue: Count = 64
    job_queue: Count = 4
    max_connections: Count = 1024
    peer_connections: Count = 512
    idle_s: Seconds = 6 * 3600.0
    upload_grace_s: Seconds = 30.0
    upload_min_rate: Size = ByteSize(256 * 1024)
    drain_s: Seconds = 60.0
    token_file: Path | None = None
    tokens: SecretStr | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    allow_anonymous: bool = False
    threads: Annotated[int, Field(ge=0)] = 0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    otel: bool = False
    audit_log: Path | None = None
    record: Path | None = None

    @field_validator("checkpoints", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        texts = filter(None, value.split(os.pathsep)) if isinstance(value, str) else map(str, value)
        files = tuple(map(CheckpointFile.parse, texts))
        names = [file.name for file in files if file.name is not None]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"there are two checkpoints named {twice[0]!r}: give each a name of its own")
        return files

    @field_validator("port", mode="before")
    @classmethod
    def _no_service_link(cls, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("tcp://"):
            detail = f"NOWCAST_PORT={value} is what Kubernetes sets for a service named 'nowcast'"
            raise ValueError(f"{detail}: give the pod enableServiceLinks: false, or say --port")
        return value

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    def transfer_limit_s(self, moved_bytes: int) -> float:
        """How long after its begin a transfer that has moved so many bytes may be at that point."""
        return self.upload_grace_s + moved_bytes / self.upload_min_rate

    def tls_options(self) -> dict[str, Any]:
        """HTTPS by uvicorn's own options. ValueError or FileNotFoundError if the files are not there, or not what they should be; a
        server with a key but no certificate would listen in plain text.
        """
        files = [path for path in (self.tls_cert, self.tls_key, self.tls_ca) if path is not None]
        if not files:
            return {}
        if self.tls_cert is None:
            raise ValueError("--tls-key and --tls-ca need a certificate, --tls-cert")
        for path in files:
            if not path.is_file():
                raise FileNotFoundError(f"there is no file {path}")
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(self.tls_cert, self.tls_key)
        except ssl.SSLError as error:
            key = f"in {self.tls_key}" if self.tls_key else "beside it; a file of its own is --tls-key"
            raise ValueError(f"{self.tls_cert} is no PEM certificate, or its key is not {key} ({error})") from error
        required = {"ssl_ca_certs": str(self.tls_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED} if self.tls_ca else {}
        return {"ssl_certfile": self.tls_cert, "ssl_keyfile": self.tls_key, **required}
