"""Which layout a model can be run in on this device, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn

from prefopt.errors import ConfigError, ModelError
from prefopt.models.load import CausalModel, attention_name, plain_model
from prefopt.models.selfcheck import SelfCheck, check_model, require_head
from prefopt.pack.batch import Example, Layout


class LayoutChoice(NamedTuple):
    """The layout, the reason in words, and the check behind it."""

    layout: Layout
    reason: str
    check: SelfCheck


def choose_layout(
    model: CausalModel, *, requested: str, longest: int, examples: Sequence[Example] = ()
) -> LayoutChoice:
    """The layout to train in, after checking the model against plain transformers calls.

    Args:
        model: on its device, with its attention implementation set.
        requested: `auto`, `tree`, `packed` or `rows`.
        longest: tokens of the longest response with its prompt; a tree mask would switch off a sliding window
            shorter than that.
        examples: what is trained on: with `auto`, trees under a dense mask are taken only where they cost less than
            separate rows.

    Raises:
        ModelError: the model post-processes its logits in an unknown way, or has too few positions.
        ConfigError: `requested` names a layout this model cannot run in.
    """
    check = check_model(model)
    require_head(model, check)
    _require_positions(model, longest)
    obstacle = check.reason or _window(model, longest)
    attention = attention_name(model)
    flex = attention == "flex_attention"
    best = Layout.ROWS if obstacle else Layout.PACKED if flex else Layout.TREE
    if requested == "auto" and best is Layout.TREE:
        ratio = tree_cost(model, examples)
        if ratio > 1:
            largest = max(example.tree.size for example in examples)
            reason = (
                f"a dense mask over trees of up to {largest} tokens would take {ratio:.2f} times as long by estimate "
                "(layout: tree has them anyway)"
            )
            return LayoutChoice(Layout.ROWS, reason, check)
    if requested in ("auto", best):
        return LayoutChoice(best, obstacle or f"tree mask agrees to {check.tree:.1e} nats", check)
    if requested == Layout.ROWS:
        return LayoutChoice(Layout.ROWS, "asked for", check)
    if obstacle:
        raise ConfigError(
            f"layout {requested}: {type(model).__name__}: {obstacle}; use layout: auto"
        )
    raise ConfigError(
        f"layout {requested} does not go with attention '{attention}': "
        + (
            "packed needs attn_implementation: flex_attention (a GPU)"
            if not flex
            else "use layout: packed"
        )
    )


def tree_cost(model: CausalModel, examples: Sequence[Example]) -> float:
    """Operations of the backbone with trees under a dense mask, as a multiple of those with separate rows.

    A row of n positions takes ``6 P n + c L H n^2``, forward and backward: P parameters of the layers, L layers, H the
    width of attention, c = 12 where every query is compared with every key (dense mask), and 6 for plain causal
    attention. The head, the same for both but for shared scored tokens, is left out. 1 without examples.
    """
    inner = plain_model(model)
    config = inner.config.get_text_config()
    tables = {
        id(p): p.numel()
        for part in (inner.get_input_embeddings(), inner.get_output_embeddings())
        if isinstance(part, nn.Module)
        for p in part.parameters()
    }
    body = sum(p.numel() for p in inner.parameters()) - sum(tables.values())
    attention = config.num_hidden_layers * config.hidden_size

    def cost(lengths: Iterable[int], factor: int) -> int:
        return sum(6 * body * n + factor * attention * n * n for n in lengths)

    trees = sum(cost(e.row_lengths(Layout.TREE), 12 if branches(e) else 6) for e in examples)
    rows = sum(cost(e.row_lengths(Layout.ROWS), 6) for e in examples)
    return trees / rows if rows else 1.0


def branches(example: Example) -> bool:
    """Whether the responses of an example part somewhere, so that plain causal attention is not enough."""
    return bool((example.tree.until != example.tree.size).any())


def _require_positions(model: CausalModel, longest: int) -> None:
    """Refuse what would index beyond a table of learned positions (GPT-2, OPT); computed ones have no end."""
    inner = plain_model(model)
    known = getattr(inner.config.get_text_config(), "max_position_embeddings", None)
    words = inner.get_input_embeddings()
    tables = [
        m.num_embeddings for m in inner.modules() if isinstance(m, nn.Embedding) and m is not words
    ]
    # OPT keeps two rows more than it has positions.
    if known is not None and longest > known and any(known <= rows <= known + 2 for rows in tables):
        raise ModelError(
            f"the longest response ends at token {longest}, but {type(inner).__name__} has {known} positions: set "
            f"max_length: {known} or less"
        )


def _window(model: CausalModel, longest: int) -> str:
    config = plain_model(model).config.get_text_config()
    window = getattr(config, "sliding_window", None)
    active = getattr(config, "use_sliding_window", True)
    if window and active and longest > window:
        return f"its sliding window of {window} tokens is shorter than the longest response ({longest})"
    return ""
