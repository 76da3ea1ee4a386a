"""Code that takes memory in every way that we know: alone, with children, shared, in files, in names of files."""

import mmap
import os
from dataclasses import replace

import pytest

from prefopt.sandbox import Limits, Sandbox, isolation
from prefopt.sandbox.processes import memory_held, memory_shared_once
from tests.sandbox.attacks import PRIVATE, attack, fresh, raises

OVER = "its processes needed more than 256 MiB of memory"


@pytest.fixture(scope="module")
def patient(pool):
    """The limits of the pool but for time: a memory limit ends what would else go on for long."""
    limits = replace(pool.limits, seconds=30, processes=12)
    with Sandbox(limits, workers=2) as sandbox:
        yield sandbox


def death(pool: Sandbox, code: str) -> tuple[str, str] | None:
    """Why the code's interpreter has died, or None if it ran to its end."""
    with pool.open() as interpreter:
        result = interpreter.run(code)
        assert (result.status == "ok") == (interpreter.death is None), result
        return interpreter.death


@pytest.mark.parametrize(
    "code", ["x = 'x' * 10**9", "x = []\nwhile True: x.append(bytearray(10**6))", "[0] * 10**12"]
)
def test_memory_bomb(pool, code):
    result = attack(pool, code)
    assert result.status == "memory"
    assert result.output.endswith("MemoryError\n")


def test_memory_bomb_of_many_processes(patient):
    code = "import os, time\nfor _ in range(5):\n  if not os.fork(): break\n"
    code += "x = bytearray(b'x') * 100_000_000\ntime.sleep(20)"
    assert attack(patient, code).status == "memory"


def test_full_disk(pool):
    raises(pool, f"open('{PRIVATE}/x', 'wb').write(bytes(10**8))", "OSError")
    code = f"for n in range(100):\n  open(f'{PRIVATE}/{{n}}', 'wb').write(bytes(10**6))"
    raises(pool, code, "OSError: [Errno 28] No space left on device")


SHARED = """
import mmap, os, time
def shared():
    memory = mmap.mmap(-1, 90 * 2**20)
    for place in range(0, len(memory), 4096): memory[place] = 1
    return memory
"""
EACH_ITS_OWN = """
for _ in range(9):
    if not os.fork(): break
memory = shared()
time.sleep(60)
"""
ONE_FOR_ALL = """
memory = shared()
children = []
for _ in range(5):
    children.append(os.fork())
    if not children[-1]:
        sum(memory[place] for place in range(0, len(memory), 4096))
        time.sleep(0.5)
        os._exit(0)
for child in children: os.waitpid(child, 0)
"""


def test_shared_memory_without_a_file_is_not_to_be_had(pool):
    if not isolation().filtered:
        pytest.skip("no system-call filter is known for this machine")
    raises(pool, SHARED + "shared()", "PermissionError")


def test_the_device_of_zeros_gives_zeros_and_no_memory(pool):
    code = "import mmap\nfile = open('/dev/zero', 'rb+')\nprint(file.read(2))\nmmap.mmap(file.fileno(), 4096)"
    raises(pool, code, "OSError: [Errno 19]")


def test_shared_memory_counts_where_no_filter_is_known(patient, monkeypatch):
    monkeypatch.setattr("prefopt.sandbox.command.filter_program", lambda: None)
    with fresh(patient) as own:
        assert death(own, SHARED + EACH_ITS_OWN) == ("memory", OVER)
        assert death(own, SHARED + ONE_FOR_ALL) is None


def test_a_shared_file_counts(pool):
    limits = replace(pool.limits, seconds=30, disk_bytes=200 * 2**20)
    code = f"""
import os, time
open("{PRIVATE}/x", "wb").write(bytes(150 * 2**20))
os.remove("/dev/shm/x") if FREE else None
x = bytearray(b"x") * (120 * 2**20)
time.sleep(0.5 if FREE else 60)
"""
    with Sandbox(limits, workers=1) as own:
        assert death(own, "FREE = False" + code) == ("memory", OVER)
        assert death(own, "FREE = True" + code) is None


def test_children_that_touch_what_they_got_count_and_the_others_do_not(patient):
    code = """
import os, time
x = bytearray(b"x") * (80 * 2**20)
for _ in range(5):
    if not os.fork():
        if TOUCH:
            for place in range(0, len(x), 4096): x[place] = 65
            if os.fork(): time.sleep(60)
        time.sleep(0.5)
        os._exit(0)
for _ in range(5): os.wait()
"""
    assert death(patient, "TOUCH = False" + code) is None
    assert death(patient, "TOUCH = True" + code) == ("memory", OVER)


def test_memory_of_a_process_whose_first_thread_has_ended_counts(patient):
    code = """
import ctypes, os, threading, time
def hold():
    x = bytearray(b"x") * (90 * 2**20)
    time.sleep(60)
for _ in range(4):
    if not os.fork():
        threading.Thread(target=hold).start()
        ctypes.CDLL(None).pthread_exit(None)
time.sleep(60)
"""
    assert death(patient, code) == ("memory", OVER)


def test_a_name_cannot_hide_memory(patient):
    code = """
import ctypes, os, time
ctypes.CDLL(None).prctl(15, b"\\nRssAnon: 0 kB", 0, 0, 0)
for _ in range(4):
    if not os.fork(): break
x = bytearray(b"x") * (90 * 2**20)
time.sleep(60)
"""
    assert death(patient, code) == ("memory", OVER)


@pytest.mark.parametrize(
    "make",
    [
        f"open(f'{PRIVATE}/{{n}}', 'w').close()",
        f"os.mkdir(f'{PRIVATE}/{{n}}')",
        "open('/dev/shm/x', 'w').close(); os.link('/dev/shm/x', f'/dev/shm/{n}')",
        "os.symlink('x', f'/dev/shm/{n}')",
    ],
    ids=["files", "folders", "links", "symbolic links"],
)
def test_endless_empty_files(patient, make):
    code = f"import os, itertools\nfor n in itertools.count(): {make}"
    assert attack(patient, code).status == "memory"
    assert death(patient, code) == ("memory", "it made more than 10,000 files")


def test_as_many_files_as_the_limit_says(pool):
    make = f"for n in range(N): open(f'{PRIVATE}/{{n}}', 'w').close()\nimport time; time.sleep(0.4)"
    with Sandbox(Limits(files=100), workers=1) as own:
        assert death(own, f"N = 100\n{make}") is None
        assert death(own, f"N = 101\n{make}") == ("memory", "it made more than 100 files")


def test_multiprocessing_works(patient):
    code = """
import multiprocessing
array, queue = multiprocessing.Array("i", range(1000)), multiprocessing.Queue()
def work(): array[0] = 9; queue.put(3)
process = multiprocessing.Process(target=work)
process.start(); process.join()
with multiprocessing.Pool(2) as pool: print(pool.map(abs, [-1, -2]))
array[0], queue.get()
"""
    assert attack(patient, code).output == "[1, 2]\n(9, 3)"


def test_shared_pages_count_once():
    """Ours and those of a child that holds 64 MiB with us."""
    size = 64 * 2**20
    before = memory_held(os.getpid())
    with mmap.mmap(-1, size) as shared:
        shared.write(bytes(size))
        reading, writing = os.pipe()
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            sum(shared[place] for place in range(0, size, 4096))
            os.write(tell, b"x")
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.read(ready, 1)
        try:
            pids = [os.getpid(), child]
            grown = memory_held(os.getpid()) - before
            assert 0.9 * size < grown < 1.5 * size
            summed, once = sum(map(memory_held, pids)), memory_shared_once(pids)
            assert 0.9 * size < summed - once
            assert 0.4 * size < memory_held(child) - memory_shared_once([child])
        finally:
            os.close(writing)
            os.waitpid(child, 0)
        for handle in (reading, ready, tell):
            os.close(handle)
    assert memory_shared_once([2**31 - 1]) == 0
