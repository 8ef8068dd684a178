"""What a server is told at its start: by options of `nowcast-server run`, else by `NOWCAST_*` variables, else the defaults."""

import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import ByteSize, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from nowcast_server.checkpoint_file import CheckpointFile, parse_all

GIB: Final = 2**30
MIB: Final = 2**20

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Size = Annotated[ByteSize, Field(gt=0)]


class Settings(BaseSettings):
    """Every limit of a server. Sizes take units (`8GiB`).

    Args:
        host: address to listen on; other than loopback only with tokens or `allow_anonymous`.
        port: to listen on; 0 for a free one, which the log tells.
        uds: path of a Unix socket to listen on instead.
        device: `auto` is the first CUDA device if there is one, else the CPU.
        checkpoints: weights, each `FILE` (in place of the package's `nino` or `wnn`, whichever it holds) or `NAME=FILE` (besides
            them; jobs ask for it by that name). In the environment separated by the path separator.
        memory: for the histories of all jobs, and the wirings they came with.
        evict_idle_s: to make room for others, the history of a job may be evicted that nobody has called on for this long, and for
            2.5 times what lies between its snapshots. Its worker sends it again.
        max_snapshot: one snapshot.
        forecast_memory: for the forecasters' weights, what they work in, and the forecasts being made or sent. On a CUDA device it
            is for the forecasts alone, which `device_memory` does not count.
        device_memory: of a CUDA device, for snapshots and what forecasts work in; None for nine tenths of what is free then.
        precision: of the learned forecasters' products: `float32`, `tf32` (CUDA alone) or `bfloat16`; docs/gpu.md has their errors.
        forecast_limit_s: a forecast may use the device for so long; what would take longer is refused, and stopped. `/livez` fails
            while one goes on beyond it.
        max_registration: the JSON body that registers a job. Bodies on their way take 16 times as much at most, and the one that is
            read 30 times.
        max_jobs: jobs known at once.
        tenant_jobs: jobs of one tenant.
        tenant_memory: for one tenant, of `memory`; None: there is no such limit.
        queue: forecasts waiting for the device; more are `busy`.
        tenant_queue, job_queue: the same for one tenant, and for one job.
        max_connections: open at once; beyond, the one that has been idle longest is ended.
        peer_connections: those from one address. Behind a proxy, all have the proxy's.
        idle_s: a job nobody has called on for this long is forgotten.
        upload_grace_s: an upload (or the reading of a forecast) may be behind by this long
        upload_min_rate: what this many bytes a second would have moved; a client slower than that is cut off.
        drain_s: after SIGTERM, how long work in flight may take to finish.
        token_file: lines `tenant:token` or `tenant:sha256:HEX`.
        tokens: the same in a variable, separated by commas.
        tls_cert, tls_key: certificate and key for HTTPS; one file may hold both.
        tls_ca: only clients with a certificate of this authority may connect.
        allow_anonymous: listen on any address without tokens.
        threads: of torch, for forecasts; 0 leaves torch's own choice.
        log_level: of the server's own log.
        log_format: `text` (key=value) or `json`.
        otel: send traces and metrics of all calls by OpenTelemetry, to where its own variables say (`OTEL_EXPORTER_OTLP_ENDPOINT`).
        audit_log: file for who registered and deleted which job, as JSON lines, besides the log itself.
        record: folder for what jobs registered with `record: true` stream, to fit a forecaster to; None: no job is recorded.
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
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    forecast_limit_s: Seconds = 300.0
    max_registration: Size = ByteSize(8 * MIB)
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
        return parse_all(tuple(texts))

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
