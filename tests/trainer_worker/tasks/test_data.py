"""Where a data set is looked for, in which order; its sources against stand-ins for apt, pip and the web."""

import gzip
import hashlib
import os
import threading
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from trainer_worker.tasks import data
from trainer_worker.tasks.data import DataFile, DataMissing, Dataset, DebianPackage, Download, SourceFailed, read

CONTENT = b"ten little pictures"
FILE = DataFile("pictures.gz", hashlib.sha256(CONTENT).hexdigest())


@dataclass
class Warehouse:
    """A source that counts its visitors and hands out what it was given, or fails."""

    content: bytes | None
    visits: int = 0

    def fetch(self, files: tuple[DataFile, ...], into: Path) -> None:
        self.visits += 1
        if self.content is None:
            raise SourceFailed("closed on Sundays")
        if self.content:
            (into / files[0].name).write_bytes(gzip.compress(self.content))
        else:
            (into / "unpacked" / files[0].name).replace(into / files[0].name)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder the store keeps the set `pictures` in; the working directory holds nothing."""
    monkeypatch.setenv("NOWCAST_DATA", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "store" / "pictures"


def pictures(*sources: Warehouse, installed: tuple[Path, ...] = ()) -> Dataset:
    return Dataset(name="pictures", licence="MIT", files=(FILE,), sources=sources, installed=installed)


def put(folder: Path, content: bytes = CONTENT, **options: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE.name).write_bytes(gzip.compress(content, **options))


def test_a_fetched_set_is_kept_and_fetched_anew_only_if_damaged(home: Path) -> None:
    """Every run would need the network, or fail over a copy that was cut short on disk."""
    source = Warehouse(CONTENT)
    for _ in range(2):
        assert read(pictures(source)) == {FILE.name: CONTENT}
    assert source.visits == 1
    whole = (home / FILE.name).read_bytes()
    (home / FILE.name).write_bytes(whole[: len(whole) // 2])
    assert read(pictures(source)) == {FILE.name: CONTENT}
    assert (source.visits, FILE.read(home)) == (2, CONTENT)


def test_copies_on_disk_come_in_order(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given path, store, `data/` here, installed package: a later place must not win, however each is packed."""
    places = [tmp_path / "usr", Path("data/pictures"), home]  # each before those that were filled already
    source, look = Warehouse(CONTENT), data._read_folder
    found: list[Path] = []

    def looked(dataset: Dataset, folder: Path) -> dict[str, bytes]:
        contents = look(dataset, folder)
        found.append(folder)
        return contents

    monkeypatch.setattr(data, "_read_folder", looked)
    for place in places:
        put(place, compresslevel=1 + len(found), mtime=len(found))  # Debian and the authors pack the same bytes differently
        read(pictures(source, installed=(tmp_path / "usr",)))
    put(tmp_path / "given")
    read(pictures(source), path=tmp_path / "given")
    assert (found, source.visits) == ([*places, tmp_path / "given"], 0)


def test_sources_are_tried_in_order(home: Path) -> None:
    """A source that fails or serves something else is passed over, the first good one ends the search."""
    sources = [Warehouse(None), Warehouse(b"something else"), Warehouse(CONTENT), Warehouse(CONTENT)]
    assert read(pictures(*sources)) == {FILE.name: CONTENT}
    assert [source.visits for source in sources] == [1, 1, 1, 0]


def test_the_error_lists_all_that_was_tried(home: Path) -> None:
    """Someone without network must learn where to put the files and why each place failed, and mend no store that is in order."""
    put(home, b"damaged")
    with pytest.raises(DataMissing) as caught:
        read(pictures(Warehouse(None), Warehouse(b"something else"), Warehouse(b"")))
    message = str(caught.value)
    assert message.count("No such file or directory") == 2  # ./data, and what the last source unpacked
    assert all(part in message for part in ("closed on Sundays", "something else", "unpacked/pictures.gz"))
    assert message.count(hashlib.sha256(b"damaged").hexdigest()[:16]) == 1
    assert f"Put the files {FILE.name} into {home}" in message
    assert gzip.decompress((home / FILE.name).read_bytes()) == b"damaged"  # nothing wrong was put in its place
    assert list(home.parent.glob(".fetch-*")) == []


def test_a_given_path_is_the_only_place(home: Path, tmp_path: Path) -> None:
    """A user who names a folder must not silently train on data from elsewhere."""
    put(home)
    put(tmp_path / "given", b"something else")
    with pytest.raises(DataMissing, match=f"{tmp_path / 'given'}.* has the sha256"):
        read(pictures(Warehouse(CONTENT)), path=tmp_path / "given")


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only cache is an error that names the folder, not a traceback from the middle of a fetch."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NOWCAST_DATA", str(tmp_path / "file"))
    with pytest.raises(DataMissing, match=rf"Warehouse.*: .*Not a directory: '{tmp_path / 'file'}"):
        read(pictures(Warehouse(CONTENT)))


PACKAGE = DebianPackage("dataset-pictures", "usr/share/pictures")

# Behaves as apt-get without package lists: a download works only after an update into the same private folder.
APT_GET = """#!/bin/sh
echo "$@" >> {calls}
for word in "$@"; do case "$word" in Dir::State::lists=*) lists="${{word#*=}}";; esac; done
case "$1" in
update) touch "$lists/index";;
download) [ -e "$lists/index" ] || {{ echo "E: Unable to locate package $2" >&2; exit 100; }}; touch "$2_1.0_all.deb";;
esac
"""
DPKG = """#!/bin/sh
mkdir -p "$3/usr/share/pictures" && cp {archive} "$3/usr/share/pictures/pictures.gz"
"""


@pytest.fixture
def into(tmp_path: Path) -> Path:
    """The folder to fetch into."""
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def test_a_machine_without_package_lists_reads_its_own(into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bare container the lists are read into a private folder, as an ordinary user may; without apt the next source comes."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "archive").write_bytes(gzip.compress(CONTENT))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(FileNotFoundError, match="apt-get"):
        PACKAGE.fetch((FILE,), into / "first")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/bin{os.pathsep}/usr/bin")
    for name, text in (("apt-get", APT_GET.format(calls=tmp_path / "calls")), ("dpkg", DPKG.format(archive=tmp_path / "archive"))):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    PACKAGE.fetch((FILE,), into)
    assert FILE.read(into) == CONTENT
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["download", "update", "download"]
    assert all(f"Dir::State::lists={into}" in call and f"Dir::Cache={into}" in call for call in calls[1:])


def test_a_program_that_fails_is_named_with_its_last_words(into: Path) -> None:
    """The reason would be "exit 1", which says neither what failed nor why."""
    with pytest.raises(SourceFailed, match="sh ended with exit code 3: no such wheel"):
        data.run_program("sh", "-c", "echo no such wheel >&2; exit 3", folder=into)


class Declaring(SimpleHTTPRequestHandler):
    """Declares archives to be encoded bodies, as some mirrors do; clients then unpack them."""

    def end_headers(self) -> None:
        self.send_header("Content-Encoding", "gzip")
        super().end_headers()


def test_a_download_puts_the_files_in_place_or_fails(into: Path, tmp_path: Path) -> None:
    """The archive arrives as it is, not unpacked on the way; and a dead mirror must not end the search with a traceback."""
    put(tmp_path / "set")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Declaring, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        Download(f"{url}/set").fetch((FILE,), into)
        assert FILE.read(into) == CONTENT
        for place in (f"{url}/elsewhere", "http://127.0.0.1:9"):
            with pytest.raises(httpx2.HTTPError):
                Download(place).fetch((FILE,), into)
        server.shutdown()
