"""The pool: order, parallel work, refusal without isolation, the unsafe mode, a thousand programs."""

import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from prefopt.errors import SandboxError
from prefopt.sandbox import Limits, Sandbox, isolation
from prefopt.sandbox.processes import descendants


def test_programs_keep_their_order_and_their_names_apart(pool):
    programs = [[f"x = {n}", "import time; time.sleep(0.02 * (x % 3))", "x * x"] for n in range(8)]
    told = []
    results = pool.run_all(programs, progress=lambda done, total: told.append((done, total)))
    assert [cells[-1].output for cells in results] == [str(n * n) for n in range(8)]
    assert told == [(n, 8) for n in range(1, 9)]
    assert pool.run_all([]) == []
    assert pool.run_all([[]]) == [[]]


def test_cells_after_a_death_do_not_run(pool):
    (cells,) = pool.run_all([["1", "import os; os._exit(0)", "2", "3"]])
    assert [cell.status for cell in cells] == ["ok", "crashed", "crashed", "crashed"]
    assert [cell.output for cell in cells] == ["1", "", "", ""]


def test_running_programs_are_ended_when_the_work_is_given_up(pool):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    slow = ["import time; time.sleep(0.9)"] * 20
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pool.run_all([["1"], slow, slow, slow], progress=interrupt)
    assert time.monotonic() - started < 5  # 18 s a program
    assert pool.run_all([["6 * 7"]])[0][0].output == "42"


def test_open_waits_for_a_free_worker(pool):
    order = []
    first, second = pool.open(), pool.open()

    def third():
        with pool.open() as interpreter:
            order.append(interpreter.run("3").output)

    waiting = threading.Thread(target=third)
    waiting.start()
    time.sleep(0.1)
    assert order == []
    first.close()
    first.close()
    waiting.join(10)
    second.close()
    assert order == ["3"]


def test_a_closed_pool_opens_nothing(pool):
    with Sandbox(pool.limits, workers=1) as own:
        interpreter = own.open()
        refused = []

        def wait():
            try:
                own.open()
            except SandboxError as error:
                refused.append(str(error))

        waiting = threading.Thread(target=wait)
        waiting.start()
    waiting.join(10)
    assert refused == ["sandbox: it is closed; make a new one"]
    with pytest.raises(SandboxError, match="gone .it was closed."):
        interpreter.run("1")
    with pytest.raises(SandboxError, match="it is closed"):
        own.open()


def test_an_interpreter_outlives_the_thread_that_opened_it(pool):
    opened = []
    opener = threading.Thread(target=lambda: opened.append(pool.open()))
    opener.start()
    opener.join()
    time.sleep(0.1)
    with opened[0] as interpreter:
        assert interpreter.run("1 + 1").output == "2"


def test_named_packages_can_be_imported_and_others_cannot(pool):
    limits = replace(pool.limits, seconds=30, memory_bytes=2**30)
    with Sandbox(limits, workers=1, packages=["sympy", "numpy"]) as own, own.open() as interpreter:
        cell = "import sympy, numpy\nsympy.factor(sympy.Symbol('x')**2 - 1), int(numpy.arange(4).sum())"
        assert interpreter.run(cell).output == "((x - 1)*(x + 1), 6)"
        assert "ModuleNotFoundError" in interpreter.run("import torch").output
        assert interpreter.run("open(sympy.__file__, 'a')").status == "error"


def test_identity(pool):
    same = [Sandbox(pool.limits, workers=n).identity for n in (1, 3)]
    others = [
        Sandbox(replace(pool.limits, seconds=2)).identity,
        Sandbox(pool.limits, unsafe_local_execution=True).identity,
        Sandbox(pool.limits, packages=["sympy"]).identity,
    ]
    assert same == [pool.identity] * 2
    assert len({pool.identity, *others}) == 4
    assert len(pool.identity) == 16


def python_without_bwrap(code: str) -> subprocess.CompletedProcess[str]:
    """A Python that finds no bubblewrap."""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PATH": str(Path(sys.prefix, "nowhere"))}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_refusal_without_isolation():
    done = python_without_bwrap("from prefopt.sandbox import Sandbox\nSandbox()")
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith(
        "prefopt.errors.SandboxError: model-written code cannot be isolated here: bwrap was not found; "
        "install bubblewrap"
    )
    assert "`eval --unsafe-local-execution`" in message
    assert "build.code.unsafe_local_execution=true" in message


def test_unsafe_execution_needs_no_bubblewrap_and_warns_once():
    code = """
from prefopt.sandbox import Limits, Sandbox
limits = Limits(seconds=0.5)
with Sandbox(limits, workers=1, unsafe_local_execution=True) as box:
    programs = [["x = 6", "x * 7"], ["while True: pass", "1"], ["import os; os._exit(0)"], ["b'x' * 2**31"]]
    programs += [["import time\\ntry:\\n  time.sleep(9)\\nexcept BaseException:\\n  while True: pass", "1"]]
    print([[cell.status for cell in cells] for cells in box.run_all(programs)])
with Sandbox(limits, workers=1, unsafe_local_execution=True) as box, box.open() as i:
    print(i.run("import os; os.listdir()").output, i.run("1 / 0").output[-17:-1])
"""
    done = python_without_bwrap(code)
    assert done.stdout == (
        "[['ok', 'ok'], ['timeout', 'ok'], ['crashed'], ['memory'], ['timeout', 'timeout']]\n"
        "[] division by zero\n"
    ), done.stderr
    assert done.stderr.count("WARNING: unsafe local execution") == 1


def test_unsafe_execution_contains_a_fork_bomb():
    before = set(descendants(os.getpid()))
    with (
        Sandbox(Limits(seconds=20), workers=1, unsafe_local_execution=True) as box,
        box.open() as interpreter,
    ):
        cell = "import os, time\nfor _ in range(6): os.fork()\ntime.sleep(60)"
        assert interpreter.run(cell).status == "crashed"
        assert interpreter.death is not None
        assert interpreter.death.reason == "it started more than 16 processes"
    assert len(set(descendants(os.getpid())) - before) < 16


HANGS = (
    "while True: pass",
    "try:\n  while True: len('')\nexcept BaseException:\n  while True: pass",
    "import time; time.sleep(50)",
)
CRASHES = (
    "import os; os._exit(1)",
    "import os; os.closerange(0, 256)",
    "import os; os.kill(os.getpid(), 9)",
    "import ctypes; ctypes.string_at(0)",
)


@pytest.mark.slow
def test_a_thousand_programs_with_planted_hangs_and_crashes(pool):
    draw = random.Random(0)
    programs, expected = [], []
    for number in range(1000):
        kind = draw.choices(("fine", "hang", "crash"), weights=(967, 8, 25))[0]
        planted = {"hang": HANGS, "crash": CRASHES, "fine": (f"x += {number}",)}[kind]
        programs.append(["x = 1", draw.choice(planted), "x"])
        expected.append({"hang": "timeout", "crash": "crashed", "fine": "ok"}[kind])
    before = set(descendants(os.getpid()))
    with Sandbox(pool.limits, workers=4) as own:
        results = own.run_all(programs)
    assert [cells[1].status for cells in results] == expected
    fine = [n for n in range(1000) if expected[n] == "ok"]
    assert [results[n][2].output for n in fine] == [str(1 + n) for n in fine]
    assert set(descendants(os.getpid())) <= before


def test_the_probe_says_what_it_found():
    found = isolation()
    assert found.works == (found.reason == "")
    assert found == isolation()
