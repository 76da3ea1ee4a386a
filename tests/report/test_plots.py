import re
import xml.etree.ElementTree as ET

import numpy as np

from prefopt.report.plots import Bar, Line, draw_bars, draw_curves, draw_tokens, spread_apart
from prefopt.report.series import Series
from prefopt.report.svg import Caption, css_colour, run_colour


def curve(label: str, place: int = 0, values=(0.7, 0.5, 0.4), **kind) -> Line:
    values = np.asarray(values, float)
    return Line(label, run_colour(place), Series(np.arange(1.0, len(values) + 1), values), **kind)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("text")]  # noqa: S314 (our own drawing)


def test_curves_take_colours_and_font_from_the_page():
    svg = draw_curves([curve("dpo")], Caption("loss", "Loss", "It falls."), scale="value")
    assert "var(--run-0)" in svg
    assert "var(--grid)" in svg
    assert "#fe0" not in svg
    assert "font-family" not in svg
    assert "dpo" in texts(svg)
    assert css_colour(run_colour(None)) == "var(--run-base)"
    assert run_colour(9) == run_colour(1)


def test_a_drawing_names_no_address_and_no_date():
    svg = draw_curves([curve("dpo")], Caption("loss", "Loss", "It falls."), scale="value")
    assert "http" not in svg
    assert "metadata" not in svg
    assert "<style" not in svg


def test_a_drawing_is_described_and_repeatable():
    caption = Caption("loss", "Loss < 1 & falling", "From 0.7 to 0.4.")
    first, second = (draw_curves([curve("dpo")], caption, scale="value") for _ in range(2))
    assert first == second
    assert 'role="img" aria-labelledby="loss-title loss-description"' in first
    assert '<title id="loss-title">Loss &lt; 1 &amp; falling</title>' in first
    assert '<desc id="loss-description">From 0.7 to 0.4.</desc>' in first


def test_ids_carry_the_name_and_all_references_resolve():
    lines = [curve("dpo"), curve("", held_out=True)]
    svg = draw_curves(lines, Caption("loss", "Loss", "."), scale="value")
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("loss-") for name in ids)
    assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)) <= {
        pair for name in ids for pair in ((name, ""), ("", name))
    }


def test_labels_are_text_not_mathematics():
    svg = draw_curves([curve("cost $5$ <b> 模型")], Caption("c", "C", "."), scale="value")
    assert "cost $5$ <b> 模型" in texts(svg)


def test_long_labels_keep_their_ends():
    name = "one_of_many_runs_with_a_long_name"
    shown = texts(
        draw_curves([curve(f"{name}_1"), curve(f"{name}_2")], Caption("c", "C", "."), scale="value")
    )
    assert {"one_of_many…_long_name_1", "one_of_many…_long_name_2"} <= set(shown)


def test_many_lines_get_a_legend_with_every_label():
    lines = [curve(f"run {place}", place) for place in range(8)]
    shown = texts(draw_curves(lines, Caption("c", "C", "."), scale="value"))
    assert [label for label in shown if label.startswith("run ")] == [
        f"run {place}" for place in range(8)
    ]


def test_curves_with_nothing_finite_are_drawn_empty():
    svg = draw_curves(
        [curve("dpo", values=[np.nan, np.inf])], Caption("c", "C", "."), scale="percent", rule=0.5
    )
    assert svg.startswith("<svg")


def test_one_wild_value_does_not_flatten_the_curve():
    values = np.full(500, 0.5)
    values[250] = 1e6
    shown = texts(draw_curves([curve("dpo", values=values)], Caption("c", "C", "."), scale="value"))
    assert not any("000" in label for label in shown if label != "optimiser step")


def test_bars_carry_their_numbers():
    bars = [
        Bar("base", run_colour(None), 0.61, 0.57, 0.65, "61.0% (57.0–65.0%)"),
        Bar("dpo", run_colour(0), 0.78, None, None, "78.0%"),
    ]
    shown = texts(draw_bars(bars, Caption("b", "Accuracy", "."), proportion=True))
    assert {"base", "dpo", "61.0% (57.0–65.0%)", "78.0%", "100%"} <= set(shown)


def test_bars_below_zero():
    bars = [
        Bar("dpo", run_colour(0), -1.5, -2.0, -1.0, "−1.50"),
        Bar("base", run_colour(1), 0.0, None, None, "0"),
    ]
    assert "−1.50" in texts(draw_bars(bars, Caption("b", "Reward", "."), proportion=False))


def test_tokens_say_what_is_saved():
    svg = draw_tokens([("dpo", run_colour(0), 47_300.0, 30_412.0)], Caption("t", "Tokens", "."))
    assert "35.7% saved: 30,412 instead of 47,300" in texts(svg)


def test_labels_are_spread_no_further_than_needed():
    assert spread_apart([1.0, 5.0], gap=1.0, low=0.0, high=6.0) == [1.0, 5.0]
    assert spread_apart([1.0, 1.2, 1.4], gap=1.0, low=0.0, high=6.0) == [1.0, 2.0, 3.0]
    assert spread_apart([5.5, 5.8, 6.0], gap=1.0, low=0.0, high=6.0) == [4.0, 5.0, 6.0]
    assert spread_apart([], gap=1.0, low=0.0, high=1.0) == []
