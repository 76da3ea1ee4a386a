"""House rules that hold for every file: sizes, names, imports, no traces of one machine, one list of public names."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

import prefopt
from prefopt.config import RunConfig

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "prefopt"
MODULES = sorted(SOURCE.rglob("*.py"))
TEXT = {".cff", ".css", ".j2", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml", ""}

MODULE_LINES, FUNCTION_LINES = 450, 60
VAGUE_NAMES = re.compile(r"(^|_)(utils?|helpers?|managers?|misc|common)(_|$)")
ONE_MACHINE = re.compile(r"(?<![\w.}/-])/(home/(?!me\b)|mnt/|opt/|root/|tmp/|work/|Users/)\w")
"""Absolute paths that exist on somebody's machine; `me` is nobody."""

WITHOUT_TORCH = (
    "prefopt",
    "prefopt.checks",
    "prefopt.config",
    "prefopt.errors",
    "prefopt.ledger",
    "prefopt.records",
    "prefopt.text",
    "prefopt.values",
)


N = TypeVar("N", bound=ast.AST)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def every(kind: type[N]) -> Iterator[tuple[str, N]]:
    """All nodes of that kind in the package, with `file:line`."""
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, kind):
                yield f"{name_of(path)}:{getattr(node, 'lineno', 0)}", node


def files_of_the_repository() -> list[Path]:
    """What git tracks or would track; in an unpacked archive, the folders that matter."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        folders = ("src", "tests", "docs", "recipes", "benchmarks", "examples")
        found = [*ROOT.glob("*"), *(p for name in folders for p in (ROOT / name).rglob("*"))]
    return sorted(path for path in found if path.is_file())


def test_modules_are_short():
    lengths = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in MODULES}
    assert {name: n for name, n in lengths.items() if n > MODULE_LINES} == {}


def test_functions_are_short():
    functions = [*every(ast.FunctionDef), *every(ast.AsyncFunctionDef)]
    lengths = {
        f"{where} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for where, node in functions
    }
    assert {name: n for name, n in lengths.items() if n > FUNCTION_LINES} == {}


def test_names_say_what_is_inside():
    files = [name_of(p) for p in MODULES if VAGUE_NAMES.search(p.stem)]
    classes = [
        f"{where} {node.name}"
        for where, node in every(ast.ClassDef)
        if VAGUE_NAMES.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", node.name).lower())
    ]
    assert files + classes == []


def test_no_branch_on_the_method_or_loss():
    def is_choice(node: ast.expr) -> bool:
        name = getattr(node, "attr", getattr(node, "id", ""))
        return name in {"method", "method_name", "loss_type", "loss_name"}

    comparisons = [
        where
        for where, node in every(ast.Compare)
        if any(is_choice(side) for side in (node.left, *node.comparators))
        and any(isinstance(side, ast.Constant) for side in (node.left, *node.comparators))
    ]
    matches = [where for where, node in every(ast.Match) if is_choice(node.subject)]
    assert comparisons + matches == []


def test_methods_do_not_import_each_other():
    shared = {"__init__", "base"}
    files = [p for p in (SOURCE / "methods").glob("*.py") if p.stem not in shared]
    found = [
        f"{name_of(path)}:{node.lineno} imports {node.module}"
        for path in files
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("prefopt.methods.")
        and (node.module or "").split(".")[2] not in shared
    ]
    assert found == []


def test_nothing_is_left_to_do_in_the_source():
    marker = re.compile(r"\b(TOD[O]|FIXM[E]|XX[X])\b")
    found = [name_of(p) for p in MODULES if marker.search(p.read_text(encoding="utf-8"))]
    assert found == []


def test_every_setting_has_a_reader():
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for path in MODULES
        if not path.is_relative_to(SOURCE / "config")
    )
    unread = [n for n in RunConfig.model_fields if not re.search(rf"\.{n}\b", text)]
    assert unread == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_git_ignores_no_source_file():
    command = ["git", "check-ignore", "--no-index", *map(name_of, MODULES)]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ignored.stdout.splitlines() == []


def test_no_paths_of_one_machine():
    found = [
        f"{name_of(path)}:{number}: {line.strip()[:80]}"
        for path in files_of_the_repository()
        if path.suffix in TEXT
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if ONE_MACHINE.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_imported_without_torch(module):
    parts = [module]
    folder = SOURCE.joinpath(*module.split(".")[1:])
    if module != "prefopt" and folder.is_dir():
        parts += [f"{module}.{p.stem}" for p in sorted(folder.glob("*.py")) if p.stem != "__init__"]
    script = (
        "import importlib, sys\n"
        f"for part in {parts}: importlib.import_module(part)\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_public_names_exist_and_are_imported_when_used():
    homes = {name: module for module, names in prefopt._HOMES.items() for name in names}
    assert sorted([*homes, "objectives"]) == prefopt.__all__
    for name, module in homes.items():
        assert getattr(prefopt, name) is getattr(importlib.import_module(module), name)
    assert prefopt.objectives is importlib.import_module("prefopt.objectives")
    assert set(prefopt.__all__) <= set(dir(prefopt))
    assert re.fullmatch(r"\d+\.\d+\.\d+", prefopt.__version__)


def test_unknown_public_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'prefopt' has no attribute 'nothing'"):
        _ = prefopt.nothing
    assert not hasattr(prefopt, "nothing")
