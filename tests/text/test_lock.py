"""One process at a time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.errors import ResumeError, StorageError
from prefopt.text.lock import locked
from prefopt.train.folder import RunFolder

HOLDING = """
import sys, time
from pathlib import Path
from prefopt.text.lock import locked
with locked(Path(sys.argv[1]), busy=""):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_one_is_refused_and_told_who_works(tmp_path: Path) -> None:
    file = tmp_path / "new" / ".lock"
    with locked(file, busy="is judging here; wait for it"):
        assert file.read_text() == str(os.getpid())
        message = f"{file.parent}: process {os.getpid()} is judging here; wait for it$"
        with (
            pytest.raises(ResumeError, match=message),
            locked(file, busy="is judging here; wait for it"),
        ):
            pass
        with pytest.raises(ResumeError, match="another run is working here"):
            RunFolder(file.parent).acquire()
    assert not file.exists()
    with locked(file, busy=""):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLDING, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        with (
            pytest.raises(ResumeError, match=f"process {child.pid} waits"),
            locked(file, busy="waits"),
        ):
            pass
        child.send_signal(signal.SIGKILL)
    assert file.exists()
    with locked(file, busy="waits"):
        assert file.read_text() == str(os.getpid())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="file: cannot be written .*; choose another --output"),
        locked(tmp_path / "file" / ".lock", busy=""),
    ):
        pass
