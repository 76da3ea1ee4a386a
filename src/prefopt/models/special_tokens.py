"""Special tokens for a model that does not know them: tokenizer entries and embedding rows to learn from.

Formats whose structure is written in markers (`prefopt.text.blocks`) need each marker as one id. As in the published
code of Step-Controlled DPO, a new row of the input and output embeddings starts as the mean of the old ones: every
new token then is as probable as an average one, and no random numbers are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerFast

from prefopt.errors import ConfigError, ModelError
from prefopt.models.parts import embedding_rows
from prefopt.models.quiet import quiet_transformers


def add_special_tokens(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    tokens: Sequence[str],
    *,
    multiple: int = 128,
) -> int:
    """How many of the tokens were new to the tokenizer; model and tokenizer then know all of them.

    Args:
        model: gets rows for them (see `extend_embeddings`).
        tokenizer: gets those that it does not have as special tokens.
        tokens: such as `prefopt.text.blocks.SPECIAL_TOKENS`.
        multiple: the number of rows is rounded up to a multiple of it, which is faster on GPUs.

    Raises:
        ModelError, ConfigError: as `extend_tokenizer` and `extend_embeddings`.
    """
    added = extend_tokenizer(tokenizer, tokens)
    extend_embeddings(model, tokenizer, added, multiple=multiple)
    return len(added)


def extend_tokenizer(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[str]) -> tuple[int, ...]:
    """The ids of those tokens that were new; the tokenizer then encodes each of the tokens as one id.

    Raises:
        ConfigError: a token is empty, has white space at its edges, or is named twice.
        ModelError: the tokenizer has a token as an ordinary word, which it does not find in running text.
    """
    for token in tokens:
        if token != token.strip() or not token or list(tokens).count(token) > 1:
            raise ConfigError(
                f"special_tokens: {token!r} is no usable token; give each once, without white space around it"
            )
    missing = [token for token in tokens if token not in tokenizer.get_vocab()]
    if missing:
        markers: list[str | AddedToken] = [
            AddedToken(token, normalized=False, special=True) for token in missing
        ]
        tokenizer.add_special_tokens(
            {"extra_special_tokens": markers}, replace_extra_special_tokens=False
        )
    vocabulary = tokenizer.get_vocab()
    for token in tokens:
        if vocabulary[token] not in tokenizer(f"a{token}a", add_special_tokens=False).input_ids:
            raise ModelError(
                f"special_tokens: {token!r} is a word of the tokenizer but not found in running text; "
                "choose another marker"
            )
    return tuple(vocabulary[token] for token in missing)


def extend_embeddings(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    added: Sequence[int],
    *,
    multiple: int = 128,
) -> int:
    """The number of embedding rows, after a row was made for each of the ids `added`.

    Their rows, and those beyond the old table, become the mean of the rows of all older tokens, in float32: of the
    input embedding, and of the output head and its bias where these are weights of their own. Nothing changes
    where nothing was added.

    Raises:
        ConfigError: the model has an adapter, which would not learn the new rows; or `multiple` is below 1.
        ModelError: the model has no output head.
    """
    rows = embedding_rows(model)
    if not added:
        return rows
    if multiple < 1:
        raise ConfigError(f"special tokens: multiple is {multiple}; use 1 or more")
    if isinstance(model, PeftModel):
        raise ConfigError(
            f"special tokens: {len(added)} are new to the model, and an adapter does not train their embeddings; "
            "add them in a run without adapter (use_peft: false) first"
        )
    older = torch.tensor(sorted(set(tokenizer.get_vocab().values()) - set(added)))
    wanted = -(-max(rows, max(added) + 1) // multiple) * multiple
    # The rows that transformers draws at random are written over below.
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(wanted, mean_resizing=False)
    fresh = torch.tensor(sorted({*added, *range(rows, wanted)}))
    for table in _tables(model):
        _fill_with_mean(table, older.to(table.device), fresh.to(table.device))
    return wanted


def _tables(model: PreTrainedModel) -> list[Tensor]:
    """What has a row for each token: both embeddings (one, where they are tied) and the head's bias."""
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(
            f"{type(model).__name__} has no output head; a causal language model is needed"
        )
    tables = [
        getattr(layer, name, None)
        for layer, name in (
            (model.get_input_embeddings(), "weight"),
            (head, "weight"),
            (head, "bias"),
        )
    ]
    distinct = {table.data_ptr(): table for table in tables if isinstance(table, Tensor)}
    return list(distinct.values())


def _fill_with_mean(table: Tensor, older: Tensor, fresh: Tensor) -> None:
    with torch.no_grad():
        table[fresh] = table[older].float().mean(dim=0).to(table.dtype)
