"""`prefopt build` for DICE: a round's pairs from the policy's own answers and its own implicit reward.

build.yaml         the recipe, resolved
journal.sqlite     every answer and every log-probability
samples.jsonl      the answers to each prompt with their implicit rewards
alpha-curve.json   length gap and pairs at every alpha that was tried; alpha.png shows it
generated.jsonl    all pairs of own answers, but for those to prompts that are held out
pairs.jsonl        what `prefopt train` reads: a mix of those with pairs of the earlier data
held-out.jsonl     pairs of own answers to the prompts that are held out, if any
counts.json        models, counts, alpha, lengths, margins, repetitions
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from prefopt.build.alpha_plot import draw_alpha
from prefopt.build.answers import Answers, sample_answers
from prefopt.build.dice import DiceBuild
from prefopt.build.folder import COUNTS, HELD_OUT, BuildFolder, open_build, tell
from prefopt.build.held_out import belongs_to_share
from prefopt.build.parts import Shelf, own_writer
from prefopt.build.replay import (
    Mix,
    count_pairs,
    prompt_key,
    question_key,
    replay_mix,
    replay_sizes,
)
from prefopt.build.self_rewarded import (
    Bootstrapped,
    ScoredAnswers,
    curve_facts,
    pair_by_reward,
    sample_record,
)
from prefopt.build.settings import PAIRS
from prefopt.config import RunConfig
from prefopt.errors import RecordError
from prefopt.judge.implicit import ImplicitReward, ScoringSettings
from prefopt.judge.model_pair import Models, require_some_reward, require_two_models
from prefopt.ledger import Ledger
from prefopt.models.load import ModelSettings, load_model
from prefopt.progress import counted, say
from prefopt.records import Preference
from prefopt.text.prompt_files import FOR_TEMPLATES, load_prompts
from prefopt.text.sources import load_preferences
from prefopt.values import JsonValue

SAMPLES, GENERATED = "samples.jsonl", "generated.jsonl"
CURVE, PICTURE = "alpha-curve.json", "alpha.png"
_FILES = (PAIRS, SAMPLES, GENERATED, HELD_OUT, CURVE, PICTURE, COUNTS)


class _Data(NamedTuple):
    """What a round starts with."""

    prompts: list[Preference]
    offline: list[Preference]
    counts: Counter[str]


def build_dice(section: DiceBuild, config: RunConfig) -> Path:
    """Make the pairs of a round and write its build folder; returns the file of pairs.

    Started again it goes on where it stopped: no answer is sampled twice and no log-probability computed twice.

    Raises:
        PrefoptError: anything a user can cause, one line each.
    """
    folder = section.folder(config.method)
    data = _read(section)
    with open_build(folder, config, section, _FILES) as build:
        say(
            f"reward: {section.beta:g} * (log {config.model_name_or_path} - log {section.previous}); trained from and "
            f"against {config.reference_model or config.model_name_or_path}"
        )
        made = None if section.gamma == 1 else _bootstrapped(section, config, data.prompts, build)
        own, held_out = _split([] if made is None else made.records, section.held_out)
        offline, aside = _split(data.offline, section.held_out)
        mix = replay_mix(own, offline, gamma=section.gamma, seed=section.seed)
        data.counts["offline records of held-out prompts"] = len(aside)
        counts = _counted(data.counts, made, held_out, mix)
        tell(counts)
        build.write_records(GENERATED, own)
        build.write_records(HELD_OUT, held_out)
        models: dict[str, JsonValue] = {
            "policy": config.model_name_or_path,
            "reward_reference": section.previous,
            "training_reference": config.reference_model or config.model_name_or_path,
            "beta": section.beta,
        }
        facts = {} if made is None else made.facts
        build.write_facts(COUNTS, {"models": models, "counts": counts, **facts})
        if not mix.records:
            (folder / PAIRS).unlink(missing_ok=True)  # of an earlier build
            room, _ = replay_sizes(count_pairs(own), len(offline), section.gamma)
            raise RecordError(f"{folder}: {_why_nothing(counts, section, room)}")
        build.write_records(PAIRS, mix.records)
    say(f"{len(mix.records):,} records: {folder / PAIRS}")
    return folder / PAIRS


def _bootstrapped(
    section: DiceBuild, config: RunConfig, prompts: Sequence[Preference], build: BuildFolder
) -> Bootstrapped:
    """Sampled, scored, paired; writes what belongs to these stages."""
    shelf = Shelf(config)
    require_two_models(
        Models(config.model_name_or_path, section.previous),
        policy=shelf.settings(config.model_name_or_path),
        reference=_previous(section, shelf),
    )
    scored = _scored(_sampled(section, prompts, shelf, build), section, shelf, build)
    build.write_records(SAMPLES, [sample_record(each) for each in scored if each.scores])
    made = pair_by_reward(scored, section.bootstrap())
    build.write_facts(CURVE, curve_facts(made.fit, made.facts))
    if made.fit.curve and made.records:
        unit = "characters" if section.length_unit == "chars" else "tokens"
        draw_alpha(made.fit, build.path / PICTURE, unit=unit)
    for line in _told(made):
        say(line)
    return made


def _sampled(
    section: DiceBuild, prompts: Sequence[Preference], shelf: Shelf, build: BuildFolder
) -> list[Answers]:
    with counted("answers") as tick:
        return sample_answers(
            prompts,
            own_writer(section, shelf),
            section.sampling(),
            samples=section.samples,
            rules=section.rules(),
            journal=build.journal,
            progress=tick,
        )


def _scored(
    answers: Sequence[Answers], section: DiceBuild, shelf: Shelf, build: BuildFolder
) -> list[ScoredAnswers]:
    shelf.clear()  # the writer's memory is needed for the models that score
    reward = ImplicitReward(
        shelf.config.model_name_or_path,
        section.previous,
        beta=section.beta,
        settings=ScoringSettings(shelf.render, section.batch_size, section.longest(shelf.config)),
        load=lambda name: load_model(
            name, _previous(section, shelf) if name == section.previous else shelf.settings(name)
        ),
    )
    records = [each.record() for each in answers if each.responses]
    with counted("rewards") as tick:
        scores = reward.score(records, journal=build.journal, progress=tick) if records else {}
    require_some_reward((score for found in scores.values() for score in found), reward.models)
    return [ScoredAnswers(each, scores.get(each.prompt.id, ())) for each in answers]


def _previous(section: DiceBuild, shelf: Shelf) -> ModelSettings:
    """How the reference of the reward is loaded."""
    return shelf.settings(
        section.previous, revision=section.previous_revision, tokenizer=section.previous_tokenizer
    )


def _read(section: DiceBuild) -> _Data:
    """Earlier data as one pair per record, and the prompts to answer, each of them once."""
    counts: Counter[str] = Counter()
    ledger = Ledger("offline")
    read: list[Preference] = []
    for file in section.offline_files:
        columns = section.offline_columns or None
        read += load_preferences(
            file, columns=columns, ledger=ledger, pairing="best_worst"
        ).preferences
    paired = [record for record in read if record.pairs]
    offline = [_one_pair(record) for record in paired]
    if section.offline is not None:
        counts["offline rows"] = ledger.read
        counts["offline rows without a usable pair"] = ledger.read - len(offline)
        counts["offline pairs after the first of their row"] = count_pairs(paired) - len(offline)
    if section.offline is not None and not offline:
        raise RecordError(
            f"build.offline {section.offline!r}: no row has a pair; give preference data"
        )
    files = section.prompt_files
    found = [p for file in files for p in load_prompts(file)] if files else _asked(offline, counts)
    prompts = _distinct(found)[: section.max_prompts]
    counts["prompts that repeat an earlier one"] = len(found) - len(_distinct(found))
    return _Data(prompts, offline, counts)


def _one_pair(record: Preference) -> Preference:
    """The record with its first pair only, weight and margin with it.

    Scores and ranks of other people are not on the scale of rewards.
    """
    pair = record.pairs[0]
    sides = [
        replace(record.responses[k], score=None, rank=None, label=None)
        for k in (pair.chosen, pair.rejected)
    ]
    return replace(record, responses=tuple(sides), pairs=(replace(pair, chosen=0, rejected=1),))


def _asked(records: Sequence[Preference], counts: Counter[str]) -> list[Preference]:
    """The prompts of preference data."""
    whole = [record for record in records if not record.prefix and record.prompt]
    counts["offline prompts that cannot be answered (empty, or with a prefix)"] = len(
        records
    ) - len(whole)
    return [
        replace(
            record,
            responses=(),
            pairs=(),
            meta={k: record.meta[k] for k in FOR_TEMPLATES if k in record.meta},
        )
        for record in whole
    ]


def _distinct(records: Sequence[Preference]) -> list[Preference]:
    """The first of each prompt, with ids of their own."""
    first: dict[str, Preference] = {}
    for record in records:
        first.setdefault(prompt_key(record), record)
    ledger = Ledger("prompts")
    return [replace(record, id=ledger.enter(record.id)) for record in first.values()]


def _split(
    records: Sequence[Preference], share: float
) -> tuple[list[Preference], list[Preference]]:
    """The records to train on and those held out; a record's side depends on its question alone.

    Tools and prefix have no part in it, so that what is asked is never on both sides.
    """
    held = [belongs_to_share(question_key(record), share) for record in records]
    kept = [r for r, out in zip(records, held, strict=True) if not out]
    return kept, [r for r, out in zip(records, held, strict=True) if out]


def _counted(
    read: Counter[str], made: Bootstrapped | None, held_out: Sequence[Preference], mix: Mix
) -> dict[str, int]:
    return {
        **read,
        **({} if made is None else made.counts),
        "held-out prompts with pairs": len(held_out),
        "generated records in the mix": len(mix.generated),
        "generated pairs in the mix": count_pairs(mix.generated),
        "generated records left over": mix.left_over.generated,
        "offline records in the mix": len(mix.offline),
        "offline records that repeat a prompt": mix.left_over.repeated,
        "offline records left over": mix.left_over.offline,
        "offline pairs that the mix lacks": mix.missing,
    }


def _told(made: Bootstrapped) -> list[str]:
    alpha, length = made.facts["alpha"], made.facts["length"]
    assert isinstance(alpha, Mapping)  # noqa: S101 - made by pair_by_reward
    assert isinstance(length, Mapping)  # noqa: S101 - the same
    gap, plain = length["gap"], length["gap_without_alpha"]
    shown = [f"{g:+.1f}" if isinstance(g, float) else "-" for g in (plain, gap)]
    return [
        f"alpha {alpha['value']:.4g} {alpha['unit']}, {alpha['before_beta']:.4g} before beta ({alpha['how']})",
        f"chosen minus rejected: {shown[0]} {length['unit']} at alpha 0, {shown[1]} at alpha",
    ]


def _why_nothing(counts: Mapping[str, int], section: DiceBuild, room: int) -> str:
    """`room`: the new pairs that the mix has room for."""
    if section.gamma == 1:
        return "all earlier data are of held-out prompts; use a smaller build.held_out"
    if counts["held-out prompts with pairs"]:
        return "all pairs are of held-out prompts; use more prompts, or a smaller build.held_out"
    if room:
        return (
            f"no whole record fits into the mix: at gamma {section.gamma:g} it has room for new pairs ({room}), and "
            "every record has more; use more offline data, less gamma, or a smaller build.top"
        )
    if counts["pairs of own answers"]:
        return f"the mix has room for no pair at gamma {section.gamma:g}; use more offline data, or less gamma"
    lost = counts.get("samples without reward: truncated")
    longer = (
        f"; {lost:,} are longer with their prompt than max_length or a model can read"
        if lost
        else ""
    )
    return (
        f"no pair could be made; the counts above say where answers were lost{longer} (a higher temperature, more "
        "samples or a smaller build.min_valid may help)"
    )
