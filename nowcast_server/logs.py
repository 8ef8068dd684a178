"""Logs as lines of `time level message key=value …`, or as JSON; the keys are what callers pass as `extra`."""

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}

log = logging.getLogger("nowcast_server")
audit = logging.getLogger("nowcast_server.audit")  # who registered or deleted which job: in the log whatever its level


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    yield "time", datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    yield "level", record.levelname.lower()
    yield "message", record.getMessage()
    extra = ((key, value) for key, value in vars(record).items() if key not in _STANDARD and value is not None)
    yield from ((key, value) for key, value in extra if not key.startswith("_"))  # ray marks every record with one of its own
    if record.exc_info:
        yield "traceback", logging.Formatter().formatException(record.exc_info)


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(dict(_fields(record)), default=str)


class TextLines(logging.Formatter):
    """Readable, and still one line a record (but for tracebacks): values with blanks or controls are quoted."""

    def format(self, record: logging.LogRecord) -> str:
        fields = dict(_fields(record))
        traceback = fields.pop("traceback", None)
        opening = f"{fields.pop('time')} {fields.pop('level'):<7} {_plain(fields.pop('message'))}"
        line = " ".join([opening, *(f"{key}={_quoted(value)}" for key, value in fields.items())])
        return f"{line}\n{traceback}" if traceback else line


def _plain(text: str) -> str:
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _quoted(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if text and text.isprintable() and not set(text) & set(" =\"'") else json.dumps(text)


def configure_logging(*, level: str, style: str, audit_log: Path | None = None) -> None:
    """Send the server's and uvicorn's logs to stderr. For a process that is ours; a library's user configures their own."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    for name, lowest in (("nowcast_server", level.upper()), ("uvicorn.error", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(lowest)
    audit.handlers = []
    audit.setLevel(logging.INFO)
    if audit_log is not None:
        lines = WatchedFileHandler(audit_log, encoding="utf-8")  # opens it anew once logrotate has moved it away
        lines.setFormatter(JsonLines())
        audit.addHandler(lines)
