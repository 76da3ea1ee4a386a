"""The experiment scripts among the recipes: what they keep, and what their tables say."""

import runpy
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture(scope="module")
def frontier():
    return runpy.run_path(str(RECIPES / "odpo" / "frontier.py"))


@pytest.fixture(scope="module")
def compare():
    return runpy.run_path(str(RECIPES / "asft" / "compare.py"))


def row(arm, seed, kl, reward, *, beta=1.0, pairs=100):
    return {
        "arm": arm,
        "pairs": 0 if arm == "base" else pairs,
        "beta": beta,
        "seed": seed,
        "kl": {"mean": kl},
        "reward": [reward, 0, 0],
    }


ROWS = [
    *(row("base", seed, 0.0, 1.0) for seed in (0, 1)),
    *(row("dpo", seed, 1.0, 1.2 + 0.1 * seed) for seed in (0, 1)),
    *(row("odpo log 1", seed, 0.5, 1.2 + 0.1 * seed) for seed in (0, 1)),
    row("odpo log 1", 0, 2.0, 1.1, beta=2.0),
]


def test_frontier_table_by_hand(frontier):
    table = frontier["tables"](ROWS, [100], [0.5, 1.5]).splitlines()
    assert table[0].startswith("| pairs | arm | Pareto share | reward at KL 0.5 | minus DPO |")
    # DPO at 0.5 lies at sqrt(0.5) of the way from the base: 1.141 and 1.212. ODPO beats it on both seeds.
    assert table[2] == "| 100 | dpo | 0.00 | 1.177 (n = 2) | - | - | - |"
    # 1.5 is reached by seed 0 only, between 0.5 (1.2) and 2.0 (1.1), again in the square root.
    assert table[3].startswith("| 100 | odpo log 1 | 1.00 | 1.250 (n = 2) | +0.073 (+0.0")
    assert table[3].endswith("| 1.127 (n = 1) | - |")
    assert table[5].startswith(
        "What interpolation alone can do (DPO read at every other beta, row by row): nan"
    )
    assert len(table) == 6


def test_interpolation_is_measured_on_halves_of_a_curve(frontier):
    from prefopt.evals.frontier import FrontierPoint as P

    line = [P(0.0, 1.0), P(1.0, 2.0), P(4.0, 3.0), P(9.0, 4.0), P(16.0, 5.0)]
    assert frontier["interpolation"]({0: line}, 2.0) < 1e-12, "straight in the square root"
    bent = [*line[:2], P(4.0, 3.4), *line[3:]]
    # Without the bent point 3 at KL 4, with it 3.4.
    assert abs(frontier["interpolation"]({0: bent}, 4.0) - 0.4) < 1e-12


def test_frontier_is_drawn(frontier, tmp_path):
    rows = [*ROWS, row("dpo", 0, 0.1, 1.0, pairs=400), row("dpo", 1, 0.2, 1.0, pairs=400)]
    frontier["draw"](rows, [100, 400], tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_comparison_table_by_hand(compare):
    names = list(compare["COLUMNS"])
    rows = [{"arm": "sft", "seed": s, **dict.fromkeys(names, 20.0 * s)} for s in (1, 2)]
    table = compare["table"](rows).splitlines()
    assert table[2] == f"| sft | 2 |{' 30.0 (20.0 to 40.0) |' * len(names)}"
    assert len(table) == 3


@pytest.fixture(scope="module")
def steps():
    return runpy.run_path(str(RECIPES / "step_dpo" / "study.py"))


def cell(arm, seed, accuracy, *, rate=1e-4):
    rest = {"step_accuracy": 0.5, "margin": 0.1, "prefix_logp": 0.0, "chosen_logp": -1.0}
    return {"arm": arm, "seed": seed, "learning_rate": rate, "accuracy": accuracy, **rest}


def test_step_study_takes_the_rate_with_the_best_mean(steps):
    rows = [
        cell("dpo", 1000, 0.7, rate=1e-4), cell("dpo", 1001, 0.8, rate=1e-4),
        cell("dpo", 1000, 0.9, rate=2e-4), cell("dpo", 1001, 0.5, rate=2e-4),
        cell("step_dpo", 1000, 1.0, rate=3e-4),
    ]  # fmt: skip
    assert steps["best_rate"](rows, "dpo") == 1e-4


def test_step_study_tables_by_hand(steps):
    """Differences 1, 2 and 3 points: mean 2, standard error 0.577, t(2) = 4.303."""
    rows = [
        *(cell("base", s, 0.6) for s in range(3)),
        *(cell("dpo", s, 0.7) for s in range(3)),
        *(cell("step_dpo", s, 0.71 + 0.01 * s) for s in range(3)),
    ]
    text = steps["tables"](rows)
    assert "| step_dpo | 0.0001 | 72.0 ± 0.6 |" in text
    assert "| step_dpo minus dpo | +2.0 | -0.5 to +4.5 | 0.074 |" in text


def test_the_terse_writer_is_right_in_a_form_the_model_never_writes(steps):
    from prefopt.generate.base import Request, Sampling
    from prefopt.worlds.arithmetic import ArithmeticWorld

    world = ArithmeticWorld()
    (problem,) = world.problems("test", 1)
    prefix = world.solution(problem).split("Step 2:")[0] + "Step 2:"
    writer = steps["Terse"](world, [problem])
    (done,) = writer.generate([Request(f"{problem.id}/0", 0, problem.prompt, prefix)], Sampling())
    assert done.text.startswith(f" {world.values(problem)[1]}\nStep 3: ")
    assert world.grade(problem, prefix + done.text)
