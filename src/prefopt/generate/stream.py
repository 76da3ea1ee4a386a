"""Many requests at a time, results as they finish: an event loop in a thread of its own that always ends.

A thread, so that requests go on while the caller works on what it got, and callers may have an event loop themselves
(notebooks). Cancelling is asyncio's, so that an interrupt does not wait for replies that are under way.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _End(NamedTuple):
    error: BaseException | None


def as_finished(
    items: Sequence[_Item],
    session: Callable[[], AbstractAsyncContextManager[Callable[[_Item], Awaitable[_Result]]]],
    *,
    concurrency: int,
) -> Iterator[_Result]:
    """Yield the result of each item as it is there, at most `concurrency` items being worked on.

    `session` is opened once inside the loop and gives the work to be done on each item. The first error of an item
    stops everything and is raised after the results that were there before it. Closing the iterator early, by an
    interrupt as well, cancels what is under way and waits for the session to close.
    """
    results: SimpleQueue[_Result | _End] = SimpleQueue()
    loop = asyncio.new_event_loop()
    task = loop.create_task(_drive(items, session, concurrency, results.put))
    thread = threading.Thread(target=_run, args=(loop, task, results.put), daemon=True)
    thread.start()
    try:
        while True:
            result = results.get()
            if not isinstance(result, _End):
                yield result
            elif result.error is not None:
                raise result.error
            else:
                return
    finally:
        with suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


async def _drive(
    items: Sequence[_Item],
    session: Callable[[], AbstractAsyncContextManager[Callable[[_Item], Awaitable[_Result]]]],
    concurrency: int,
    put: Callable[[_Result], None],
) -> None:
    waiting = iter(items)

    async def work_on(work: Callable[[_Item], Awaitable[_Result]]) -> None:
        for item in waiting:
            put(await work(item))

    async with session() as work, asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(items))):
            group.create_task(work_on(work))


def _run(
    loop: asyncio.AbstractEventLoop, task: asyncio.Task[None], put: Callable[[_End], None]
) -> None:
    end = _End(None)
    try:
        loop.run_until_complete(task)
    except asyncio.CancelledError:
        pass
    except BaseExceptionGroup as group:
        end = _End(_first(group))
    except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
        end = _End(error)
    finally:
        with suppress(Exception):
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        put(end)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
