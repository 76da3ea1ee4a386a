"""What a cell gives back, and what lives on after it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefopt.errors import SandboxError
from prefopt.sandbox import Limits, Sandbox
from prefopt.sandbox.processes import descendants


@pytest.fixture
def interpreter(pool):
    with pool.open() as interpreter:
        yield interpreter


@pytest.mark.parametrize(
    ("cell", "output"),
    [
        ("1 + 1", "2"),
        ("x = 3", ""),
        ("None", ""),
        ("", ""),
        ("# only a comment", ""),
        ("print('a'); 'b'", "a\n'b'"),
        ("print('no newline', end='')\n5", "no newline5"),
        ("import sys\nprint('err', file=sys.stderr)\nprint('out')\n6", "err\nout\n6"),
        ("import os\nos.write(1, b'raw')", "raw3"),
        ("if True:\n    7", ""),
        ("'é√\U0001f600'", "'é√\U0001f600'"),
        ("print('\\udc80')", "\\udc80\n"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nA(1)", "A(x=1)"),
        ("__name__", "'__main__'"),
        ("import pickle\ndef f(): pass\npickle.loads(pickle.dumps(f)) is f", "True"),
        ("sorted({'b', 'a'}), hash('a') == hash('a')", "(['a', 'b'], True)"),
    ],
)
def test_output(interpreter, cell, output):
    result = interpreter.run(cell)
    assert (result.output, result.status, result.truncated) == (output, "ok", False)


def test_names_live_from_cell_to_cell_and_not_longer(pool):
    with pool.open() as interpreter:
        assert interpreter.run("x = 20\ndef f(): return x").status == "ok"
        assert interpreter.run("x += 1\nf()").output == "21"
    with pool.open() as interpreter:
        assert interpreter.run("x").output.endswith("NameError: name 'x' is not defined\n")


def test_traceback(interpreter):
    interpreter.run("def divide(a):\n    return a / 0")
    result = interpreter.run("y = 5\nprint('before')\ndivide(y)")
    assert result.status == "error"
    lines = [line for line in result.output.splitlines() if set(line.strip()) - set("~^")]
    assert lines == [
        "before",
        "Traceback (most recent call last):",
        '  File "<cell 2>", line 3, in <module>',
        "    divide(y)",
        '  File "<cell 1>", line 2, in divide',
        "    return a / 0",
        "ZeroDivisionError: division by zero",
    ]
    assert interpreter.run("y").output == "5"


@pytest.mark.parametrize(
    ("cell", "last"),
    [
        ("1 +", "SyntaxError: invalid syntax"),
        ("x = '\udc80'", "'utf-8' codec can't encode character '\\udc80'"),
        ("exit()", "SystemExit"),
        ("import sys; sys.exit(2)", "SystemExit: 2"),
        ("input()", "EOFError: EOF when reading a line"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class A:\n  def __repr__(self): 1 / 0\nA()", "ZeroDivisionError: division by zero"),
        ("class E(Exception):\n  def __str__(self): 1 / 0\nraise E", "E: <exception str() failed>"),
    ],
)
def test_errors_end_the_cell_and_not_the_session(interpreter, cell, last):
    result = interpreter.run(cell)
    assert result.status == "error"
    assert last in result.output.strip().splitlines()[-1]
    assert interpreter.death is None
    assert interpreter.run("2 + 3").output == "5"


def test_the_time_limit_interrupts_and_keeps_the_state(interpreter):
    result = interpreter.run("x = 1\nprint('so far')\nwhile True:\n    x += 1")
    assert result.status == "timeout"
    assert result.output.startswith("so far\nTraceback")
    assert result.output.endswith("KeyboardInterrupt\n")
    assert "interrupt\n" not in result.output.replace("KeyboardInterrupt\n", "")
    assert interpreter.run("x > 100").output == "True"


def test_a_dead_interpreter_says_why(pool):
    with pool.open() as interpreter:
        printed = interpreter.run("print('last words')\nimport os; os._exit(3)")
        assert (printed.output, printed.status) == ("last words\n", "crashed")
        assert interpreter.death == ("crashed", "its process ended with exit code 3")
        with pytest.raises(
            SandboxError, match="gone .its process ended with exit code 3.; open a new one"
        ):
            interpreter.run("1")
    with pool.open() as interpreter:
        interpreter.run("import os; os.abort()")
        assert interpreter.death is not None
        assert interpreter.death.reason == "its process ended with signal 6 (SIGABRT)"


def test_long_output_is_cut_and_says_so(interpreter):
    exact = interpreter.run("print('x' * 1999)")
    assert (len(exact.output), exact.truncated) == (2000, False)
    printed = interpreter.run("print('é' * 2000)")
    assert (printed.output, printed.truncated) == ("é" * 2000, True)
    value = interpreter.run("'x' * 10**6")
    assert (len(value.output), value.truncated, value.status) == (2000, True, "ok")
    both = interpreter.run("print('x' * 1995)\n'abcdef'")
    assert (both.output[-5:], both.truncated) == ("\n'abc", True)


def test_a_large_cell_and_large_output_pass(interpreter):
    assert interpreter.run("x = '" + "a" * 3_000_000 + "'\nlen(x)").output == "3000000"
    assert interpreter.run("print('x' * 3_000_000)").truncated


def test_forked_children_do_not_answer(interpreter):
    cell = "import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nprint(pid > 0)"
    assert sorted(interpreter.run(cell).output.split()) == ["False", "True"]
    assert interpreter.run("pid > 0").output == "True"


def test_everything_ends_with_a_killed_parent(pool):
    code = (
        "import time\nfrom prefopt.sandbox import Sandbox\nbox = Sandbox(workers=2)\na, b = box.open(), box.open()\n"
        "print(a.run('1').output, flush=True)\nb.run('while True: pass')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"1\n"
        family = descendants(parent.pid)
        assert len(family) >= 6
        os.kill(parent.pid, signal.SIGKILL)
    running = family
    for _ in range(100):
        running = [
            pid
            for pid in running
            if Path(f"/proc/{pid}/stat").exists()
            and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        ]
        if not running:
            break
        time.sleep(0.05)
    assert running == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 0}, "limits: seconds=0 must lie between 0.001 and 86,400"),
        ({"seconds": float("nan")}, "limits: seconds=nan must lie between"),
        ({"seconds": 1e12}, "limits: seconds=1000000000000.0 must lie between"),
        ({"seconds": "6"}, "limits: seconds='6' must be a number"),
        ({"cpu_seconds": 0.01}, "limits: cpu_seconds=0.01 must lie between 0.5 and 10,000,000"),
        ({"processes": -1}, "limits: processes=-1 must lie between 1 and 4,194,304"),
        ({"processes": 10**12}, "limits: processes=1000000000000 must lie between"),
        ({"processes": 2.5}, "limits: processes=2.5 must be a whole number"),
        ({"processes": True}, "limits: processes=True must be a whole number"),
        ({"memory_bytes": 1e9}, "limits: memory_bytes=1000000000.0 must be a whole number"),
        ({"output_chars": 100.0}, "limits: output_chars=100.0 must be a whole number"),
        ({"disk_bytes": 1.5e6}, "limits: disk_bytes=1500000.0 must be a whole number"),
        ({"files": 0}, "limits: files=0 must lie between 1 and 1,000,000,000"),
        (
            {"memory_bytes": 1000},
            "limits: memory_bytes=1000 is too little for a Python interpreter",
        ),
    ],
)
def test_impossible_limits(settings, message):
    with pytest.raises(SandboxError, match=message):
        Limits(**settings)


def test_more_processes_than_the_user_may_have():
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (500, 500))\n"
        "from prefopt.sandbox.base import Limits\n"
        "Limits(processes=499)\n"
        "Limits(processes=500)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.stderr.splitlines()[-1] == (
        "prefopt.errors.SandboxError: limits: processes=500 is more than a user may have here; give at most 499 "
        "(`ulimit -Hu` less the sandbox's own)"
    )


def test_impossible_pools(pool):
    with pytest.raises(SandboxError, match="workers=0 must be at least 1"):
        Sandbox(workers=0)
    with pytest.raises(SandboxError, match="'no_such_package' is no importable package here"):
        Sandbox(packages=["no_such_package"])
