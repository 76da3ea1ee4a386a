"""Labelling in a terminal: one solution at a time, one line of input for each."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from prefopt.errors import RecordError
from prefopt.judge.human import Label, LabelVerdict
from prefopt.label.labels import NO_MARKERS, Item, LabelStore

HELP = (
    "number: first wrong step · 0 or n: no wrong step · u: unclear · s: skip · any of them with a note: 3 # why\n"
    "Enter: keep and go on · b: back · j 12: jump to the 12th · g: worked solution · ?: help · q: quit"
)

_VERDICTS: dict[str, LabelVerdict] = {
    "0": "no wrong step",
    "n": "no wrong step",
    "u": "unclear",
    "s": "skip",
}
_LINE = re.compile(r"\s*(?P<word>[a-z?]|\d+)?\s*(?P<number>\d+)?\s*(?:#(?P<note>.*))?", re.DOTALL)


class Command(NamedTuple):
    """One line of input."""

    action: str
    """`label`, `next`, `note`, `back`, `jump`, `gold`, `help`, `quit`, or `unknown`."""
    verdict: LabelVerdict | None = None
    number: int | None = None
    """Step of a label, or place to jump to."""
    note: str = ""


def read_command(line: str) -> Command:
    """What a line of input means."""
    found = _LINE.fullmatch(line.strip().lower())
    note = line.partition("#")[2].strip()
    if found is None:
        return Command("unknown")
    word, number = found["word"], found["number"]
    if word == "j" and number:
        return Command("jump", number=int(number))
    if number is not None:
        return Command("unknown")
    if word is None:
        return Command("note", note=note) if note else Command("next")
    if word in _VERDICTS:
        return Command("label", _VERDICTS[word], note=note)
    if word.isdecimal():
        return Command("label", "wrong step", int(word), note)
    actions = {"b": "back", "g": "gold", "?": "help", "h": "help", "q": "quit"}
    return Command(actions.get(word, "unknown"))


def label_in_terminal(
    items: Sequence[Item],
    store: LabelStore,
    *,
    console: Console | None = None,
    read: Callable[[], str] | None = None,
    skipped: bool = False,
) -> None:
    """Nothing, after all items have labels or the person quits; every label is on disk at once.

    Begins at the first item without a label. The end of the input (Ctrl-D, the end of a pipe) quits.

    Args:
        items: solutions.
        store: open.
        console: where to write; None is stdout.
        read: a line of input, empty at its end; None is stdin.
        skipped: show what was skipped or called unclear again.
    """
    wanted = {i for i, item in enumerate(items) if store.is_open(item, skipped=skipped)}
    _Session(items, store, console or Console(), read or sys.stdin.readline, wanted).run()


class _Session:
    """Where a person is in the list of items."""

    def __init__(
        self,
        items: Sequence[Item],
        store: LabelStore,
        console: Console,
        read: Callable[[], str],
        wanted: set[int],
    ) -> None:
        self.items, self.store, self.console, self.read = items, store, console, read
        self.open = wanted
        self.at = min(wanted, default=len(items))
        self.gold = False
        self.remarks: list[Text] = []
        """To be printed below the solution, which may have cleared the screen."""

    def run(self) -> None:
        if self.at == len(self.items):
            self._say("Nothing is left to label.")
        shown = -1
        while self.at < len(self.items):
            if shown != self.at:
                self._show()
                shown = self.at
            line = self._ask()
            if not line:
                break
            command = read_command(line)
            if command.action == "quit":
                break
            if not self._act(command):
                shown = -1
        self._say(self.store.summary(self.items))
        self._print_remarks()

    def _ask(self) -> str:
        self._print_remarks()
        item = self.items[self.at]
        steps = f"1-{item.steps}, " if item.steps else ""
        self.console.print(f"[bold]{steps}n, u, s, ?[/] > ", end="", highlight=False)
        return self.read()

    def _act(self, command: Command) -> bool:
        """Do it; False if the item has to be shown again."""
        item = self.items[self.at]
        match command.action:
            case "label" if command.verdict is not None:
                self._label(item, command, command.verdict)
            case "note":
                self._annotate(item, command.note)
            case "next":
                self._go_on(item)
            case "back":
                self.at = max(0, self.at - 1)
            case "jump":
                self._jump(command.number or 0)
            case "gold":
                self.gold = not self.gold
                return False
            case "help":
                self._say(HELP)
            case _:
                self._say(f"That is no answer. {HELP}", style="yellow")
        return True

    def _label(self, item: Item, command: Command, verdict: LabelVerdict) -> None:
        try:
            label = self.store.add(item, verdict, step=command.number, note=command.note)
        except RecordError as error:
            self._say(f"Not saved: {error}.", style="yellow")
            return
        self._say(f"Saved: {describe_label(label)}.", style="green")
        self.open.discard(self.at)
        self._advance()

    def _annotate(self, item: Item, note: str) -> None:
        label = self.store.label_of(item)
        if label is None:
            self._say("Not saved: give a verdict with the note, such as 3 # note.", style="yellow")
            return
        label = self.store.add(item, label.verdict, step=label.step, note=note)
        self._say(f"Saved: {describe_label(label)}.", style="green")

    def _go_on(self, item: Item) -> None:
        if self.store.label_of(item) is None:
            self._say(f"It has no label yet. {HELP}", style="yellow")
            return
        self.open.discard(self.at)
        self._advance()

    def _jump(self, number: int) -> None:
        if 1 <= number <= len(self.items):
            self.at = number - 1
        else:
            self._say(f"There are solutions 1 to {len(self.items)}.", style="yellow")

    def _advance(self) -> None:
        """The next item without a label, from here on, then from the beginning."""
        later = [i for i in self.open if i > self.at]
        self.at = min(later or self.open, default=len(self.items))
        if self.at == len(self.items):
            self._say("All solutions have a label.", style="green")

    def _show(self) -> None:
        item = self.items[self.at]
        done = sum(self.store.label_of(i) is not None for i in self.items)
        title = f" {self.at + 1}/{len(self.items)} · {done} labelled · {item.solution.id} "
        if self.console.is_terminal:
            self.console.clear()
        parts = [Text(item.solution.question.strip(), style="bold"), Text("")]
        if self.gold:
            gold = item.solution.gold.strip() or "(the file has none)"
            parts += [Text("Worked solution", style="underline"), Text(gold), Text("")]
        if item.solution.answer:
            parts += [Text(f"Right answer: {item.solution.answer}", style="green"), Text("")]
        parts += [_piece_text(piece.number, piece.text) for piece in item.pieces]
        if not item.steps:
            parts += [Text(""), Text(NO_MARKERS, style="yellow")]
        self.console.print(Panel(Group(*parts), title=Text(title), title_align="left"))
        label = self.store.label_of(item)
        if label is not None:
            self._say(f"Labelled so far: {describe_label(label)}.", style="cyan")

    def _say(self, text: str, *, style: str = "") -> None:
        self.remarks.append(Text(text, style=style))

    def _print_remarks(self) -> None:
        for remark in self.remarks:
            self.console.print(remark)
        self.remarks.clear()


def _piece_text(number: int | None, text: str) -> Text:
    if number is None:
        return Text(f"      {text}", style="dim")
    return Text.assemble((f"{number:>4}  ", "bold cyan"), text)


def describe_label(label: Label) -> str:
    """The label in words."""
    verdict = f"first wrong step {label.step}" if label.step is not None else label.verdict
    return f"{verdict}, note: {label.note}" if label.note else verdict
