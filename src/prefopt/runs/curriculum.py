"""The curriculum of a recipe: data read, pairs measured, stages written, and found again when a run is resumed.

output_dir/curriculum/stage-1.jsonl   the pairs of each stage, in the order of training
held-out.jsonl                        the evaluation data as records, whatever columns they came in
curriculum.json                       what they were made from, how many and how easy they are, what was left out
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
from prefopt.build.stages import CurriculumRules
from prefopt.config import RunConfig
from prefopt.errors import ConfigError, RecordError, ResumeError
from prefopt.progress import say
from prefopt.records import Preference, preference_to_json, write_preferences
from prefopt.runs.chain import earlier_links, require_no_chain
from prefopt.runs.difficulty import Difficulty, basis_of, measure_of
from prefopt.runs.setup import Records, input_paths, read_records
from prefopt.train.folder import RunFolder, open_folder
from prefopt.values import JsonValue

FOLDER = "curriculum"
INDEX = "curriculum.json"
HELD_OUT = "held-out.jsonl"

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
        else:
            overwrite = config.overwrite_output_dir
            for each in (folder, *earlier_links(folder)):
                open_folder(each, resume=False, overwrite=overwrite, inputs=input_paths(config))
        return work()
    finally:
        folder.release()


def write_curriculum(
    config: RunConfig, rules: CurriculumRules, difficulty: Difficulty, device: torch.device
) -> CurriculumFiles:
    """The files of all stages and of the evaluation data; a run that is resumed gets the stages that are there.

    Raises:
        ResumeError: those that are there were made otherwise, or are damaged.
        ConfigError: the recipe reads a file that would be written over.
        RecordError: a row is wrong, or has no score and `on_missing` is `error`.
    """
    folder = Path(config.output_dir) / FOLDER
    _refuse_own_files(folder, config)
    records = read_records(config, evaluation=False, pairing=None, speak=True)
    basis = _basis(config, rules, difficulty, records.preferences)
    held_out = _read_held_out(config)
    if config.resume_from_checkpoint and (folder / INDEX).exists():
        return CurriculumFiles(_found(folder, basis), _write_held_out(folder, held_out))
    made = make_curriculum(
        records.preferences, measure_of(difficulty, config, device), rules, records.ledger
    )
    records.ledger.enforce(strict=config.strict)
    return CurriculumFiles(
        _write(folder, made, basis, records, held_out), _write_held_out(folder, held_out)
    )


def _read_held_out(config: RunConfig) -> Records | None:
    """The evaluation data with their pairs, under the columns and the split of the recipe; None without any.

    Raises:
        RecordError: none of them can be used.
    """
    if config.eval_file is None and config.eval_dataset_split is None:
        return None
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


def _write_held_out(folder: Path, held_out: Records | None) -> Path | None:
    """In the form that stages have, since a training knows one set of columns."""
    path = folder / HELD_OUT
    if held_out is None:
        path.unlink(missing_ok=True)
        return None
    write_preferences(path, held_out.preferences)
    return path


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
    records: Iterable[Preference],
) -> dict[str, JsonValue]:
    """What decides the files: equal ones give the same."""
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(json.dumps(preference_to_json(record)).encode() + b"\n")
    facts = {**asdict(rules), **basis_of(difficulty, config), "data": digest.hexdigest()}
    facts["text"] = [config.prompt_format, config.response_separator, config.chat_template]
    return json.loads(json.dumps(facts))


def _found(folder: Path, basis: dict[str, JsonValue]) -> list[Path]:
    again = "pass --overwrite to start anew, or set another output_dir"
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        before, stages = index["basis"], index["stages"]
        files = [(folder / stage["file"], stage["digest"]) for stage in stages]
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
    return [path for path, _ in files]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(
    folder: Path,
    made: Curriculum,
    basis: dict[str, JsonValue],
    records: Records,
    held_out: Records | None,
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    # The index goes first and comes last, so that it never speaks of files that are half there.
    (folder / INDEX).unlink(missing_ok=True)
    for path in folder.glob("stage-*.jsonl"):
        path.unlink()
    files: list[Path] = []
    stages: list[dict[str, object]] = []
    for number, pairs in enumerate(made.stages, start=1):
        path = folder / f"stage-{number}.jsonl"
        write_preferences(path, made.file_of(number))
        files.append(path)
        stages.append(
            {
                "file": path.name,
                "pairs": len(pairs),
                "records": len({each.record for each in pairs}),
                **_spread([each.ease for each in pairs]),
                "digest": _digest(path),
            }
        )
        say(f"stage {number} of {len(made.stages)}: {_line(stages[-1])}")
    for reason, count in made.counts.items():
        say(f"  {count} times {reason}")
    facts: dict[str, object] = {"stages": stages, "left_out": made.counts, "basis": basis}
    facts["ledger"] = records.ledger.to_json()
    if held_out is not None:
        facts["held_out_ledger"] = held_out.ledger.to_json()
    RunFolder(folder).write_json(folder / INDEX, facts)
    return files


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
