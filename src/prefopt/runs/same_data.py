"""Whether the run that lies in a folder can go on with what a recipe would build, asked before anything is built.

A folder without a checkpoint and without `finished.json` holds no run that other data could hurt; nothing here is for
it. Its data are built again, which the journal makes cheap, and its training starts anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from prefopt.build.contents import Contents
from prefopt.build.folder import is_as_written
from prefopt.build.settings import BuildSection, contents_of, differences, replaced_inputs
from prefopt.config import RunConfig, load_recipe
from prefopt.errors import ResumeError
from prefopt.train.checkpoint import STATE, list_checkpoints
from prefopt.train.folder import REMOVING, RunFolder
from prefopt.values import JsonValue


def is_settled(folder: RunFolder) -> bool:
    """Whether a run there has got somewhere: it is finished, or has a checkpoint, and is not being removed."""
    if (folder.path / REMOVING).exists():
        return False
    return folder.finished.exists() or bool(list_checkpoints(folder.checkpoints))


def require_same_data(config: RunConfig, section: BuildSection) -> None:
    """Nothing where the settled run in output_dir goes on with the data that the recipe builds.

    Training would refuse another recipe too, but only once the data of the run have been replaced by others. Keys that
    decide neither the data nor what is learnt may differ, and so may the names of files and models of the same content.

    Raises:
        ResumeError: it is a run of other settings, of other content of files or models, or of data elsewhere.
        ConfigError: its recipe is damaged.
    """
    folder = RunFolder(Path(config.output_dir))
    if not folder.recipe.exists():
        return
    earlier, now = load_recipe(folder.recipe), config.model_dump(mode="json")
    identity = _identity(folder)
    contents = contents_of(section.folder(config.method), config, section)
    # Under a few names of settings it holds digests, which only training can compare.
    settled = [k for k, v in earlier.items() if k in now and identity.get(k) == json.dumps(v)]
    deciding = [*section.keys_outside(), "build"]
    compared = [*(key for key in settled if key not in deciding), *deciding]
    changed = {k: differences(earlier.get(k), now[k], k, contents) for k in compared}
    lines = [line for found in changed.values() for line in found]
    of_data = any(changed[key] for key in deciding)
    if not lines:  # else its data are of the files as they were
        lines = replaced_inputs(contents)
        of_data = bool(lines)
    if lines:
        raise _refusal(folder, lines, of_data=of_data)
    _require_data_here(folder, config, section, earlier.get("build"))


def _refusal(folder: RunFolder, lines: list[str], *, of_data: bool) -> ResumeError:
    found = f"{folder.path}: holds {_state(folder)} run of other settings"
    if not of_data:
        return ResumeError(
            f"{found} than this recipe's ({'; '.join(lines)}); restore them, pass --overwrite to start anew, or set "
            "another output_dir"
        )
    return ResumeError(
        f"{found} or data than this recipe's ({'; '.join(lines)}), and building would replace the data that it was "
        "trained on; restore them, pass --overwrite to start anew, or set another output_dir and build.output_dir"
    )


def _require_data_here(
    folder: RunFolder, config: RunConfig, section: BuildSection, earlier: JsonValue
) -> None:
    """Nothing where the data lie in the folder that the run was built in, or have been moved to where the recipe says.

    Raises:
        ResumeError: they would be made once more, elsewhere.
    """
    place = earlier.get("output_dir") if isinstance(earlier, dict) else None
    if not isinstance(place, str) or is_trained_on(config, section):
        return
    before = section.model_copy(update={"output_dir": place}).folder(config.method)
    after = section.folder(config.method)
    if before.resolve() != after.resolve():
        raise ResumeError(
            f"{folder.path}: holds {_state(folder)} run whose data were built in {before}, and they are not in "
            f"build.output_dir {after}: name their folder or move it there, pass --overwrite to start anew, or set "
            "another output_dir"
        )


def is_trained_on(config: RunConfig, section: BuildSection) -> bool:
    """Whether the data of the settled run in output_dir are there; they stay as they are then, also edited by hand.

    A build that is called again makes up for what failed before, such as episodes of an environment, and a run that was
    begun without them could not go on with the data that come of it.
    """
    files = trained_files(config, section)
    return not config.changed_since_built() and all(file.exists() for file in files)


def edited_files(config: RunConfig, section: BuildSection) -> list[Path]:
    """Those of the data that are no longer as the build wrote them."""
    return [file for file in trained_files(config, section) if not is_as_written(file)]


def trained_files(config: RunConfig, section: BuildSection) -> list[Path]:
    """The files in the folder of the build that the recipe trains on: `pairs.jsonl`, or those that train_file names."""
    if config.train_file is None:
        return [section.pairs_file(config.method)]
    named = [config.train_file] if isinstance(config.train_file, str) else config.train_file
    folder = section.folder(config.method).resolve()
    return [Path(name) for name in named if folder in Path(name).resolve().parents]


def settings_of_run(config: RunConfig, section: BuildSection) -> dict[str, object]:
    """The settings with which the settled run in output_dir goes on: its own section `build`, and the data there are.

    How fast data are made, and what folders are called, is not what a run is, but its identity holds the section as a
    whole.
    """
    recipe = RunFolder(Path(config.output_dir)).recipe
    earlier = load_recipe(recipe).get("build") if recipe.exists() else None
    if not isinstance(earlier, dict):
        return {}
    now = section.model_dump(mode="json")
    renamed = differences(earlier, now, "build", Contents({}, {}))
    changes: dict[str, object] = {"build": type(section).model_validate(earlier)}
    if config.train_file is None and (renamed or earlier.get("output_dir") != section.output_dir):
        # The names of then need not be there any more.
        changes["train_file"] = str(section.pairs_file(config.method))
    return changes


def _state(folder: RunFolder) -> str:
    return "a finished" if folder.finished.exists() else "an unfinished"


def _identity(folder: RunFolder) -> Mapping[str, str]:
    """What a resumed run must share, from its end or its newest checkpoint; empty where it has neither."""
    files = [folder.finished, *(p / STATE for p in reversed(list_checkpoints(folder.checkpoints)))]
    for file in files:
        # What cannot be read is the business of training, which says what is wrong with it.
        with suppress(OSError, ValueError, KeyError, TypeError):
            return dict(json.loads(file.read_text(encoding="utf-8"))["identity"])
    return {}
