"""`prefopt data check`: what is in a data file and what would become of it, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefopt.cli._data import add_data_arguments, data_options, open_tokenizer, render_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from prefopt.ledger import Ledger
    from prefopt.pack.batch import Example
    from prefopt.records import Preference

NAME = "data"
HELP = """\
Look at preference data: `prefopt data check FILE`.

Prints the columns recognised, the fate of every row (kept, cut, dropped and why), lengths, and remarks on the
data's health. With --model it counts tokens, shows what max_length would cut and what sharing prefixes saves."""

_UNLIMITED = 2**31


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb `check`."""
    verbs = parser.add_subparsers(dest="action", metavar="check", required=True)
    check = verbs.add_parser(
        "check", help="columns, ledger, lengths, what would be cut", allow_abbrev=False
    )
    add_data_arguments(check)
    check.add_argument(
        "--max-length",
        type=int,
        default=1024,
        metavar="N",
        help="longest sequence in tokens (1024)",
    )
    check.add_argument(
        "--max-prompt-length", type=int, metavar="N", help="longest prompt in tokens"
    )
    check.add_argument(
        "--strict", action="store_true", help="exit code 2 if a row would be cut or dropped"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the check; returns 0, or raises `RecordError` with --strict when rows are lost."""
    from prefopt.ledger import Ledger
    from prefopt.text.sources import load_preferences

    options = data_options(arguments)
    ledger = Ledger(arguments.file)
    preferences, mapping = load_preferences(
        arguments.file,
        split=options.split,
        columns=options.columns,
        ledger=ledger,
        pairing=options.pairing,
    )
    _print_columns(mapping)
    _print_records(preferences)
    _print_scores(preferences)
    if {"responses", "items"} & set(mapping.values()):
        _print_pairing(preferences, options.pairing)
    if arguments.model is None:
        _check_characters(preferences, arguments, ledger)
    else:
        _check_tokens(preferences, arguments, ledger)
    print("\n".join(ledger.summary()))
    ledger.enforce(strict=arguments.strict)
    return 0


def _print_columns(mapping: Mapping[str, str]) -> None:
    print("columns: " + ", ".join(f"{column} -> {role}" for column, role in mapping.items()))
    # TRL's name for the gold response, which holds all kinds of things in other files.
    if mapping.get("reference") == "meta" and "rejected" in mapping.values():
        print("  if 'reference' holds gold responses (tpo), add --column gold=reference")


def _print_records(preferences: Sequence[Preference]) -> None:
    from prefopt.text.quality import gold_responses

    responses = [r for p in preferences for r in p.responses]
    chats = sum(not isinstance(p.prompt, str) for p in preferences)
    facts = {
        "records": len(preferences),
        "responses": len(responses),
        "pairs": sum(len(p.pairs) for p in preferences),
        "conversations": chats,
        "plain text prompts": len(preferences) - chats,
        "with prefix": sum(bool(p.prefix) for p in preferences),
        "gold responses": sum(len(gold_responses(p)) for p in preferences),
        "scored responses": sum(r.score is not None for r in responses),
        "ranked responses": sum(r.rank is not None for r in responses),
        "desirable": sum(r.label is True for r in responses),
        "undesirable": sum(r.label is False for r in responses),
    }
    always = ("records", "responses", "pairs")
    print(
        "content: " + ", ".join(f"{n:,} {name}" for name, n in facts.items() if n or name in always)
    )


def _print_scores(preferences: Sequence[Preference]) -> None:
    """The pairs by their scores, where there are any; what `odpo` decides about is named with its keys."""
    if all(r.score is None for p in preferences for r in p.responses):
        return
    kinds = {"in order": 0, "equal": 0, "inverted (rejected higher)": 0, "missing a score": 0}
    order, equal, inverted, missing = kinds
    for preference in preferences:
        for pair in preference.pairs:
            chosen = preference.responses[pair.chosen].score
            rejected = preference.responses[pair.rejected].score
            if chosen is None or rejected is None:
                kinds[missing] += 1
            elif chosen == rejected:
                kinds[equal] += 1
            else:
                kinds[order if chosen > rejected else inverted] += 1
    keys = {"on_ties": equal, "on_inverted": inverted, "on_missing": missing}
    asked = [key for key, kind in keys.items() if kinds[kind]]
    shown = " + ".join(f"{n:,} {kind}" for kind, n in kinds.items())
    remedy = f"; odpo: see {', '.join(asked)}" if asked else ""
    print(f"scores: {sum(kinds.values()):,} pairs = {shown}{remedy}")


def _print_pairing(preferences: Sequence[Preference], pairing: str) -> None:
    """What the pairing of lists left out."""
    from prefopt.text.pairing import comparable, count_ties

    ties = sum(count_ties(p.responses, pairing) for p in preferences)
    left = [len(p.responses) - len(comparable(p.responses)) for p in preferences]
    facts = {
        "pairs of equal scores or ranks left out": ties,
        "responses in no pair for want of a score": sum(left),
    }
    shown = ", ".join(f"{n:,} {what}" for what, n in facts.items() if n)
    if shown:
        print(f"pairing {pairing}: {shown}")


def _check_characters(
    preferences: Sequence[Preference], arguments: argparse.Namespace, ledger: Ledger
) -> None:
    """What can be said without a tokenizer."""
    from prefopt.text.render import GLUED, is_glued

    settings = render_settings(arguments)
    for preference in preferences:
        if is_glued(preference, settings):
            ledger.note(preference.id, reason=GLUED)
    ledger.keep_undecided()
    prompts = [_prompt_characters(p) for p in preferences]
    responses = [
        sum(len(m.content) for m in r.turns) if r.turns else len(r.text)
        for p in preferences
        for r in p.responses
    ]
    _print_lengths("characters", {"prompt": prompts, "response": responses})
    print("tokens, cuts and sharing: add --model FOLDER")


def _prompt_characters(preference: Preference) -> int:
    prompt = preference.prompt
    own = len(prompt) if isinstance(prompt, str) else sum(len(m.content) for m in prompt)
    return own + len(preference.prefix)


def _check_tokens(
    preferences: Sequence[Preference], arguments: argparse.Namespace, ledger: Ledger
) -> None:
    from prefopt.ledger import Ledger as Scratch
    from prefopt.pack.prepare import PrepareSettings, prepare

    tokenizer = open_tokenizer(arguments)
    settings = PrepareSettings(
        max_length=arguments.max_length,
        max_prompt_length=arguments.max_prompt_length,
        render=render_settings(arguments),
    )
    whole = settings._replace(max_length=_UNLIMITED, max_prompt_length=None)
    lengths = _lengths(prepare(preferences, tokenizer, whole, Scratch(arguments.file)))
    _print_lengths(
        "tokens", {"prompt": lengths.prompt, "response": lengths.response, "both": lengths.both}
    )
    over = sum(n > arguments.max_length for n in lengths.both)
    print(
        f"max_length={arguments.max_length}: {over:,} of {len(lengths.both):,} responses do not fit; "
        f"with max_length={max(lengths.both, default=0)} all would"
    )
    _print_sharing(prepare(preferences, tokenizer, settings, ledger))


class _Lengths(NamedTuple):
    """Tokens of every response of every record."""

    prompt: list[int]
    response: list[int]
    """Scored tokens."""
    both: list[int]


def _lengths(examples: Sequence[Example]) -> _Lengths:
    found = _Lengths([], [], [])
    for example in examples:
        for r, leaf in enumerate(example.tree.leaf):
            scored = int(example.tree.scored[example.tree.path(r)].sum())
            total = int(example.tree.position[leaf]) + 1
            found.prompt.append(total - scored)
            found.response.append(scored)
            found.both.append(total)
    return found


def _print_lengths(unit: str, columns: Mapping[str, Sequence[int]]) -> None:
    print(f"{unit:<12}{'min':>9}{'median':>9}{'p90':>9}{'max':>9}")
    for name, values in columns.items():
        ordered = sorted(values)
        if ordered:
            shown = (ordered[0], _quantile(ordered, 0.5), _quantile(ordered, 0.9), ordered[-1])
            print(f"  {name:<10}" + "".join(f"{value:>9,}" for value in shown))


def _quantile(ordered: Sequence[int], share: float) -> int:
    """The smallest value that at least `share` of the values do not exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def _print_sharing(examples: Sequence[Example]) -> None:
    from prefopt.pack.batch import Layout

    rows = sum(sum(e.row_lengths(Layout.ROWS)) for e in examples)
    tree = sum(e.tree.size for e in examples)
    if rows:
        print(
            f"sharing: {rows:,} tokens as separate rows, {tree:,} as trees: {100 * (rows - tree) / rows:.1f}% saved "
            f"({rows / tree:.2f}x fewer)"
        )
