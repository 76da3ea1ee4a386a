"""Comparisons of two answers: positions, ties, failures, and a run that is killed."""

import signal
import subprocess
import sys
from typing import Any, cast

import pytest

from prefopt.errors import ConfigError
from prefopt.evals.judgement import rate_table
from prefopt.generate.journal import Journal
from prefopt.generate.openai import OpenAIGenerator
from prefopt.judge.asking import Asking, Spent
from prefopt.judge.outputs import Contest, Exchange
from prefopt.judge.pairwise import PairwiseJudge
from prefopt.judge.readings import PREFERENCES
from tests.generate.server import Answer, FakeServer
from tests.judge.judged import between, compare, contest, counted, longer, shown

CONTESTS = [
    contest("a", "long enough", "short"),
    contest("b", "s", "longer"),
    contest("c", "x1", "x2"),
]


def test_both_orders_are_asked_and_a_fair_judge_is_the_same_in_both():
    found, server = compare(longer, CONTESTS)
    assert [c.verdict for c in found] == ["win", "loss", "tie"]
    assert len(server.asked) == 6
    for each in found:
        assert [s.model_first for s in each.seen] == [True, False]
        assert {s.verdict for s in each.seen} == {each.verdict}
        assert each.spent == Spent(2, 0, 0, 200, 14)
    pairs = {(between(shown(b), "answer_1"), between(shown(b), "answer_2")) for b in server.asked}
    assert {("long enough", "short"), ("short", "long enough")} <= pairs
    assert "<conversation_1>" not in shown(server.asked[0])


def test_a_judge_that_only_sees_positions_makes_ties_of_everything():
    for said, first in (("[[1]]", 100.0), ("[[2]]", 0.0)):
        found, _ = compare(lambda *_, said=said: counted(said), CONTESTS)
        assert [c.verdict for c in found] == ["tie"] * 3
        table = rate_table(found, CONTESTS, both=True)
        assert table.adjusted is not None and table.raw is not None
        assert (table.adjusted.value, table.adjusted.ties, table.adjusted.inconsistent) == (
            50.0,
            3,
            3,
        )
        assert (table.raw.value, table.raw.wins, table.raw.losses) == (50.0, 3, 3)
        assert table.first_preferred == first


def test_one_order_is_drawn_by_seed_and_id():
    contests = [contest(f"c{k}", "model", "basis!") for k in range(40)]
    orders = []
    for seed in (0, 0, 1):
        found, server = compare(longer, contests, order="random", seed=seed)
        assert [c.verdict for c in found] == ["loss"] * 40 and len(server.asked) == 40
        orders.append([c.seen[0].model_first for c in found])
    assert orders[0] == orders[1] != orders[2]
    assert 10 <= sum(orders[0]) <= 30
    alone, _ = compare(longer, contests[7:8], order="random")
    assert alone[0].seen[0].model_first == orders[0][7], "it does not depend on the other rows"


def test_equal_answers_are_a_tie_that_nobody_is_asked_about():
    (found,), server = compare(longer, [contest("a", "same", "same")])
    assert (found.verdict, found.seen, found.spent) == ("tie", (), Spent())
    assert found.when(model_first=True) == found.when(model_first=False) == "tie"
    assert server.asked == []


def test_a_verdict_missing_in_one_order_is_missing():
    def script(_: int, __: str, body: Any) -> Any:
        model_first = between(shown(body), "answer_1") == "long enough"
        return counted("no idea") if model_first else counted("[[2]]")

    (found,), _ = compare(script, CONTESTS[:1], attempts=2)
    assert found.verdict == "missing"
    assert [s.verdict for s in found.seen] == ["missing", "win"]
    assert found.remark == "no verdict to be read by the rules 'agreed'"
    assert found.spent == Spent(3, 0, 2, 300, 21)
    table = rate_table([found], CONTESTS[:1], both=True)
    assert table.adjusted is None and table.raw is not None
    assert (table.raw.value, table.raw.missing) == (100.0, 1)


def test_nothing_but_failures_gives_no_rate():
    found, _ = compare(lambda *_: Answer(422, "no"), CONTESTS)
    assert [c.verdict for c in found] == ["missing"] * 3
    assert found[0].remark == "refused: HTTP 422 (no)"
    table = rate_table(found, CONTESTS, both=True)
    assert (table.raw, table.adjusted, table.first_preferred, table.length_controlled.value) == (
        None,
    ) * 4


def test_later_turns_are_judged_with_each_side_s_own_conversation():
    model = Exchange("m", ("Q1", "Q2"), ("same", "mine"), category="math")
    base = Exchange("m", ("Q1", "Q2"), ("same", "theirs"), references=("", "ref"))
    other = Exchange("n", ("Q1", "Q2"), ("A1", "A2"))
    contests = [Contest(model, base), Contest(other, other._replace(answers=("B1", "A2")))]
    found, server = compare(longer, contests)
    assert [(c.id, c.turn, c.verdict) for c in found] == [
        ("m", 1, "tie"), ("m", 2, "loss"), ("n", 1, "tie"), ("n", 2, "tie"),
    ]  # fmt: skip
    assert len(server.asked) == 6, "equal answers after other answers are judged"
    text = next(shown(b) for b in server.asked if between(shown(b), "answer_1") == "theirs")
    assert between(text, "conversation_1") == "[user]\nQ1\n\n[assistant]\nsame"
    assert between(text, "reference") == "ref" and between(text, "question") == "Q2"
    table = rate_table(found, contests, both=True)
    math = table.by_category["math"].adjusted
    assert math is not None and math.value == 25.0


def test_length_controlled_rates_come_with_the_others():
    pytest.importorskip("sklearn")
    contests = [contest(f"c{k}", "word " * (k % 7 + 1), "word " * (k % 5 + 1)) for k in range(60)]
    found, _ = compare(longer, contests, order="random")
    table = rate_table(found, contests, both=False)
    assert table.raw is not None and table.adjusted is None
    controlled = table.length_controlled
    assert controlled.value is not None and controlled.low is not None
    assert abs(controlled.value - 50) < abs(table.raw.value - 50), "the judge sees only lengths"


def test_an_unknown_order_is_named():
    asking = Asking(OpenAIGenerator("j", base_url="http://localhost/v1"), PREFERENCES["agreed"])
    with pytest.raises(ConfigError, match="order is 'none'; use both or random"):
        PairwiseJudge(asking, order=cast("Any", "none"))


JUDGING = """
import sys
from prefopt.generate.journal import Journal
from prefopt.generate.openai import OpenAIGenerator
from prefopt.judge.asking import Asking
from prefopt.judge.outputs import Contest, Exchange
from prefopt.judge.pairwise import PairwiseJudge
from prefopt.judge.readings import PREFERENCES
contests = [
    Contest(Exchange(f"c{k}", ("Q",), (f"a{k}",)), Exchange(f"c{k}", ("Q",), ("b",))) for k in range(100)
]
with Journal(sys.argv[2]) as journal:
    asking = Asking(OpenAIGenerator("judge", base_url=sys.argv[1], concurrency=4), PREFERENCES["agreed"])
    found = PairwiseJudge(asking).compare(
        contests, journal=journal, progress=lambda d, n: print(d, flush=True)
    )
    print(sorted({x.verdict for x in found}), journal.count(), flush=True)
"""


@pytest.mark.slow
def test_a_killed_judge_goes_on_where_it_was(tmp_path):
    path = tmp_path / "j.sqlite"
    script = lambda *_: Answer(body=counted("[[1]]"), delay=0.005)  # noqa: E731
    with FakeServer(script) as server:
        command = [sys.executable, "-c", JUDGING, server.url, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            while (reported := int(child.stdout.readline())) < 60:
                pass
            child.send_signal(signal.SIGKILL)
        with Journal(path) as journal:
            held = journal.count()
        assert reported <= held < 200
        asked = len(server.asked)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "['tie'] 200"
        assert len(server.asked) - asked == 200 - held, "nothing that was held is asked again"
