"""The labelling page over real HTTP."""

import http.client
import json
import re
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from prefopt.errors import StorageError
from prefopt.judge.human import read_labels
from prefopt.label.labels import LabelStore, read_items
from prefopt.label.web import LabelServer
from tests.label.solutions import rows, write


@contextmanager
def serving(tmp_path, found=None, **options):
    items = read_items(write(tmp_path, found))
    with (
        LabelStore(tmp_path / "labels.jsonl", annotator="ann") as store,
        LabelServer(items, store, **options) as server,
    ):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Client(server)
        finally:
            server.shutdown()
            thread.join()


class Client:
    def __init__(self, server):
        self.server, self.items, self.token = server, server.items, server.token
        self.port = server.server_address[1]

    def ask(self, method, path, *, token=None, body=None, headers=None, host=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        joint = "&" if "?" in path else "?"
        given = self.token if token is None else token
        try:
            connection.request(
                method,
                f"{path}{joint}token={given}",
                body=body if body is None or isinstance(body, str) else json.dumps(body),
                headers={"Host": host or f"127.0.0.1:{self.port}", **(headers or {})},
            )
            reply = connection.getresponse()
            return reply.status, reply.read().decode(), dict(reply.getheaders())
        finally:
            connection.close()

    def json(self, method, path, **options):
        status, body, _ = self.ask(method, path, **options)
        return status, json.loads(body)

    def label(self, item, **facts):
        body = {"item": item, "digest": self.items[item].digest, "step": None, **facts}
        return self.json("POST", "/label", body=body)


@pytest.fixture
def client(tmp_path):
    with serving(tmp_path) as client:
        yield client


def test_the_page_needs_nothing_from_elsewhere(client):
    address = urlsplit(client.server.url)
    assert address.hostname == "127.0.0.1" and f"token={client.token}" in address.query
    status, page, headers = client.ask("GET", "/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert "http://" not in page and "https://" not in page and "src=" not in page
    assert client.token not in page
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    (nonce,) = re.findall(r"script-src 'nonce-([^']+)'", policy)
    assert page.count(f'nonce="{nonce}"') == 2
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"


def test_label_change_and_note(client, tmp_path):
    assert client.json("GET", "/states")[1] == {"states": ["", "", ""], "skipped": False}
    status, reply = client.label(0, verdict="wrong step", step=2, note="5 * 2 = 10")
    assert status == 200
    assert reply == {"label": {"step": 2, "verdict": "wrong step", "note": "5 * 2 = 10"}}
    on_disk = read_labels(tmp_path / "labels.jsonl").labels
    assert [(x.id, x.step, x.annotator) for x in on_disk] == [("p1/s0", 2, "ann")]
    assert client.label(0, verdict="unclear")[0] == 200
    assert client.label(2, verdict="wrong step", step=3)[0] == 200
    assert client.json("GET", "/states")[1]["states"] == ["unclear", "", "3"]
    item = client.json("GET", "/item?n=2")[1]
    assert item["label"] == {"step": 3, "verdict": "wrong step", "note": ""}
    assert item["steps"] == 3 and item["answer"] == "10" and item["hint"] == ""
    assert item["pieces"][0] == {"number": None, "text": "Let's see."}
    assert len(read_labels(tmp_path / "labels.jsonl").labels) == 3


@pytest.mark.parametrize("path", ["/", "/states", "/item?n=0", "/nothing"])
@pytest.mark.parametrize("token", ["", "wrong", "\u00e9".encode().hex()])
def test_the_wrong_token(client, path, token):
    status, body, _ = client.ask("GET", path, token=token)
    assert status == 403 and "Let's see" not in body
    assert json.loads(body)["error"] == "wrong token: open the address that was printed"


def test_posts_from_elsewhere_are_refused(client, tmp_path):
    body = {"item": 0, "digest": client.items[0].digest, "step": 1, "verdict": "wrong step"}
    cases = [
        {"token": "wrong"},
        {"host": "evil.example"},
        {"host": f"evil.example:{client.port}"},
        {"host": "192.0.2.1"},
        {"headers": {"Origin": "http://evil.example"}},
        {"headers": {"Origin": "null"}},
        {"headers": {"Origin": "http://127.0.0.1:1"}},
    ]
    for case in cases:
        assert client.json("POST", "/label", body=body, **case)[0] == 403, case
    assert (tmp_path / "labels.jsonl").read_text() == ""
    same = {"Origin": f"http://127.0.0.1:{client.port}"}
    assert client.json("POST", "/label", body=body, headers=same)[0] == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:9999", "[::1]:80", "127.0.0.1"])
def test_tunnels_may_change_the_port(client, host):
    assert client.ask("GET", "/states", host=host)[0] == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 4}, "there is no step 4; the solution has steps 1 to 3"),
        ({"step": 0}, "there is no step 0"),
        ({"step": None}, "no step is given"),
        ({"step": "2"}, "'step' has to be a whole number or null"),
        ({"step": True}, "'step' has to be a whole number or null"),
        ({"step": 1.5}, "'step' has to be a whole number or null"),
        ({"note": 7}, "'note' a text"),
        ({"verdict": "maybe"}, "unknown verdict; known are wrong step, no wrong step"),
        ({"verdict": "skip"}, "'skip' names no step, but step 1 is given"),
        ({"item": 3}, "no item 3; there are 3, from 0"),
        ({"item": -1}, "no item -1"),
        ({"item": "0"}, "no item 0"),
        ({"digest": "x"}, "the page shows other solutions than this server has"),
    ],
)
def test_bad_labels_are_refused(client, tmp_path, change, message):
    body = {"item": 0, "digest": client.items[0].digest, "step": 1, "verdict": "wrong step"}
    status, reply = client.json("POST", "/label", body={**body, **change})
    assert status == 400 and message in reply["error"]
    assert (tmp_path / "labels.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/label", "not json", 400),
        ("POST", "/label", "[]", 400),
        ("POST", "/label", "x" * 70_000, 413),
        ("POST", "/states", "{}", 404),
        ("GET", "/item?n=3", None, 404),
        ("GET", "/item?n=-1", None, 404),
        ("GET", "/item", None, 404),
        ("GET", "/../labels.jsonl", None, 404),
        ("PUT", "/label", "{}", 501),
    ],
)
def test_bad_requests(client, method, path, body, status):
    assert client.ask(method, path, body=body)[0] == status
    assert client.ask("GET", "/states")[0] == 200


def test_a_solution_without_markers(tmp_path):
    with serving(tmp_path, rows(1, "First.\nThen <script>.")) as client:
        item = client.json("GET", "/item?n=0")[1]
        assert item["steps"] == 0 and item["hint"].startswith("no markers")
        status, reply = client.label(0, verdict="wrong step", step=1)
        assert status == 400 and reply["error"].startswith("no markers")
        assert client.label(0, verdict="no wrong step")[0] == 200


def test_many_labels_at_once(tmp_path):
    with serving(tmp_path, rows(40)) as client:
        threads = [
            threading.Thread(target=client.label, args=(n,), kwargs={"verdict": "wrong step", "step": n % 3 + 1})
            for n in range(40)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    labels = read_labels(tmp_path / "labels.jsonl").labels
    assert {label.id: label.step for label in labels} == {
        f"p{n + 1}/s0": n % 3 + 1 for n in range(40)
    }


def test_thousands_of_solutions(tmp_path):
    with serving(tmp_path, rows(5000)) as client:
        status, body, _ = client.ask("GET", "/states")
        assert status == 200 and len(body) < 50_000
        assert len(client.ask("GET", "/")[1]) < 40_000


def test_a_taken_port(client, tmp_path):
    (tmp_path / "other").mkdir()
    refused = pytest.raises(StorageError, match=f"port {client.port}: .*choose another --port")
    with refused, serving(tmp_path / "other", port=client.port):
        pass


def test_listening_everywhere_takes_addresses_but_no_foreign_names(tmp_path):
    with serving(tmp_path, host="0.0.0.0") as client:  # noqa: S104 - what is tested
        assert client.server.url.startswith("http://127.0.0.1:")
        assert client.ask("GET", "/states", host="192.0.2.7:80")[0] == 200
        assert client.ask("GET", "/states", host="evil.example")[0] == 403
