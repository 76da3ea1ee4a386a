"""Code that tries to get out, or to take the machine with it. Nothing gets out and the pool answers after each."""

import os
import re
import socket
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from prefopt.sandbox import Sandbox
from tests.sandbox.attacks import PRIVATE, attack, fresh, raises

SECRET = "the-secret-of-the-parent"
NO_WAY_OUT = ("PermissionError", "OSError", "ConnectionRefusedError", "FileNotFoundError")


def test_tcp(pool, walls):
    with socket.create_server(("127.0.0.1", 0)) as server, fresh(pool) as own:
        server.settimeout(0.1)
        address = server.getsockname()
        code = f"import socket\nsocket.create_connection({address}, 0.5).sendall(b'out')"
        raises(own, code, *NO_WAY_OUT)
        raises(own, "import socket\nsocket.create_connection(('1.1.1.1', 53), 0.5)", *NO_WAY_OUT)
        with pytest.raises(TimeoutError):
            server.accept()


def test_udp(pool, walls):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, fresh(pool) as own:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.1)
        code = (
            "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"s.sendto(b'out', {server.getsockname()})"
        )
        attack(own, code)
        with pytest.raises(TimeoutError):
            server.recv(10)


@pytest.mark.parametrize("abstract", [False, True])
def test_unix_sockets(pool, walls, tmp_path, abstract):
    path = f"\0prefopt-{os.getpid()}" if abstract else str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server, fresh(pool) as own:
        server.bind(path)
        server.listen()
        server.settimeout(0.1)
        raises(own, f"import socket\nsocket.socket(socket.AF_UNIX).connect({path!r})", *NO_WAY_OUT)
        with pytest.raises(TimeoutError):
            server.accept()


def test_writing_outside(pool, tmp_path):
    places = ["/", "/usr", "/usr/lib", "/etc", "/dev", "/proc", "/packages", "/var", str(tmp_path)]
    places += [str(Path.cwd()), str(Path.home()), str(Path(os.__file__).parent)]
    code = f"""
import os
written = []
for place in {places}:
    try:
        os.makedirs(place, exist_ok=True)
        open(place + "/escaped", "w").write("x")
        written.append(place)
    except OSError:
        pass
[place for place in written if not place.startswith("{PRIVATE}/")]
"""
    assert attack(pool, code).output == "[]"
    assert not [place for place in places if Path(place, "escaped").exists()]


def test_temporary_folders_are_private(pool):
    assert attack(pool, f"open('{PRIVATE}/escaped', 'w').write('x')").output == "1"
    assert not Path(tempfile.gettempdir(), "escaped").exists()
    assert attack(pool, f"import os; os.listdir('{PRIVATE}')").output == "[]"


def test_reading_outside(pool, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    secret.chmod(0o644)
    home = [str(path) for path in (Path.home(), Path.cwd())]
    code = f"""
import os
found = []
for path in [{str(secret)!r}, "/etc/shadow", "/etc/passwd", "/proc/1/root{secret}", "/proc/1/cwd", "/proc/1/mem"]:
    try:
        found.append(open(path).read())
    except OSError:
        pass
found + [os.path.exists(path + "/src/prefopt") for path in {home}]
"""
    assert attack(pool, code).output == "[False, False]"


def test_environment(pool, monkeypatch):
    monkeypatch.setenv("PARENT_SECRET", SECRET)
    code = f"""
import os
seen = repr(dict(os.environ))
for pid in ["self", {os.getpid()}, {os.getppid()}] + [name for name in os.listdir("/proc") if name.isdigit()]:
    for file in ("environ", "cmdline"):
        try:
            seen += open("/proc/%s/%s" % (pid, file)).read()
        except OSError:
            pass
SECRET = {SECRET[:10]!r} + {SECRET[10:]!r}
SECRET in seen, sum(name.isdigit() for name in os.listdir("/proc")) <= 3
"""
    with fresh(pool) as own:
        assert attack(own, code).output == "(False, True)"


def test_no_path_of_the_host_on_command_lines(pool):
    code = "one, own = (open(f'/proc/{n}/cmdline').read().split('\\0') for n in (1, 'self'))\n"
    options = attack(pool, code + "sorted(set(one) - set(own))").output
    assert re.fullmatch(r"\['--args', '/[^ ]*/bwrap', '\d+'\]", options), options
    result = attack(pool, "import os\nlen(os.listdir('/proc/self/fd')), sorted(os.listdir('/dev'))")
    devices = (
        "'fd', 'full', 'null', 'random', 'shm', 'stderr', 'stdin', 'stdout', 'urandom', 'zero'"
    )
    # three streams, the connection and the folder that is being listed
    assert result.output == f"(5, [{devices}])"


def test_killing_everything(pool):
    code = f"""
import os, signal
hit = []
for pid in [{os.getpid()}, {os.getppid()}, os.getppid(), *range(1, 5000)]:
    if pid != os.getpid():
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.kill(pid, number)
                hit.append(pid)
            except OSError:
                pass
try:
    os.kill(-1, signal.SIGKILL)
except OSError:
    pass
set(hit) - {{1}}
"""
    assert attack(pool, code).output in {"set()", ""}


def test_privileges(pool):
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
calls = {
    "ptrace": libc.ptrace(16, 1, 0, 0),
    "mount": libc.mount(b"none", b"/tmp", b"tmpfs", 0, None),
    "remount": libc.mount(None, b"/", None, 32, None),
    "umount": libc.umount2(b"/tmp", 2),
    "unshare": libc.unshare(0x10000000),
    "setuid": libc.setuid(0),
    "chroot": libc.chroot(b"/tmp"),
    "sethostname": libc.sethostname(b"x", 1),
    "memfd": libc.memfd_create(b"x", 0),
    "shm": libc.shmget(0, 4096, 0o1600),
    "bpf": libc.syscall(321, 0, 0, 0),
    "keyctl": libc.syscall(250, 0, 0, 0),
}
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
[name for name, value in calls.items() if value != -1], int(status["CapEff"], 16), int(status["NoNewPrivs"])
"""
    output = attack(pool, code).output
    # as an ordinary user, 0 is not mapped inside, so that setuid fails there too
    assert output == "([], 0, 1)"


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    ],
    ids=["stops", "goes on"],
)
def test_fork_bomb(pool, code):
    result = attack(pool, code)
    assert result.status in {"error", "timeout"}
    count = "import os\ndef grow():\n  n = 0\n  while n < 50:\n    try: pid = os.fork()\n    except OSError: return n\n"
    count += "    if not pid:\n      import time; time.sleep(9)\n    n += 1\n  return n\ngrow()"
    assert attack(pool, count).output == str(pool.limits.processes - 1)


def test_thread_bomb(pool):
    code = "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    raises(pool, code, "RuntimeError: can't start new thread")


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "9**9**9",
        "'a' * 30 + 'b' and __import__('re').match('(a+)+c', 'a' * 40)",
        "import time; time.sleep(100)",
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
    ],
    ids=["python", "power", "regex", "sleep", "ignores the signal"],
)
def test_endless_loop(hasty, code):
    result = attack(hasty, code)
    assert result.status == "timeout"
    assert 0.4 < result.seconds < 5


def test_a_swallowed_interrupt_ends_in_death(hasty):
    with hasty.open() as interpreter:
        code = "import time\nwhile True:\n  try:\n    while True: time.sleep(9)\n  except BaseException: pass"
        assert interpreter.run(code).status == "timeout"
        assert interpreter.death == (
            "timeout",
            "a cell ran longer than 0.5 s and did not react to an interrupt",
        )


@pytest.mark.parametrize(
    "code",
    [
        "while True: print('x' * 1000)",
        "import os\nwhile True: os.write(1, b'x' * 100000)",
        "import os\nwhile True: os.write(2, b'x' * 100000)",
    ],
    ids=["print", "descriptor 1", "descriptor 2"],
)
def test_endless_output(hasty, code):
    result = attack(hasty, code)
    assert (result.status, result.truncated, len(result.output)) == ("timeout", True, 2000)


@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(0)",
        "import os; os.kill(os.getpid(), 9)",
        "import ctypes; ctypes.string_at(0)",
        "import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'while True: pass'])",
        "import os\nos.closerange(0, 256)\nwhile True: pass",
        "import os\nfor n in range(256):\n  try: os.write(n, b'\\xff' * 100)\n  except OSError: pass\nwhile True: pass",
        "import builtins; builtins.len = None; builtins.exec = None; builtins.bytes = None",
        "import os\nos.write = lambda *a: 1 / 0",
        "import sys\nsys.modules.clear(); sys.stdout = sys.stderr = None\nimport os; os._exit(1)",
    ],
    ids=["exit", "kill", "segfault", "exec", "close", "garble", "builtins", "os.write", "sys"],
)
def test_crash(pool, code):
    result = attack(pool, code)
    assert result.status == "crashed"


FORGE = """
import sys, time
frame = sys._getframe()
while "header" not in frame.f_locals: frame = frame.f_back
control, token = frame.f_locals["control"], frame.f_locals["header"][:8]
import os
"""


def test_forged_replies_only_lie_about_their_own_cell(pool):
    with pool.open() as interpreter:
        lie = (
            FORGE
            + "os.write(control, token + b'o' + (3).to_bytes(8, 'big') + b'LIE')\ntime.sleep(100)"
        )
        assert interpreter.run(lie)[:2] == ("LIE", "ok")
        assert interpreter.run("1 + 1").status == "crashed"  # what answers has another cell's token
    with pool.open() as interpreter:
        lie = FORGE + "os.write(control, token + b'o' + (3).to_bytes(8, 'big') + b'LIE')"
        # the kernel's own reply follows: at once, or as a wrong answer to the next cell
        first = interpreter.run(lie)
        assert first[:2] == ("LIE", "ok") or first.status == "crashed"
        assert interpreter.death is not None or interpreter.run("1 + 1").status == "crashed"
    endless = (
        FORGE
        + "os.write(control, token + b'o' + b'\\x7f' * 8)\nwhile True: os.write(control, bytes(10**6))"
    )
    assert attack(pool, endless).status == "crashed"
    assert attack(pool, FORGE + "os.write(control, token + b'?' * 9)").status == "crashed"


def test_other_programs(pool):
    for program in ("/bin/sh", "/usr/bin/env", "/usr/bin/bwrap"):
        raises(pool, f"import subprocess\nsubprocess.run([{program!r}])", "FileNotFoundError")
    own = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'print(6 * 7)'])"
    assert attack(pool, own).output.startswith("42\n")


def test_daemons_end_with_the_interpreter(pool):
    code = """
import os, time
if not os.fork():
    os.setsid()
    if not os.fork():
        time.sleep(1000)
    os._exit(0)
os.wait()
time.sleep(0.1)
len([name for name in os.listdir("/proc") if name.isdigit()])
"""
    assert (
        attack(pool, code).output == "3"
    )  # bubblewrap's first process, the interpreter, the daemon


def test_processor_time_of_all_processes(pool):
    with Sandbox(replace(pool.limits, seconds=10, cpu_seconds=0.5), workers=1) as own:
        with own.open() as interpreter:
            result = interpreter.run("import os\nfor _ in range(3): os.fork()\nwhile True: pass")
            assert interpreter.death is not None
            assert interpreter.death.reason == "it used more than 0.5 s of processor time"
        assert (result.status, result.seconds < 5) == ("timeout", True)
