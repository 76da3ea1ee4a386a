"""Labelling on a web page served by this process, for one person on one machine.

Every request needs the random token of the printed address, and a Host header that names this machine, so that no other
page in the same browser can read solutions or post labels. The page asks nothing of the network.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import socket
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined

from prefopt.errors import PrefoptError, RecordError, StorageError
from prefopt.judge.human import VERDICTS
from prefopt.label.labels import NO_MARKERS, Item, LabelStore
from prefopt.progress import say

if TYPE_CHECKING:
    from prefopt.judge.human import Label
    from prefopt.values import JsonValue

_LONGEST_REQUEST = 1 << 16
"""Bytes of a posted label."""
_IDLE_SECONDS = 60
"""After which a silent connection is closed."""


class LabelServer(ThreadingHTTPServer):
    """Serves the page and saves labels; `url` is where it is.

    Args:
        items: solutions.
        store: open.
        host: address to listen on.
        port: 0 is any free one.
        skipped: the page shows what was skipped or unclear again.

    Raises:
        StorageError: the address cannot be listened on.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = (
        128  # of connections not yet accepted; with the default of 5 a burst of labels is reset
    )

    def __init__(
        self,
        items: Sequence[Item],
        store: LabelStore,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        skipped: bool = False,
    ) -> None:
        self.items, self.store, self.skipped = items, store, skipped
        self.host = host
        self.token = secrets.token_urlsafe(16)
        self.template = Environment(
            loader=PackageLoader("prefopt.label", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
        ).get_template("page.html.j2")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise StorageError(
                f"cannot serve at {host}, port {port}: {reason}; choose another --port or --host"
            ) from error

    @property
    def url(self) -> str:
        """The address with its token, for this machine."""
        shown = "127.0.0.1" if self.host in {"", "0.0.0.0"} else self.host  # noqa: S104 - only compared
        shown = "[::1]" if shown == "::" else f"[{shown}]" if ":" in shown else shown
        return f"http://{shown}:{self.server_address[1]}/?token={self.token}"

    def knows_host(self, header: str) -> bool:
        """Whether a Host header names this machine; ports may differ (they do through a tunnel).

        When listening on all addresses, any IP address will do: a page elsewhere can only come with a name.
        """
        name = (urlsplit(f"//{header}").hostname or "").lower()
        if name in {"localhost", "127.0.0.1", "::1", self.host.lower()}:
            return True
        if self.host not in {"", "0.0.0.0", "::"}:  # noqa: S104 - only compared
            return False
        return name == socket.gethostname().lower() or _is_address(name)

    def states(self) -> list[str]:
        """For each item what is known: a step's number, a verdict, or nothing."""
        labels = [self.store.label_of(item) for item in self.items]
        return ["" if x is None else str(x.step or x.verdict) for x in labels]

    def describe(self, number: int) -> dict[str, JsonValue]:
        """Everything the page shows about one item."""
        item = self.items[number]
        label = self.store.label_of(item)
        pieces: list[JsonValue] = [{"number": p.number, "text": p.text} for p in item.pieces]
        return {
            "id": item.solution.id,
            "digest": item.digest,
            "question": item.solution.question,
            "gold": item.solution.gold,
            "answer": item.solution.answer,
            "pieces": pieces,
            "steps": item.steps,
            "hint": "" if item.steps else NO_MARKERS,
            "label": None if label is None else _label_json(label),
        }

    def save(self, row: Mapping[str, JsonValue]) -> Label:
        """The saved label of a posted one.

        Raises:
            RecordError: the post makes no sense, or the item has no such step.
            StorageError: it cannot be saved.
        """
        number, step, note = row.get("item"), row.get("step"), row.get("note", "")
        if type(number) is not int or not 0 <= number < len(self.items):
            raise RecordError(f"no item {number}; there are {len(self.items)}, from 0")
        item = self.items[number]
        if row.get("digest") != item.digest:
            raise RecordError("the page shows other solutions than this server has; load it again")
        verdict = row.get("verdict")
        if verdict not in VERDICTS:
            raise RecordError(f"unknown verdict; known are {', '.join(VERDICTS)}")
        if not (step is None or type(step) is int) or not isinstance(note, str):
            raise RecordError("'step' has to be a whole number or null, and 'note' a text")
        return self.store.add(item, verdict, step=step, note=note)


class _Handler(BaseHTTPRequestHandler):
    """One request. Everything is refused before it is looked at unless host and token are right."""

    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    server: LabelServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        """The page, the states of all items, or one item."""
        address = urlsplit(self.path)
        if not self._allowed():
            return
        if address.path == "/":
            self._send_page()
        elif address.path == "/states":
            states: list[JsonValue] = [*self.server.states()]
            self._send_json({"states": states, "skipped": self.server.skipped})
        elif address.path == "/item":
            number = parse_qs(address.query).get("n", [""])[0]
            if number.isdecimal() and int(number) < len(self.server.items):
                self._send_json(self.server.describe(int(number)))
            else:
                self._fail(HTTPStatus.NOT_FOUND, f"no item {number}")
        else:
            self._fail(HTTPStatus.NOT_FOUND, "nothing here")

    def do_POST(self) -> None:
        """Save a label."""
        if not self._allowed():
            return
        if urlsplit(self.path).path != "/label":
            self._fail(HTTPStatus.NOT_FOUND, "nothing here")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _LONGEST_REQUEST:
            self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a label has at most 64 KiB")
            return
        try:
            row = json.loads(self.rfile.read(int(length)))
        except ValueError:
            row = None
        if not isinstance(row, dict):
            self._fail(HTTPStatus.BAD_REQUEST, "a label has to be one JSON object")
            return
        try:
            label = self.server.save(cast("dict[str, JsonValue]", row))
        except RecordError as error:
            self._fail(HTTPStatus.BAD_REQUEST, str(error))
        except PrefoptError as error:
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        else:
            self._send_json({"label": _label_json(label)})

    def _allowed(self) -> bool:
        """Whether host, origin and token are right; refuses otherwise."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        given = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
        if not self.server.knows_host(host):
            self._fail(HTTPStatus.FORBIDDEN, "this host is not served")
        elif origin is not None and urlsplit(origin).netloc != host:
            self._fail(HTTPStatus.FORBIDDEN, "other pages may not use this server")
        elif not secrets.compare_digest(given.encode(), self.server.token.encode()):
            self._fail(HTTPStatus.FORBIDDEN, "wrong token: open the address that was printed")
        else:
            return True
        return False

    def _send_page(self) -> None:
        nonce = secrets.token_urlsafe(12)
        page = self.server.template.render(nonce=nonce, count=len(self.server.items))
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._send(HTTPStatus.OK, page.encode(), "text/html; charset=utf-8", policy)

    def _send_json(self, row: Mapping[str, JsonValue], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(status, json.dumps(dict(row)).encode(), "application/json")

    def _fail(self, status: HTTPStatus, reason: str) -> None:
        # What the client still sends is not read, so the connection cannot be used again.
        self.close_connection = True
        self._send_json({"error": reason}, status)

    def _send(self, status: HTTPStatus, body: bytes, kind: str, policy: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        if policy:
            self.send_header("Content-Security-Policy", policy)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the address holds the token."""


def serve_labels(
    items: Sequence[Item],
    store: LabelStore,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    skipped: bool = False,
) -> None:
    """Nothing, after the person ends the server with Ctrl-C; the address is printed.

    Raises:
        StorageError: the address cannot be listened on.
    """
    with LabelServer(items, store, host=host, port=port, skipped=skipped) as server:
        if not server.knows_host("localhost") or not _is_loopback(host):
            say(f"note: {host} can be reached by other machines; who has the address can label")
        say(f"{store.summary(items)}; labels go to {store.path}")
        say(f"open {server.url}")
        say("Ctrl-C ends it; every label is on disk at once")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say(f"\n{store.summary(items)}")


def _label_json(label: Label) -> dict[str, JsonValue]:
    return {"step": label.step, "verdict": label.verdict, "note": label.note}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
