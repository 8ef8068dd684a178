"""Laplacian features kept on disk, so that a restarted server or its next replica does not compute them again.

One `.npy` file for each wiring, named by its hash, in `NOWCAST_FEATURES`, else `~/.cache/nowcast/features`; an empty
`NOWCAST_FEATURES` keeps none. A file appears whole or not at all, so that any number of processes may write the same one. A cache
that cannot be read or written is no reason to fail: the features are then computed.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

VARIABLE: Final = "NOWCAST_FEATURES"

FORMAT: Final = 2
"""Part of the names: to be raised whenever the same wiring gets other features."""

MOST_BYTES: Final = 2**30
"""Of all files; the ones not used for the longest go first."""

_LOG: Final = logging.getLogger(__name__)


def kept(key: str, shape: tuple[int, int], compute: Callable[[], Tensor]) -> Tensor:
    """The float32 features of `shape` kept under `key`, a file name; computed and kept if there are none."""
    folder = _folder()
    if folder is None:
        return compute()
    path = folder / f"{key}-{FORMAT}.npy"
    found = _read(path, shape)
    if found is not None:
        return found
    features = compute()
    try:
        _write(path, features)
        _prune(folder)
    except OSError as error:
        _LOG.warning("Laplacian features are not kept in %s: %s", folder, error)
    return features


def _folder() -> Path | None:
    chosen = os.environ.get(VARIABLE)
    if chosen is None:
        try:
            return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nowcast" / "features"
        except RuntimeError:  # a user without a name, as containers have them, has no home
            return None
    return Path(chosen) if chosen else None


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    try:
        features = np.load(path, allow_pickle=False)
        with suppress(OSError):  # another's file, or a read-only folder: it cannot be said to be in use, but read
            path.touch()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        _LOG.warning("ignoring the features in %s: %s", path, error)
        return None
    if features.shape != shape or features.dtype != np.float32 or not np.isfinite(features).all():
        _LOG.warning("ignoring the features in %s: not %s finite float32 numbers", path, shape)
        return None
    return torch.from_numpy(features)


def _write(path: Path, features: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, features.numpy(), allow_pickle=False)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _prune(folder: Path) -> None:
    files = sorted(((stat.st_mtime, stat.st_size, path) for path in folder.glob("*.npy") for stat in (path.stat(),)), reverse=True)
    total = 0
    for _, size, path in files:
        total += size
        if total > MOST_BYTES:
            path.unlink(missing_ok=True)
