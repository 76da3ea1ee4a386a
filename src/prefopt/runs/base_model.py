"""The base model of a world: trained once from scratch, then kept in the cache."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from prefopt.config import RunConfig, parse
from prefopt.errors import StorageError
from prefopt.progress import say
from prefopt.runs.method import Method
from prefopt.runs.setup import default_cache
from prefopt.runs.train import run_training
from prefopt.values import JsonValue
from prefopt.worlds.base import World


def base_model(world: World, sft: Method[RunConfig], *, cache: Path | None = None) -> Path:
    """Folder of the world's base model; trained on the first call, then found by the world's digest.

    Args:
        world: what to train on, and how.
        sft: the method that trains it: `find_method("sft")`.
        cache: folder to keep it in; None: that of the library.

    Raises:
        StorageError: the cache cannot be written.
    """
    home = (cache or default_cache()) / "worlds" / f"{world.name}-{world.digest()}"
    final = home / "model"
    if final.exists():
        return final
    say("training the base model from scratch (once; kept in the cache)")
    # A folder of this process alone: two that start together both train, and the first to finish is kept.
    home.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{home.name}.", suffix=".partial", dir=home.parent))
    corpus = world.write_sft_data(work / "corpus.jsonl")
    blank = world.save_blank(work / "blank")
    recipe: dict[str, JsonValue] = {
        **world.sft_settings(),
        "method": "sft",
        "model_name_or_path": str(blank),
        "train_file": str(corpus),
        "output_dir": str(work / "run"),
        "save_strategy": "no",
    }
    run_training(parse(recipe, sft.config), sft)
    try:
        (work / "run").rename(home)
    except OSError as error:
        if not final.exists():
            raise StorageError(f"{home}: cannot keep the base model ({error.strerror})") from error
    shutil.rmtree(work)
    return final
