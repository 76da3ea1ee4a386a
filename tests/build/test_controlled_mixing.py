"""Limits per question, the order of tails, the baseline of equal size, ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from prefopt.build.cuts import (
    ControlSettings,
    Cut,
    Solution,
    Solutions,
    Tail,
    Unusable,
    find_cuts,
    find_tails,
)
from prefopt.build.label_noise import label_noise
from prefopt.build.mixing import combine, limit_tails
from prefopt.text.blocks import Block, cut_points, parse_blocks, serialise
from tests.build.scripted import Task

PARTS = ("a\n", "b\n", "c\n", "d\n", "e")
SOURCE = Solution(0, PARTS, kind="lines")


def task(name: str) -> Task:
    return Task(name, f"{name}?", "1")


def tail(question: str, start: int, attempt: int = 0) -> Tail[Task]:
    return Tail(Cut(task(question), SOURCE, start), attempt, f"wrong {start}")


FOUND = [tail("q", k) for k in (1, 2, 3)] + [tail("r", k) for k in (1, 2, 3)]


def kept(found: list[Tail[Task]], settings: ControlSettings) -> list[str]:
    return [t.cut.id for t in limit_tails(found, settings, Counter())]


def test_the_limit_holds_within_each_question() -> None:
    assert kept(FOUND, ControlSettings(per_question=2)) == ["q/1", "q/2", "r/1", "r/2"]
    assert len(kept(FOUND, ControlSettings(per_question=None))) == 6


def test_b1_the_published_limit_cuts_one_question_short_and_then_none() -> None:
    compat = ControlSettings(per_question=2, compat_limit=True)
    assert kept(FOUND, compat) == ["q/1", "q/2", "r/1", "r/2", "r/3"]
    one = ControlSettings(per_question=1, compat_limit=True)
    assert kept(FOUND, one) == ["q/1", "r/1", "r/2", "r/3"]
    four = ControlSettings(per_question=4, compat_limit=True)
    assert kept(FOUND, four) == ["q/1", "q/2", "q/3", "r/1"]


def test_tails_found_early_come_first() -> None:
    found = [tail("q", 1, 2), tail("q", 2, 0), tail("q", 3, 1)]
    assert kept(found, ControlSettings(per_question=2)) == ["q/2", "q/3"]


def test_a_full_question_is_not_tried_further_and_the_result_is_the_same() -> None:
    """Stopping early saves tails; what the limit keeps does not change."""
    wrong_at = {("q", 1): 0, ("q", 2): 3, ("q", 3): 1, ("q", 4): 2, ("r", 1): 3}

    def write(cuts: Sequence[Cut[Task]], attempt: int) -> list[Tail[Task] | Unusable]:
        return [
            Tail(c, attempt, "x")
            if wrong_at.get((c.problem.id, c.start)) == attempt
            else Unusable("tails right")
            for c in cuts
        ]

    cuts = [Cut(task(q), SOURCE, k) for q in "qr" for k in (1, 2, 3, 4)]
    limited, unlimited = (
        ControlSettings(per_question=2, attempts=4),
        ControlSettings(per_question=None, attempts=4),
    )
    counts, all_counts = Counter[str](), Counter[str]()
    early = find_tails(cuts, write, limited, counts)
    late = find_tails(cuts, write, unlimited, all_counts)
    assert kept(early, limited) == kept(late, limited) == ["q/1", "q/3", "r/1"]
    assert counts["tails written"] == 23 < all_counts["tails written"] == 26
    assert counts["cut points not needed any more"] == 2


def test_cut_points_of_the_first_correct_solution() -> None:
    solutions = {"q": Solutions([SOURCE, Solution(1, ("z",))], []), "r": Solutions([], [SOURCE])}
    problems = [task("q"), task("r")]

    def starts(solution: Solution) -> range:
        return range(len(solution.parts))

    def cuts(**options: str | int) -> list[int]:
        settings = ControlSettings(**options)  # pyright: ignore[reportArgumentType]
        return [c.start for c in find_cuts(problems, solutions, starts, settings, Counter())]

    assert cuts() == [1, 2, 3, 4]
    assert cuts(start_zero="controlled") == [0, 1, 2, 3, 4]
    drawn = {cuts(cut="random", seed=seed)[0] for seed in range(40)}
    assert drawn == {1, 2, 3, 4}
    assert cuts(cut="random", seed=3) == cuts(cut="random", seed=3)


CODE_BLOCKS = (
    Block("text", "So"),
    Block("code", "print(1)"),
    Block("execution", "1"),
    Block("text", "1"),
)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (CODE_BLOCKS[3:], [0]),
        (CODE_BLOCKS[:1] + CODE_BLOCKS[3:], [0]),
        (CODE_BLOCKS[:3], [0, 1]),
        (CODE_BLOCKS, [0, 1]),
        ((*CODE_BLOCKS[:3], *CODE_BLOCKS), [0, 1, 3, 4]),
    ],
)
def test_p2_short_solutions_with_code_are_written_anew_as_a_whole_only(
    blocks: Sequence[Block], expected: list[int]
) -> None:
    """One or two blocks: nothing to keep. text, code, execution: the text; never code without its output."""
    source = Solution(0, tuple(serialise([block]) for block in blocks), kind="blocks")
    right = {"q": Solutions([source], [])}

    def starts(solution: Solution) -> list[int]:
        return cut_points(parse_blocks("".join(solution.parts)).blocks)

    counts = Counter[str]()
    settings = ControlSettings(start_zero="controlled")
    cuts = find_cuts([task("q")], right, starts, settings, counts)
    assert [c.start for c in cuts] == expected
    assert [c.front for c in cuts] == [serialise(blocks[:start]) for start in expected]
    assert counts["correct solutions too short to cut"] == (expected == [0])
    without = find_cuts([task("q")], right, starts, ControlSettings(), counts)
    assert [c.start for c in without] == expected[1:]


def test_whole_solutions_written_anew_are_dropped_controlled_or_naive() -> None:
    """4.9: the two published builders, and the third reading of the table's naive rows."""
    wrong = Solution(1, ("w",))
    solutions = {"q": Solutions([SOURCE], [wrong])}
    found = [tail("q", k) for k in (0, 1, 2)]

    def made(option: str) -> tuple[list[str], list[str]]:
        settings = ControlSettings(start_zero=option)  # pyright: ignore[reportArgumentType]
        data = combine(
            [task("q")], solutions, found, settings, Counter(), prompt_of=lambda p: p.prompt
        )
        return [r.id for r in data.naive], [r.id for r in data.controlled]

    assert made("controlled") == (["q/naive/0-1"], ["q/cut/0", "q/cut/1"])
    assert made("naive") == (["q/naive/0-1", "q/cut/0"], ["q/cut/1", "q/cut/2"])


def test_the_baseline_has_as_many_pairs_from_sampled_solutions_only() -> None:
    right = [Solution(i, (f"r{i}",)) for i in (0, 3)]
    wrong = [Solution(i, (f"w{i}",)) for i in (1, 2)]
    solutions = {"q": Solutions(right, wrong), "r": Solutions(right[:1], wrong[:1])}
    counts = Counter[str]()
    data = combine(
        [task("q"), task("r")], solutions, [tail("q", 1), tail("r", 2)], ControlSettings(), counts,
        prompt_of=lambda p: p.prompt,
    )  # fmt: skip
    assert [r.id for r in data.naive] == ["q/naive/0-1", "r/naive/0-1"]
    assert [r.id for r in data.data_equal] == [
        "q/data_equal/0-1", "r/data_equal/0-1", "q/data_equal/0-2", "q/data_equal/3-1",
    ]  # fmt: skip
    assert counts["data-equal pairs missing"] == 0
    ids = [r.id for r in (*data.mixed(), *data.data_equal)]
    assert len(set(ids)) == len(ids) == 8


def test_the_published_builder_for_mistral() -> None:
    """4.9 a: the limit counts whole solutions written anew, and no pair of sampled solutions is trained on."""
    solutions = {"q": Solutions([SOURCE], [Solution(1, ("w",)), Solution(2, ("v",))])}
    settings = ControlSettings(add_naive=False, start_zero="controlled", per_question=2)
    data = combine(
        [task("q")], solutions, [tail("q", k) for k in (0, 1, 2)], settings, Counter(), prompt_of=lambda p: p.prompt
    )  # fmt: skip
    assert [r.id for r in data.mixed()] == ["q/cut/0", "q/cut/1"]
    assert [r.id for r in data.naive] == ["q/naive/0-1"], "the data of plain DPO"
    assert len(data.data_equal) == 2


def test_held_out_questions_are_apart_before_the_baseline_is_sized() -> None:
    """Two rows of one question lie on one side; the baseline is as large as what is trained on."""
    problems = [task(name) for name in ("p4", "p11", "p0")] + [Task("again", "p11?", "1")]
    right = [Solution(i, (f"r{i}",)) for i in (0, 1)]
    wrong = [Solution(i, (f"w{i}",)) for i in (2, 3)]
    solutions = {p.id: Solutions(right, wrong) for p in problems}
    counts = Counter[str]()
    data = combine(
        problems, solutions, [tail(p.id, 1) for p in problems], ControlSettings(held_out=0.5), counts,
        prompt_of=lambda p: p.prompt,
    )  # fmt: skip
    # By b2sum -l 64 of "p4?", "p11?" and "p0?": they lie at 0.83, 0.50 (below half) and 0.77 of all digests.
    assert [r.id for r in data.mixed()] == [
        "p4/naive/0-2", "p0/naive/0-2", "p4/cut/1", "p0/cut/1",
    ]  # fmt: skip
    assert {str(r.meta["problem"]) for r in data.held_out} == {"p11", "again"} and len(
        data.held_out
    ) == 4
    assert {str(r.meta["problem"]) for r in data.data_equal} == {"p4", "p0"} and len(
        data.data_equal
    ) == 4
    assert (counts["pairs to train on"], counts["pairs held out"]) == (4, 4)
    assert counts["naive pairs"] + counts["controlled pairs"] == 8


def test_naive_pairs_are_the_first_of_each_kind() -> None:
    right = [Solution(i, (f"r{i}",)) for i in (0, 2)]
    wrong = [Solution(i, (f"w{i}",)) for i in (1, 3, 4)]
    settings = ControlSettings(naive_correct=1, naive_wrong=2)
    data = combine(
        [task("q")], {"q": Solutions(right, wrong)}, [], settings, Counter(), prompt_of=lambda p: p.prompt
    )  # fmt: skip
    assert [r.id for r in data.naive] == ["q/naive/0-1", "q/naive/0-3"]


@pytest.mark.parametrize("start", range(5))
def test_a6_front_and_tail_are_the_solution(start: int) -> None:
    assert SOURCE.front(start) + SOURCE.tail(start) == "".join(PARTS)


def test_p9_label_noise_is_the_share_of_negatives_that_a_stricter_grader_accepts() -> None:
    items = [(task("q"), text) for text in ("1", "1.0", "one", "2", "01")]
    noise = label_noise(
        items,
        used=lambda solutions: [text == problem.answer for problem, text in solutions],
        strict=lambda solutions: [text in {"1", "1.0", "01"} for _, text in solutions],
    )
    assert (noise.solutions, noise.wrong, noise.right, noise.share) == (5, 4, 2, 0.5)
    assert noise.low == pytest.approx(0.15, abs=0.001)
    nothing = label_noise(
        items[:1],
        used=lambda solutions: [True for _ in solutions],
        strict=lambda solutions: [True for _ in solutions],
    )
    assert (nothing.wrong, nothing.share) == (0, 0.0)
