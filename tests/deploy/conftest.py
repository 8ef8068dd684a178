"""Deployment files as Python values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def documents() -> Callable[[str], list[Any]]:
    """Reads all documents of a YAML file, named from the repository's root."""

    def read(path: str) -> list[Any]:
        return list(yaml.safe_load_all((ROOT / path).read_text()))

    return read
