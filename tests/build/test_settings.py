"""Sections of a recipe that make data: what is refused, in one line that names section, key, value and place."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.build.agents import AgentBuild
from prefopt.build.controlled_pairs import ControlledBuild
from prefopt.build.settings import BuildSection
from prefopt.config import load_recipe, parse, write_recipe
from prefopt.errors import ConfigError
from prefopt.methods.base import build, find_method
from prefopt.methods.scdpo import ScdpoConfig
from prefopt.methods.step_dpo import StepDpoConfig

STEP = """\
method: step_dpo
model_name_or_path: m
build:
  problems: p.jsonl
  judge:
    by: labels
"""
CONTROLLED = """\
method: scdpo
model_name_or_path: m
build:
  problems: p.jsonl
  code:
    max_calls: 8
"""


def read(text: str, folder: Path, *overrides: str) -> StepDpoConfig | ScdpoConfig:
    path = folder / "r.yaml"
    path.write_text(text)
    raw = load_recipe(path, overrides)
    return parse(raw, find_method(str(raw["method"])).config)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        (STEP, "build.smples=3", "command line: build: unknown key 'smples': did you mean 'samples'?"),
        (STEP, "build.samples=x", 'command line: build: samples is "x"; expected a whole number >= 1'),
        (STEP, "build.judge.rules=officcial", 'command line: build.judge: rules is "officcial"; expected one of '
         "corrected, official: did you mean 'official'?"),
        (STEP, "build.judge.by=writer", "command line: build.judge: by: writer and the key writer belong together: "
         "set both or none"),
        (STEP, "build.judge.threshold=0", "command line: build.judge: threshold is 0; expected a number > 0 and <= 1"),
        (STEP, "build.writer={server: http://127.0.0.1:1/v1}", "build.writer: server and model belong together: "
         "set both or none"),
        (STEP, "build.writer={}", "build.writer: set either model_name_or_path or server (with model)"),
        (STEP, "build.source=other", "build: source: other and the key corrector belong together: set both or none"),
        (STEP, "build.style=qwen2-bxed",
         "build: style: unknown prompt style 'qwen2-bxed': did you mean 'qwen2-boxed'?"),
        (STEP, "build.problems=null", "build: problems is null; expected text or a list of text"),
        (STEP, "build.problems=[]", "build: problems: the list is empty; name a file of problems"),
        (STEP, "build={problems: p.jsonl, temperature: 0, samples: 1, corrections: 1, judge: {by: rollouts}}",
         "build: temperature 0 makes all roll-outs the same: raise it, or choose another judge"),
        (CONTROLLED, "build.code.max_cals=3",
         "command line: build.code: unknown key 'max_cals': did you mean 'max_calls'?"),
        (CONTROLLED, "build.schedule=papr",
         "build: schedule: unknown temperature schedule 'papr': did you mean 'paper'?"),
        (CONTROLLED, "build.schedule=[1.1, 0.1, 1.0]", "build: schedule: [1.1, 0.1, 1.0] is no schedule; write [start, "
         "step, cap] with 0 < start <= cap"),
        (CONTROLLED, "build.schedule=-1", "build: schedule"),
        (CONTROLLED, "build.max_samples=2",
         "build: controlled pairs: max_samples is 2; use at least samples (4), or none"),
        (CONTROLLED, "build={problems: p.jsonl, compat_limit: true, start_zero: controlled}",
         "build: controlled pairs: compat_limit is True; with start_zero 'controlled' it has no effect"),
        (CONTROLLED, "build={problems: p.jsonl, compat_limit: true, per_question: null}",
         "build: controlled pairs: compat_limit is True; without per_question it has no effect: remove it"),
        (CONTROLLED, "build={problems: p.jsonl, add_naive: false, start_zero: naive}",
         "build: controlled pairs: add_naive is False; start_zero 'naive' makes naive pairs, which would be left out"),
    ],
)  # fmt: skip
def test_mistakes_in_sections(text: str, override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read(text, tmp_path, override)
    said = str(error.value)
    assert message in said.replace(f"{tmp_path}/", "") and "\n" not in said


@pytest.mark.parametrize(
    ("override", "tokens"),
    [
        ("build.seed=0", 512),
        ("build={problems: p.jsonl}", 1024),
        ("build.max_new_tokens=7", 7),
        ("build={problems: p.jsonl, max_new_tokens: 7}", 7),
    ],
)
def test_the_length_of_solutions_and_of_blocks(override: str, tokens: int, tmp_path: Path) -> None:
    """By default that of each pipeline: 512 tokens of a block, 1024 of a chain of thought."""
    section = read(CONTROLLED, tmp_path, override).build
    assert isinstance(section, ControlledBuild)
    made = section.code_settings(section.code) if section.code else section.text_settings()
    assert made.max_new_tokens == tokens


def test_the_files_that_decide_what_is_built(tmp_path: Path) -> None:
    """Their content is compared before training (`changes_since`)."""
    several = read(STEP, tmp_path, "build.problems=[a.jsonl, b.jsonl]").build
    assert several is not None
    assert several.inputs() == ["a.jsonl", "b.jsonl", "data/step_dpo/labels.jsonl"]
    labels = read(STEP, tmp_path, "build.judge.labels=l.jsonl").build
    assert labels is not None and labels.inputs() == ["p.jsonl", "l.jsonl"]
    agents = AgentBuild(environment="rooms", experts="e.jsonl")
    assert agents.inputs() == ["e.jsonl"] and AgentBuild(environment="rooms").inputs() == []


def test_sections_are_written_back(tmp_path: Path) -> None:
    config = read(CONTROLLED, tmp_path, "build.schedule=[1.0, 0.1, 1.2]")
    write_recipe(config, tmp_path / "run.yaml")
    again = parse(load_recipe(tmp_path / "run.yaml"), find_method("scdpo").config)
    assert again == config


def test_the_built_pairs_are_the_training_data(tmp_path: Path) -> None:
    config = read(STEP, tmp_path)
    assert config.built_file == "data/step_dpo/pairs.jsonl"
    assert isinstance(config.build, BuildSection)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("method: dpo\nmodel_name_or_path: m\ntrain_file: d.jsonl\n",
         r"method dpo makes no data of its own; methods that do: (\w+, )*scdpo, step_dpo"),
        ("method: scdpo\nmodel_name_or_path: m\ntrain_file: d.jsonl\n",
         "method scdpo: the recipe has no section `build`"),
    ],
)  # fmt: skip
def test_nothing_to_build(recipe: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        build(read(recipe, tmp_path))
