"""How the interpreter of a solution is started: in bubblewrap, or, if the user insists, as a plain process.

Inside bubblewrap there are: own process, network, IPC, host-name and mount spaces; read-only binds of the Python
library, system libraries and the named packages; `/proc` of the own processes; five devices; a private `/tmp` in
memory, which `/dev/shm` leads to as well; an environment of a few harmless variables. No other program, no file of the
user, no socket.

A limit on processes counts per user and does not bind root. As root, therefore, bubblewrap sets everything up as root
(so a Python in root's home can be shown), and the kernel inside changes to an unprivileged user number of its own
before it reads the first cell. As an ordinary user, a user space per interpreter has its own count.
"""

from __future__ import annotations

import math
import os
import platform
import random
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from prefopt.sandbox.base import Limits
from prefopt.sandbox.folders import WorkFolder
from prefopt.sandbox.packages import package_paths
from prefopt.sandbox.seccomp import filter_program

PACKAGES = "/packages"
SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
PRIVATE = "/tmp"  # noqa: S108 - inside
"""The only folder inside that can be written."""
DEVICES = {"null": "null", "zero": "full", "full": "full", "random": "random", "urandom": "urandom"}
"""Name inside and device: to read, full is zero too, but shared memory without a limit cannot be had from it."""
TALL_USERS = 0x70000000
"""User numbers from here to 2**31 belong to nobody (systemd's table of UID ranges ends its containers below)."""
NEVER = 2**31

VARIABLES = {
    "HOME": PRIVATE,
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # sets print in the same order when a solution is replayed
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",  # one buffer and stack per thread and core would fill the address space
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "MPLBACKEND": "Agg",
}


class Launch(NamedTuple):
    """Everything that `subprocess.Popen` needs to start one interpreter."""

    command: list[str]
    environment: dict[str, str]
    descriptors: tuple[int, ...]
    """To be inherited: the socket and `files`."""
    files: tuple[int, ...]
    """Of `descriptors`, those that the parent closes once the process has started: what bubblewrap reads."""
    folder: WorkFolder | None
    """Working folder outside bubblewrap."""


def python_executable() -> Path:
    """The real file of the running Python, outside any virtual environment."""
    return Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()


@cache
def kernel_source() -> str:
    """The text of the kernel that runs inside."""
    return Path(__file__).with_name("inside.py").read_text(encoding="utf-8")


def kernel_command(
    control: int, limits: Limits, settings: dict[str, int], folders: Sequence[str]
) -> list[str]:
    """The command that runs the kernel, inside or outside."""
    numbers = {
        "control": control,
        "output": limits.output_chars,
        "memory": limits.memory_bytes,
        "cpu": math.ceil(limits.cpu_seconds)
        + 1,  # a backstop: the parent counts all processes together
        "disk": limits.disk_bytes,
        **settings,
    }
    start = [str(python_executable()), "-s", "-S", "-P", "-c", kernel_source()]
    return [*start, *(f"{name}={value}" for name, value in numbers.items()), "--", *folders]


def isolated(
    bwrap: str, control: int, limits: Limits, packages: Sequence[Path], user: int
) -> Launch:
    """Start in bubblewrap; `user` is the number to change to when this process is root."""
    root = os.geteuid() == 0
    program = filter_program()
    options = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    options += ["--unshare-cgroup-try", "--die-with-parent", "--new-session"]
    options += ["--hostname", "sandbox"]
    options += [] if root else ["--unshare-user"]
    options += ["--clearenv", *(part for item in VARIABLES.items() for part in ("--setenv", *item))]
    options += file_system(limits, packages)
    options += ["--cap-drop", "ALL"]
    options += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if root else []
    files = [] if program is None else [memory_file("filter", program)]
    options += [] if program is None else ["--seccomp", str(files[0])]
    # its own command line can be read inside, in /proc/1: no path of the host's there
    files.append(memory_file("options", "\0".join(options).encode("utf-8", "surrogateescape")))
    settings = {"uid": user, "processes": limits.processes} if root else {}
    if not root:  # bubblewrap's own first process counts too
        settings = {"processes": limits.processes + 1 + processes_counted_together()}
    folders = [PACKAGES] if packages else []
    kernel = kernel_command(control, limits, settings, folders)
    command = [bwrap, "--args", str(files[-1]), "--", *kernel]
    return Launch(command, {}, (control, *files), tuple(files), None)


def plain(control: int, limits: Limits, packages: Sequence[Path]) -> Launch:
    """Start as an ordinary process in an empty folder: limits on memory, time and file size, no isolation."""
    folder = WorkFolder()
    folders = list(dict.fromkeys(str(path.parent) for path in packages))
    command = kernel_command(control, limits, {}, folders)
    return Launch(command, {**VARIABLES, "HOME": folder.name}, (control,), (), folder)


def file_system(limits: Limits, packages: Sequence[Path]) -> list[str]:
    """Arguments that build the file system, all read-only except the temporary folder."""
    shown = dict(bindings())
    arguments: list[str] = []
    parents = {parent for path in shown.values() for parent in path.parents[:-1]}
    for folder in sorted(parents):
        arguments += ["--perms", "0755", "--dir", str(folder)]
    for link in (Path(name) for name in SYSTEM_LIBRARIES):
        if link.is_symlink():
            arguments += ["--symlink", str(link.readlink()), str(link)]
    for source, target in shown.items():
        arguments += ["--ro-bind", str(source), str(target)]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    arguments += ["--perms", "0755", "--dir", PACKAGES]
    for path in packages:
        arguments += ["--ro-bind", str(path), f"{PACKAGES}/{path.name}"]
    arguments += ["--proc", "/proc", "--perms", "0755", "--dir", "/dev"]
    for name, device in DEVICES.items():
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{name}"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        arguments += ["--symlink", f"/proc/self/fd/{number}", f"/dev/{name}"]
    arguments += ["--symlink", "/proc/self/fd", "/dev/fd", "--symlink", PRIVATE, "/dev/shm"]  # noqa: S108 - inside
    arguments += ["--perms", "1777", "--size", str(limits.disk_bytes), "--tmpfs", PRIVATE]
    return [*arguments, "--remount-ro", "/", "--chdir", PRIVATE]


def bindings() -> Iterator[tuple[Path, Path]]:
    """Real paths of Python and the system's libraries, each where it is; none within another."""
    executable = python_executable()
    prefixes = dict.fromkeys((executable.parents[1], Path(sys.base_prefix).resolve()))
    wanted = [Path(name) for name in SYSTEM_LIBRARIES if not Path(name).is_symlink()]
    wanted += [prefix / name for prefix in prefixes for name in ("lib", "lib64")]
    done: list[Path] = []
    for path in dict.fromkeys([*wanted, executable]):
        real = path.resolve()
        if real.exists() and not any(real.is_relative_to(other) for other in done):
            done.append(real)
            yield real, path


def memory_file(name: str, data: bytes) -> int:
    """A descriptor to read the data from."""
    file = os.memfd_create(f"prefopt-{name}")
    with open(file, "wb", closefd=False) as stream:
        stream.write(data)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def processes_counted_together() -> int:
    """Threads of this user that count against the limit inside.

    Before Linux 5.14 a user's processes were counted over all user spaces; now each space has its own count.
    """
    version = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if version >= (5, 14):
        return 0
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(
                line.split(":", 1) for line in status.read_text().splitlines() if ":" in line
            )
        except OSError:
            continue
        if int(fields["Uid"].split()[0]) == os.getuid():
            total += int(fields["Threads"])
    return total


def unused_users(count: int) -> range:
    """User numbers that belong to nobody, for `count` interpreters at once; empty if this process is not root."""
    if os.geteuid() != 0:
        return range(0)
    rows = [row.split() for row in Path("/proc/self/uid_map").read_text().splitlines()]
    end = min(max(int(first) + int(size) for first, _, size in rows), NEVER)
    start = TALL_USERS if end == NEVER else max(1, end - 6000)
    last = end - 1000 - count  # 65534 is nobody, and a small map ends close to it
    first = random.randint(start, max(start, last))
    return range(first, first + count)


def shown_packages(names: Sequence[str]) -> list[Path]:
    """Real paths of the packages to be shown inside."""
    return [path.resolve() for path in package_paths(names)]
