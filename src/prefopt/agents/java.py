"""A Java virtual machine that holds an environment, reached through py4j. It ends with the process that started it."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, cast

from prefopt.errors import AgentError

_REMEDY = "install a Java runtime, version 8 or later (Debian and Ubuntu: apt install default-jre-headless)"
_CHECK_SECONDS = 60
_END_SECONDS = 5


class Program(NamedTuple):
    """What a machine runs."""

    name: str
    """For error messages."""
    archive: Path
    """The .jar file; the machine works in its folder."""
    entry: str
    """Full name of the Java class that is asked; it is made without arguments."""
    memory: int
    """MiB for the heap."""


def require_java(what: str) -> None:
    """Nothing, if there is a Java runtime that runs; py4j by itself says nothing of use where there is none.

    Raises:
        AgentError: there is none; says what needs it and what to install.
    """
    java = shutil.which("java")
    if java is None:
        raise AgentError(f"{what} needs Java, and there is no `java` on PATH; {_REMEDY}")
    try:
        tried = subprocess.run(  # noqa: S603 # what PATH calls java
            [java, "-version"],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_CHECK_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AgentError(
            f"{what} needs Java, and {java} does not run ({error}); {_REMEDY}"
        ) from error
    if tried.returncode:
        said = (tried.stderr or tried.stdout).strip().splitlines() or ["no message"]
        raise AgentError(f"{what} needs Java, and {java} fails ({said[-1]}); {_REMEDY}")


class Machine:
    """A running virtual machine and one object in it."""

    def __init__(self, program: Program) -> None:
        """Start the machine; takes seconds. Call `require_java` before.

        It asks for a password (py4j's default is none, so that every user of the computer could run code in it), and it
        ends when its standard input closes: however this process ends, it ends too.

        Raises:
            AgentError: the machine does not start.
        """
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

        # py4j logs, with traceback, every error that it also raises, and those of objects that outlive the machine.
        logging.getLogger("py4j.java_gateway").setLevel(logging.CRITICAL)
        self._program = program
        self._words: deque[str] = deque(maxlen=20)
        """What the machine wrote to its standard error, the latest first."""
        try:
            started = launch_gateway(
                classpath=str(program.archive),
                javaopts=[f"-Xmx{program.memory}m"],
                die_on_exit=True,
                redirect_stderr=self._words,
                enable_auth=True,
                cwd=str(program.archive.parent),
                return_proc=True,
            )
        except (OSError, ValueError) as error:
            raise AgentError(
                f"the Java virtual machine of {program.name} does not start (it may use {program.memory} MiB): "
                f"{self._said() or error}"
            ) from error
        port, token, self.process = cast("tuple[int, str, subprocess.Popen[bytes]]", started)
        parameters = GatewayParameters(port=port, auth_token=token)
        self._gateway = JavaGateway(gateway_parameters=parameters, java_process=self.process)
        entry: object = self._gateway.jvm
        for part in program.entry.split("."):
            entry = getattr(entry, part)
        self._object = _called(entry)

    def ask(self, method: str, *arguments: object) -> object:
        """What a method of the object returns.

        Raises:
            AgentError: the method failed, or the machine is gone.
        """
        from py4j.protocol import Py4JError

        try:
            return _called(getattr(self._object, method), *arguments)
        except Py4JError as error:
            first = " ".join(str(error).splitlines()[:2])
            said = self._said()
            raise AgentError(
                f"{self._program.name} failed in {method}: {first}{said and f' | {said}'}"
            ) from error

    def close(self) -> None:
        """End the machine; closing twice is allowed."""
        with suppress(Exception):  # one that is dead cannot be told to end
            self._gateway.shutdown()
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _said(self) -> str:
        return next((line.strip() for line in list(self._words) if line.strip()), "")


def _called(method: object, *arguments: object) -> object:
    """What py4j's stand-in for a method or a class returns; the package has no annotations."""
    return cast("Callable[..., object]", method)(*arguments)
