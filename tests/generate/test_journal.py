"""The journal: what is committed is never lost and never made twice."""

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefopt.errors import RecordError, StorageError
from prefopt.generate.base import Completion, Request, Sampling
from prefopt.generate.journal import Held, Journal, Series, complete


class Digester:
    """A generator whose text is a digest of what it depends on; it remembers what it was asked for."""

    def __init__(self, identity: str = "model-1") -> None:
        self.identity = identity
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        for request in reversed(requests):
            self.asked.append(request)
            yield Completion(request.id, request.sample, text_of(request), "stop", 8)


def text_of(request: Request) -> str:
    return hashlib.sha256(f"{request.id}/{request.sample}".encode()).hexdigest() + " é\n\0"


def requests(count: int) -> list[Request]:
    return [Request(f"r{i // 4}", i % 4, f"prompt {i // 4}") for i in range(count)]


def test_a_second_run_repeats_nothing_and_returns_the_same_in_order(tmp_path):
    first, second, sampling = Digester(), Digester(), Sampling(temperature=1.0)
    with Journal(tmp_path / "new" / "build.sqlite") as journal:
        done = complete(first, requests(8), sampling, journal)
    assert [c.text for c in done] == [text_of(r) for r in requests(8)]
    with Journal(tmp_path / "new" / "build.sqlite") as journal:
        assert complete(second, requests(12), sampling, journal)[:8] == done
        assert journal.count() == 12
    assert second.asked == requests(12)[:7:-1]


def test_what_a_journal_holds_and_whether_it_is_of_strangers_only(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        assert journal.held() == Held(0, 0, 0) and journal.strangers("model-1") == 0
        complete(Digester("model-1"), requests(5), Sampling(), journal)
        series = Series("model-1", "judge", "s")
        journal.append(series, Completion("a", 0, "t", "stop", 3, prompt_tokens=40), "p")
        assert journal.held() == Held(6, 40, 43)
        assert [journal.strangers(name) for name in ("model-1", "model-2")] == [0, 6]
        complete(Digester("model-2"), requests(1), Sampling(), journal)
        assert journal.strangers("model-2") == 0, "what it holds is of both"


def test_without_a_journal_everything_is_made():
    generator = Digester()
    assert len(complete(generator, requests(3), Sampling())) == 3
    assert len(complete(generator, requests(3), Sampling())) == 3
    assert len(generator.asked) == 6


@pytest.mark.parametrize(
    ("generator", "request_", "sampling"),
    [
        (Digester("model-2"), Request("a", 0, "p"), Sampling()),
        (Digester(), Request("b", 0, "p"), Sampling()),
        (Digester(), Request("a", 1, "p"), Sampling()),
        (Digester(), Request("a", 0, "q"), Sampling()),
        (Digester(), Request("a", 0, "p", "Step 1:"), Sampling()),
        (Digester(), Request("a", 0, "p"), Sampling(purpose="other")),
        (Digester(), Request("a", 0, "p"), Sampling(seed=1)),
    ],
)
def test_everything_a_completion_depends_on_is_its_key(tmp_path, generator, request_, sampling):
    with Journal(tmp_path / "j.sqlite") as journal:
        complete(Digester(), [Request("a", 0, "p")], Sampling(), journal)
        complete(generator, [request_], sampling, journal)
        assert generator.asked[-1] == request_
        assert journal.count() == 2


def test_progress_starts_with_what_is_there(tmp_path):
    seen = []
    with Journal(tmp_path / "j.sqlite") as journal:
        complete(Digester(), requests(2), Sampling(), journal)
        report = lambda done, total: seen.append((done, total))  # noqa: E731
        complete(Digester(), requests(4), Sampling(), journal, progress=report)
    assert seen == [(2, 4), (3, 4), (4, 4)]


def test_the_same_sample_twice_is_refused():
    message = "record 'a': sample 0 is asked for twice; ids must be unique within a data set"
    with pytest.raises(RecordError, match=message):
        complete(Digester(), [Request("a", 0, "p"), Request("a", 0, "q")], Sampling())


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_journal import Digester, requests
from prefopt.generate.base import Sampling
from prefopt.generate.journal import Journal, complete

def report(done, total):
    print(done, flush=True)

with Journal(Path(sys.argv[1])) as journal:
    complete(Digester(), requests(100_000), Sampling(), journal, progress=report)
"""


@pytest.mark.slow
def test_killed_runs_lose_nothing_and_repeat_nothing(tmp_path):
    path = tmp_path / "build.sqlite"
    script = textwrap.dedent(WRITER).format(tests=str(Path(__file__).parent))
    held = 0
    for stop_after in (50, 400, 120):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            reported = int(child.stdout.readline())
            assert reported == held
            while reported < held + stop_after:
                reported = int(child.stdout.readline())
            os.kill(child.pid, signal.SIGKILL)
        with Journal(path) as journal:
            assert journal.count() >= reported
            held = journal.count()
            rows = journal.series(Series("model-1", "generate", Sampling().digest()))
        assert len(rows) == held
    count = sqlite3.connect(path).execute(
        "SELECT count(*), count(DISTINCT request || '/' || sample) FROM completions"
    )
    assert count.fetchone() == (held, held)
    generator = Digester()
    with Journal(path) as journal:
        done = complete(generator, requests(100_000)[-held - 40 :], Sampling(), journal)
    assert len(generator.asked) == 40
    assert [c.text for c in done] == [text_of(r) for r in requests(100_000)[-held - 40 :]]


def test_two_processes_may_write_the_same_file(tmp_path):
    with Journal(tmp_path / "j.sqlite") as first, Journal(tmp_path / "j.sqlite") as second:
        complete(Digester(), requests(4), Sampling(), first)
        complete(Digester(), requests(6), Sampling(), second)
        first.append(Series("a", "b", "c"), Completion("x", 0, "1", "stop", 1), "p")
        second.append(Series("a", "b", "c"), Completion("x", 0, "2", "stop", 1), "p")
        assert first.count() == 7
        assert first.series(Series("a", "b", "c"))["x", 0, "p"].text == "1"


def test_a_file_that_is_no_database_is_named(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("these are notes, " * 100)
    with pytest.raises(
        StorageError, match=r"notes.txt: not a readable journal .*move the file away"
    ):
        Journal(path)
    assert path.read_text().startswith("these are notes")


def test_a_foreign_database_is_left_alone(tmp_path):
    path = tmp_path / "photos.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (id)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="this SQLite file is not a prefopt journal"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_damaged_journal_is_named(tmp_path):
    path = tmp_path / "build.sqlite"
    with Journal(path) as journal:
        complete(Digester(), requests(400), Sampling(), journal)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with (
        pytest.raises(StorageError, match=r"build.sqlite: not a readable journal"),
        Journal(path) as j,
    ):
        complete(Digester(), requests(400), Sampling(), j)


def test_a_journal_of_another_format_is_refused(tmp_path):
    path = tmp_path / "build.sqlite"
    Journal(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(StorageError, match="journal format 9, this version reads 1"):
        Journal(path)


VERSION_1 = """
CREATE TABLE completions (
    generator TEXT NOT NULL, purpose TEXT NOT NULL, sampling TEXT NOT NULL, request TEXT NOT NULL,
    sample INTEGER NOT NULL, prompt TEXT NOT NULL, text TEXT NOT NULL, finish_reason TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    UNIQUE (generator, purpose, sampling, request, sample, prompt)
);
INSERT INTO completions VALUES ('g', 'p', 's', 'a', 0, 'd', 'old', 'stop', 3);
PRAGMA application_id = 1885761386;
PRAGMA user_version = 1;
"""


def test_a_journal_of_version_1_is_brought_up_to_date(tmp_path):
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(VERSION_1)
    connection.close()
    series = Series("g", "p", "s")
    new = Completion("b", 0, "new", "stop", 2, "\n")
    with Journal(path) as first, Journal(path) as second:
        first.append(series, new, "d")
        assert second.series(series) == {
            ("a", 0, "d"): Completion("a", 0, "old", "stop", 3, None),
            ("b", 0, "d"): new,
        }


def test_a_journal_of_version_2_is_brought_up_to_date_and_keeps_tokens_of_prompts(tmp_path):
    path = tmp_path / "old.sqlite"
    columns = "tokens INTEGER NOT NULL, stopped_by TEXT"
    old = VERSION_1.replace("tokens INTEGER NOT NULL", columns).replace("3);", "3, '!');")
    with sqlite3.connect(path) as connection:
        connection.executescript(old.replace("user_version = 1", "user_version = 2"))
    connection.close()
    series = Series("g", "p", "s")
    new = Completion("b", 0, "new", "stop", 2, None, 40)
    with Journal(path) as first:
        first.append(series, new, "d")
    with Journal(path) as second:
        assert second.find(series, [("a", 0, "d"), ("b", 0, "d")]) == {
            ("a", 0, "d"): Completion("a", 0, "old", "stop", 3, "!", 0),
            ("b", 0, "d"): new,
        }


def test_refusals_are_returned_but_not_kept(tmp_path):
    class Refusing(Digester):
        def generate(self, requests, sampling):
            for r in requests:
                self.asked.append(r)
                yield Completion(r.id, r.sample, "HTTP 400", "error", 0)

    generator = Refusing()
    with Journal(tmp_path / "j.sqlite") as journal:
        for _ in range(2):
            assert complete(generator, requests(3), Sampling(), journal)[2].text == "HTTP 400"
        assert journal.count() == 0
    assert len(generator.asked) == 6


def test_threads_may_share_a_journal(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:

        def write(writer: int) -> None:
            for k in range(200):
                journal.append(
                    Series("g", "p", str(writer)), Completion(f"{k}", 0, "t", "stop", 1), "d"
                )
                journal.series(Series("g", "p", "0"))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        assert journal.count() == 1600


def test_a_full_disk_keeps_what_was_written(tmp_path):
    path = tmp_path / "build.sqlite"
    with Journal(path) as journal:
        # SQLite's own limit on the file's pages fails in the same way as a file system without space.
        journal._connection.execute("PRAGMA max_page_count = 40")
        with pytest.raises(StorageError, match="the disk is full; free some space"):
            complete(Digester(), requests(4000), Sampling(), journal)
        written = journal.count()
    assert 100 < written < 4000
    generator = Digester()
    with Journal(path) as journal:
        complete(generator, requests(4000), Sampling(), journal)
    assert len(generator.asked) == 4000 - written


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot open the journal"):
        Journal(tmp_path / "file" / "j.sqlite")
    with pytest.raises(StorageError, match="cannot open the journal"):
        Journal(tmp_path)


class Surrogates(Digester):
    """Writes half of a surrogate pair into every text, and refuses the last request."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        *written, refused = super().generate(requests, sampling)
        for completion in written:
            yield completion._replace(text="a\ud83d😀\udc00")
        yield refused._replace(text="no \ud83d", finish_reason="error")


def test_lone_surrogates_are_replaced_alike_in_memory_and_in_the_file(tmp_path):
    generator, texts = Surrogates(), ["no \ufffd", "a\ufffd😀\ufffd", "a\ufffd😀\ufffd"]
    assert [c.text for c in complete(generator, requests(3), Sampling())] == texts
    with Journal(tmp_path / "j.sqlite") as journal:
        assert [c.text for c in complete(generator, requests(3), Sampling(), journal)] == texts
    with Journal(tmp_path / "j.sqlite") as journal:
        held = complete(Digester(), requests(3)[1:], Sampling(), journal)
    assert [c.text for c in held] == texts[1:]
