"""Which part of a model's text is its final answer. How answers are compared is not known here.

The order, fixed and documented in `docs/grading.md`: the last box; else what follows the last "answer is" or `####`,
whichever comes later; else the whole text if it is nothing but an answer; else the last formula or number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from prefopt.grade.notation import drop_emphasis, unwrap_emphasis
from prefopt.grade.numbers import SCALES, WORDS
from prefopt.grade.prose import widen

_MARKERS = re.compile(
    r"</?s>|<\|[a-zA-Z_]{3,40}\|>|<｜[^｜<>]{1,40}｜>|<(?:eos|bos|pad|unk|end_of_turn|start_of_turn)>|\[/?INST\]|<</?SYS>>"
)
"""What tokenizers and chat templates put at the ends of texts and turns."""
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*(?:\{|(?=[\s\\0-9A-Za-z(-]))|\bboxed\{")
_STATEMENT = re.compile(
    r"""(?ix)
    (?: \banswers?\b (?:\s+(?:to|for|of)\s+[^.\n:]{0,80}?)? [*_\s]*
        (?: (?:is|are|would\ be|will\ be|equals)\b | -+> | => | [:=→⇒➡] )
        (?: [*_\s]* (?:therefore|thus|simply|approximately|equal\ to|given\ by|exactly|just)\b )* [\s:*_]*
      | \#\#\#\#+ [ \t]*
      | 答案 [*_\s]* (?: 应?该?[是为] | 就是 | [:：=] ) [\s:：*_]*
    )"""
)
_SENTENCE_END = re.compile(
    r"(?<!\d)\.(?=\s|$|\*|\")|(?<=\d)\.(?=\s|$|\*|\")|(?<!\\)[!?](?=\s|$)|\n|[。！]|，(?=[^\W\d_a-zA-Z])(?![和或与及以])"
)
_ABBREVIATIONS = re.compile(
    r"(?:\b[ap]\.m|\b(?:Mr|Mrs|Ms|Dr|vs|sq|ft|in|no|approx|i\.e|e\.g))\.$", re.IGNORECASE
)
_ASIDE = re.compile(r"(?i)\b(?:this|that|your|whether|if|hope|hope\s+(?:the|my))\s+$")
"""What makes a statement after it one about an answer given elsewhere."""
_ANSWER_WORDS = {
    "yes",
    "no",
    "true",
    "false",
    "even",
    "odd",
    "neither",
    "both",
    "none",
    "never",
    "always",
    *WORDS,
}
_NUMBER_WORDS = {"and", "dollars", *WORDS, *SCALES}
_REMARK = re.compile(
    r"(?i)(?:,|;|\s)\s*(?:which|because|since|so|where|whereas|while|meaning|assuming|i\.e\."
    r"|(?:as|and) (?:the|we|she|he|it|they|so|this|then|therefore))\s.*$"
    r"|,\s+as\s+(?:[a-z]+ed|shown|found|known|before|above)\b.*$"
    r"|;\s*[-$]*\d[\d.,]*\s+(?:[a-z]+\s+){0,2}(?:more|less|fewer)\s+than\s"
    r"(?!.*(?:[=→⇒]|->|\b(?:is|are|was|were|so|then|thus|hence|gives?|makes?|leaves?|yields?|equals?|gets?)\b)).*$"
    r"|(?<=[\w$%.])\s+\((?!(?i:or)\s)(?=[^()]*[a-zA-Z]{3,})[^()\\]*\)\W*$",
    re.DOTALL,
)
"""What explains an answer after it."""
_MATHS = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$(?!\s*\d[\d,.]*\s+[a-z])((?:\\.|[^$\n])+?)(?<![\\=])(?<!=\s)\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]",
    re.DOTALL,
)
_NUMBER = re.compile(
    r"""(?x)(?<![\w.\\^_])(?<![}^_]\{)(?<!sqrt\{)
    -?\s?\\[dt]?frac\s?(?:\{[^{}]*\}\s?\{[^{}]*\}|\d\d(?!\d))
    | (?<![\w.\\^_])(?<![}^_]\{)(?<!sqrt\{) -?\s?[$€£]?\s?(?: \d{1,3}(?:,\d{3})+ (?!\d) | \d+ )? (?:\.\d+|(?<=\d))
    (?: \s?/\s?\d+ (?![\d/]) )? (?:\s?\\?%)?"""
)
_CONTRAST = re.compile(
    r"(?<=[\d$%])(\s+[a-z]+)?,?\s+(?:(?:and|but)\s+)?(?:not|rather\s+than|instead\s+of)\s+[-$]*\d(?:[\d.,/]*\d)?\$?"
)
_LARGER_UNIT = re.compile(
    r"(?i)[-$]*\d(?:[\d.,]*\d)?\s+(?:hours?|minutes?|feet|foot|dollars?|pounds?|years?|weeks?|days?|meters?),?\s+"
    r"(?:and\s+)?$"
)
_SMALLER_UNIT = re.compile(
    r"(?i)\s+(?:minutes?|seconds?|inch(?:es)?|cents?|ounces?|months?|days?|hours?|cm|centimeters?)\b"
)
_LIST_MARK = re.compile(
    r"^[ \t]*(?:(?:[-+*•>]|\d{1,2}[.)])[ \t]+)+(?=(?:\*{1,3}|_{1,3})[^\s*_])", re.MULTILINE
)
"""What Markdown puts before an item or a quotation; without emphasis after it, it may be a sign of the answer."""
_NUMBERED = re.compile(r"^(?:\d{1,2}[.)]|[*•])\s+(?=\S)")
_NOTHING_ELSE = re.compile(r"[^\n]{1,200}")
_PROSE = re.compile(r"(?<!\\)\b[A-Za-z]{2,}\b")
_LEADERS = re.compile(
    r"(?i)^(?:(?:i\s+hope|correct|wrong|incorrect|right|not|unknown|unclear|below|above|as follows)\b)"
)
_ENVIRONMENT = re.compile(r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}", re.DOTALL)


def final_answer(text: str) -> str | None:
    """The part of a model's output that counts as its answer, as written; None where there is none.

    Markers of turns and ends of texts, such as `</s>` or `<|im_end|>`, are ends of lines.
    """
    text = _MARKERS.sub("\n", text)
    boxed = boxed_answer(text)
    if boxed is not None:
        return boxed
    stated = stated_answer(text)
    if stated is not None:
        return stated
    if "\\boxed" in text:
        return None  # empty, or cut off: the answer was to come there
    whole = _NUMBERED.sub("", _without_markdown(text).strip()).strip("*").strip()
    if _NOTHING_ELSE.fullmatch(whole) and not _is_prose(whole):
        return drop_emphasis(whole)
    return _last_formula_or_number(text)


def join_answers(answers: Sequence[str]) -> str:
    """Several gold answers as the one text that graders take; see `read_answers`."""
    return json.dumps(list(answers), ensure_ascii=False)


def gold_text(problem: str, answers: Sequence[str]) -> str:
    """The answers of a problem as the one text that graders take."""
    del problem
    return answers[0] if len(answers) == 1 else join_answers(answers)


def read_answers(answer: str) -> tuple[str, ...]:
    """The gold answers of a text: those that `join_answers` joined, else the text itself."""
    if answer.startswith('["') and answer.endswith('"]'):
        try:
            found = json.loads(answer)
        except ValueError:
            return (answer,)
        if found and all(isinstance(item, str) for item in found):
            return tuple(found)
    return (answer,)


def boxed_answer(text: str) -> str | None:
    r"""The content of the last complete, non-empty `\boxed{}`; boxes in one list are joined by commas.

    A box that is never closed ends at the end of its formula if there is one (`$\boxed{\frac{1}{2}$`); one cut off by
    the end of the text does not count.
    """
    boxes = [found for match in _BOX.finditer(text) if (found := _box_at(text, match)) is not None]
    if not boxes:
        return None
    answers = [boxes[-1][2]]
    for (_, end, earlier), (start, _, _) in zip(
        reversed(boxes[:-1]), reversed(boxes[1:]), strict=True
    ):
        if not _only_connects(text[end:start]):
            break
        if earlier not in answers:
            answers.insert(0, earlier)
    return ", ".join(answers)


def stated_answer(text: str) -> str | None:
    """What follows "answer is" or `####`, up to the end of the sentence; None if there is neither.

    The last statement counts, but one that may be a remark on the answer ("the answer is reasonable", "I hope this
    answer is ...") only if none before it has a number or a formula.
    """
    text = _without_markdown(text)  # so that no mark is parted from its other half
    remark: str | None = None
    for match in reversed(list(_STATEMENT.finditer(text))):
        rest = text[match.end() :].lstrip()
        if not rest or _LEADERS.match(rest):
            continue
        found = drop_emphasis(_first_sentence(rest)).strip()
        found = _REMARK.sub("", found) or found
        if not re.search(r"[^\W_]|\\", found):
            continue
        aside = _ASIDE.search(text[: match.start()]) is not None
        if not aside and (_has_value(found) or (remark is None and _names(found))):
            return found
        remark = remark or found
    return remark


def _without_markdown(text: str) -> str:
    text = re.sub(r"\*\*(\d+!)\*\*", r"$\1$", text)  # a factorial, not the end of a sentence
    return unwrap_emphasis(_LIST_MARK.sub("", text))


def _has_value(text: str) -> bool:
    """Whether a statement has a number or a formula."""
    return bool(re.search(r"\d|[\\$=^]", text)) or any(
        word in _ANSWER_WORDS for word in re.findall(r"[a-z]+", text.lower())
    )


def _names(text: str) -> bool:
    """Whether a statement begins with a name or a choice, which may well follow statements with numbers."""
    return re.match(r"[\W_]*[A-Z]", text) is not None


def _box_at(text: str, match: re.Match[str]) -> tuple[int, int, str] | None:
    """(start, end, content) of a box; None if it is empty or cut off."""
    start = match.end()
    if text[start - 1] != "{":
        bare = re.match(r"\s*([^\s$]+)", text[start:])
        content = bare[1].rstrip(".,;") if bare else ""
        return (match.start(), start + (bare.end() if bare else 0), content) if content else None
    depth = 1
    for position in range(start, len(text)):
        character = text[position]
        if character in "{}" and text[position - 1] != "\\":
            depth += 1 if character == "{" else -1
        if depth == 0:
            content = text[start:position].strip()
            # A percent sign right after the box belongs to the answer.
            percent = re.match(r"\s?\\?%", text[position + 1 :])
            if content and percent:
                content += "\\%"
            return (match.start(), position + 1, content) if content else None
    end = re.match(r"[^$\n]*?(?=\$|\\\)|\\\]|\n)", text[start:])
    content = end[0].strip().rstrip(".") if end else ""
    if not content:
        return None
    # The brace that closed the box stands at the end, where one inside is missing.
    if content.count("{") <= content.count("}") - 1:
        content = content.removesuffix("}")
    return match.start(), start + (end.end() if end else 0), content


def _only_connects(between: str) -> bool:
    between = re.sub(r"\\text\s*\{([^{}]*)\}|\\(?:quad|qquad|,|;|!| )|[$\\()\[\]]", r"\1", between)
    return re.fullmatch(r"(?i)[\s,;]*(?:and|or|&)?[\s,;]*(?:[a-z]\w?\s*=\s*)?", between) is not None


def _first_sentence(rest: str) -> str:
    """The start of a text up to the end of its sentence; what stands between signs of a formula is kept whole."""
    formula = re.match(r"\$\$.*?\$\$|\$(?=[^$\n]*\$)|\\\[|\\\(", rest, re.DOTALL)
    begin = 0
    if formula:
        opened = formula[0]
        close = {"\\[": "\\]", "\\(": "\\)", "$": "$"}.get(opened, "$$")
        found = rest.find(close, len(opened) if opened in {"\\[", "\\(", "$"} else 2)
        begin = found + len(close) if found >= 0 else 0
    for environment in _ENVIRONMENT.finditer(rest):
        if not _SENTENCE_END.search(rest[begin : environment.start()]):
            begin = environment.end()
    for end in _SENTENCE_END.finditer(rest, begin):
        upto = rest[: end.end()]
        if end[0] == "." and _ABBREVIATIONS.search(upto):
            continue
        if rest[: end.start()].strip():
            return rest[: end.start()]
    return rest


def _is_prose(text: str) -> bool:
    words = _PROSE.findall(re.sub(r"\\[a-zA-Z]+|\\text\s*\{[^{}]*\}", " ", text))
    return len(words) > 3 and any(word.lower() not in _NUMBER_WORDS for word in words)


def _last_formula_or_number(text: str) -> str | None:
    """The last of them, with the words around it that change it ("5 million", "not $5$")."""
    text = _CONTRAST.sub(r"\1", text)
    last: tuple[int, int, str] | None = None
    for match in _MATHS.finditer(text):
        content = next(group for group in match.groups() if group is not None).strip()
        if content:
            last = (*match.span(), content)
    for match in _NUMBER.finditer(text):
        if re.search(r"\d", match[0]) and (last is None or match.start() >= last[1]):
            last = (*match.span(), match[0].strip())
    if last is None:
        return None
    larger, smaller = _LARGER_UNIT.search(text[: last[0]]), _SMALLER_UNIT.match(text, last[1])
    if larger and smaller:
        return text[larger.start() : smaller.end()]
    start, end = widen(text, last[0], last[1])
    return last[2] if (start, end) == (last[0], last[1]) else text[start:end].strip()
