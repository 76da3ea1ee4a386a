"""One way of writing for answers: LaTeX variants, Unicode signs, markdown and spacing brought to a common form.

Nothing here decides whether answers are equal. Brackets, signs, digits and the order of things are never changed.
"""

from __future__ import annotations

import re
from functools import lru_cache

_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "∙": "\\cdot ",
    "÷": "/", "√": "\\sqrt ", "π": "\\pi ", "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "±": "\\pm ",
    "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ", "λ": "\\lambda ",
    "°": " degrees ",
    "½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "²": "^2", "³": "^3",
    "’": "'", "‘": "'", "“": '"', "”": '"', "\u00a0": " ", "\u202f": " ", "\u2009": " ", "，": ",", "。": ".",
    "（": "(", "）": ")", "：": ":", "≈": "\\approx ",
    "％": "%", "…": "...", "ℝ": "\\mathbb{R}", "∅": "\\emptyset ", "⟨": "(", "⟩": ")",
}  # fmt: skip
_TRANSLATE = str.maketrans(_SIGNS)
_ARROW = re.compile(r"-+>|=>|[→⇒⟹➜➡]")
"""Before a result; the arrows of LaTeX are left to maps and limits."""

_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|m?box|math(?:rm|bf|it|sf|tt|normal)|boldsymbol|bm|operatorname\*?|emph"
    r"|underline|displaystyle|textstyle|boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\(?:displaystyle|textstyle|limits|nolimits|rm|bf|it|mathrm|mathbf|text)(?![a-zA-Z])", " "),
        (r"\\(?:left|right|[bB]ig[lrg]*|[bB]igg[lr]?)(?![a-zA-Z])\s*\.?(?=\s*(?:[\[\](){}|/.<>]|\\[{}|a-z]|$))", ""),
        (r"\\(?:langle|lparen)(?![a-zA-Z])", "("),
        (r"\\(?:rangle|rparen)(?![a-zA-Z])", ")"),
        (r"\\(?:lbrace)(?![a-zA-Z])", r"\\{"),
        (r"\\(?:rbrace)(?![a-zA-Z])", r"\\}"),
        (r"(?<=\d)\s*\\[,!:;]\s*(?=\d{3}(?!\d))", ""),  # 1\,234
        (r"\s*\\!\s*,\s*(?=\d{3}(?!\d))", ","),
        (r",\s*\\!\s*(?=\d{3}(?!\d))", ","),
        (r"(?<=\d)\{,\}(?=\d)", ","),
        (r"\{,\}", ","),
        (r"(?<!\\)\\(?:[,!:;> ]|quad(?![a-zA-Z])|qquad(?![a-zA-Z])|thinspace(?![a-zA-Z])|enspace(?![a-zA-Z]))", " "),
        (r"\\(?:hspace|vspace|hskip|phantom|label|tag)\*?\s*\{[^{}]*\}", " "),
        (r"(?<!\\)~", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\leq(?:slant)?(?![a-zA-Z])", r"\\le"),
        (r"\\geq(?:slant)?(?![a-zA-Z])", r"\\ge"),
        (r"\\(?:neq|not\s*=)(?![a-zA-Z])", r"\\ne "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=(?!=)", r"\\ne "),
        (r"\\(?:approx|simeq|thickapprox)(?![a-zA-Z])", r"\\approx "),
        (r"\\(?:infin|infinity)(?![a-zA-Z])", r"\\infty "),
        (r"(?<![\\a-zA-Z])(?:infinity|infty|inf|oo)(?![a-zA-Z])", r"\\infty "),
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degrees?(?![a-zA-Z])|\\textdegree|\^\{? degrees \}?", " degrees "),
        (r"\\%", "%"),
        (r"\\text(?:dollar)(?![a-zA-Z])|\\(?:dollar|euro|pounds)(?![a-zA-Z])", r"\\$"),
        (r"\\ldots|\\dots|\\cdots", "..."),
        (r"\\colon(?![a-zA-Z])", ":"),
        (r"\\(?:lor|vee)(?![a-zA-Z])", " or "),
        (r"\\(?:land|wedge)(?![a-zA-Z])", " and "),
        (r"\\mid(?![a-zA-Z])", "|"),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset "),
        (r"\\mathbb\s*R(?![a-zA-Z])", r"\\mathbb{R}"),
        (r"\*\*(?=\s*[\d(a-zA-Z-])(?<=[\da-z)]\*\*)", "^"),
        (r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
        (r"\\sqrt\s*([0-9a-zA-Z])", r"\\sqrt{\1}"),
        (r"\\sqrt\s+\{", r"\\sqrt{"),
        (r"(?<=\d)\s*\\(?:frac)", r" \\frac"),
    )
)  # fmt: skip
_OUTSIDE = r"""(?<![^\s(\[{"'$:;,=>~/、，：（「£€¥—–一-鿿-])"""
"""A mark of Markdown opens after these: elsewhere it is multiplication, a power or an index."""
_EMPHASISED = re.compile(
    rf"{_OUTSIDE}(?P<mark>\*{{1,3}})(?=[^\s*])(?P<inside>[^\n]{{0,300}}?[^\s*\\])(?P=mark)(?![0-9A-Za-z*])"
    rf"|{_OUTSIDE}(?P<line>_{{1,3}})(?=[^\s_{{])(?P<words>[^\n]{{0,300}}?[^\s_\\])(?P=line)(?![0-9A-Za-z_{{])"
    rf"|{_OUTSIDE}\*\*(?P<number>[-$]*\d[\d.,]*)\*\*(?=[A-Za-z])"
)
"""A pair of marks and what stands between them."""
_LEFT_OPEN = re.compile(r"^(?:\*{1,3}|_{1,3})(?=[^\s*_])")
_LEFT_CLOSED = re.compile(
    r"(?<=[^\s*_\\])(?:\*{1,3}|_{1,3})"
    r"(?=\s*$|(?<=[A-Z][).:]\*\*)\s|\s*[,;:.!?%)](?!\d)|\s+(?!(?:sqrt|sin|cos|tan|log|ln|pi|exp)\b)[a-zA-Z]{2}|\s*\([a-zA-Z]{2})"
)
"""The half of a pair whose other half is outside of the answer."""
_TAGS = re.compile(r"</?(?:strong|em|mark|b|i|u)>")
_WITHOUT_VALUE = re.compile(
    "[\u2600-\u2714\u2719-\u274b\u274d\u274f-\u2775\u2798-\u27a0\u27a2-\u27bf\u2b50\ufe0f\u200d\u20e3"
    "\U0001f300-\U0001f44d\U0001f44f-\U0001f6aa\U0001f6ac-\U0001faff]"
)
"""Pictures, but for those that are digits, signs of operations or say that something is wrong."""
_MATRIX = re.compile(
    r"\\(begin|end)\s*\{(?:[bpBvV]?matrix|smallmatrix|array)\*?\}(?:\s*\{[lcr|\s]*\})?"
)
_FRAC = re.compile(r"\\frac\s*")
_GROUP_NUMBER = re.compile(
    r"(?<![\w}])\{(\d+(?:,\d{3})*(?:\.\d+)?)\}(?!\s*\{)|\{\{([^{}]*)\}\}(?!\s*\{)"
)
_UNIT_IN_DOLLARS = re.compile(
    r"(?<=\d)\s*\$\s*(\\(?:text|mathrm)\s*\{[^{}$]*\}(?:\^\{?-?[123]\}?)?)\s*\$"
)
_WRAPPED = re.compile(
    r"""(?sx)
    ^(?: \$\$(?P<a>(?:[^$]|\\\$)*)\$\$ | \$(?P<b>(?:[^$\\]|\\.)*)\$ | \\\((?P<c>(?:(?!\\\)).)*)\\\)
       | \\\[(?P<d>(?:(?!\\\]).)*)\\\] | \*\*(?P<e>[^*]*)\*\* | `(?P<f>[^`]*)` | "(?P<g>[^"]*)" )$"""
)


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """An answer in the common way of writing; idempotent, empty only for texts without content."""
    text = _strip_ends(text)
    while (wrapped := _WRAPPED.match(text)) is not None:
        inner = next(group for group in wrapped.groups() if group is not None)
        text = _strip_ends(inner)
    text = _UNIT_IN_DOLLARS.sub(r" \1", text)
    text = _WITHOUT_VALUE.sub("", text).replace("\\$", "$").translate(_TRANSLATE)
    text = _ARROW.sub(" = ", text)
    text = re.sub(r"\\\(|\\\)|\\\[(?![0-9.]+(?:pt|em|ex|mm|cm)\])|(?<!\\)\\\]", " ", text)
    text = _drop_markdown(text)
    for _ in range(4):
        changed = _TEXT.sub(r" \1 ", text)
        if changed == text:
            break
        text = changed
    text = _MATRIX.sub(r"\\\1{pmatrix}", text)
    for pattern, new in _RULES:
        text = pattern.sub(new, text)
    text = re.sub(r"(?i)^(?:negative|minus)\s+(?=[\d\\])", "-", text.strip())
    text = _brace_fractions(text)
    text = _GROUP_NUMBER.sub(lambda m: m[1] or "{" + (m[2] or "") + "}", text)
    text = re.sub(r"(?i)(?<![a-z])([ap])\s?\.\s?m\b\.?", r"\1m", text)
    text = re.sub(r"(?<=\d)\s*\(\s*=\s*([^()]*)\)$", _calculated, text.strip())
    return re.sub(
        r"^(?:\s|=|~|\\approx|\\sim|\\therefore)+", "", _strip_ends(re.sub(r"\s+", " ", text))
    )


def _calculated(match: re.Match[str]) -> str:
    """`(= 9 x 2)` after a value as a side of an equation."""
    return " = " + re.sub(r"(?<=[\d)])\s*x\s*(?=[\d(])", r" \\times ", match[1])


def compact(text: str) -> str:
    """A cleaned answer without spaces and without signs that carry no value, for comparing as a string."""
    text = re.sub(r"\\(?:cdot|times)(?![a-zA-Z])|\*", "*", text.replace("$", ""))
    if not re.match(
        r"\s*(?:[a-zA-Z]\s*\\in\s*)?(?:[(\[]|\\\{)", text
    ):  # between brackets items are separated
        text = re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text)
    # A space after a command name separates it from the letters that follow.
    text = re.sub(r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])", r"\1@", text)
    text = re.sub(r"\s+", "", text)
    text = re.sub(r"([_^])\{([0-9a-zA-Z])\}", r"\1\2", text)
    return text.replace("+-", "-").rstrip(".")


def _strip_ends(text: str) -> str:
    before = None
    while before != text:
        before = text
        text = text.strip().lstrip(":;,").rstrip(",;:").strip()
        if text.endswith("\\"):
            text = text[:-1].rstrip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
        if text.startswith("**") and "**" not in text[2:]:
            text = text[2:]
        if text.endswith("**") and "**" not in text[:-2]:
            text = text[:-2]
        if text.count("$") == 1 and text.endswith("$"):
            text = text[:-1]
    return text


def unwrap_emphasis(text: str) -> str:
    """A text without the marks of bold and italic words that come in pairs on one line."""
    before = None
    while before != text:
        before, text = text, _EMPHASISED.sub(_inside, text)
    return _TAGS.sub("", text)


def _inside(match: re.Match[str]) -> str:
    """What stands between two marks; all of it where they are signs of multiplication: `2 *3* 4`."""
    before, after = match.string[: match.start()][-2:], match.string[match.end() :][:2]
    if match["mark"] == "*" and re.match(r"[\d)]\s", before) and re.match(r"\s?[\d(]", after):
        return match[0]
    return match["inside"] or match["words"] or match["number"]


def drop_emphasis(text: str) -> str:
    """An answer without the marks of bold and italic words, also where one half of a pair is cut off."""
    return _LEFT_CLOSED.sub("", _LEFT_OPEN.sub("", unwrap_emphasis(text)))


def _drop_markdown(text: str) -> str:
    return re.sub(r"<<[^<>]*>>", "", drop_emphasis(text)).replace("`", "")


def _brace_fractions(text: str) -> str:
    r"""`\frac12`, `\frac 1{72}` and `\frac{360}7` with braces around both parts."""
    parts: list[str] = []
    position = 0
    while (match := _FRAC.search(text, position)) is not None:
        parts.append(text[position : match.start()])
        above, position = _argument(text, match.end())
        below, position = _argument(text, position)
        if above is None or below is None:
            parts.append("\\frac" + (f"{{{above}}}" if above is not None else ""))
            continue
        parts.append(f"\\frac{{{_brace_fractions(above)}}}{{{_brace_fractions(below)}}}")
    parts.append(text[position:])
    return "".join(parts)


def _argument(text: str, position: int) -> tuple[str | None, int]:
    """The argument of a command that begins at a position, without its braces, and where it ends."""
    while position < len(text) and text[position] == " ":
        position += 1
    if position >= len(text):
        return None, position
    if text[position] == "\\":
        command = re.match(r"\\[a-zA-Z]+(?:\{[^{}]*\})?", text[position:])
        return (command[0], position + command.end()) if command else (None, position)
    if text[position] != "{":
        return text[position], position + 1
    depth = 0
    for end in range(position, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[position + 1 : end].strip(), end + 1
    return None, position
