"""Files that are written whole: what is replaced, what is written into, and what stays as it was."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from prefopt.errors import StorageError
from prefopt.text.whole import is_stream, write_whole


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "out.txt"
    write_whole(path, ["a\n", "é\n"])
    write_whole(path, "b\n")
    assert path.read_text(encoding="utf-8") == "b\n"
    assert [p.name for p in path.parent.iterdir()] == ["out.txt"]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    real = tmp_path / "deep" / "real.txt"
    real.parent.mkdir()
    real.write_text("old", encoding="utf-8")
    for name, to in (("link", "deep/real.txt"), ("dangling", "deep/other.txt")):
        (tmp_path / name).symlink_to(to)
        write_whole(tmp_path / name, name)
        assert (tmp_path / name).is_symlink()
    assert real.read_text(encoding="utf-8") == "link"
    assert (tmp_path / "deep" / "other.txt").read_text(encoding="utf-8") == "dangling"


def test_a_pipe_is_written_into(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text(encoding="utf-8")))
    reader.start()
    write_whole(pipe, ["one\n", "two\n"])
    reader.join(10)
    assert read == ["one\ntwo\n"] and is_stream(pipe) and pipe.is_fifo()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux names descriptors there")
def test_a_descriptor_is_written_where_it_stands(tmp_path):
    with (tmp_path / "out").open("w+b", buffering=0) as file:
        file.write(b"before ")
        write_whole(Path(f"/proc/self/fd/{file.fileno()}"), "after")
        assert (tmp_path / "out").read_bytes() == b"before after"


def test_what_cannot_be_written_is_as_it_was(tmp_path):
    path = tmp_path / "out"
    write_whole(path, "old")

    def broken():
        yield "new"
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="out: cannot be written .No space left.*; buy a disk"):
        write_whole(path, broken(), remedy="buy a disk")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match="cannot be written"):
        write_whole(path / "below", "x")
