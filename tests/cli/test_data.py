"""`prefopt data check` and `prefopt show`: what they print and how they exit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.cli.main import main
from prefopt.cli.show import TreeNode, tree_nodes
from prefopt.pack.tree import TokenSequence, build_tree
from tests.tiny import END, make_tokenizer

ROWS = [
    {"prompt": "What is 2 + 3? ", "chosen": "It is 5.", "rejected": "It is 6.", "source": "a"},
    {"prompt": "What is 2 + 4? ", "chosen": "It is 6.", "rejected": "It is 6.", "source": "a"},
    {"prompt": "for", "chosen": "ever and ever", "rejected": "never", "source": "b"},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_check_without_a_tokenizer(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(data)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "columns: prompt -> prompt, chosen -> chosen, rejected -> rejected, source -> meta",
        "content: 2 records, 4 responses, 2 pairs, 2 plain text prompts",
        "characters        min   median      p90      max",
        "  prompt            3        3       15       15",
        "  response          5        8       13       13",
        "tokens, cuts and sharing: add --model FOLDER",
        f"{data}: 3 rows read = 2 kept + 0 cut + 1 dropped",
        "  dropped 1: chosen equals rejected (pairs.jsonl:2)",
        "  note 1: prompt ends in a letter or digit and a response starts with one, without a space; "
        "set response_separator (pairs.jsonl:3)",
    ]


def test_check_counts_tokens(data: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(data), "--model", str(model), "--max-length", "12"]) == 0
    out = capsys.readouterr().out
    assert "tokens            min   median      p90      max\n" in out
    texts = [
        ROWS[i]["prompt"] + ROWS[i][side] + END for i in (0, 2) for side in ("chosen", "rejected")
    ]
    lengths = [len(ids) for ids in make_tokenizer()(texts)["input_ids"]]
    over = sum(n > 12 for n in lengths)
    assert (
        f"max_length=12: {over} of 4 responses do not fit; with max_length={max(lengths)} all would"
        in out
    )
    assert f"sharing: {sum(lengths)} tokens as separate rows" not in out  # the cut ones are shorter
    assert "% saved" in out
    assert "end of a response cut (pairs.jsonl:" in out


def test_strict_exits_with_2(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(data), "--strict"]) == 2
    assert "strict forbids cut and dropped rows, but there are 1" in capsys.readouterr().err


def test_user_mistakes_exit_with_2(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["data", "check", str(tmp_path / "absent.jsonl")],
        ["data", "check", str(data), "--column", "chosen"],
        ["data"],
        ["show", str(data), "--row", "9"],
        ["show", str(data), "--id", "pairs:33"],
    ):
        assert main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_separator_and_columns(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--response-separator",
        r"\n",
        "--column",
        "chosen=rejected",
        "--column",
        "rejected=chosen",
    ]
    assert main(["data", "check", str(data), *words]) == 0
    out = capsys.readouterr().out
    assert "chosen -> rejected, rejected -> chosen" in out
    assert "response_separator" not in out


def check(path: Path, rows: list[dict[str, object]], *words: str) -> int:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return main(["data", "check", str(path), *words])


def test_pairs_are_told_apart_by_their_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = [(2, 1), (1, 1), (1, 2), (None, 1), (float("nan"), None), (3, 1)]
    rows: list[dict[str, object]] = [
        {"prompt": f"{i} ", "chosen": "a", "rejected": "b", "score_chosen": c, "score_rejected": r}
        for i, (c, r) in enumerate(scores)
    ]
    assert check(tmp_path / "d.jsonl", rows) == 0
    assert (
        "\nscores: 6 pairs = 2 in order + 1 equal + 1 inverted (rejected higher) + 2 missing a score; "
        "odpo: see on_ties, on_inverted, on_missing\n"
    ) in capsys.readouterr().out
    assert check(tmp_path / "d.jsonl", rows[:1]) == 0
    assert (
        "\nscores: 1 pairs = 1 in order + 0 equal + 0 inverted (rejected higher) + 0 missing a score\n"
    ) in capsys.readouterr().out


@pytest.mark.parametrize(("pairing", "ties"), [("all", 2), ("best_vs_rest", 1)])
def test_pairing_says_what_it_leaves_out(
    pairing: str, ties: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": "q ", "responses": list("abcde"), "scores": [5, None, 1, 5, 1]},
        {"prompt": "r ", "responses": ["a", "b"], "scores": [None, 1]},
    ]
    assert check(tmp_path / "d.jsonl", rows, "--pairing", pairing) == 0
    out = capsys.readouterr().out
    assert (
        f"\npairing {pairing}: {ties} pairs of equal scores or ranks left out, "
        "2 responses in no pair for want of a score\n"
    ) in out
    assert "note 1: some pairs left out by pairing: equal scores or ranks (d.jsonl:1)\n" in out
    assert "note 2: responses without a score are in no pair (d.jsonl:1, d.jsonl:2)\n" in out


def test_gold_responses_are_counted_and_suggested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": "q ", "chosen": "a", "rejected": "b", "reference": "c"},
        {"prompt": "r ", "chosen": "a", "rejected": "b", "reference": None},
    ]
    assert check(tmp_path / "d.jsonl", rows) == 0
    out = capsys.readouterr().out
    assert (
        "  if 'reference' holds gold responses (tpo), add --column gold=reference\ncontent: " in out
    )
    assert "gold responses," not in out
    assert check(tmp_path / "d.jsonl", rows, "--column", "gold=reference") == 0
    out = capsys.readouterr().out
    assert "reference -> gold\ncontent: 2 records, 5 responses, 2 pairs" in out
    assert ", 1 gold responses, 3 ranked responses\n" in out


def test_show_text(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(data), "--id", "pairs:2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"record: pairs:2 ({data}:2)",
        "prompt: What is 2 + 4? ",
        "response 0: It is 6.",
        "response 1: It is 6.",
        "pair: 0 preferred to 1",
        "meta: source",
        "  dropped 1: chosen equals rejected (pairs.jsonl:2)",
    ]


def test_show_tree(data: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(data), "--row", "1", "--model", str(model)]) == 0
    out = capsys.readouterr().out
    assert "token tree, scored tokens in green" in out
    assert "What is 2 + 3?" in out
    assert "5.<|im_end|>  <- response 0" in out
    assert "6.<|im_end|>  <- response 1" in out
    assert "stored as a tree" in out


def test_nodes_of_a_tree() -> None:
    def chain(*tokens: int) -> TokenSequence:
        return TokenSequence(
            tokens, [i > 0 for i in range(len(tokens))], [-1] + [0] * (len(tokens) - 1)
        )

    tree = build_tree([chain(1, 2, 3), chain(1, 2, 4, 5), chain(1, 2), chain(9)])
    assert tree_nodes(tree) == [
        TreeNode(0, 2, -1, (2,)),
        TreeNode(2, 3, 0, (0,)),
        TreeNode(3, 5, 0, (1,)),
        TreeNode(5, 6, -1, (3,)),
    ]
