"""Loading tokenizers: fast ones only, as their own file says, with a pad token and, if asked for, another template."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from jinja2 import TemplateSyntaxError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prefopt.errors import ConfigError, ModelError
from prefopt.models.configuration import locate_base
from prefopt.models.locate import ADAPTER_CONFIG, Located, first_line, locate
from prefopt.models.quiet import quiet_transformers

logger = logging.getLogger(__name__)

_CONFIG = "tokenizer_config.json"
_FILES = ("tokenizer.json", _CONFIG, "tokenizer.model", "vocab.json", "vocab.txt")
_GENERIC_CLASSES = {"PreTrainedTokenizerFast", "TokenizersBackend"}


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds any tokenizer file."""
    return any((folder / name).is_file() for name in _FILES)


def load_tokenizer(
    path: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | Path | None = None,
) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a folder or hub id, with a pad token.

    Args:
        path: model or tokenizer folder, or hub id.
        revision: hub revision.
        trust_remote_code: whether the tokenizer may run code from its folder.
        chat_template: file with a jinja template that replaces the tokenizer's own.

    Raises:
        ModelError: there is no tokenizer, it is damaged or slow, or it has nothing to pad with.
        ConfigError: the template file is missing or is not valid jinja.
    """
    located = _with_tokenizer(locate(path, revision=revision))
    tokenizer = _load(located, trust_remote_code=trust_remote_code)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"the tokenizer of {located.name} ({type(tokenizer).__name__}) has no character offsets: convert it "
            "to a fast tokenizer (tokenizer.json)"
        )
    if chat_template is not None:
        tokenizer.chat_template = _read_template(Path(chat_template))
    _check_template(tokenizer, str(chat_template or located.name))
    _choose_pad(tokenizer, located.name)
    return tokenizer


def _with_tokenizer(located: Located) -> Located:
    """The folder itself, or the base model's if it is an adapter without tokenizer files."""
    if has_tokenizer(located.folder) or not (located.folder / ADAPTER_CONFIG).is_file():
        return located
    return locate_base(located)


def _load(located: Located, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    folder, name = located
    if not has_tokenizer(folder):
        raise ModelError(
            f"{name} has no tokenizer (tokenizer.json expected): copy it there or set tokenizer_name_or_path"
        )
    declared = _declared_class(folder)
    # transformers 5.23 replaces the pre-tokenizer of a generic tokenizer.json by the one of the model type where
    # the folder's config.json says qwen2 (AutoTokenizer -> Qwen2Tokenizer), which encodes text otherwise than the
    # file does. A file that declares itself generic is taken as it is.
    loader = PreTrainedTokenizerFast if declared in _GENERIC_CLASSES else AutoTokenizer
    try:
        with quiet_transformers():
            return loader.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        raise ModelError(
            f"the tokenizer of {name} cannot be loaded ({first_line(error)}): copy its files again or set "
            "tokenizer_name_or_path"
        ) from error
    except Exception as error:
        # The Rust parser of tokenizer.json raises bare `Exception`; anything else is not ours to explain.
        if type(error) is not Exception:
            raise
        raise ModelError(
            f"{folder / 'tokenizer.json'} is damaged ({first_line(error)}): copy it again"
        ) from error


def _declared_class(folder: Path) -> str | None:
    file = folder / _CONFIG
    if not file.is_file() or not (folder / "tokenizer.json").is_file():
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"{folder}: a tokenizer file is not valid JSON ({error}): copy it again"
        ) from error
    if not isinstance(settings, dict) or "auto_map" in settings:
        return None
    declared = settings.get("tokenizer_class")
    return declared if isinstance(declared, str) else None


def _read_template(file: Path) -> str:
    try:
        return file.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"chat_template {file} cannot be read: {reason}") from error


def _check_template(tokenizer: PreTrainedTokenizerFast, origin: str) -> None:
    if not isinstance(tokenizer.chat_template, str):
        return
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"the chat template of {origin} is not valid jinja: line {error.lineno}: {error.message}"
        ) from error
    except Exception:  # noqa: BLE001 - templates may refuse this probe (raise_exception); only syntax is checked
        logger.debug("the chat template of %s refuses a lone user message", origin)


def _choose_pad(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token_id is None and tokenizer.unk_token_id is None:
        raise ModelError(
            f"the tokenizer of {name} has no pad, eos or unk token: add an eos_token to {_CONFIG}"
        )
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    logger.info("the tokenizer of %s has no pad token: using %r", name, tokenizer.pad_token)
