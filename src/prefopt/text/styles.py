"""Prompt styles for problems: what a question looks like to the model, and how its solution has to begin.

The published styles of Step-DPO (arXiv 2406.18629) and Step-Controlled DPO (arXiv 2407.00782) stand here character for
character, special tokens of other people's templates included; `chat` and its relatives leave the frame to the
model's own chat template. Templates are applied elsewhere (`prefopt.text.render`).

A style has two uses that must agree: asking for a solution (`ask`: sampling, evaluation) and writing the context of a
training pair whose first steps are given (`with_steps`). Both return the prompt and the unfinished assistant text
after it, separately, because records and requests keep them apart; the model sees them joined.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from prefopt.config.mistakes import unknown_name
from prefopt.errors import ConfigError
from prefopt.records import Message

OPENING = "Let's think step by step."
"""The line before the first step in the data of Step-DPO; it belongs to `initial_reason_steps` there."""
FIRST_STEP = f"{OPENING}\nStep 1:"
"""What a solution in numbered steps begins with. It ends without a space, as the contexts of training pairs do."""

_QUESTION, _SYSTEM = "{question}", "{system}"
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{question}\n\n### Response:"
)
_BOXED = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
_DEEPSEEK = f"User: {_BOXED}\n\nAssistant:"
_QWEN2 = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n{_BOXED}<|im_end|>\n<|im_start|>assistant\n"
)
_SCDPO = (
    "<|system|><|text|>{system}<|endofblock|><|endofmessage|>"
    "<|user|><|text|>{question}<|endofblock|><|endofmessage|><|assistant|>"
)
SCDPO_SYSTEM = "Below is a math problem. Please solve it step by step."
"""The system text with which Step-Controlled DPO evaluates its Mistral and MathCoder models."""


class Styled(NamedTuple):
    """A question in its style."""

    prompt: str | tuple[Message, ...]
    """A text that is used as it is, or a conversation for the model's chat template."""
    prefix: str
    """Unfinished assistant text that the solution continues; may be empty."""


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """How a question is put to the model."""

    name: str
    about: str
    """One line for people."""
    frame: str
    """The text around `{question}` (and `{system}`)."""
    chat: bool = False
    """Whether `frame` is the content of a user message, for the model's own chat template."""
    join: str = ""
    """Between the prompt and the given steps."""
    start: str = ""
    """What a solution begins with, everything after the prompt: join included."""
    needs_prefix: bool = False
    """Whether every problem has to bring its own unfinished solution, which follows `start`."""
    system: str = ""
    """In place of `{system}`."""

    def ask(self, question: str, prefix: str = "") -> Styled:
        """The question for sampling and evaluation.

        Args:
            question: the problem as it stands in the file.
            prefix: the solution's first steps, for styles with `needs_prefix` only. The style writes the line `OPENING`
                itself; a prefix may have it or not.

        Raises:
            ConfigError: a prefix is missing, or given to a style that has no place for it.
        """
        if self.needs_prefix and not prefix:
            raise ConfigError(
                f"style {self.name!r} continues an unfinished solution, but there is no prefix; add a column "
                f"'prefix', or use style {self.name.rpartition('-')[0].removesuffix('-cot')!r}"
            )
        if prefix and not self.needs_prefix:
            raise ConfigError(
                f"style {self.name!r} has no place for an unfinished solution; use a style that ends in "
                "'-prefix', or remove the prefix"
            )
        steps = prefix.removeprefix(f"{OPENING}\n")
        return Styled(self._prompt(question), self.start + steps)

    def with_steps(self, question: str, initial_reason_steps: str) -> Styled:
        """The question with the beginning of its solution, as training contexts are written.

        Args:
            question: the problem as it stands in the file.
            initial_reason_steps: `OPENING`, the steps before the pair's and its marker `Step k:`. Where it is empty
                no join string is written either.
        """
        steps = self.join + initial_reason_steps if initial_reason_steps else ""
        return Styled(self._prompt(question), steps)

    def with_system(self, text: str) -> PromptStyle:
        """The style with another system text.

        Raises:
            ConfigError: the style has no place for one.
        """
        if _SYSTEM not in self.frame:
            raise ConfigError(
                f"style {self.name!r} has no system text of its own; use style 'scdpo', or put the text "
                "into the model's chat template"
            )
        return replace(self, system=text)

    def _prompt(self, question: str) -> str | tuple[Message, ...]:
        # Split before filling in: a question may itself hold braces.
        before, _, after = self.frame.partition(_QUESTION)
        text = before.replace(_SYSTEM, self.system) + question + after
        return (Message("user", text),) if self.chat else text


def find_style(name: str) -> PromptStyle:
    """The style of that name.

    Raises:
        ConfigError: there is none; the message names the nearest and all others.
    """
    if name not in _STYLES:
        raise unknown_name("prompt style", name, style_names())
    return _STYLES[name]


def style_names() -> list[str]:
    """Names of all styles: those that use the model's chat template first, then the published ones."""
    return list(_STYLES)


_STYLES = {
    style.name: style
    for style in (
        PromptStyle("chat", "the question as user message", _QUESTION, chat=True),
        PromptStyle(
            "chat-step", "chat, solved in numbered steps", _QUESTION, chat=True, start=FIRST_STEP
        ),
        PromptStyle("chat-boxed", "chat, the answer asked for in a box", _BOXED, chat=True),
        PromptStyle(
            "chat-boxed-step",
            "chat-boxed, solved in numbered steps",
            _BOXED,
            chat=True,
            start=FIRST_STEP,
        ),
        PromptStyle("plain", "the question alone, as plain text", _QUESTION),
        PromptStyle(
            "alpaca",
            "Step-DPO's Alpaca prompt, with the line break of its training data",
            _ALPACA,
            join="\n",
            start=f"\n{OPENING}",
        ),
        PromptStyle(
            "alpaca-official",
            "alpaca as Step-DPO's evaluation writes it, with a space for the line break",
            _ALPACA,
            join="\n",
            start=f" {OPENING}",
        ),
        PromptStyle(
            "alpaca-cot-step",
            "alpaca, solved in numbered steps",
            _ALPACA,
            join="\n",
            start=f"\n{FIRST_STEP} ",
        ),
        PromptStyle(
            "alpaca-cot-prefix",
            "alpaca, continuing the solution in column 'prefix'",
            _ALPACA,
            join="\n",
            start=f"\n{OPENING}\n",
            needs_prefix=True,
        ),
        PromptStyle("deepseek-math", "DeepSeekMath's prompt", _DEEPSEEK, join=" "),
        PromptStyle(
            "deepseek-math-step",
            "deepseek-math, solved in numbered steps",
            _DEEPSEEK,
            join=" ",
            start=f" {FIRST_STEP} ",
        ),
        PromptStyle("qwen2-boxed", "Qwen2's chat format, the answer asked for in a box", _QWEN2),
        PromptStyle(
            "qwen2-boxed-step",
            "qwen2-boxed, solved in numbered steps",
            _QWEN2,
            start=f"{FIRST_STEP} ",
        ),
        PromptStyle(
            "qwen2-boxed-prefix",
            "qwen2-boxed, continuing the solution in column 'prefix'",
            _QWEN2,
            start=f"{OPENING}\n",
            needs_prefix=True,
        ),
        PromptStyle("scdpo", "Step-Controlled DPO's blocks, empty system text", _SCDPO),
        PromptStyle(
            "scdpo-system",
            "scdpo with the system text of its evaluations",
            _SCDPO,
            system=SCDPO_SYSTEM,
        ),
    )
}
