"""Evaluations on disk: `evaluation.json` (the number) and `evaluation-outputs.jsonl` (one problem a line)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from prefopt.errors import RecordError, StorageError
from prefopt.evals.outcome import Evaluation, Output, by_label, share
from prefopt.records import Message, parse_line, read_message
from prefopt.text.whole import write_whole
from prefopt.values import JsonValue, read_flag, read_list, read_object, read_text

RESULT_FILE = "evaluation.json"
OUTPUTS_FILE = "evaluation-outputs.jsonl"


def write_evaluation(evaluation: Evaluation, folder: Path | str) -> None:
    """Nothing; both files then stand in the folder, which is made.

    Each file is written whole or not at all, the number last.

    Raises:
        StorageError: they cannot be written.
    """
    path = Path(folder)
    lines = [json.dumps(_to_json(output), ensure_ascii=False) for output in evaluation.outputs]
    write_whole(path / OUTPUTS_FILE, (f"{line}\n" for line in lines))
    write_whole(
        path / RESULT_FILE, [json.dumps(_facts(evaluation), indent=1, ensure_ascii=False), "\n"]
    )


def _facts(evaluation: Evaluation) -> dict[str, JsonValue]:
    outputs = evaluation.outputs
    facts: dict[str, JsonValue] = {
        "name": evaluation.name,
        "metric": evaluation.metric,
        "split": evaluation.split,
        "correct": evaluation.correct,
        "total": evaluation.total,
        "value": evaluation.value,
        "low": evaluation.low,
        "high": evaluation.high,
        "unanswered": evaluation.unanswered,
        "cut": evaluation.cut,
        "failed": evaluation.failed,
        "reasons": _reasons(outputs),
    }
    groups = by_label(outputs)
    if groups:
        facts["by"] = {
            name: {value: found._asdict() for value, found in group.items()}
            for name, group in groups.items()
        }
    if evaluation.settings:
        facts["settings"] = dict(evaluation.settings)
    return facts


def _reasons(outputs: tuple[Output, ...]) -> dict[str, JsonValue]:
    """How often the grader gave each reason, in alphabetical order."""
    given = [output.reason for output in outputs if output.reason]
    return {reason: given.count(reason) for reason in sorted(set(given))}


def _to_json(output: Output) -> Mapping[str, JsonValue]:
    row: dict[str, JsonValue] = {
        "id": output.id,
        "prompt": _prompt_to_json(output.prompt),
        "prefix": output.prefix,
        "answer": output.answer,
        "output": output.output,
        "extracted": output.extracted,
        "reason": output.reason,
        "correct": output.correct,
        "finish_reason": output.finish_reason,
        "tokens": output.tokens,
    }
    if output.cut_by:
        row["cut_by"] = output.cut_by
    return {**row, "labels": dict(output.labels)} if output.labels else row


def _prompt_to_json(prompt: str | tuple[Message, ...]) -> JsonValue:
    if isinstance(prompt, str):
        return prompt
    return [{"role": m.role, "content": m.content, **m.extra} for m in prompt]


def read_evaluation(folder: Path | str) -> Evaluation:
    """The evaluation that `write_evaluation` left in a folder; its counts are taken from the outputs.

    Raises:
        StorageError: the folder holds none, or it cannot be read.
        RecordError: a file is broken; the message names file and line.
    """
    path = Path(folder)
    facts = read_facts(path)
    text = _read(path / OUTPUTS_FILE)
    outputs = tuple(
        _from_json(parse_line(line, f"{path / OUTPUTS_FILE}:{n}"), f"{path / OUTPUTS_FILE}:{n}")
        for n, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    )
    found = share(outputs)
    settings = facts.get("settings")
    return Evaluation(
        name=str(facts.get("name") or path.name),
        correct=found.correct,
        total=found.total,
        value=found.value,
        low=found.low,
        high=found.high,
        outputs=outputs,
        metric=str(facts.get("metric") or "accuracy"),
        split=str(facts.get("split") or "test"),
        settings=settings if isinstance(settings, dict) else {},
    )


def read_facts(folder: Path | str, file: str = RESULT_FILE) -> dict[str, JsonValue]:
    """What `evaluation.json`, or another such file of a folder, says.

    Raises:
        StorageError: the folder holds none, or it cannot be read.
        RecordError: it is broken.
    """
    path = Path(folder) / file
    try:
        facts: JsonValue = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise RecordError(
            f"{path}:{error.lineno}: broken JSON ({error.msg}); evaluate again with --overwrite"
        ) from error
    return read_object(facts, "evaluation", str(path))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StorageError(
            f"{path.parent}: holds no {path.name}; give a folder that `prefopt eval` wrote"
        ) from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _from_json(row: Mapping[str, JsonValue], origin: str) -> Output:
    prompt, labels = row.get("prompt"), row.get("labels")
    extracted = row.get("extracted")
    finish, tokens, cut_by = row.get("finish_reason"), row.get("tokens"), row.get("cut_by")
    return Output(
        id=read_text(row.get("id"), "id", origin),
        prompt=prompt
        if isinstance(prompt, str)
        else tuple(read_message(m, "prompt", origin) for m in read_list(prompt, "prompt", origin)),
        answer=read_text(row.get("answer"), "answer", origin),
        output=read_text(row.get("output"), "output", origin),
        correct=read_flag(row.get("correct"), "correct", origin),
        prefix=read_text(row.get("prefix") or "", "prefix", origin),
        extracted=extracted if isinstance(extracted, str) else None,
        reason=read_text(row.get("reason") or "", "reason", origin),
        finish_reason=finish if finish in ("length", "error") else "stop",
        tokens=tokens if isinstance(tokens, int) else 0,
        cut_by=cut_by if cut_by in ("tokens", "context", "blocks") else "",
        labels={k: str(v) for k, v in labels.items()} if isinstance(labels, dict) else {},
    )
