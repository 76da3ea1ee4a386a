"""The curriculum of a recipe: data read, pairs measured, stages written, and found again when a run is resumed.

output_dir/curriculum/stage-1.jsonl   the pairs of each stage, in the order of training
curriculum.json                       what they were made from, how many and how easy they are, what was left out
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from prefopt.build.curriculum import Curriculum, Measure, make_curriculum
from prefopt.build.difficulty import (
    Logps,
    imported,
    logp_gap,
    rank_gap,
    reward_gap,
    score_gap,
)
from prefopt.build.stages import CurriculumRules
from prefopt.config import RunConfig
from prefopt.errors import ConfigError, ResumeError
from prefopt.models.likelihood import ResponseLogp, response_logps
from prefopt.progress import say
from prefopt.records import Preference, preference_to_json, write_preferences
from prefopt.runs.setup import Records, input_paths, load_with, read_records
from prefopt.text.render import RenderSettings
from prefopt.train.folder import RunFolder, open_folder
from prefopt.values import JsonValue

FOLDER = "curriculum"
INDEX = "curriculum.json"


class Difficulty(NamedTuple):
    """How easy pairs are, as a recipe says it."""

    name: str
    """score_gap, rank_gap, reference_gap, implicit_reward, or package.module:function."""
    policy: str | None = None
    """implicit_reward: folder or hub id of the model whose reward it is."""
    reference: str = ""
    """Folder or hub id of the reference model."""
    beta: float = 1.0
    """Scale of the implicit reward."""


def measure_of(difficulty: Difficulty, config: RunConfig, device: torch.device) -> Measure:
    """The measure; models are loaded when it is called, one after the other."""
    if difficulty.name == "score_gap":
        return score_gap
    if difficulty.name == "rank_gap":
        return rank_gap
    reference = _logps(difficulty.reference, config, device)
    if difficulty.name == "reference_gap":
        return logp_gap(reference)
    if difficulty.name == "implicit_reward" and difficulty.policy is not None:
        policy = _logps(difficulty.policy, config, device)
        return reward_gap(policy, reference, beta=difficulty.beta)
    return imported(difficulty.name)


def _logps(name: str, config: RunConfig, device: torch.device) -> Logps:
    def logps(records: Sequence[Preference]) -> list[tuple[ResponseLogp, ...]]:
        loaded = load_with(config, name, device)
        render = RenderSettings(
            prompt_format=config.prompt_format, separator=config.response_separator
        )
        found = response_logps(
            loaded.model,
            loaded.tokenizer,
            records,
            render=render,
            batch_size=config.per_device_eval_batch_size,
        )
        del loaded
        gc.collect()
        return found

    return logps


def alone_in_folder(config: RunConfig, work: Callable[[], list[Path]]) -> list[Path]:
    """What `work` returns, with output_dir locked and known to have room for a run of this recipe.

    Raises:
        ResumeError: another process works there, or it holds a run that is neither resumed nor overwritten.
    """
    folder = RunFolder(Path(config.output_dir))
    folder.acquire()
    try:
        if not config.resume_from_checkpoint:
            overwrite = config.overwrite_output_dir
            open_folder(folder, resume=False, overwrite=overwrite, inputs=input_paths(config))
        return work()
    finally:
        folder.release()


def write_curriculum(
    config: RunConfig, rules: CurriculumRules, difficulty: Difficulty, device: torch.device
) -> list[Path]:
    """The files of all stages in the order of training; a run that is resumed gets those that are there.

    Raises:
        ResumeError: those that are there were made otherwise, or are damaged.
        ConfigError: the recipe reads a file that would be written over.
        RecordError: a row is wrong, or has no score and `on_missing` is `error`.
    """
    folder = Path(config.output_dir) / FOLDER
    _refuse_own_files(folder, config)
    records = read_records(config, evaluation=False, pairing=None, speak=True)
    basis = _basis(config, rules, difficulty, records.preferences)
    if config.resume_from_checkpoint and (folder / INDEX).exists():
        return _found(folder, basis)
    made = make_curriculum(
        records.preferences, measure_of(difficulty, config, device), rules, records.ledger
    )
    records.ledger.enforce(strict=config.strict)
    return _write(folder, made, basis, records)


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
    facts = {**asdict(rules), **difficulty._asdict(), "data": digest.hexdigest()}
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
    folder: Path, made: Curriculum, basis: dict[str, JsonValue], records: Records
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
    facts = {"stages": stages, "left_out": made.counts, "basis": basis}
    RunFolder(folder).write_json(folder / INDEX, {**facts, "ledger": records.ledger.to_json()})
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
