"""Acceptance A7 of DICE: sizes, disjoint prompts, draws by seed."""

from __future__ import annotations

import pytest

from prefopt.build.replay import prompt_key, replay_mix, replay_sizes
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
