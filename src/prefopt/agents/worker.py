"""What runs in a worker process of the farm: environments, and a keeper that ends with the main process.

The process is started afresh and imports neither torch nor transformers. It forks once, before it imports anything of
the environment: the child holds the environments, the parent (the *keeper*) only waits. When the main process is gone
or the child has ended, the keeper kills the whole process group, itself and the programs that the environments have
started included, whatever they are in the middle of. Only a program that leaves the group (`start_new_session`) is out
of its reach: an environment that starts one has to end it in `close`. Orders and answers are JSON lines on pipes of
their own, which nothing that a library prints can reach. The main process's side is `prefopt.agents.worker_process`.

An order is `{"slot", "task", "actions", "expert"}`: with a task, an episode starts; then the actions are taken until
the environment says that the episode is over. Every result is answered at once, so that the main process knows which
step takes how long: `["ready"]`, `["opened"]`, `["outcome", ...]`, `["moves", ...]`, or `["failed", reason]`, which
ends the order, or `["fatal", class, message]`, which ends the program.
"""

from __future__ import annotations

import base64
import ctypes
import json
import math
import os
import pickle
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NoReturn, cast

import prefopt.errors
from prefopt.agents.environment import Environment, Outcome, Suite, Task
from prefopt.errors import AgentError, PrefoptError
from prefopt.values import JsonValue, repaired

ENDED = "prefopt: the process of an environment ended: "
"""What the keeper's last line on stderr starts with; the main process reads it."""

Answer = list[JsonValue]

_PR_SET_PDEATHSIG = 1


class _ChildEndedError(Exception):
    """The process with the environments is gone."""


def keep(life: int, orders: int, answers: int) -> NoReturn:
    """The keeper: never returns.

    Args:
        life: read end of a pipe that the main process holds open as long as it lives.
        orders: read end of the pipe with the orders.
        answers: write end of the pipe for the answers.
    """
    # Programs that an environment starts must not hold the pipes open.
    for descriptor in (life, orders, answers):
        os.set_inheritable(descriptor, False)
    child, keeper = 0, os.getpid()
    try:
        signal.signal(signal.SIGCHLD, _child_ended)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(life)
            _end_with(keeper)
            _serve(orders, answers)
        os.close(orders)
        os.close(answers)
        os.read(life, 1)
    except _ChildEndedError:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        os.write(2, f"\n{ENDED}{how}\n".encode())
    finally:
        os.killpg(0, signal.SIGKILL)
    raise AssertionError


def _child_ended(*_: object) -> None:
    raise _ChildEndedError


def _end_with(keeper: int) -> None:
    """Have the kernel kill this process when the keeper dies, which nothing but the system's own kills can do to it."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)


def _serve(orders: int, answers: int) -> NoReturn:
    """The child: carries out orders until the pipe closes."""
    code = 1
    try:
        with os.fdopen(orders, encoding="utf-8") as lines:
            _carry_out_all(lines, answers)
        code = 0
    except BrokenPipeError:
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the last line on stderr says it
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _carry_out_all(lines: Iterator[str], answers: int) -> None:
    stage = _Stage(_unpacked(next(lines, "")))
    _write(answers, ["ready"])
    try:
        for line in lines:
            for order in json.loads(line):
                for answer in stage.carry_out(order):
                    _write(answers, answer)
    finally:
        stage.close()


def _write(descriptor: int, answer: Answer) -> None:
    data = json.dumps(answer).encode() + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]


def packed(suite: Suite) -> str:
    """The first line that a worker is sent.

    Raises:
        AgentError: the suite cannot be pickled.
    """
    try:
        return base64.b64encode(pickle.dumps(suite)).decode()
    except Exception as error:
        raise AgentError(
            f"environment {suite.name}: its suite cannot be sent to worker processes ({error}); make it a dataclass "
            "of plain values in an importable module"
        ) from error


def _unpacked(line: str) -> Suite | Exception:
    try:
        return pickle.loads(base64.b64decode(line))  # noqa: S301 - comes from the process that started us
    except Exception as error:  # noqa: BLE001 - whatever the module of the suite raises
        return error


class _Stage:
    """The open environments by slot."""

    def __init__(self, suite: Suite | Exception) -> None:
        self.suite = suite
        self.environments: dict[int, Environment] = {}

    def carry_out(self, order: Mapping[str, Any]) -> Iterator[Answer]:
        """The answers to an order."""
        slot = order["slot"]
        if isinstance(self.suite, Exception):
            why = f"the environment cannot be imported in a worker process ({_words(self.suite)})"
            yield ["fatal", "AgentError", f"{why}; its class has to be in an importable module"]
            return
        try:
            yield from self._play(self._environment(slot), order)
        except PrefoptError as error:
            if slot in self.environments:
                yield self._failed(slot, error)
            else:
                yield ["fatal", _class_of(error), str(error)]
        except (Exception, SystemExit) as error:  # noqa: BLE001 - environments may raise anything
            yield self._failed(slot, error)

    def _environment(self, slot: int) -> Environment:
        """The one in this slot; opened if there is none."""
        if slot not in self.environments:
            assert not isinstance(self.suite, Exception)  # noqa: S101
            self.environments[slot] = self.suite.open()
        return self.environments[slot]

    @staticmethod
    def _play(environment: Environment, order: Mapping[str, Any]) -> Iterator[Answer]:
        outcome: Outcome | None = None
        if order["task"] is not None:
            task = Task(**order["task"])
            _forget_noise()
            yield ["opened"]
            if order["expert"]:
                yield [
                    "moves",
                    *([str(m.action), str(m.thought)] for m in environment.expert(task)),
                ]
                return
            outcome = environment.reset(task)
            yield _checked(outcome)
        for action in order["actions"]:
            if outcome is not None and outcome.done:
                return
            outcome = environment.step(action)
            yield _checked(outcome)

    def _failed(self, slot: int, error: BaseException) -> Answer:
        """What went wrong. The environment is closed; the next episode gets a fresh one."""
        words = _words(error)
        broken = self.environments.pop(slot, None)
        if broken is not None:
            with suppress(Exception):
                broken.close()
        return ["failed", words]

    def close(self) -> None:
        """Close all environments."""
        while self.environments:
            with suppress(Exception):
                self.environments.popitem()[1].close()


def _forget_noise() -> None:
    """Empty the file that is our stderr, which would grow with what libraries print."""
    with suppress(OSError):
        os.lseek(2, 0, os.SEEK_SET)
        os.ftruncate(2, 0)


def _checked(outcome: Outcome) -> Answer:
    """The outcome as it travels.

    Raises:
        TypeError, ValueError: it is none.
    """
    observation, reward, done, success = cast("tuple[object, float, object, object]", outcome)
    if not isinstance(observation, str):
        raise TypeError(f"the observation is of type {type(observation).__name__}, not a text")
    if not math.isfinite(reward):
        raise ValueError(f"the reward is {reward}, not a finite number")
    return [
        "outcome",
        repaired(observation),
        float(reward),
        _flag(done, "done"),
        _flag(success, "success"),
    ]


def _flag(value: object, name: str) -> bool:
    """The value, which has to be true or false: the text "False" is neither."""
    if isinstance(value, bool):
        return value
    numpy = sys.modules.get("numpy")  # imported where an environment uses it
    if numpy is None or not isinstance(value, numpy.bool_):
        raise TypeError(f"{name} is of type {type(value).__name__}, not true or false")
    return bool(value)


def _words(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    return repaired(f"{type(error).__name__}: {first}" if first else type(error).__name__)


def _class_of(error: PrefoptError) -> str:
    """Name of the nearest class of `prefopt.errors`."""
    known = (c.__name__ for c in type(error).__mro__ if c.__module__ == prefopt.errors.__name__)
    return next(known, "AgentError")
