"""Word-level fast tokenizers with a chat template for worlds whose texts use a few dozen words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def word_tokenizer(words: Sequence[str], *, special: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are exactly `words`, spaces and newlines included.

    The longest word that fits is taken first, decoding concatenates, so every text made of the words comes
    back unchanged; anything else becomes `<unk>`. A plain string gets `<bos>` in front; a conversation is
    ``<bos><|role|>content<eos>...``. The markers in `special` are special tokens besides those of the roles.
    """
    marks = list(dict.fromkeys([*_ROLES, *special]))
    vocabulary = {word: i for i, word in enumerate([PAD, BOS, EOS, UNK, *marks, *words])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    pattern = "|".join(re.escape(word) for word in longest_first)
    backend.pre_tokenizer = Split(Regex(pattern), behavior="isolated")
    backend.decoder = Fuse()
    backend.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=marks,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
