"""docs/security.md against the server's settings."""

import re
from pathlib import Path

from pydantic import ByteSize

from nowcast_server.settings import GIB, MIB, Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
NO_LIMITS = {"port", "threads"}


def shown(name: str, value: float | ByteSize | None) -> str:
    """A default as the page has it."""
    if value is None:
        return "none"
    if isinstance(value, ByteSize):
        unit, text = next((unit, text) for unit, text in ((GIB, "GiB"), (MIB, "MiB"), (1024, "KiB")) if value % unit == 0)
        return f"{value // unit} {text}"
    return f"{value:g} s" if name.endswith("_s") else str(value)


def test_every_limit_is_explained_with_its_default() -> None:
    """An operator would set limits by what they were in another version, or not know of one."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", PAGE.read_text(), re.MULTILINE)
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    limits = {
        name: shown(name, value)
        for name, value in defaults.items()
        if name not in NO_LIMITS and (name.endswith("_memory") or (isinstance(value, int | float) and not isinstance(value, bool)))
    }
    assert dict(rows) == limits
