"""The documentation against the code: commands, keys, columns, examples, outputs and links are what they are."""

from __future__ import annotations

import argparse
import ast
import doctest
import importlib
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pytest
from ruamel.yaml import YAML

from prefopt.cli import main as program
from prefopt.config import RunConfig, parse, sections_of
from prefopt.ledger import Ledger
from prefopt.methods.base import find_method, method_names
from prefopt.pack import prepare
from prefopt.text import columns, quality, render, rows
from prefopt.text.sources import load_preferences
from prefopt.worlds.arithmetic import ArithmeticSettings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *(ROOT / "recipes").glob("*/*.md"), ROOT / "README.md"])
KEYS = {name for method in method_names() for name in find_method(method).config.model_fields}
IN_SECTIONS = {
    key.name
    for method in method_names()
    for section in sections_of(find_method(method).config)
    for key in section.keys
}

VALUE = re.compile(r"([a-z][a-z0-9_.]*)(: |=)\S")


class Fence(NamedTuple):
    page: Path
    language: str
    text: str


def fences(page: Path) -> list[Fence]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Fence(page, language, text) for language, text in blocks]


def spans(page: Path) -> list[str]:
    """Inline code, also where a line break falls into it."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def every_fence(language: str) -> list[Fence]:
    return [fence for page in PAGES for fence in fences(page) if fence.language == language]


def commands(page: Path) -> Iterator[list[str]]:
    """Words after `prefopt` (or `-m prefopt`) in each command line of a page."""
    lines = [line for f in fences(page) if not f.language for line in f.text.splitlines()]
    for line in [*lines, *spans(page)]:
        words = line.removeprefix("$ ")
        found = re.match(r"(?:(?:accelerate launch|torchrun) .*-m )?prefopt (?=[a-z-])(.*)", words)
        if found:
            yield shlex.split(found[1], comments=True)


def parsed(words: list[str]) -> argparse.Namespace | None:
    """The arguments of a command; None for a mention without its file."""
    verb = program.load_verb(words[0])
    parser = program.VerbParser(prog=f"prefopt {verb.NAME}", allow_abbrev=False)
    verb.add_arguments(parser)
    try:
        return program._parse(parser, words[1:])
    except program.UsageError as error:
        if "arguments are required" not in str(error):
            raise
    return None


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name)


@each_page
def test_commands_exist(page: Path):
    for words in commands(page):
        if words[0].startswith("-"):
            continue
        assert words[0] in program.verb_names(), words
        if words[-1] != "--help":
            arguments = parsed(words)
            for override in getattr(arguments, "overrides", []):
                assert override.partition("=")[0].partition(".")[0] in KEYS, words


@each_page
def test_keys_written_with_a_value_exist(page: Path):
    """`key: value` and `key=value` in the running text."""
    written = {found[1] for code in spans(page) if (found := VALUE.match(code))}
    allowed = {
        "key",
        "role",
        "train",
        "loss",
        "ends",
    }  # placeholders; keys of messages and responses
    assert {key.partition(".")[0] for key in written} - KEYS - IN_SECTIONS - allowed == set()


@each_page
def test_identifiers_occur_in_the_source(page: Path):
    """A name that was changed in the code fails here until the page follows."""
    package = (ROOT / "src" / "prefopt").rglob("*.py")
    known = set(re.findall(r"\w+", "\n".join(path.read_text() for path in package)))
    foreign = {
        "save_to_disk",
        "q_proj",
        "v_proj",
        "full_chosen",
        "full_rejected",
        "top_k",
        "repetition_penalty",
    }
    named = {code for code in spans(page) if re.fullmatch(r"[a-z]\w*_\w+", code)}
    assert named - known - foreign == set()


@pytest.mark.parametrize("fence", every_fence("yaml"), ids=lambda f: name(f.page))
def test_recipes_in_pages_are_valid(fence: Fence):
    values = YAML(typ="safe", pure=True).load(fence.text)
    if "method" in values:
        parse(values, find_method(values["method"]).config)
    assert set(values) <= KEYS


@pytest.mark.parametrize("fence", every_fence("jsonl"), ids=lambda f: name(f.page))
def test_rows_in_pages_are_read(fence: Fence, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(fence.text)
    loaded = load_preferences(tmp_path / "rows.jsonl", ledger=Ledger("rows.jsonl"))
    assert loaded.preferences
    assert not {"meta"} & set(loaded.mapping.values()) or "source" in fence.text


@pytest.mark.parametrize("fence", every_fence("pycon"), ids=lambda f: name(f.page))
def test_sessions_in_pages_print_what_they_say(fence: Fence):
    session = "\n".join(f.text for f in fences(fence.page) if f.language == "pycon")
    test = doctest.DocTestParser().get_doctest(session, {}, fence.page.name, None, 0)
    runner = doctest.DocTestRunner()
    runner.run(test, out=pytest.fail)
    assert test.examples


@pytest.mark.parametrize("fence", every_fence("python"), ids=lambda f: name(f.page))
def test_imports_in_pages_exist(fence: Fence):
    for node in ast.walk(ast.parse(fence.text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert [n.name for n in node.names if not hasattr(module, n.name)] == []


@each_page
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
        assert not anchor or anchor in anchors, target


def test_page_of_keys_is_up_to_date():
    generated = runpy.run_path(str(DOCS / "keys.py"))["page"]()
    assert (DOCS / "keys.md").read_text() == generated, "run `python docs/keys.py`"
    assert all(f"| `{key}` |" in generated for key in {*KEYS, *RunConfig.model_fields})


def table_rows(page: str, heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without its two head lines."""
    section = (DOCS / page).read_text().partition(f"{heading}\n")[2]
    lines = re.findall(r"^\|.*\|$", section.split("\n## ")[0], re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_table_of_column_names_is_that_of_the_code():
    table = table_rows("data.md", "## Roles and the column names that play them")
    shown = {row[0].strip("`"): tuple(re.findall(r"`([^`]+)`", row[1])) for row in table}
    assert shown == dict(columns.ALIASES)


def test_table_of_world_settings_is_that_of_the_code():
    shown = {row[0].strip("`"): float(row[1]) for row in table_rows("worlds.md", "### Settings")}
    assert shown == asdict(ArithmeticSettings())


def test_every_reason_and_note_of_the_ledger_is_explained():
    own = [(k, v) for module in (quality, prepare) for k, v in vars(module).items()]
    texts = {value for key, value in own if key.isupper() and isinstance(value, str)}
    texts |= {render.HEADER_KEPT, render.GLUED, rows.IMPLICIT, rows.IMPLICIT_EMPTY}
    page = (DOCS / "data.md").read_text()
    assert [text for text in sorted(texts) if f"`{text}`" not in page] == []


def test_output_of_data_check_is_real(tmp_path: Path, monkeypatch, capsys):
    section = (DOCS / "data.md").read_text().partition("## Checking a file\n")[2]
    blocks = re.findall(r"^```\w*\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text(blocks[0])
    command, _, output = blocks[1].partition("\n")
    assert program.main(shlex.split(command)[2:]) == 0
    assert capsys.readouterr().out == output


def test_output_of_show_is_real(tmp_path: Path, monkeypatch, capsys):
    """The part of it that needs no tokenizer."""
    shown = next(f.text for f in fences(DOCS / "data.md") if f.text.startswith("$ prefopt show"))
    steps = "Let's think step by step.\\nStep 1: Tom has 3 * 4 = 12 apples.\\nStep 2:"
    row = (
        '{"dataset": "d", "prompt": "Tom has 3 bags of 4 apples and eats 2. How many are left?", '
        f'"initial_reason_steps": "{steps}", "chosen": " He eats 2, so 12 - 2 = 10 are left.", '
        '"rejected": " He eats 2, so 12 + 2 = 14 are left.", "full_chosen": "a", "full_rejected": "b", '
        '"answer": "10"}\n'
    )
    monkeypatch.chdir(tmp_path)
    Path("steps.jsonl").write_text(row)
    assert program.main(["show", "steps.jsonl", "--row", "1"]) == 0
    assert capsys.readouterr().out == shown.partition("\n")[2].partition("token tree")[0]


@each_page
def test_nothing_is_left_to_be_filled_in(page: Path):
    assert "<!--" not in page.read_text(encoding="utf-8")
