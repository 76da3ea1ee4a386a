"""`docs/objectives.md` is what the docstrings say, and every objective has its plot."""

import runpy
from pathlib import Path

import pytest

from prefopt.objectives import find_objective, objective_names

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def generator() -> dict:
    return runpy.run_path(str(DOCS / "objectives.py"))


def test_page_is_up_to_date(generator):
    assert (DOCS / "objectives.md").read_text(encoding="utf-8") == generator["page"](), (
        "run `python docs/objectives.py`"
    )


def test_every_objective_is_on_the_page_and_has_a_plot(generator):
    page = generator["page"]()
    for name in objective_names():
        assert f"\n### {name}\n" in page
        assert f"| [{name}](#{name}) |" in page
    assert {path.stem for path in (DOCS / "objectives").glob("*.png")} == set(objective_names())


def test_plots_are_small():
    assert sum(path.stat().st_size for path in (DOCS / "objectives").glob("*.png")) < 600_000


@pytest.mark.parametrize(
    ("name", "quantity"),
    [("dpo", "sums"), ("ipo", "means"), ("cpo", "both"), ("mallows", "sums"), ("wpo", "sums"), ("sft", "means"),
     ("kto", "sums"), ("simpo", "means"), ("tdpo", "sums")],
)  # fmt: skip
def test_sums_or_means(generator, name, quantity):
    assert generator["quantity"](find_objective(name)) == quantity


def test_a_docstring_out_of_form_is_refused(generator):
    def bare() -> None:
        """No formula."""

    with pytest.raises(ValueError, match="the docstring of bare has no `Name: summary`"):
        generator["documented"](bare)
