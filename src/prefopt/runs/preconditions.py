"""Mistakes of a recipe for all stages that can be seen before anything is made, replaced or removed."""

from __future__ import annotations

from pathlib import Path

from prefopt.build.agents import AgentBuild
from prefopt.build.settings import BuildSection
from prefopt.config import RunConfig
from prefopt.errors import ConfigError
from prefopt.evals.measure import Measure
from prefopt.models.locate import locate, looks_like_path
from prefopt.runs.same_data import trained_files
from prefopt.text.files import read_rows


def require_own_data(config: RunConfig, section: BuildSection | None) -> None:
    """Nothing where the run trains on what the section `build` makes, or there is none.

    Raises:
        ConfigError: it would make data and train on others.
    """
    named = [key for key in ("train_file", "dataset_name") if getattr(config, key) is not None]
    if section is None or not named:
        return
    if section.rounds > 1:
        raise ConfigError(
            f"build.rounds is {section.rounds}, and every round trains on data of its own: remove train_file and "
            "dataset_name"
        )
    if config.dataset_name is not None or not trained_files(config, section):
        raise ConfigError(
            f"{named[0]} is {getattr(config, named[0])!r}, and `prefopt run` would make the data of the section "
            f"`build` for nothing: remove {named[0]}, or use `prefopt train`"
        )


def require_measurable(config: RunConfig, section: BuildSection | None) -> None:
    """Nothing where the section `evaluate` can be done; see `Measure.require_possible` for what is raised."""
    wanted = getattr(config, "evaluate", None)
    if isinstance(wanted, Measure):
        wanted.require_possible(section if isinstance(section, AgentBuild) else None)


def require_models(config: RunConfig) -> None:
    """Nothing where the model folders that training reads are there; hub ids are not looked up.

    Raises:
        ModelError: one is not.
    """
    shared = (config.model_name_or_path, config.reference_model, config.tokenizer_name_or_path)
    for name in (*shared, *config.further_models):
        if name is not None and looks_like_path(name):
            locate(name)


def require_evaluation_data(config: RunConfig, section: BuildSection | None) -> None:
    """Nothing where the files of eval_file can be read; those in the folder of the build are made there.

    Raises:
        StorageError: one is not there.
        RecordError: its first row cannot be read.
    """
    files = config.eval_file if isinstance(config.eval_file, list) else [config.eval_file]
    made = None if section is None else section.folder(config.method).resolve()
    for file in files:
        if file is not None and (made is None or made not in Path(file).resolve().parents):
            read_rows(file, split=config.eval_dataset_split or "train", limit=1)
