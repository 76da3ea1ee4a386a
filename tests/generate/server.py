"""A real HTTP server that speaks the OpenAI protocol over a scripted writer, and fails where a test asks it to."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Body = dict[str, Any]


@dataclass
class Answer:
    """What the server does with one request."""

    status: int = 200
    body: Any = None
    """JSON, or a string that is sent as it is."""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False
    """Close the connection without a word."""


def chat(text: str | None, finish: str | None = "stop", **extra: Any) -> Body:
    message = {"role": "assistant", "content": text, **extra.pop("message", {})}
    choice = {"index": 0, "message": message, "finish_reason": finish, **extra}
    return {"object": "chat.completion", "choices": [choice], "usage": {"completion_tokens": 7}}


def plain(text: str, finish: str = "stop", **extra: Any) -> Body:
    choice = {"index": 0, "text": text, "finish_reason": finish, **extra}
    return {"object": "text_completion", "choices": [choice], "usage": {"completion_tokens": 5}}


class FakeServer:
    """Answers every POST with `script(number, path, body)`; remembers what it was asked."""

    def __init__(self, script: Callable[[int, str, Body], Answer | Body], port: int = 0) -> None:
        self.asked: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.busy = self.busiest = 0
        self._lock = threading.Lock()
        self._script = script
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(Answer(body={"data": [{"id": "tiny"}]}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer._lock:
                    outer.asked.append(body)
                    outer.headers.append({k.lower(): v for k, v in self.headers.items()})
                    number = len(outer.asked)
                    outer.busy += 1
                    outer.busiest = max(outer.busiest, outer.busy)
                try:
                    answer = outer._script(number, self.path, body)
                    answer = answer if isinstance(answer, Answer) else Answer(body=answer)
                    time.sleep(answer.delay)
                finally:
                    with outer._lock:
                        outer.busy -= 1
                if answer.drop:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                else:
                    self._send(answer)

            def _send(self, answer: Answer) -> None:
                text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
                data = text.encode()
                try:
                    self.send_response(answer.status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(data)))
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
