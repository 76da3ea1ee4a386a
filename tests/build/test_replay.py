"""Acceptance A7 of DICE: sizes, disjoint prompts, draws by seed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prefopt.build.replay import count_pairs, prompt_key, question_key, replay_mix, replay_sizes
from prefopt.records import Message, Pair, Preference, Response


def pairs(count: int, kind: str, start: int = 0) -> list[Preference]:
    sides = (Response(f"{kind} yes"), Response(f"{kind} no"))
    return [
        Preference(f"{kind}{i}", f"prompt {i}", sides, (Pair(0, 1),))
        for i in range(start, start + count)
    ]


@pytest.mark.parametrize(
    ("generated", "offline", "gamma", "sizes"),
    [
        (200, 100, 0.5, (50, 50)),
        (200, 100, 0.25, (75, 25)),
        (30, 100, 0.5, (30, 30)),
        (200, 100, 0.0, (200, 0)),
        (200, 100, 1.0, (0, 100)),
        (200, 100, 0.9, (10, 90)),  # 100 * (1 - 0.9) is 9.999999999999998
        (200, 100, 0.1, (90, 10)),
        (0, 100, 0.5, (0, 0)),
        (7, 9, 0.5, (4, 4)),
    ],
)
def test_a7_sizes(generated: int, offline: int, gamma: float, sizes: tuple[int, int]) -> None:
    assert replay_sizes(generated, offline, gamma) == sizes
    mix = replay_mix(pairs(generated, "new"), pairs(offline, "old", 500), gamma=gamma, seed=0)
    assert (len(mix.generated), len(mix.offline), mix.missing) == (*sizes, 0)


def test_a7_prompts_are_unique_where_both_halves_have_the_same_ones() -> None:
    mix = replay_mix(pairs(100, "new"), pairs(100, "old"), gamma=0.5, seed=0)
    assert len(mix.records) == 100
    assert len({prompt_key(r) for r in mix.records}) == 100


def test_a7_equal_seeds_draw_equally() -> None:
    def ids(seed: int) -> list[str]:
        return [
            r.id
            for r in replay_mix(pairs(80, "new"), pairs(80, "old"), gamma=0.5, seed=seed).records
        ]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_repeated_prompts_count_once_and_what_is_lacking_is_told() -> None:
    mix = replay_mix(pairs(10, "new"), [*pairs(10, "old"), *pairs(10, "again")], gamma=0.75, seed=0)
    assert (len(mix.generated), len(mix.offline), mix.missing) == (2, 6, 0)
    few = replay_mix(pairs(10, "new"), pairs(10, "old"), gamma=0.5, seed=0)
    assert (len(few.generated), len(few.offline)) == (5, 5)
    mostly = replay_mix(pairs(2, "new"), pairs(3, "old"), gamma=0.5, seed=0)
    assert (len(mostly.generated), len(mostly.offline), mostly.missing) == (1, 1, 0)


def test_a_text_and_a_single_message_are_one_prompt() -> None:
    text = Preference("a", "Hello\n", ())
    assert prompt_key(text) == prompt_key(Preference("b", (Message("user", "Hello"),), ()))
    system = Preference("c", (Message("system", "Be brief"), Message("user", "Hello")), ())
    assert prompt_key(system) != prompt_key(text)


def test_every_record_is_in_the_mix_or_left_over() -> None:
    generated = [*pairs(3, "own"), *pairs(1, "again")]
    offline = [*pairs(5, "old"), *pairs(1, "again")]
    for gamma in (0.0, 0.25, 0.5, 1.0):
        mix = replay_mix(generated, offline, gamma=gamma, seed=1)
        assert len(mix.generated) + mix.left_over.generated == 4
        assert len(mix.offline) + mix.left_over.offline + mix.left_over.repeated == 6
        assert mix.left_over.repeated == 1


def test_single_pairs_are_drawn_as_ever() -> None:
    mix = replay_mix(pairs(12, "new"), pairs(10, "old", 6), gamma=0.5, seed=3)
    assert " ".join(r.id for r in mix.records) == (
        "new0 new4 new9 new10 new11 old7 old8 old13 old14 old15"
    )


@pytest.mark.parametrize(
    ("gamma", "generated", "offline"),
    [(0.5, 12, 12), (0.25, 18, 6), (0.75, 6, 18), (0.0, 40, 0), (1.0, 0, 24)],
)
def test_gamma_is_the_share_of_pairs_where_records_have_several(
    gamma: float, generated: int, offline: int
) -> None:
    several = [replace(r, pairs=(Pair(0, 1), Pair(0, 1))) for r in pairs(20, "new")]
    mix = replay_mix(several, pairs(24, "old", 500), gamma=gamma, seed=0)
    assert (count_pairs(mix.generated), count_pairs(mix.offline)) == (generated, offline)
    assert (len(mix.generated), mix.missing) == (generated // 2, 0)


def test_records_of_unlike_numbers_of_pairs_are_taken_whole_and_never_too_many() -> None:
    unlike = [replace(r, pairs=(Pair(0, 1),) * (1 + i % 3)) for i, r in enumerate(pairs(30, "new"))]
    for seed in range(20):
        mix = replay_mix(unlike, pairs(40, "old", 500), gamma=0.5, seed=seed)
        new = count_pairs(mix.generated)
        assert 15 <= new <= 20
        assert count_pairs(mix.offline) == new


def test_a_record_that_fits_is_found_among_those_that_do_not() -> None:
    sizes = (3, 3, 1)
    unlike = [
        replace(r, pairs=(Pair(0, 1),) * n) for r, n in zip(pairs(3, "new"), sizes, strict=True)
    ]
    mix = replay_mix(unlike, pairs(2, "old", 500), gamma=0.5, seed=0)
    assert [r.id for r in mix.generated] == ["new2"]
    assert (len(mix.offline), mix.left_over.generated) == (1, 2)
    assert not replay_mix(unlike[:2], pairs(2, "old", 500), gamma=0.5, seed=0).records


def test_prompts_with_other_tools_or_prefixes_are_others_and_one_question() -> None:
    (plain,) = pairs(1, "old")
    others = [
        plain,
        replace(plain, prefix="Step 1"),
        replace(plain, prefix="Step 2"),
        replace(plain, meta={"tools": [{"name": "search"}]}),
        replace(plain, meta={"chat_template_kwargs": {"enable_thinking": False}}),
    ]
    mix = replay_mix([], others, gamma=1, seed=0)
    assert (len(mix.offline), mix.left_over.repeated) == (5, 0)
    assert {question_key(record) for record in others} == {"prompt 0"}
    same = replace(plain, meta={"tools": [], "source": "x"})
    assert prompt_key(same) == prompt_key(plain) == "prompt 0"
