"""Where checkpoints and results go: a path, or a URI of any store that pyarrow or fsspec knows.

Raises everywhere:
    CommandFailed: a URI's scheme is unknown, its package is not installed, or the store does not answer.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, FSSpecHandler, PyFileSystem

from trainer_worker.errors import CommandFailed


@contextmanager
def _opened(place: str) -> Iterator[tuple[FileSystem, str]]:
    """The file system of a path or URI, and the path on it."""
    uri = place if "://" in place else str(Path(place).expanduser().absolute())
    try:
        try:
            known: tuple[FileSystem, str] = FileSystem.from_uri(uri)
        except ValueError:  # pyarrow does not know it
            from fsspec.core import url_to_fs

            filesystem, path = url_to_fs(place)
            known = PyFileSystem(FSSpecHandler(filesystem)), path
        yield known
    except (ArrowException, ImportError, OSError, ValueError) as error:
        raise CommandFailed(f"checkpoints and results cannot be written to {place}: {error}") from error


def resolve(place: str) -> tuple[FileSystem, str]:
    """The file system of a path or URI, and the path on it."""
    with _opened(place) as found:
        return found


def folders(place: str) -> list[str]:
    """Names of the folders in a place that may not be there yet, one for each run."""
    with _opened(place) as (filesystem, path):
        found = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
        return sorted(each.base_name for each in found if each.type == FileType.Directory)


def forget(place: str, name: str) -> None:
    """Delete a folder, if it is there."""
    if name in folders(place):
        with _opened(place) as (filesystem, path):
            filesystem.delete_dir(f"{path}/{name}")


def put(place: str, files: Collection[Path]) -> None:
    """Copy files into a place, which is made if it is not there."""
    with _opened(place) as (filesystem, path):
        filesystem.create_dir(path, recursive=True)
        for file in files:
            content = file.read_bytes()  # all of it first: it may be the very file that is written
            with filesystem.open_output_stream(f"{path}/{file.name}") as copy:
                copy.write(content)
