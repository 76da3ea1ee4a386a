"""Whether bubblewrap really isolates on this machine: one interpreter is started and tries the walls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from prefopt.errors import SandboxError
from prefopt.sandbox.base import Limits
from prefopt.sandbox.command import VARIABLES, isolated, unused_users
from prefopt.sandbox.seccomp import filter_program
from prefopt.sandbox.session import Session

INSTALL = "install bubblewrap (Debian, Ubuntu, Fedora: the package `bubblewrap`)"

TRY_THE_WALLS = """
import os
holes = []
def check(hole, found):
    if found: holes.append(hole)
def writable(folder):
    try: open(folder + "/wall", "w").close()
    except OSError: return False
    return True
def lines(path):
    try: return open(path).read().splitlines()
    except OSError: return []
status = dict(line.split(":", 1) for line in lines("/proc/self/status"))
links = {line.split(":")[0].strip() for line in lines("/proc/net/dev") if ":" in line}
for folder in ("/", "/usr", "/usr/lib", "/etc", "/dev", "/packages", "/proc"):
    check("folder " + folder + " can be written", writable(folder))
check("other files can be read", os.path.exists(SECRET))
check("the network can be seen", not links <= {"lo"})
check("the environment can be seen", not set(os.environ) <= VARIABLES | {"PWD", "LC_CTYPE"})
check("other processes can be seen", len([name for name in os.listdir("/proc") if name.isdigit()]) > 3)
check("privileges are kept", int(status["CapEff"], 16) or int(status["NoNewPrivs"]) != 1 or (ROOT and os.getuid() == 0))
check("/tmp cannot be written", not writable("/tmp"))
"; ".join(holes)
"""


class Isolation(NamedTuple):
    """What the probe found."""

    works: bool
    reason: str
    """Why not, or an empty string."""
    version: str
    """Of bubblewrap; empty if there is none."""
    filtered: bool
    """Whether a system-call filter stands behind the namespaces (x86-64 and aarch64)."""


@cache
def isolation() -> Isolation:
    """Whether model-written code can be isolated here, tried once per process; takes some 50 ms."""
    bwrap = shutil.which("bwrap")
    if sys.platform != "linux" or bwrap is None:
        need = "isolation needs Linux" if sys.platform != "linux" else "bwrap was not found"
        return Isolation(False, f"{need}; {INSTALL}", "", False)
    asked = [bwrap, "--version"]
    version = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603 - found on the PATH
    found = Isolation(True, "", version.stdout.strip(), filter_program() is not None)
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        return found._replace(
            works=False, reason="the kernel has no /proc/PID/task/PID/children (PROC_CHILDREN)"
        )
    try:
        holes = try_the_walls(bwrap)
    except SandboxError as error:
        return found._replace(works=False, reason=f"bwrap was tried; {error}")
    return found._replace(works=not holes, reason=f"bwrap leaks: {holes}" if holes else "")


def try_the_walls(bwrap: str) -> str:
    """What is open that should be shut, or an empty string. Raises SandboxError if nothing starts."""
    limits = Limits(seconds=30)
    user = next(iter(unused_users(1)), 0)
    launch = partial(isolated, bwrap, limits=limits, packages=[], user=user)
    with (
        tempfile.NamedTemporaryFile(prefix="prefopt-") as secret,
        Session(launch, limits, isolated=True) as session,
    ):
        Path(secret.name).chmod(0o644)
        facts = (
            f"SECRET, VARIABLES, ROOT = {secret.name!r}, {set(VARIABLES)!r}, {os.geteuid() == 0}\n"
        )
        result = session.run(facts + TRY_THE_WALLS)
    if result.status != "ok":
        last = (result.output.strip().splitlines() or ["no output"])[-1]
        raise SandboxError(f"sandbox: the probe ended with {result.status}: {last}")
    return result.output.strip("'")
