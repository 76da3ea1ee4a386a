"""Records as training examples: rendered, tokenised, cut to length, merged into trees; every record gets a fate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefopt.errors import RecordError
from prefopt.ledger import Ledger
from prefopt.pack.batch import Example
from prefopt.pack.tree import TokenTree, build_tree
from prefopt.records import Pair, Preference
from prefopt.text.quality import EMPTY, IDENTICAL, is_empty
from prefopt.text.render import GLUED, RenderSettings, is_glued, render
from prefopt.text.tokens import EncodedResponse, TokenSequence, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROMPT_TOO_LONG = "prompt too long"
RESPONSE_TOO_LONG = "response too long"
IDENTICAL_AFTER_CUT = "identical after the cut"
NOTHING_SCORED = "nothing scored"

PROMPT_CUT = "start of the prompt cut"
RESPONSE_CUT = "end of a response cut"
BOTH_CUT = "start of the prompt and end of a response cut"

HEADLESS = "empty prompt and no BOS token: the first token is not scored"
RESPONSES_LEFT_OUT = "some responses left out"
PAIRS_LEFT_OUT = "some pairs left out"

_CHUNK = 256
"""Records tokenised in one call."""


class PrepareSettings(NamedTuple):
    """How records become examples. Lengths are tokens."""

    max_length: int = 1024
    """Longest sequence, prompt included."""
    max_prompt_length: int | None = None
    """Longest prompt with its prefix; None allows any that leaves room for one token of response."""
    overlong_prompt: Literal["drop", "keep_end", "error"] = "drop"
    overlong_response: Literal["cut", "drop", "error"] = "cut"
    render: RenderSettings = RenderSettings()


class Weighable(NamedTuple):
    """What the weights of a record's scored tokens may depend on."""

    tree: TokenTree
    whole: tuple[TokenSequence, ...]
    """Per response of the tree, its tokens before anything was cut."""
    special: frozenset[int]
    """Ids of the tokenizer's special tokens, among them what ends a turn."""


Weigh = Callable[[Weighable], tuple[float, ...]]
"""Weight [M] of each (token, response) incidence of the tree, in the order of `TokenTree.incidences`; empty: 1."""

_Weighed = Callable[[TokenTree, tuple[TokenSequence, ...]], tuple[float, ...]]


class _Draft(NamedTuple):
    """A record on its way: the responses that are left, and what was lost so far."""

    sequences: dict[int, EncodedResponse]
    """By position in the record's responses."""
    pairs: list[Pair]
    prompt_tokens_cut: int = 0
    response_tokens_cut: int = 0
    lost: str = ""
    """Why responses were left out; empty when all are there."""


def prepare(
    preferences: Sequence[Preference],
    tokenizer: PreTrainedTokenizerFast,
    settings: PrepareSettings,
    ledger: Ledger,
    *,
    weigh: Weigh | None = None,
) -> list[Example]:
    """The examples of all records that can be trained on, in order; the ledger tells what became of each.

    A prompt is overlong when it exceeds `max_prompt_length`, or leaves no room in `max_length`. It makes the
    record dropped, or is cut at its start (`keep_end`: to `max_prompt_length`, else to what leaves room for
    the longest response but not below half of `max_length`; a BOS token stays), or is an error. A sequence
    that still exceeds `max_length` loses its last tokens and with them its end-of-turn token; or the response
    is dropped; or it is an error. A dropped response takes its pairs along. A record is dropped when no
    response is left, or no pair where it had some. Responses outside of all pairs stay, for listwise methods.

    Unlike the Step-DPO code, a long response is not cut below `max_length` for the sake of an unused prompt
    allowance, and `max_prompt_length` holds for every record, not only for overlong ones.

    Args:
        preferences: the records.
        tokenizer: a fast tokenizer.
        settings: lengths and format.
        ledger: receives a fate and remarks for every record.
        weigh: weights of the scored tokens; None: 1 everywhere.

    Raises:
        RecordError: a record cannot be rendered, its responses tokenise a different prompt each, text and
            conversations are mixed, or an `error` policy applies.
        ModelError: the tokenizer lacks what is needed (offsets, chat template, EOS).
    """
    _require_one_kind(preferences, settings.render)
    weighed = _weigher(weigh, tokenizer)
    examples: list[Example] = []
    for start in range(0, len(preferences), _CHUNK):
        chunk = preferences[start : start + _CHUNK]
        rendered = [render(preference, tokenizer, settings.render) for preference in chunk]
        encoded = iter(encode([response for record in rendered for response in record], tokenizer))
        for preference, record in zip(chunk, rendered, strict=True):
            responses = [next(encoded) for _ in record]
            for note in record[0].notes:
                ledger.note(preference.id, reason=note)
            example = _prepare_one(preference, responses, settings, ledger, weighed)
            if example is not None:
                examples.append(example)
    return examples


def _weigher(weigh: Weigh | None, tokenizer: PreTrainedTokenizerFast) -> _Weighed:
    if weigh is None:
        return lambda tree, whole: ()
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = frozenset({*tokenizer.all_special_ids, *added})
    return lambda tree, whole: weigh(Weighable(tree, whole, special))


def _require_one_kind(preferences: Sequence[Preference], settings: RenderSettings) -> None:
    """Refuse prompts of which some go through the chat template and others do not."""
    if settings.prompt_format != "auto":
        return
    text = next((p for p in preferences if isinstance(p.prompt, str)), None)
    chat = next((p for p in preferences if not isinstance(p.prompt, str)), None)
    if text is not None and chat is not None:
        raise RecordError(
            f"{text.origin or text.id} has a plain text prompt, {chat.origin or chat.id} a conversation, which "
            "would be formatted differently; set prompt_format: chat, or train on them separately"
        )


def _prepare_one(
    preference: Preference,
    responses: list[EncodedResponse],
    settings: PrepareSettings,
    ledger: Ledger,
    weighed: _Weighed,
) -> Example | None:
    draft = _Draft(dict(enumerate(responses)), list(preference.pairs))
    for stage in (_without_empty, _fit_prompt, _fit_responses, _without_unscored, _without_equal):
        draft = stage(draft, preference, settings)
        if not draft.sequences or (preference.pairs and not draft.pairs):
            ledger.drop(preference.id, reason=draft.lost)
            return None
    if is_glued(preference, settings.render):
        ledger.note(preference.id, reason=GLUED)
    if any(response.headless for response in responses):
        ledger.note(preference.id, reason=HEADLESS)
    _settle(draft, preference, ledger)
    return _example(draft, preference, responses, weighed)


def _settle(draft: _Draft, preference: Preference, ledger: Ledger) -> None:
    if len(draft.sequences) < len(preference.responses):
        ledger.note(preference.id, reason=f"{RESPONSES_LEFT_OUT}: {draft.lost}")
    elif draft.lost:
        ledger.note(preference.id, reason=f"{PAIRS_LEFT_OUT}: {draft.lost}")
    tokens = draft.prompt_tokens_cut + draft.response_tokens_cut
    if not tokens:
        ledger.keep(preference.id)
    elif draft.prompt_tokens_cut and draft.response_tokens_cut:
        ledger.cut(preference.id, tokens=tokens, reason=BOTH_CUT)
    else:
        reason = PROMPT_CUT if draft.prompt_tokens_cut else RESPONSE_CUT
        ledger.cut(preference.id, tokens=tokens, reason=reason)


def _keep(draft: _Draft, keep: Callable[[int], bool], reason: str) -> _Draft:
    """The draft with those responses only that `keep` holds for, and the pairs among them."""
    sequences = {i: s for i, s in draft.sequences.items() if keep(i)}
    if len(sequences) == len(draft.sequences):
        return draft
    pairs = [p for p in draft.pairs if p.chosen in sequences and p.rejected in sequences]
    return draft._replace(sequences=sequences, pairs=pairs, lost=reason)


def _without_empty(draft: _Draft, preference: Preference, _: PrepareSettings) -> _Draft:
    return _keep(draft, lambda i: not is_empty(preference.responses[i]), EMPTY)


def _without_unscored(draft: _Draft, _: Preference, __: PrepareSettings) -> _Draft:
    return _keep(draft, lambda i: any(draft.sequences[i].sequence.scored), NOTHING_SCORED)


def _without_equal(draft: _Draft, _: Preference, __: PrepareSettings) -> _Draft:
    """Leave out pairs whose tokens are the same."""

    def differs(pair: Pair) -> bool:
        chosen, rejected = draft.sequences[pair.chosen], draft.sequences[pair.rejected]
        return chosen.sequence.tokens != rejected.sequence.tokens

    pairs = [pair for pair in draft.pairs if differs(pair)]
    if len(pairs) == len(draft.pairs):
        return draft
    return draft._replace(
        pairs=pairs, lost=IDENTICAL_AFTER_CUT if draft.response_tokens_cut else IDENTICAL
    )


def _fit_prompt(draft: _Draft, preference: Preference, settings: PrepareSettings) -> _Draft:
    _require_one_context(list(draft.sequences.values()), preference)
    context = max(response.context for response in draft.sequences.values())
    limit = settings.max_prompt_length
    if context < settings.max_length and (limit is None or context <= limit):
        return draft
    if settings.overlong_prompt == "error":
        raise RecordError(
            f"{preference.origin or preference.id}: the prompt has {context} tokens, which exceeds "
            f"{_limit_text(settings)}; raise it, or set overlong_prompt: drop or keep_end"
        )
    if settings.overlong_prompt == "drop":
        return _keep(draft, lambda _: False, PROMPT_TOO_LONG)
    if limit is None or limit >= settings.max_length:
        longest = max(len(r.sequence.tokens) - r.context for r in draft.sequences.values())
        limit = max(settings.max_length - longest, settings.max_length // 2)
    lost = context - limit
    return draft._replace(
        sequences={i: _cut_start(response, lost) for i, response in draft.sequences.items()},
        prompt_tokens_cut=lost,
    )


def _limit_text(settings: PrepareSettings) -> str:
    if settings.max_prompt_length is None:
        return f"max_length={settings.max_length} with no room for a response"
    return f"max_prompt_length={settings.max_prompt_length} (or max_length={settings.max_length})"


def _cut_start(response: EncodedResponse, lost: int) -> EncodedResponse:
    """The sequence without `lost` tokens of its beginning, a BOS token excepted."""
    head = 1 if response.begins_with_bos else 0
    tokens, scored, turn = response.sequence
    sequence = TokenSequence(
        [*tokens[:head], *tokens[head + lost :]],
        [*scored[:head], *scored[head + lost :]],
        [*turn[:head], *turn[head + lost :]],
    )
    return response._replace(sequence=sequence, context=response.context - lost)


def _cut_end(response: EncodedResponse, limit: int) -> EncodedResponse:
    tokens, scored, turn = response.sequence
    return response._replace(sequence=TokenSequence(tokens[:limit], scored[:limit], turn[:limit]))


def _fit_responses(draft: _Draft, preference: Preference, settings: PrepareSettings) -> _Draft:
    limit = settings.max_length
    over = {i: len(s.sequence.tokens) - limit for i, s in draft.sequences.items()}
    longest = max(over.values())
    if longest <= 0:
        return draft
    if settings.overlong_response == "error":
        raise RecordError(
            f"{preference.origin or preference.id}: a response ends at token {longest + limit}, which exceeds "
            f"max_length={limit}; raise it, or set overlong_response: cut or drop"
        )
    if settings.overlong_response == "drop":
        return _keep(draft, lambda i: over[i] <= 0, RESPONSE_TOO_LONG)
    cut = {i: _cut_end(response, limit) for i, response in draft.sequences.items()}
    return draft._replace(sequences=cut, response_tokens_cut=sum(n for n in over.values() if n > 0))


def _require_one_context(responses: list[EncodedResponse], preference: Preference) -> None:
    """Refuse responses that change more than the last token of the prompt: they would not share a context."""
    first = list(responses[0].sequence.tokens[: responses[0].context])
    for response in responses[1:]:
        other = list(response.sequence.tokens[: response.context])
        longest = max(len(first), len(other))
        if first[: longest - 1] != other[: longest - 1] or abs(len(first) - len(other)) > 1:
            raise RecordError(
                f"{preference.origin or preference.id}: the responses change how more than the last token of "
                "the prompt is tokenised; end the prompt with white space or a line break, or set "
                "response_separator"
            )


def _example(
    draft: _Draft, preference: Preference, encoded: list[EncodedResponse], weighed: _Weighed
) -> Example:
    source = tuple(draft.sequences)
    number = {old: new for new, old in enumerate(source)}
    tree = build_tree([response.sequence for response in draft.sequences.values()])
    responses = [preference.responses[i] for i in source]
    mismatched = tuple(r.mismatched for r in responses)
    return Example(
        id=preference.id,
        tree=tree,
        pairs=tuple((number[p.chosen], number[p.rejected]) for p in draft.pairs),
        pair_weight=tuple(p.weight for p in draft.pairs),
        pair_margin=tuple(p.margin for p in draft.pairs),
        score=tuple(r.score for r in responses),
        rank=tuple(None if r.rank is None else float(r.rank) for r in responses),
        label=tuple(None if r.label is None else float(r.label) for r in responses),
        weight=weighed(tree, tuple(encoded[i].sequence for i in source)),
        mismatched=mismatched if any(mismatched) else (),
        source=source,
    )
