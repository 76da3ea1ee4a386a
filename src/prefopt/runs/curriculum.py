"""The curriculum of a recipe: data read, pairs measured, stages written, and found again when a run is resumed.

What is in its folder is said in `curriculum_folder.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from prefopt.build.curriculum import Curriculum, make_curriculum
from prefopt.build.listed_pairs import require_annotated
from prefopt.build.stages import CurriculumRules
from prefopt.config import RunConfig
from prefopt.errors import ConfigError, RecordError, ResumeError
from prefopt.progress import say
from prefopt.records import Preference, preference_to_json, write_preferences
from prefopt.runs.chain import earlier_links, finish_removals, require_no_chain
from prefopt.runs.curriculum_folder import (
    FOLDER,
    HELD_OUT,
    INDEX,
    keep_earlier,
    remove_files,
    settle,
)
from prefopt.runs.difficulty import Difficulty, basis_of, measure_of, unfit_of
from prefopt.runs.setup import Records, input_paths, read_records
from prefopt.train.folder import RunFolder, open_folder
from prefopt.train.terms import Demands
from prefopt.values import JsonValue

_T = TypeVar("_T")


class CurriculumFiles(NamedTuple):
    """What a curriculum is written to."""

    stages: list[Path]
    """A file per stage, in the order of training."""
    held_out: Path | None
    """The evaluation data as records; None where the recipe names none."""


def alone_in_folder(config: RunConfig, work: Callable[[], _T]) -> _T:
    """What `work` returns, with output_dir locked and known to have room for a run of this recipe.

    Raises:
        ResumeError: another process works there, or it holds a run that is neither resumed nor overwritten, or one of
            several trainings that is resumed.
    """
    folder = RunFolder(Path(config.output_dir))
    folder.acquire()
    try:
        if config.resume_from_checkpoint:
            require_no_chain(folder)
            finish_removals(folder)
        else:
            overwrite = config.overwrite_output_dir
            for each in (folder, *earlier_links(folder)):
                open_folder(each, resume=False, overwrite=overwrite, inputs=input_paths(config))
        return work()
    finally:
        folder.release()


def write_curriculum(
    config: RunConfig,
    rules: CurriculumRules,
    difficulty: Difficulty,
    demands: Demands,
    device: torch.device,
) -> CurriculumFiles:
    """The files of all stages and of the evaluation data; a run that is resumed gets those that are there.

    Called with output_dir locked. Those of a run that is written over are kept until `settle_earlier` is called.

    Args:
        config: the recipe.
        rules: which pairs there are, and in which stages.
        difficulty: how easy pairs are.
        demands: what the objectives need; pairs without it are left out.
        device: where models that say how easy pairs are are put.

    Raises:
        ResumeError: those that are there were made otherwise, or are damaged.
        ConfigError: the recipe reads a file that would be written over.
        RecordError: a row is wrong, or has no score and `on_missing` is `error`.
    """
    top = Path(config.output_dir)
    folder = top / FOLDER
    _refuse_own_files(folder, config)
    settle(top)
    records = read_records(config, evaluation=False, pairing=None, speak=True)
    held_out = _read_held_out(config, rules)
    basis = _basis(config, rules, difficulty, records, held_out)
    if config.resume_from_checkpoint and (folder / INDEX).exists():
        return _found(folder, basis)
    unread = records.ledger.reasons
    made = make_curriculum(
        records.preferences,
        measure_of(difficulty, config, device),
        rules,
        records.ledger,
        unfit=unfit_of(config, demands, records.ledger.source),
    )
    records.ledger.enforce(strict=config.strict)
    keep_earlier(top)
    made = made._replace(counts={**unread, **made.counts})
    return _write(folder, made, basis, records, held_out)


def _read_held_out(config: RunConfig, rules: CurriculumRules) -> Records | None:
    """The evaluation data with their pairs, under the columns and the split of the recipe; None without any.

    Raises:
        RecordError: none of them can be used, or a list has a response without a score and `on_missing` is `error`.
    """
    if config.eval_file is None and config.eval_dataset_split is None:
        return None
    if rules.on_missing == "error":
        unpaired = read_records(config, evaluation=True, pairing=None, speak=False).preferences
        for record in unpaired:
            if not record.pairs and len(record.responses) > 1:
                require_annotated(record)
    found = read_records(config, evaluation=True, pairing=config.pairing, speak=True)
    found.ledger.keep_undecided()
    found.ledger.enforce(strict=config.strict)
    if not found.preferences:
        reasons = ", ".join(line.strip() for line in found.ledger.summary()[1:])
        raise RecordError(
            f"{found.ledger.source}: none of {found.ledger.read} records can be used for evaluation: {reasons}; "
            "repair them"
        )
    return found


def _refuse_own_files(folder: Path, config: RunConfig) -> None:
    for name in input_paths(config):
        if folder.resolve() in Path(name).expanduser().resolve().parents:
            raise ConfigError(
                f"{name}: lies in the folder where this run writes its curriculum; set another output_dir"
            )


def _basis(
    config: RunConfig,
    rules: CurriculumRules,
    difficulty: Difficulty,
    records: Records,
    held_out: Records | None,
) -> dict[str, JsonValue]:
    """What decides the files: equal ones give the same."""
    facts: dict[str, object] = {**asdict(rules), **basis_of(difficulty, config)}
    facts["data"] = _digest_of_records(records.preferences)
    if held_out is not None:
        facts["held_out"] = _digest_of_records(held_out.preferences)
    facts["text"] = [config.prompt_format, config.response_separator, config.chat_template]
    return json.loads(json.dumps(facts))


def _digest_of_records(records: Iterable[Preference]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(json.dumps(preference_to_json(record)).encode() + b"\n")
    return digest.hexdigest()


def _found(folder: Path, basis: dict[str, JsonValue]) -> CurriculumFiles:
    again = "pass --overwrite to start anew, or set another output_dir"
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        before, stages, held_out = index["basis"], index["stages"], index.get("held_out")
        listed = [*stages, *([] if held_out is None else [held_out])]
        files = [(folder / each["file"], each["digest"]) for each in listed]
        damaged = [path for path, digest in files if _digest(path) != digest]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ResumeError(
            f"{folder / INDEX}: the curriculum cannot be read ({error}); {again}"
        ) from error
    changed = sorted(k for k in {**before, **basis} if before.get(k) != basis.get(k))
    if changed:
        raise ResumeError(
            f"{folder}: the curriculum there was made with other settings or data ({', '.join(changed)}); {again}"
        )
    if damaged:
        raise ResumeError(
            f"{damaged[0]}: is not the file that this run wrote; put it back, or {again}"
        )
    paths = [path for path, _ in files]
    return CurriculumFiles(paths[: len(stages)], None if held_out is None else paths[-1])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(
    folder: Path,
    made: Curriculum,
    basis: dict[str, JsonValue],
    records: Records,
    held_out: Records | None,
) -> CurriculumFiles:
    folder.mkdir(parents=True, exist_ok=True)
    remove_files(folder)
    for remark in made.remarks:
        say(remark)
    files: list[Path] = []
    stages: list[dict[str, object]] = []
    for number, pairs in enumerate(made.stages, start=1):
        path = folder / f"stage-{number}.jsonl"
        write_preferences(path, made.file_of(number))
        files.append(path)
        counts = {"pairs": len(pairs), "records": len({each.record for each in pairs})}
        spread = _spread([each.ease for each in pairs])
        stages.append({"file": path.name, **counts, **spread, "digest": _digest(path)})
        say(f"stage {number} of {len(made.stages)}: {_line(stages[-1])}")
    for reason, count in made.counts.items():
        say(f"  {count} times {reason}")
    facts: dict[str, object] = {"stages": stages, "left_out": made.counts, "basis": basis}
    facts |= {"remarks": made.remarks, "ledger": records.ledger.to_json()}
    if held_out is not None:
        # In the form that stages have, since a training knows one set of columns.
        write_preferences(folder / HELD_OUT, held_out.preferences)
        facts["held_out"] = {"file": HELD_OUT, "digest": _digest(folder / HELD_OUT)}
        facts["held_out_ledger"] = held_out.ledger.to_json()
    # The index comes last, so that it never speaks of files that are half there.
    RunFolder(folder).write_json(folder / INDEX, facts)
    return CurriculumFiles(files, None if held_out is None else folder / HELD_OUT)


def _spread(eases: Sequence[float]) -> dict[str, float | None]:
    """Least, mean and greatest ease; nothing where the stages are given."""
    known = [ease for ease in eases if ease == ease]  # noqa: PLR0124 - NaN is not equal to itself
    if not known:
        return {"ease_least": None, "ease_mean": None, "ease_greatest": None}
    return {
        "ease_least": min(known),
        "ease_mean": sum(known) / len(known),
        "ease_greatest": max(known),
    }


def _line(stage: dict[str, object]) -> str:
    text = f"{stage['pairs']} pairs of {stage['records']} records"
    if stage["ease_mean"] is None:
        return text
    return f"{text}, ease {stage['ease_least']:.4g} to {stage['ease_greatest']:.4g}, mean {stage['ease_mean']:.4g}"
