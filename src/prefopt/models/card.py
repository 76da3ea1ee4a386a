"""The model card (README.md) of a saved model: what it was trained on, how, with which result, and how to load it.

Deterministic: the same facts give the same bytes. Values are escaped, and local paths are shortened to their last
part, because a card is what gets published.
"""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from ruamel.yaml import YAML

from prefopt.errors import StorageError
from prefopt.models.citation import Credits, TrainedObjective, bibtex, captions
from prefopt.models.locate import looks_like_path
from prefopt.records import JsonValue

_PACKAGES = ("prefopt", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DATA_SUFFIXES = {".csv", ".json", ".jsonl", ".parquet", ".txt"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """Everything a model card says."""

    method: str
    """`dpo`, `sft`, ...: also a tag."""
    paper: str
    """Authors, year and arXiv id, as in `Method.paper`."""
    objectives: tuple[TrainedObjective, ...] = ()
    """What was minimised; empty: what the method minimises by itself."""
    own: tuple[TrainedObjective, ...] = ()
    """What the method minimises when a recipe names no objective."""
    bibtex: str = ""
    """Entry to cite; empty makes one out of `paper` with what that says."""
    base_model: str
    """Hub id or folder of the model training started from."""
    title: str = ""
    """Name of the model; empty makes one from base model and method."""
    summary: str = ""
    """One sentence on the method, as in `Method.summary`."""
    is_adapter: bool = False
    hub_model_id: str | None = None
    datasets: tuple[str, ...] = ()
    """Hub ids; files are named by the ledgers."""
    ledger: Mapping[str, JsonValue] = field(default_factory=dict)
    """Of the training data: `Ledger.to_json()` (`source`, `read`, `kept`, `cut`, `dropped`, `reasons`)."""
    eval_ledger: Mapping[str, JsonValue] | None = None
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    """Settings that differ from their defaults."""
    metrics: Mapping[str, float | int] = field(default_factory=dict)
    """Final metrics."""
    license: str | None = None
    """Identifier; left out of the card unless known."""
    versions: Mapping[str, str] | None = None
    """Versions and machine, as in `env.json`; None looks the versions up."""

    @property
    def credits(self) -> Credits:
        """What there is to cite."""
        return Credits(self.method, self.paper, self.objectives, self.own)


class _LedgerRow(NamedTuple):
    use: str
    source: str
    read: str
    kept: str
    cut: str
    dropped: str
    reasons: str


def write_card(folder: Path | str, facts: CardFacts) -> Path:
    """The path of the README.md now written into `folder`.

    Raises:
        StorageError: it cannot be written.
    """
    file = Path(folder) / "README.md"
    try:
        file.write_text(render_card(facts), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write the model card {file}: {error.strerror}") from error
    return file


def render_card(facts: CardFacts) -> str:
    """The card's Markdown text with its YAML front matter."""
    environment = Environment(
        loader=PackageLoader("prefopt.models"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - Markdown, not HTML; values are escaped by `_text` and `_code`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    ledgers = {"training": facts.ledger, "evaluation": facts.eval_ledger}
    owed = facts.credits
    versions = framework_versions() if facts.versions is None else facts.versions
    return environment.get_template("model_card.md.j2").render(
        front_matter=_front_matter(facts),
        title=_text(facts.title or f"{_public(facts.base_model)} after {_training(facts)}"),
        introduction=_introduction(facts),
        snippet=_snippet(facts),
        datasets=", ".join(_code(_public(name)) for name in facts.datasets),
        ledgers=[_ledger_row(use, counts) for use, counts in ledgers.items() if counts],
        metrics=[(_code(name), _number(value)) for name, value in sorted(facts.metrics.items())],
        settings=[
            (_code(name), _code(_setting(value))) for name, value in sorted(facts.settings.items())
        ],
        versions=sorted((_text(name), _text(number)) for name, number in versions.items()),
        citations=[_text(line) for line in captions(owed)],
        bibtex=bibtex(owed, of_paper=facts.bibtex.strip()),
    )


def framework_versions() -> dict[str, str]:
    """Installed versions of prefopt and of what it runs on."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _front_matter(facts: CardFacts) -> str:
    """YAML that the hub accepts: it refuses `base_model` and `datasets` entries that are no hub ids."""
    fields: dict[str, JsonValue] = {"library_name": "peft" if facts.is_adapter else "transformers"}
    fields["pipeline_tag"] = "text-generation"
    if _is_hub_id(facts.base_model):
        fields["base_model"] = facts.base_model
    if hub_datasets := [name for name in facts.datasets if _is_hub_id(name)]:
        fields["datasets"] = list[JsonValue](hub_datasets)
    if facts.license is not None:
        fields["license"] = facts.license
    used = [facts.method] if facts.credits.of_method else []
    used += [] if facts.credits.plain else [objective.name for objective in facts.objectives]
    tags = [name.replace("_", "-") for name in dict.fromkeys(used)]
    fields["tags"] = list[JsonValue](["prefopt", *tags, *(["lora"] if facts.is_adapter else [])])
    out = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 1 << 16
    yaml.dump(fields, out)
    return out.getvalue()


def _is_hub_id(name: str) -> bool:
    return (
        _HUB_ID.fullmatch(name) is not None
        and not looks_like_path(name)
        and Path(name).suffix not in _DATA_SUFFIXES
    )


def _introduction(facts: CardFacts) -> str:
    kind = "PEFT adapter" if facts.is_adapter else "Language model"
    base = f"[`{facts.base_model}`](https://huggingface.co/{facts.base_model})"
    if not _is_hub_id(facts.base_model):
        base = _code(_public(facts.base_model))
    summary = f": {_text(facts.summary)}" if facts.summary else "."
    return f"{kind} trained from {base} with {_method(facts)}{summary}"


def _method(facts: CardFacts) -> str:
    """The method and, where they are not just its own, the objectives with their factors."""
    if facts.credits.plain:
        return _code(facts.method)
    noun = "objective" if len(facts.objectives) == 1 else "objectives"
    return f"method {_code(facts.method)} and {noun} {_sum(facts.objectives, _code)}"


def _training(facts: CardFacts) -> str:
    """The same in few words, for the title."""
    if facts.credits.plain:
        return facts.method
    objectives = _sum(facts.objectives, str)
    return f"{facts.method} with {objectives}" if facts.credits.of_method else objectives


def _sum(objectives: Sequence[TrainedObjective], show: Callable[[str], str]) -> str:
    return " + ".join(
        show(name) if weight == 1 else f"{weight:g} {show(name)}" for name, _, weight in objectives
    )


def _snippet(facts: CardFacts) -> str:
    """Python code that loads the model."""
    name = json.dumps(facts.hub_model_id or "path/to/this/folder", ensure_ascii=False)
    if facts.is_adapter:
        return "\n".join(
            [
                "from peft import AutoPeftModelForCausalLM",
                "from transformers import AutoTokenizer",
                "",
                f"model = AutoPeftModelForCausalLM.from_pretrained({name})",
                f"tokenizer = AutoTokenizer.from_pretrained({name})",
            ]
        )
    return "\n".join(
        [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"model = AutoModelForCausalLM.from_pretrained({name})",
            f"tokenizer = AutoTokenizer.from_pretrained({name})",
        ]
    )


def _ledger_row(use: str, counts: Mapping[str, JsonValue]) -> _LedgerRow:
    reasons = counts.get("reasons")
    named = reasons.items() if isinstance(reasons, dict) else ()
    return _LedgerRow(
        use=use,
        source=_code(_setting(counts.get("source"))),
        read=_setting(counts.get("read")),
        kept=_setting(counts.get("kept")),
        cut=_setting(counts.get("cut")),
        dropped=_setting(counts.get("dropped")),
        reasons=_text(", ".join(f"{reason}: {count}" for reason, count in sorted(named))),
    )


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _setting(value: JsonValue) -> str:
    if isinstance(value, str):
        return _public(value)
    if isinstance(value, list):
        return json.dumps(
            [_public(v) if isinstance(v, str) else v for v in value], ensure_ascii=False
        )
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _public(value: str) -> str:
    """Absolute and home paths without their folders, which say who trained where."""
    if value.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1] or value
    return value


def _text(value: str) -> str:
    """`value` as one line of plain Markdown: no HTML, no table breaks, no markup."""
    line = html.escape(" ".join(value.split()), quote=False)
    return re.sub(r"([\\`*\[\]|#])", r"\\\1", line)


def _code(value: str) -> str:
    """`value` as inline code, also inside a table."""
    line = " ".join(value.split()).replace("|", "\\|")
    if not line:
        return '`""`'
    longest = max((len(run) for run in re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {line} {fence}" if longest else f"`{line}`"
