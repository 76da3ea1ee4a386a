"""Which layout a model can be run in on this device, and why."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from prefopt.errors import ConfigError, ModelError
from prefopt.models.load import CausalModel, attention_name, plain_model
from prefopt.models.selfcheck import SelfCheck, check_model, require_head
from prefopt.pack.batch import Layout


class LayoutChoice(NamedTuple):
    """The layout, the reason in words, and the check behind it."""

    layout: Layout
    reason: str
    check: SelfCheck


def choose_layout(model: CausalModel, *, requested: str, longest: int) -> LayoutChoice:
    """The layout to train in, after checking the model against plain transformers calls.

    Args:
        model: on its device, with its attention implementation set.
        requested: `auto`, `tree`, `packed` or `rows`.
        longest: tokens of the longest response with its prompt; a tree mask would switch off a sliding window
            shorter than that.

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
