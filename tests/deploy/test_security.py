"""docs/security.md against the server's settings."""

import re
from pathlib import Path

from pydantic import ByteSize, TypeAdapter

from nowcast_server.settings import Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
NO_LIMITS = {"port", "threads"}


def test_every_limit_is_explained_with_its_default() -> None:
    """An operator would set limits by what they were in another version, or not know of one."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?)(?: s)? \|", PAGE.read_text(), re.MULTILINE)
    shown = {name: None if text == "none" else TypeAdapter(ByteSize).validate_python(text) for name, text in rows}
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    limits = {
        name: value
        for name, value in defaults.items()
        if name not in NO_LIMITS and (name.endswith("_memory") or (isinstance(value, int | float) and not isinstance(value, bool)))
    }
    assert shown == limits
