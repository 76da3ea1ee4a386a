"""Whether the run that lies in a folder can go on with what a recipe would build, asked before anything is built."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from prefopt.build.settings import BuildSection, changes_since, differences, input_digests
from prefopt.config import RunConfig, load_recipe
from prefopt.errors import ResumeError
from prefopt.train.checkpoint import STATE, list_checkpoints
from prefopt.train.folder import RunFolder


def require_same_data(config: RunConfig, section: BuildSection) -> None:
    """Nothing where output_dir holds no run, or one that goes on with the data that the recipe builds.

    Training would refuse another recipe too, but only once the data of the run have been replaced by others. Keys that
    decide neither the data nor what is learnt may differ.

    Raises:
        ResumeError: it holds a begun or finished run of other settings, or of other content of the files.
        ConfigError: its recipe is damaged.
    """
    folder = RunFolder(Path(config.output_dir))
    if not folder.recipe.exists():
        return
    earlier, now = load_recipe(folder.recipe), config.model_dump(mode="json")
    identity = _identity(folder)
    # Under a few names of settings it holds digests, which only training can compare.
    settled = [k for k, v in earlier.items() if k in now and identity.get(k) == json.dumps(v)]
    compared = [*(key for key in settled if key != "build"), "build"]
    changed = [line for k in compared for line in differences(earlier.get(k), now[k], k)]
    if not changed:  # else its data are of the files as they were
        inputs = input_digests(config, section)
        changes = changes_since(section.folder(config.method), config, section)
        changed = [line for line in changes if line.rpartition(": ")[0] in inputs]
    if changed:
        state = "a finished" if folder.finished.exists() else "an unfinished"
        raise ResumeError(
            f"{folder.path}: holds {state} run of other settings or data than this recipe's ({'; '.join(changed)}), "
            "and building would replace the data that it was trained on; restore them, pass --overwrite to start anew, "
            "or set another output_dir and build.output_dir"
        )


def is_trained_on(config: RunConfig) -> bool:
    """Whether a run was begun on the data that are there, which stay as they are then.

    A build that is called again makes up for what failed before, such as episodes of an environment, and a run that was
    begun without them could not go on with the data that come of it.
    """
    file = config.built_file
    begun = RunFolder(Path(config.output_dir)).recipe.exists()
    return begun and file is not None and Path(file).exists() and not config.changed_since_built()


def section_of_run(config: RunConfig, section: BuildSection) -> BuildSection:
    """The section `build` with which a begun run of the same data goes on: its own, in the place that is named now.

    How fast data are made is not what a run is, but its identity holds the section as a whole.
    """
    recipe = RunFolder(Path(config.output_dir)).recipe
    earlier = load_recipe(recipe).get("build") if recipe.exists() else None
    if not isinstance(earlier, dict):
        return section
    return type(section).model_validate({**earlier, "output_dir": section.output_dir})


def _identity(folder: RunFolder) -> Mapping[str, str]:
    """What a resumed run must share, from its end or its newest checkpoint; empty where it has neither."""
    files = [folder.finished, *(p / STATE for p in reversed(list_checkpoints(folder.checkpoints)))]
    for file in files:
        # What cannot be read is the business of training, which says what is wrong with it.
        with suppress(OSError, ValueError, KeyError, TypeError):
            return dict(json.loads(file.read_text(encoding="utf-8"))["identity"])
    return {}
