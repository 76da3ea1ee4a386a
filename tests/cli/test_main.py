"""The command line as users meet it: help, exit codes, one line per error, nothing heavy before it is needed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.cli import main as program
from prefopt.cli.main import main, verb_names
from prefopt.cli.plan import plan_lines
from prefopt.errors import ConfigError, NonFiniteError

COMMAND = [sys.executable, "-m", "prefopt"]


def test_help_of_every_verb_imports_nothing_heavy():
    script = f"""
import sys
from prefopt.cli.main import main
assert main(["--help"]) == 0
for verb in {verb_names()}:
    assert main([verb, "--help"]) == 0, verb
heavy = {{"torch", "transformers", "pydantic", "numpy", "rich", "datasets"}} & set(sys.modules)
print("heavy", sorted(heavy))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "heavy []"


def test_overview_lists_every_verb_with_one_line(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [
        line.split()[0] for line in lines[lines.index("verbs:") + 1 :] if line.startswith("  ")
    ]
    assert listed == verb_names()
    assert {"doctor", "methods", "plan", "report", "train"} <= set(listed)
    assert all(len(line) <= 100 for line in lines)


def test_verbs_keep_the_contract():
    for name in verb_names():
        verb = program.load_verb(name)
        assert name == verb.NAME
        assert verb.HELP.splitlines()[0].endswith(".")


def test_help_of_a_verb_in_both_orders(capsys):
    assert main(["help", "train"]) == 0
    first = capsys.readouterr().out
    assert main(["train", "--help"]) == 0
    assert capsys.readouterr().out == first
    assert first.startswith("usage: prefopt train ")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("prefopt 0.")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tarin"], "error: unknown verb 'tarin': did you mean 'train'? Known: "),
        (["xyzzy"], "error: unknown verb 'xyzzy'. Known: "),
        (["train"], "error: the following arguments are required: RECIPE"),
        (["train", "r.yaml", "--resum"], "error: unrecognized arguments: --resum: did you mean --resume? "
         "(see `prefopt train --help`)"),
        (["train", "r.yaml", "--learning-rate=1"], "error: unrecognized arguments: --learning-rate=1: "
         "settings are written learning_rate=VALUE"),
        (["train", "r.yaml", "--resume", "--overwrite"], "error: argument --overwrite: not allowed with"),
        (["train", "missing.yaml"], "error: missing.yaml: no such recipe"),
        (["plan", "missing.yaml", "seed=1"], "error: missing.yaml: no such recipe"),
        (["methods", "dop"], "error: unknown method or objective 'dop': did you mean 'dpop'? Known: "),
    ],
)  # fmt: skip
def test_what_a_user_can_repair_is_one_line_and_exit_code_2(words, expected, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(expected)
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("model_name_or_path: m\n", [], "r.yaml: key 'method' is missing; set one of asft"),
        ("method: 3\n", [], "r.yaml:1: key 'method' is 3; set one of asft"),
        ("seed: 1\nmethod: dop\n", [], "r.yaml:2: unknown method 'dop': did you mean 'dpo'?"),
        (
            "method: dpo\n",
            ["method=sfft"],
            "command line: unknown method 'sfft': did you mean 'sft'?",
        ),
        (
            "method: dpo\nmodel_name_or_path: m\ntrain_file: f\n",
            ["beta=0"],
            "command line: beta is 0",
        ),
        ("method: dpo\nlr: 1\n", [], "r.yaml: 2 mistakes\n  r.yaml:2: unknown key 'lr'"),
        ("method: [dpo\n", [], "r.yaml:2: not valid YAML"),
    ],
)
def test_mistakes_in_recipes(text, words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(text, encoding="utf-8")
    assert main(["train", "r.yaml", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {expected}")


def test_options_and_overrides_mix_in_any_order():
    parser = program.VerbParser(prog="prefopt train", allow_abbrev=False)
    program.load_verb("train").add_arguments(parser)
    for words in (
        ["r.yaml", "--resume", "a=1", "b=2"],
        ["--resume", "r.yaml", "a=1", "b=2"],
        ["r.yaml", "a=1", "--resume", "b=2"],
    ):
        arguments = parser.parse_intermixed_args(words)
        assert (str(arguments.recipe), arguments.overrides) == ("r.yaml", ["a=1", "b=2"])
        assert arguments.resume


def test_bugs_are_not_dressed_up_as_user_errors():
    with pytest.raises(ValueError, match="null byte"):
        main(["train", "a\0b"])


@pytest.mark.parametrize(
    ("environment", "error", "expected"),
    [
        ({}, ConfigError("bad"), "error: bad\n"),
        ({"RANK": "0", "LOCAL_RANK": "0"}, ConfigError("bad"), "error: bad\n"),
        ({"RANK": "1", "LOCAL_RANK": "1"}, ConfigError("bad"), ""),
        ({"RANK": "8", "LOCAL_RANK": "0"}, ConfigError("bad"), "error: bad\n"),
        ({"RANK": "1"}, ConfigError("bad"), ""),
        ({"RANK": "3", "LOCAL_RANK": "3"}, NonFiniteError("nan"), "error (process 3): nan\n"),
    ],
)
def test_launches_of_many_processes_print_an_error_once_per_machine(
    environment, error, expected, monkeypatch, capsys
):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    program._print_error(error)
    assert capsys.readouterr().err == expected


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_interrupt_is_exit_code_130_without_traceback(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    os.mkfifo(recipe)
    with (
        subprocess.Popen(
            [*COMMAND, "plan", recipe],
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background jobs ignore SIGINT, and so would their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads yet
        ) as process,
        recipe.open("w"),  # returns when the command has begun to read
    ):
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break differently there")
def test_closed_pipe_is_quiet():
    with subprocess.Popen(
        [*COMMAND, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_plan_is_shown_in_words():
    plan = json.loads(
        '{"layout": "tree", "steps": 12, "pairs": 1200, "tokens_rows": 4000, "tokens_tree": 3000,'
        ' "longest": {"id": "a:7", "tokens": 1024}, "peak_memory_bytes": 1610612736,'
        ' "memory": {"weights": 536870912, "activations": 1073741824}}'
    )
    assert plan_lines(plan) == [
        ("layout", "tree"),
        ("optimiser steps", "12"),
        ("pairs", "1,200"),
        ("tokens in separate rows", "4,000"),
        ("tokens stored as trees", "3,000"),
        ("saved by sharing", "25.0%"),
        ("longest record", "1,024 tokens (a:7)"),
        ("peak memory, estimated", "1.50 GiB per process"),
        ("  weights", "512.0 MiB"),
        ("  activations", "1.00 GiB"),
    ]


def test_methods_table_and_keys(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    assert "dpo" in table
    assert 'loss_type=["dpo"]' in table
    assert "2305.18290" in table
    assert main(["methods", "dpo"]) == 0
    keys = capsys.readouterr().out
    assert "model_name_or_path" in keys
    assert "(required)" in keys
    assert "learning_rate" in keys


def test_console_script_and_module_are_the_same_program():
    script = shutil.which("prefopt", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("prefopt is not installed beside this Python")
    outputs = {
        subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        for command in ([script], COMMAND)
    }
    assert len(outputs) == 1
