"""Where a data set is looked for, in which order, and what happens if nothing has it."""

import gzip
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from trainer_worker.tasks.data import DataFile, DataMissing, Dataset, SourceFailed, read

CONTENT = b"ten little pictures"
FILE = DataFile("pictures.gz", hashlib.sha256(CONTENT).hexdigest())


@dataclass
class Warehouse:
    """A source that counts its visitors and hands out what it was given, or fails."""

    content: bytes | None
    label: str = "warehouse"
    visits: int = 0

    def __str__(self) -> str:
        return self.label

    def fetch(self, files: tuple[DataFile, ...], into: Path) -> None:
        self.visits += 1
        if self.content is None:
            raise SourceFailed("closed on Sundays")
        for file in files:
            (into / file.name).write_bytes(gzip.compress(self.content))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder the store keeps the set `pictures` in; the working directory holds nothing."""
    monkeypatch.setenv("NOWCAST_DATA", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "store" / "pictures"


def pictures(*sources: Warehouse, installed: tuple[Path, ...] = ()) -> Dataset:
    return Dataset(name="pictures", licence="MIT", files=(FILE,), sources=sources, installed=installed)


def put(folder: Path, content: bytes = CONTENT) -> Path:
    folder.mkdir(parents=True)
    (folder / FILE.name).write_bytes(gzip.compress(content))
    return folder


def test_a_second_read_needs_no_source(home: Path) -> None:
    """A fetched set is kept: without this every run would need the network."""
    source = Warehouse(CONTENT)
    assert read(pictures(source)).contents == {FILE.name: CONTENT}
    again = read(pictures(source))
    assert (again.folder, again.contents, source.visits) == (home, {FILE.name: CONTENT}, 1)


def test_copies_on_disk_come_in_order(home: Path, tmp_path: Path) -> None:
    """Given path, store, `data/` here, installed package: a later place must not win over an earlier one."""
    source = Warehouse(CONTENT)
    installed = put(tmp_path / "usr")
    dataset = pictures(source, installed=(installed,))
    assert read(dataset).folder == installed
    put(tmp_path / "data" / "pictures")
    assert read(dataset).folder == Path("data/pictures")
    put(home)
    assert read(dataset).folder == home
    given = put(tmp_path / "given")
    assert read(dataset, path=given).folder == given
    assert source.visits == 0


def test_sources_are_tried_in_order(home: Path) -> None:
    """A source that fails or serves something else is passed over, the first good one ends the search."""
    closed, wrong, good, unused = Warehouse(None), Warehouse(b"something else"), Warehouse(CONTENT, "good"), Warehouse(CONTENT)
    held = read(pictures(closed, wrong, good, unused))
    assert (held.source, held.folder) == ("good", home)
    assert [source.visits for source in (closed, wrong, good, unused)] == [1, 1, 1, 0]


def test_the_error_lists_all_that_was_tried(home: Path) -> None:
    """Someone without network must learn where to put the files and why each place failed."""
    put(home, b"damaged")
    with pytest.raises(DataMissing) as caught:
        read(pictures(Warehouse(None), Warehouse(b"something else", "mirror")))
    message = str(caught.value)
    assert "No such file or directory" in message  # ./data
    assert "closed on Sundays" in message
    assert "mirror" in message
    assert message.count(hashlib.sha256(b"damaged").hexdigest()[:16]) == 1
    assert f"Put the files {FILE.name} into {home}" in message
    assert gzip.decompress((home / FILE.name).read_bytes()) == b"damaged"  # nothing wrong was put in its place
    assert list(home.parent.glob(".fetch-*")) == []


def test_a_damaged_copy_is_replaced(home: Path) -> None:
    """A copy cut short on disk is fetched anew instead of failing every run."""
    put(home)
    whole = (home / FILE.name).read_bytes()
    (home / FILE.name).write_bytes(whole[: len(whole) // 2])
    assert read(pictures(Warehouse(CONTENT))).contents == {FILE.name: CONTENT}
    assert (home / FILE.name).read_bytes() == whole


def test_a_given_path_is_the_only_place(home: Path, tmp_path: Path) -> None:
    """A user who names a folder must not silently train on data from elsewhere."""
    put(home)
    given = put(tmp_path / "given", b"something else")
    with pytest.raises(DataMissing, match=f"the folder given for pictures does not hold it: {given}"):
        read(pictures(Warehouse(CONTENT)), path=given)


def test_the_checksum_of_an_archive_is_of_its_content(home: Path) -> None:
    """Debian and the authors pack the same bytes differently; both copies must be accepted."""
    home.mkdir(parents=True)
    (home / FILE.name).write_bytes(gzip.compress(CONTENT, compresslevel=1, mtime=77))
    assert read(pictures()).source == "disk"
    plain = replace(FILE, name="pictures.bin")
    (home / plain.name).write_bytes(CONTENT)
    assert plain.read(home) == CONTENT


def test_what_a_source_stumbles_over_is_not_the_stores_fault(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone would mend the rights of a cache that is in order, because a package had other files than it should."""

    def empty(files: tuple[DataFile, ...], into: Path) -> None:
        (into / "unpacked" / files[0].name).replace(into / files[0].name)

    source = Warehouse(CONTENT)
    monkeypatch.setattr(source, "fetch", empty)
    with pytest.raises(DataMissing, match=r"warehouse: .*No such file or directory: '.*unpacked/pictures.gz'") as caught:
        read(pictures(source))
    assert "cannot keep it" not in str(caught.value)


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only cache is an error that names the folder, not a traceback from the middle of a fetch."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NOWCAST_DATA", str(tmp_path / "file"))
    with pytest.raises(DataMissing, match="cannot keep it in"):
        read(pictures(Warehouse(CONTENT)))
