"""What a fit says about itself: a line of JSON a step, and TensorBoard events where that package is installed."""

import importlib.util
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Progress:
    """Writes `progress.jsonl` and, if the package tensorboard is there, event files into a fit's folder.

    Args:
        folder: of the fit.
        about: the fit's settings, the first line.
    """

    def __init__(self, folder: Path, *, about: dict[str, Any]) -> None:
        self._file = (folder / "progress.jsonl").open("a", encoding="utf-8")
        self._board: Any = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder))
        self._write({"config": about})

    def step(self, step: int, values: dict[str, float]) -> None:
        self._write({"step": step, **values})
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def skill(self, step: int, skill: dict[str, dict[str, dict[str, float]]]) -> None:
        self._write({"step": step, "skill": skill})
        self._file.flush()
        if self._board:
            for name, scopes in skill.items():
                for scope, horizons in scopes.items():
                    self._board.add_scalars(f"skill/{name}/{scope}", horizons, step)

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if self._board:
            self._board.close()
