"""Working folders of the unsafe mode: removed at the end, or when the next process starts."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.sandbox import Limits
from prefopt.sandbox.command import plain
from prefopt.sandbox.folders import MARK, MARKER, PREFIX, WorkFolder, remove, remove_left_folders


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files of its own, here and in the processes of the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def left(folder: Path) -> Path:
    """A folder as a killed process leaves it, with a file in it."""
    (folder / "work").mkdir(parents=True)
    (folder / "work" / "file").write_text("x")
    (folder / MARKER).write_text(MARK)
    return folder


def everything(folder: Path) -> list[str]:
    """All paths below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_is_fresh_and_is_removed(temporary):
    folder = WorkFolder()
    assert Path(folder.name).parent.parent == temporary
    assert list(Path(folder.name).iterdir()) == []
    Path(folder.name, "file").write_text("x")
    folder.cleanup()
    assert everything(temporary) == []


def test_a_folder_in_use_stays_and_one_left_behind_goes(temporary):
    used, first = WorkFolder(), left(temporary / f"{PREFIX}left")
    outside = temporary / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    (first / "work" / "link").symlink_to(outside)
    assert remove_left_folders() == [first]
    assert Path(used.name).is_dir()
    used.cleanup()
    assert everything(temporary) == ["outside", "outside/file"]
    assert remove_left_folders() == []


def test_nothing_else_is_removed(temporary, tmp_path_factory):
    elsewhere = left(tmp_path_factory.mktemp("elsewhere") / f"{PREFIX}far")
    below = left(temporary / "below" / f"{PREFIX}below")
    named = left(temporary / "named")
    unmarked, other = left(temporary / f"{PREFIX}unmarked"), left(temporary / f"{PREFIX}other")
    (unmarked / MARKER).unlink()
    (other / MARKER).write_text("something else")
    link = temporary / f"{PREFIX}link"
    link.symlink_to(elsewhere)
    before = everything(temporary), everything(elsewhere)
    for folder in (elsewhere, below, named, unmarked, other, link, temporary, Path("/"), Path()):
        assert not remove(folder, within=temporary)
    assert remove_left_folders() == []
    assert (everything(temporary), everything(elsewhere)) == before


def test_an_interpreter_removes_no_folder(temporary):
    """Started by mistake in a folder that is not its own, and abandoned there."""
    precious = temporary / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    ours, theirs = socket.socketpair()
    launch = plain(theirs.fileno(), Limits(), [])
    with subprocess.Popen(
        launch.command, env=launch.environment, cwd=precious, pass_fds=launch.descriptors
    ) as process:
        theirs.close()
        assert ours.recv(17)[:8] == bytes(8)
        ours.close()
        assert process.wait(20) == 0
    assert everything(precious) == ["file"]
    assert launch.folder is not None
    launch.folder.cleanup()
    assert everything(temporary) == ["precious", "precious/file"]


def test_a_folder_whose_marker_the_code_has_removed_stays(temporary):
    folder = WorkFolder()
    (Path(folder.name).parent / MARKER).unlink()
    folder.cleanup()
    assert len(list(temporary.iterdir())) == 1


def waited_for(claim: Callable[[], object]) -> bool:
    """Whether the claim comes true within some seconds."""
    for _ in range(800):
        if claim():
            return True
        time.sleep(0.025)
    return False


def killed_while(temporary: Path, cell: str) -> None:
    """Kill a process of two interpreters once one of them has begun to run a cell."""
    code = (
        "import sys\nfrom prefopt.sandbox import Limits, Sandbox\n"
        "box = Sandbox(Limits(cpu_seconds=1), workers=2, unsafe_local_execution=True)\n"
        "both = box.open(), box.open()\n"
        'print(*[one.run(\'open("x", "w").close()\').status for one in both], flush=True)\n'
        'both[0].run(\'open("running", "w").close()\\n\' + sys.argv[1])\nsys.stdin.read()'
    )
    command = [sys.executable, "-c", code, cell]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ok ok\n"
        assert len(list(temporary.glob(f"{PREFIX}*/*/x"))) == 2
        assert waited_for(lambda: list(temporary.glob(f"{PREFIX}*/*/running")))
        os.kill(parent.pid, signal.SIGKILL)


@pytest.mark.parametrize("cell", ["1", "while True: pass"], ids=["idle", "busy"])
def test_the_next_start_removes_what_a_killed_parent_has_left(temporary, cell):
    killed_while(temporary, cell)
    assert len(list(temporary.glob(f"{PREFIX}*/*/x"))) == 2
    start = "from prefopt.sandbox import Sandbox\nSandbox(unsafe_local_execution=True)"
    subprocess.run([sys.executable, "-c", start], check=True, stderr=subprocess.DEVNULL)
    assert list(temporary.iterdir()) == []
