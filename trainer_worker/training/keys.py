"""`nowcast keys`: every key of a configuration, its default, and what it means."""

from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer_worker.training.config import TABLES


def show_keys(console: Console) -> None:
    """Print a table for each of the configuration's tables."""
    for name, table in TABLES.items():
        shown = Table("key", "default", "meaning", title=escape(f"[{name}]"), title_justify="left")
        for key, field in table.model_fields.items():
            shown.add_row(key, escape(default_of(field)), escape(field.description or ""))
        console.print(shown)


def default_of(field: FieldInfo) -> str:
    """The default of a key, as text."""
    value: Any = field.default
    return "must be given" if value is PydanticUndefined else "" if value is None else str(value)
