"""`prefopt methods`: both tables, one method, one objective, a name that is both, a name that is neither."""

import pytest

from prefopt.cli.main import main
from prefopt.methods.base import method_names
from prefopt.objectives import objective_names


@pytest.fixture
def printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")

    def run(*words: str) -> str:
        assert main(["methods", *words]) == 0
        return capsys.readouterr().out

    return run


def cells(text: str) -> list[str]:
    """First cells of the tables' rows."""
    return [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]


def test_own_keys_are_what_sets_a_method_apart(printed):
    """Keys of objectives are listed once, not for each method that takes loss_type."""
    table = printed().partition("Objectives (")[0]
    assert table.count("loss_type=") == table.count('=["') > 1
    assert "beta=0.5" in table
    assert "cpo_alpha" not in table


def test_without_a_name_both_tables(printed):
    methods, title, objectives = printed().partition("Objectives (loss_type of pair methods)")
    assert title
    assert set(method_names()) <= set(cells(methods))
    assert [name for name in cells(objectives) if name] == objective_names()
    assert (
        "│ hinge             │ Hinge loss with a reference (SLiC-norm, RSO): asks for z >= 1 and no more."
        in objectives
    )


def test_an_objective_is_printed_whole_with_its_defaults(printed):
    lines = printed("simpo").splitlines()
    assert lines[0] == "Objective simpo"
    assert lines[1].startswith("Simple Preference Optimization: ")
    assert lines[3].startswith("``loss = -(1 - eps) * log sigma(z)")
    assert "Source: Meng et al. 2024, arXiv 2405.14734." in lines
    assert lines[-1] == "Defaults: beta=2.0, gamma=1.0, label_smoothing=0.0"


def test_what_the_learner_provides_is_no_parameter(printed):
    """beta_dpo also takes a generator and two running statistics."""
    assert printed("beta_dpo").splitlines()[-1] == "Defaults: beta=0.1, alpha=0.6, rho=0.2"


def test_a_name_of_both_shows_the_method_and_then_the_objective(printed):
    text = printed("dpo")
    method, objective = text.index("Keys of this method"), text.index("\nObjective dpo\n")
    assert text.startswith("dpo: ")
    assert method < text.index("Keys of every recipe") < objective
    assert text.rstrip().endswith("Defaults: beta=0.1")


def test_a_method_that_is_no_objective_shows_no_objective(printed):
    assert "Objective step_dpo" not in printed("step_dpo")


@pytest.mark.parametrize(
    ("name", "near"), [("simop", "simpo"), ("step-dpo", "step_dpo"), ("IPO", "ipo")]
)
def test_an_unknown_name_gets_the_nearest_of_both(name, near, capsys):
    assert main(["methods", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: unknown method or objective {name!r}: did you mean {near!r}? Known: "
    )
    assert error.count("\n") == 1
