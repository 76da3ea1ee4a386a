import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from prefopt.errors import StorageError
from prefopt.report.page import summary_table, write_report
from tests.report.synthetic import write_three


class Page(HTMLParser):
    """Ids, addresses, headings and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"href", "src", "xlink:href", "action", "data", "srcset", "poster"}:
                self.addresses.append(value or "")

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page_text(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("report")
    return write_report(write_three(root / "runs"), root / "out" / "report.html").read_text("utf-8")


def test_nothing_outside_the_file_is_asked_for(page_text):
    page = Page(page_text)
    assert page.addresses
    assert all(address.startswith("#") or address == "data:," for address in page.addresses)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page_text)
    assert "default-src 'none'" in page_text


def test_ids_are_unique_and_links_lead_somewhere(page_text):
    page = Page(page_text)
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)


def test_sections_and_numbers(page_text):
    text = re.sub(r"\s+", " ", Page(page_text).text)
    for words in (
        "step_dpo (360 pairs, 90 steps) raised accuracy on held-out problems from 61.2% to 84.8%",
        "306 of 500",
        "Chosen responses became less likely too",
        "Pairs in the right order",
        "53.8% saved: 21,870 instead of 47,300",
        "366 read 360 kept 2 cut 4 dropped",
        "chosen equals rejected",
        "data/dpo-pairs.jsonl:3",
        "device.type",
        "10 of 60 samples, 6 the wrong way round",
    ):
        assert words in text, words


def test_the_step_that_differs_is_marked(page_text):
    assert re.search(r'<span class="same">Step \d: \d+ \+ \d+ = </span><mark>\d+</mark>', page_text)


def test_size(page_text):
    assert len(page_text) < 400_000


def test_the_same_runs_give_the_same_page(three_runs, tmp_path):
    first = write_report(three_runs, tmp_path / "a.html", title="Once").read_bytes()
    assert first == write_report(three_runs, tmp_path / "b.html", title="Once").read_bytes()
    assert b"<h1>Once</h1>" in first


@pytest.mark.parametrize(
    "name",
    [
        "run.yaml",
        "env.json",
        "data-ledger.json",
        "plan.json",
        "metrics.jsonl",
        "samples.jsonl",
        "evaluation.json",
    ],
)
def test_each_file_alone_makes_a_page(three_runs, tmp_path, name):
    lone = tmp_path / "lone"
    lone.mkdir()
    shutil.copy(three_runs[1] / name, lone / name)
    text = write_report([lone], tmp_path / "report.html").read_text("utf-8")
    assert "<h1>lone</h1>" in text
    assert {a[1:] for a in Page(text).addresses if a.startswith("#")} <= set(Page(text).ids)


def test_text_from_files_cannot_become_markup(tmp_path):
    run = tmp_path / "<script>alert(1)</script>".replace("/", "_")
    run.mkdir()
    evil = "</script><script>alert(1)</script><img src=http://x.y/z>"
    (run / "run.yaml").write_text(f'method: "{evil}"\n')
    (run / "samples.jsonl").write_text(
        f'{{"id": "{evil}", "prompt": "{evil}", "chosen": "{evil}", "margin": 1}}\n'
    )
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.7}\n')
    (run / "data-ledger.json").write_text(
        f'{{"train": {{"read": 1, "kept": "{evil}", "reasons": {{"{evil}": 1}}}}}}'
    )
    page = Page(write_report([run], tmp_path / "report.html").read_text("utf-8"))
    assert page.open.count("script") == 1
    assert "img" not in page.open
    assert all(address.startswith(("#", "data:,")) for address in page.addresses)


def test_a_folder_as_output_gets_the_usual_name(three_runs, tmp_path):
    assert write_report(three_runs[:1], tmp_path) == tmp_path / "report.html"


def test_a_page_that_cannot_be_written_leaves_nothing_behind(three_runs, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        StorageError, match=r"report '.*' cannot be written \(.*\): choose another path"
    ):
        write_report(three_runs, tmp_path / "file" / "report.html")
    assert not list(tmp_path.glob(".*"))


def test_a_run_without_a_reference_is_described_without_one(three_runs, tmp_path):
    with (three_runs[1] / "run.yaml").open("a", encoding="utf-8") as recipe:
        recipe.write("loss_type: [asft]\nloss_weights: null\n")
    page = write_report(three_runs[1:2], tmp_path / "report.html").read_text("utf-8")
    text = re.sub(r"\s+", " ", Page(page).text)
    assert "dpo with asft, 360 pairs" in text
    assert "rejected response, on the scale of asft, without a reference. Grey text" in text
    assert "under the reference" not in text
    assert "nats each" not in text


def test_summary_table(three_runs):
    base, dpo, step_dpo = summary_table(three_runs)
    assert base.cells() == ("base", "61.2%", "56.9–65.4%", "–", "–")
    assert (dpo.name, dpo.accuracy) == ("dpo", 0.782)
    assert step_dpo.cells()[1:3] == ("84.8%", "81.4–87.7%")
    assert step_dpo.margin == pytest.approx(1.35, abs=0.1)
    assert step_dpo.saved == pytest.approx(0.538, abs=1e-3)


def test_the_table_needs_no_plotting_library(three_runs):
    code = (
        "import sys; from pathlib import Path; from prefopt.report.page import summary_table; "
        f"summary_table([Path({str(three_runs[1])!r})]); "
        "sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
