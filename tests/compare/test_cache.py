import os
import subprocess
import sys
import time

import pyarrow as pa
import pytest

from harness.compare import cache
from harness.compare.cache import cached


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "SETTLED_SECONDS", -1.0)
    return tmp_path / "cache" / "sft-harness" / "compare"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_text("one")
    return path


class Reader:
    """Reads a file's text, and counts how often it is asked to."""

    def __init__(self):
        self.calls = 0

    def __call__(self, path):
        self.calls += 1
        return pa.table({"text": [path.read_text()]}).replace_schema_metadata({"notes": "[]"})

    def text(self, path):
        return cached(path, self)["text"].to_pylist()


@pytest.fixture
def reader():
    return Reader()


def test_what_was_read_is_read_once_while_the_file_is_the_same(file, reader):
    assert reader.text(file) == reader.text(file) == ["one"]
    assert reader.calls == 1
    assert cached(file, reader).schema.metadata == {b"notes": b"[]"}


def test_a_change_is_seen(file, reader):
    assert reader.text(file) == ["one"]
    before = file.stat()
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # of the same size, inode and time of change
    assert reader.text(file) == ["two"]
    with file.open("a") as appended:
        appended.write("!")
    assert reader.text(file) == ["two!"]
    other = file.with_name("other")
    other.write_text("six!")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    os.replace(other, file)
    assert reader.text(file) == ["six!"]


def test_a_file_of_the_same_content_elsewhere_is_another(file, reader):
    other = file.with_name("other")
    os.link(file, other)
    assert reader.text(file) == reader.text(other) == ["one"]
    assert reader.calls == 2


def test_a_file_that_changed_just_now_is_not_kept(file, folder, monkeypatch, reader):
    monkeypatch.setattr(cache, "SETTLED_SECONDS", 1000.0)
    assert reader.text(file) == reader.text(file) == ["one"]
    assert reader.calls == 2
    assert not folder.exists()
    os.utime(file, (0, time.time() - 10_000))  # its time of change alone says nothing
    reader.text(file)
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other"])
def test_a_damaged_entry_is_read_anew_and_mended(file, folder, damage, reader):
    reader.text(file)
    (entry,) = folder.iterdir()
    good = entry.read_bytes()
    middle = len(good) // 2
    entry.write_bytes(
        {
            "empty": b"",
            "cut": good[:middle],
            "flipped": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
            "other": b"not Arrow at all, and longer than a checksum",
        }[damage]
    )
    assert reader.text(file) == ["one"]
    assert reader.calls == 2
    assert entry.read_bytes() == good


def test_a_cache_that_cannot_be_written_is_none(file, folder, reader):
    folder.parent.mkdir(parents=True)
    folder.write_text("a file in the place of the folder")
    assert reader.text(file) == reader.text(file) == ["one"]
    assert reader.calls == 2
    cache.trim()


def test_a_missing_file_is_read_and_not_kept(tmp_path, folder):
    assert cached(tmp_path / "gone", lambda path: pa.table({"text": ["none"]}))["text"].to_pylist() == ["none"]
    assert not folder.exists()


def test_what_was_not_used_for_longest_goes_first(tmp_path, folder, monkeypatch, reader):
    files = [tmp_path / name for name in "abc"]
    entries = []
    for age, path in enumerate(files):
        path.write_text(path.name)
        reader.text(path)
        (entry,) = set(folder.iterdir()) - set(entries)
        os.utime(entry, (0, 1000 + age))
        entries.append(entry)
    reader.text(files[0])  # used: now b is the oldest
    monkeypatch.setattr(cache, "_MAX_BYTES", sum(entry.stat().st_size for entry in entries) - 1)
    cache.trim()
    assert set(folder.iterdir()) == {entries[0], entries[2]}
    cache.trim()
    assert len(list(folder.iterdir())) == 2


def test_two_processes_that_write_at_once_leave_whole_entries(file, folder):
    script = (
        "import sys, pyarrow as pa\nfrom pathlib import Path\nfrom harness.compare import cache\n"
        "cache.SETTLED_SECONDS = -1.0\n"
        "for i in range(50):\n"
        "    table = cache.cached(Path(sys.argv[1]), lambda path: pa.table({'text': [path.read_text()] * 10_000}))\n"
        "    assert table['text'].to_pylist() == ['one'] * 10_000\n"
        "    for entry in cache.folder().glob('*.arrow'): entry.unlink(missing_ok=True)\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", script, str(file)]) for _ in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    assert not list(folder.glob("*.tmp"))


def test_who_has_no_home_reads_without_a_cache(file, reader, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # as a container runs for a user that it does not know
    assert cache.folder() is None
    assert reader.text(file) == reader.text(file) == ["one"]
    assert reader.calls == 2
    cache.trim()


def test_whether_a_file_is_kept_as_it_is_now(file, reader, tmp_path):
    assert not cache.holds(file) and not cache.holds(tmp_path / "nowhere")
    reader.text(file)
    assert cache.holds(file)
    file.write_text("another")
    assert not cache.holds(file)
