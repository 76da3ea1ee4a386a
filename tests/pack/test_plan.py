"""The packing plan: pure, complete, balanced, and independent of processes and micro-batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.pack.batch import Layout
from prefopt.pack.plan import Pack, PackLimits, Schedule, plan_steps, row_length_for, shuffled

TREE = PackLimits(Layout.TREE, items=4)


def test_literal_plan_groups_similar_lengths() -> None:
    lengths = [(5,), (100,), (6,), (90,)]
    (step,) = plan_steps(
        lengths, range(4), batch_size=4, world_size=1, limits=TREE._replace(items=2)
    )
    assert step.items == (0, 1, 2, 3)
    assert step.ranks == ((Pack(((1,), (3,))), Pack(((2,), (0,)))),)


def test_long_rows_do_not_pad_short_ones() -> None:
    """One micro-batch would cost 4 x 1000 + 256; two cost 2 x 1000 + 2 x 100 + 512."""
    lengths = [(1000,), (100,), (1000,), (90,)]
    (step,) = plan_steps(lengths, range(4), batch_size=4, world_size=1, limits=TREE)
    assert [p.items for p in step.ranks[0]] == [(0, 2), (1, 3)]


def test_token_limit_counts_padding() -> None:
    lengths = [(10,), (9,), (9,), (1,)]
    (step,) = plan_steps(
        lengths, range(4), batch_size=4, world_size=1, limits=PackLimits(Layout.TREE, 1, tokens=20)
    )
    assert [p.items for p in step.ranks[0]] == [(0, 1), (2, 3)]


def test_packed_rows_are_filled_first_fit() -> None:
    limits = PackLimits(Layout.PACKED, 1, tokens=None, row_length=128)
    lengths = [(100,), (60,), (60,), (28,), (8,)]
    (step,) = plan_steps(lengths, range(5), batch_size=5, world_size=1, limits=limits)
    assert [p.rows for p in step.ranks[0]] == [((0, 3),), ((1, 2, 4),)]


def test_processes_get_equal_numbers_of_packs_even_when_there_is_less_work() -> None:
    (step,) = plan_steps([(3,)], [0], batch_size=8, world_size=3, limits=TREE)
    assert step.ranks == ((Pack(((0,),)),), (Pack(()),), (Pack(()),))


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_every_example_once_whatever_the_split(
    sizes: list[int], batch_size: int, world_size: int, items: int, epoch: int
) -> None:
    lengths = [(n,) for n in sizes]
    order = shuffled(len(sizes), seed=1, epoch=epoch)
    steps = plan_steps(
        lengths,
        order,
        batch_size=batch_size,
        world_size=world_size,
        limits=TREE._replace(items=items),
    )
    assert [i for step in steps for i in step.items] == list(order)
    for step in steps:
        dealt = sorted(i for rank in step.ranks for pack in rank for i in pack.items)
        assert dealt == sorted(step.items)
        assert len({len(rank) for rank in step.ranks}) == 1
        assert all(len(pack.items) <= items for rank in step.ranks for pack in rank)


def schedule(**changes: object) -> Schedule:
    base = Schedule(((3,),) * 10, 4, 1, TREE, seed=0, epochs=1.0)
    return base._replace(**changes)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [(1.0, None, 3), (2.0, None, 6), (0.5, None, 2), (1.0, 7, 7)],
)
def test_total_steps(epochs: float, max_steps: int | None, expected: int) -> None:
    assert schedule(epochs=epochs, max_steps=max_steps).total_steps == expected


def test_resuming_continues_the_same_sequence() -> None:
    whole = list(schedule(epochs=3.0).from_step(0))
    assert list(schedule(epochs=3.0).from_step(5)) == whole[5:]
    assert [step for step, _ in whole] == list(range(9))
    assert whole[0][1].items != whole[3][1].items, "each epoch has its own order"


def test_digest_ignores_processes_and_micro_batches_only() -> None:
    base = schedule().digest()
    assert schedule(world_size=2, limits=TREE._replace(items=1)).digest() == base
    assert schedule(seed=1).digest() != base
    assert schedule(batch_size=5).digest() != base
    assert schedule(lengths=((3,),) * 9 + ((4,),)).digest() != base


def test_shuffled_is_a_permutation_fixed_by_seed_and_epoch() -> None:
    assert shuffled(6, seed=0, epoch=0) == shuffled(6, seed=0, epoch=0)
    assert sorted(shuffled(6, seed=0, epoch=0)) == [0, 1, 2, 3, 4, 5]
    assert len({shuffled(50, seed=s, epoch=e) for s in (0, 1) for e in (0, 1)}) == 4


def test_row_length_is_a_multiple_of_128_with_room_for_the_longest() -> None:
    limits = PackLimits(Layout.PACKED, items=3)
    assert row_length_for([(100,), (50,)], limits) == 384
    assert row_length_for([(100,), (50,)], limits._replace(tokens=64)) == 128


def staged(**changes: object) -> Schedule:
    """Ten examples in three stages that are mixed in the data."""
    return schedule(stage=(1, 2, 3, 1, 2, 1, 1, 3, 1, 2), batch_size=2, **changes)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("items", [1, 4])
def test_b5_every_example_of_a_stage_comes_before_the_next_stage(
    world_size: int, items: int
) -> None:
    """In every process, whatever the micro-batches, over all epochs."""
    plan = staged(world_size=world_size, limits=TREE._replace(items=items), epochs=3.0)
    steps = [step for _, step in plan.from_step(0)]
    stage_of_step = [{plan.stage[i] for i in step.items} for step in steps]
    assert stage_of_step == [{1}] * 9 + [{2}] * 6 + [{3}] * 3, "no batch is of two stages"
    for rank in range(world_size):
        trace = [plan.stage[i] for step in steps for pack in step.ranks[rank] for i in pack.items]
        assert trace == sorted(trace)
    seen = sorted(i for step in steps for i in step.items)
    assert seen == sorted(list(range(10)) * 3)
    assert [step.items for step in steps] == [s.items for _, s in staged(epochs=3.0).from_step(0)]


def test_b5_stages_are_shuffled_inside_by_seed_and_epoch() -> None:
    def orders(seed: int) -> list[tuple[int, ...]]:
        many = schedule(stage=(1,) * 20 + (2,) * 20, lengths=((3,),) * 40, batch_size=20, seed=seed)
        return [step.items for _, step in many._replace(epochs=2.0).from_step(0)]

    found = [*orders(0), *orders(1)]
    assert len(set(found)) == 8
    within = {tuple(i % 20 for i in order) for order in found}
    assert len(within) == 8, "stages do not share an order either"


def test_b8_a_staged_schedule_goes_on_anywhere() -> None:
    plan = staged(epochs=1.5)
    assert plan.total_steps == 5 + 3 + 2
    whole = list(plan.from_step(0))
    assert [number for number, _ in whole] == list(range(10))
    for start in range(11):
        assert list(plan.from_step(start)) == whole[start:]
    assert list(plan._replace(max_steps=4).from_step(1)) == whole[1:4]


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        ({}, [3, 5, 6]),
        ({"epochs": 3.0}, [9, 15, 18]),
        ({"epochs": 1.5}, [5, 8, 10]),
        ({"max_steps": 4}, [3, 4, 4]),
        ({"max_steps": 9}, [3, 5, 9]),
    ],
)
def test_where_stages_end(changes: dict[str, object], ends: list[int]) -> None:
    """Five, three and two examples, two a step."""
    plan = staged(**changes)
    assert plan.stage_ends() == ends
    assert plan.total_steps == ends[-1]
    last = {plan.stage[step.items[0]]: number + 1 for number, step in plan.from_step(0)}
    assert list(last.values()) == sorted(set(ends)), "as the steps themselves have it"


def test_a_run_of_one_stage_ends_with_it() -> None:
    assert schedule(epochs=2.0).stage_ends() == [6]


def test_one_stage_is_no_stage() -> None:
    plain, one = schedule(epochs=2.0), schedule(epochs=2.0, stage=(7,) * 10)
    assert one.digest() == plain.digest()
    assert list(one.from_step(0)) == list(plain.from_step(0))
    assert (
        schedule(stage=(1,) * 5 + (2,) * 5).digest() != schedule(stage=(1,) * 6 + (2,) * 4).digest()
    )
