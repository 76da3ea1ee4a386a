"""`prefopt show`: one record as the model will see it: text, tree, which tokens are scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefopt.cli._data import add_data_arguments, data_options, open_tokenizer, render_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree
    from transformers import PreTrainedTokenizerFast

    from prefopt.ledger import Ledger
    from prefopt.pack.tree import TokenTree
    from prefopt.records import Message, Preference, Response

NAME = "show"
HELP = """\
Show one record of a data file: `prefopt show FILE --row 3 --model FOLDER`.

Prints prompt, prefix, responses and pairs. With --model it draws the token tree: what the responses share is
stored once, scored tokens are green."""

_SCORED = "bold green"
_UNSCORED = "dim"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the file and which record."""
    add_data_arguments(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--row", type=int, metavar="N", help="row number, from 1 (the first row)")
    which.add_argument("--id", metavar="ID", help="record id")
    parser.add_argument("--full", action="store_true", help="do not shorten long texts")


def run(arguments: argparse.Namespace) -> int:
    """Print the record; returns 0."""
    from rich.console import Console

    from prefopt.ledger import Ledger
    from prefopt.text.sources import load_row

    options = data_options(arguments)
    ledger = Ledger(arguments.file)
    preference = load_row(
        arguments.file,
        row=arguments.row,
        record_id=arguments.id,
        split=options.split,
        columns=options.columns,
        ledger=ledger,
        pairing=options.pairing,
    )
    limit = None if arguments.full else 300
    console = Console(highlight=False)
    _print_record(console, preference, limit)
    if arguments.model is None:
        ledger.keep_undecided()
    else:
        _print_tree(console, preference, arguments, ledger, limit)
    for line in ledger.summary()[1:]:
        console.print(line, markup=False, soft_wrap=True)
    return 0


def _print_record(console: Console, preference: Preference, limit: int | None) -> None:
    from rich.text import Text

    def line(name: str, text: str, style: str = "") -> None:
        console.print(Text.assemble((f"{name}: ", "bold"), (text, style)), soft_wrap=True)

    line("record", f"{preference.id} ({preference.origin})")
    if isinstance(preference.prompt, str):
        line("prompt", _shorten(preference.prompt, limit))
    for message in () if isinstance(preference.prompt, str) else preference.prompt:
        line(f"prompt, {message.role}", _shorten(message.content, limit))
    if preference.prefix:
        line("prefix", _shorten(preference.prefix, limit))
    for i, response in enumerate(preference.responses):
        line(f"response {i}{_annotations(response)}", _shorten(_response_text(response), limit))
    for pair in preference.pairs:
        extra = "" if pair.margin is None else f", margin {pair.margin:g}"
        weight = "" if pair.weight == 1 else f", weight {pair.weight:g}"
        line("pair", f"{pair.chosen} preferred to {pair.rejected}{extra}{weight}")
    if preference.meta:
        line("meta", ", ".join(preference.meta))


def _annotations(response: Response) -> str:
    facts = [
        *([] if response.score is None else [f"score {response.score:g}"]),
        *([] if response.rank is None else [f"rank {response.rank}"]),
        *([] if response.label is None else ["desirable" if response.label else "undesirable"]),
        *([] if response.ends else ["does not end the turn"]),
        *([f"{len(response.masked)} ranges not scored"] if response.masked else []),
    ]
    return f" ({', '.join(facts)})" if facts else ""


def _response_text(response: Response) -> str:
    if not response.turns:
        return response.text
    return "\n" + "\n".join(_message_text(message) for message in response.turns)


def _message_text(message: Message) -> str:
    unscored = "" if message.role == "assistant" and message.train else ", not scored"
    return f"  [{message.role}{unscored}] {message.content}"


def _shorten(text: str, limit: int | None) -> str:
    """The text with its middle left out where it is longer than `limit`."""
    if limit is None or len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def _print_tree(
    console: Console,
    preference: Preference,
    arguments: argparse.Namespace,
    ledger: Ledger,
    limit: int | None,
) -> None:
    from rich.tree import Tree

    from prefopt.ledger import Ledger as Scratch
    from prefopt.pack.prepare import PrepareSettings, prepare

    tokenizer = open_tokenizer(arguments)
    settings = PrepareSettings(max_length=2**31, render=render_settings(arguments))
    scratch = Scratch(arguments.file)
    examples = prepare([preference], tokenizer, settings, scratch)
    for note in scratch.notes:
        ledger.note(preference.id, reason=note)
    ledger.keep_undecided()
    if not examples:
        return
    tree = examples[0].tree
    drawn = Tree(f"token tree, scored tokens in [{_SCORED}]green[/]", guide_style="dim")
    _draw(drawn, tree, tree_nodes(tree), examples[0].source, tokenizer, limit)
    console.print(drawn)
    rows = int((tree.position[tree.leaf] + 1).sum())
    console.print(
        f"{rows:,} tokens as {len(tree.leaf)} separate rows, {tree.size:,} stored as a tree "
        f"({100 * (rows - tree.size) / rows:.1f}% saved), {int(tree.scored.sum()):,} of them scored",
        soft_wrap=True,
    )


class TreeNode(NamedTuple):
    """A stretch of tokens without branches or ends in between."""

    start: int
    stop: int
    above: int
    """Index of the node it continues, -1 for a root."""
    ends: tuple[int, ...]
    """Responses that end with it."""


def tree_nodes(tree: TokenTree) -> list[TreeNode]:
    """The nodes of a tree in depth-first order."""
    children = [0] * tree.size
    for parent in tree.parent:
        if parent >= 0:
            children[parent] += 1
    ends: dict[int, list[int]] = {}
    for response, leaf in enumerate(tree.leaf):
        ends.setdefault(int(leaf), []).append(response)
    starts = [
        i
        for i, parent in enumerate(tree.parent)
        if parent != i - 1 or i == 0 or children[i - 1] > 1 or i - 1 in ends
    ]
    node_of = {}
    found: list[TreeNode] = []
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], tree.size], strict=True)):
        node_of[stop - 1] = number
        above = node_of.get(int(tree.parent[start]), -1)
        found.append(TreeNode(start, stop, above, tuple(ends.get(stop - 1, ()))))
    return found


def _draw(
    root: Tree,
    tree: TokenTree,
    nodes: Sequence[TreeNode],
    source: Sequence[int],
    tokenizer: PreTrainedTokenizerFast,
    limit: int | None,
) -> None:
    drawn: list[Tree] = []
    for node in nodes:
        parent = root if node.above < 0 else drawn[node.above]
        label = _node_text(tree, node, tokenizer, limit)
        if node.ends:
            label.append(
                f"  <- response {', '.join(str(source[r]) for r in node.ends)}", style="cyan"
            )
        drawn.append(parent.add(label))


def _node_text(
    tree: TokenTree, node: TreeNode, tokenizer: PreTrainedTokenizerFast, limit: int | None
) -> Text:
    """The node's text, its scored and unscored stretches in their colours, after its number of tokens."""
    from rich.text import Text

    count = node.stop - node.start
    label = Text(f"{count} token{'' if count == 1 else 's'} ", style="cyan")
    start = node.start
    while start < node.stop:
        scored = bool(tree.scored[start])
        stop = start
        while stop < node.stop and bool(tree.scored[stop]) == scored:
            stop += 1
        text = str(
            tokenizer.decode(tree.tokens[start:stop].tolist(), clean_up_tokenization_spaces=False)
        )
        label.append(
            _shorten(text.replace("\n", "⏎"), limit), style=_SCORED if scored else _UNSCORED
        )
        start = stop
    return label
