"""The notebook kernel that runs inside the sandbox, together with the untrusted code. Nothing imports this module.

Its text is given to `python -c`. It takes its settings from the command line, gives up privileges, sets limits, says
hello, and then answers cells on one socket until the other side closes. It imports only what starts in no time.
Untrusted code in the same process can change anything here; the parent relies on none of it (see `exchange.py`).

A request is a token of 8 bytes, the length of the text in 8 bytes (big-endian) and a cell in UTF-8. A reply is the same
token, one letter (`o` ok, `e` raised, `m` out of memory), the length in 8 bytes and a text in UTF-8.
"""

import _ast
import _signal  # pyright: ignore[reportMissingImports] - `signal` without its enums: 5 ms less per start
import builtins
import os
import resource
import sys

RESERVE = 16 * 2**20
HELLO = bytes(8)


class Kernel:
    """One session: the names of `__main__`, the sources for tracebacks, whether a cell is running."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.module = type(sys)("__main__")
        self.module.__dict__["__builtins__"] = builtins
        self.sources: dict[str, str] = {}
        self.running = False
        self.reserve: bytearray | None = bytearray(RESERVE)

    def interrupt(self, number: int, frame: object) -> None:
        """Stop the running cell; do nothing between cells."""
        del number, frame
        if self.running:
            raise KeyboardInterrupt

    def answer(self, source: str) -> tuple[bytes, str]:
        """Letter and text of one cell's reply."""
        name = f"<cell {len(self.sources) + 1}>"
        self.sources[name] = source
        try:
            try:
                self.running = True
                return b"o", self.evaluate(source, name)
            finally:
                self.running = False
        except MemoryError as error:
            self.reserve = None
            return b"m", self.describe(error)
        except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt end the cell, not the session
            return b"e", self.describe(error)

    def evaluate(self, source: str, name: str) -> str:
        """The repr of the value of a cell's last expression, or nothing."""
        tree = compile(source, name, "exec", _ast.PyCF_ONLY_AST, dont_inherit=True)
        body: list[_ast.stmt] = tree.body  # pyright: ignore[reportAttributeAccessIssue] - "exec" gives a Module
        last = body.pop() if body and isinstance(body[-1], _ast.Expr) else None
        names = self.module.__dict__
        code = compile(tree, name, "exec", dont_inherit=True)  # pyright: ignore[reportArgumentType] - as above
        exec(code, names)  # noqa: S102 - the purpose of the sandbox
        if not isinstance(last, _ast.Expr):
            return ""
        expression = compile(_ast.Expression(last.value), name, "eval", dont_inherit=True)
        value = eval(expression, names)  # noqa: S307 - the purpose of the sandbox
        return "" if value is None else repr(value)[: self.most + 1]

    def describe(self, error: BaseException) -> str:
        """The traceback as Python prints it, without the frames of this module."""
        try:
            import linecache
            import traceback

            for name, text in self.sources.items():
                lines = [line + "\n" for line in text.split("\n")]
                linecache.cache[name] = (len(text), None, lines, name)
            trace = error.__traceback__
            while trace is not None and trace.tb_frame.f_code.co_filename == "<string>":
                trace = trace.tb_next
            shown = traceback.TracebackException(type(error), error, trace)
            frames = shown.stack
            if frames and (frames[-1].filename, frames[-1].name) == ("<string>", "interrupt"):
                frames.pop()
            return "".join(shown.format())
        except BaseException:  # noqa: BLE001 - whatever the error's own methods do, the session goes on
            return f"{type(error).__name__}: the traceback could not be shown\n"


def receive(control: int, count: int) -> bytes:
    """Exactly `count` bytes; ends the process when the other side has closed."""
    data = b""
    while len(data) < count:
        more = os.read(control, min(count - len(data), 2**20))
        if not more:
            os._exit(0)
        data += more
    return data


def send(control: int, token: bytes, letter: bytes, text: str) -> None:
    """Write one reply."""
    body = text.encode("utf-8", "backslashreplace")
    data = token + letter + len(body).to_bytes(8, "big") + body
    while data:
        data = data[os.write(control, data) :]


def flush() -> None:
    """Bring everything that was printed to the pipe."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:  # contextlib is an import more
            stream.flush()  # pyright: ignore[reportOptionalMemberAccess] - untrusted code may have put anything here
        except BaseException:  # noqa: BLE001, S112 - closed or replaced by the untrusted code; nothing is left to flush
            continue


def settle(settings: dict[str, int]) -> None:
    """Set the limits and give up every privilege; neither can be taken back."""
    for limit, key in (
        (resource.RLIMIT_AS, "memory"),
        (resource.RLIMIT_CPU, "cpu"),
        (resource.RLIMIT_NPROC, "processes"),
        (resource.RLIMIT_FSIZE, "disk"),
    ):
        if key in settings:
            resource.setrlimit(limit, (settings[key], settings[key]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "uid" in settings:
        os.setgroups([])
        os.setresgid(settings["uid"], settings["uid"], settings["uid"])
        os.setresuid(settings["uid"], settings["uid"], settings["uid"])
    os.umask(0o077)


def serve(settings: dict[str, int]) -> None:
    """Answer cells until the parent closes the socket."""
    control, process = settings["control"], os.getpid()
    os.set_inheritable(control, False)
    kernel = Kernel(settings["output"])
    sys.modules["__main__"] = kernel.module
    send(control, HELLO, b"o", "")
    while True:
        header = receive(control, 16)
        source = receive(control, int.from_bytes(header[8:], "big")).decode(
            "utf-8", "surrogatepass"
        )
        _signal.signal(_signal.SIGINT, kernel.interrupt)
        letter, text = kernel.answer(source)
        flush()
        if os.getpid() != process:  # a child that the cell forked and that ran to the cell's end
            os._exit(0)
        send(control, header[:8], letter, text[: kernel.most + 1])


def main() -> None:
    """Set up and serve. Arguments: `name=number` settings and, after `--`, folders for `sys.path`."""
    end = sys.argv.index("--")
    settings = {name: int(value) for name, _, value in (a.partition("=") for a in sys.argv[1:end])}
    sys.path[:] = [*(folder for folder in sys.path if folder), *sys.argv[end + 1 :]]
    sys.argv = [""]
    settle(settings)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(  # pyright: ignore[reportAttributeAccessIssue] - text streams at start
            encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
    builtins.exit = builtins.quit = sys.exit  # what `site` would provide
    serve(settings)


main()
