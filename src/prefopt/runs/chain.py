"""Several trainings one after another, each from the model of the one before, which is its reference too.

output_dir/<link>   the run folder of each training
chain.json          the names of these folders, and which training before it each of them goes on from
run.yaml            the recipe of all
model/              the model of the last one
finished.json       what each started from, its reference and its last metrics
report.html         all of them side by side

Finished trainings are found again and an unfinished one is resumed; `--overwrite` starts all of them anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, cast

from prefopt.config import RunConfig, parse, write_recipe
from prefopt.errors import ConfigError, ResumeError, StorageError
from prefopt.models.locate import ADAPTER_CONFIG
from prefopt.progress import say
from prefopt.report.folder import CHAIN
from prefopt.report.page import write_report
from prefopt.runs.method import Method, RunResult
from prefopt.runs.setup import input_paths
from prefopt.runs.train import run_training
from prefopt.train.folder import RunFolder, open_folder
from prefopt.train.runtime import Runtime
from prefopt.values import JsonValue


class Link(NamedTuple):
    """One training of a chain."""

    name: str
    """Of its folder in output_dir."""
    changes: Mapping[str, JsonValue]
    """Keys in which its recipe differs from that of the chain."""


def written(config: RunConfig) -> dict[str, JsonValue]:
    """What the recipe says, without what it leaves at its defaults."""
    return json.loads(config.model_dump_json(exclude_unset=True))


def going_on(raw: Mapping[str, JsonValue], model: Path) -> dict[str, JsonValue]:
    """The recipe that starts from that model.

    An adapter is trained on as it is: no other is added, and its reference is the adapter as it was, not the model
    without it.
    """
    changed = {**raw, "model_name_or_path": str(model)}
    if not (model / ADAPTER_CONFIG).is_file():
        return changed
    return {k: v for k, v in changed.items() if k != "use_peft" and not k.startswith("lora_")}


def run_chain(
    config: RunConfig,
    method: Method[RunConfig],
    make_links: Callable[[], list[Link]],
    runtime: Runtime,
) -> RunResult:
    """Train link after link; the model is that of the last one.

    Args:
        config: the recipe of all.
        method: what each link trains with, in the ordinary way.
        make_links: makes what the links need and names them; called once, in the main process, with the folder locked.
        runtime: the processes.

    Raises:
        ResumeError: the folder holds a run and neither resuming nor overwriting was asked for.
        PrefoptError: anything else a user can cause, one line each.
    """
    top = RunFolder(Path(config.output_dir))
    runtime.on_main(top.acquire)
    try:
        runtime.on_main(lambda: _require_room(config, top))
        links = runtime.on_main(make_links)
        return _run(config, method, links, top, runtime)
    finally:
        top.release()


def _run(
    config: RunConfig,
    method: Method[RunConfig],
    links: Sequence[Link],
    top: RunFolder,
    runtime: Runtime,
) -> RunResult:
    for link in links:  # mistakes are found before anything is trained
        config_of_link(config, method, link, None, last=link is links[-1])
    folders = [RunFolder(top.path / link.name) for link in links]
    runtime.on_main(lambda: _begin(config, top, folders))
    done: list[RunResult] = []
    for number, link in enumerate(links):
        if runtime.is_main:
            say(f"\n{link.name}, {number + 1} of {len(links)}")
        previous = done[-1].model if done else None
        recipe = config_of_link(config, method, link, previous, last=link is links[-1])
        done.append(run_training(recipe, method))
        runtime.on_main(lambda folder=folders[number]: _require_model(folder))
        rest = folders[number + 1 :]
        runtime.on_main(lambda before=folders[number], rest=rest: _go_on(config, top, before, rest))
    result = RunResult(top.path, top.model, done[-1].metrics, top.report)
    if not all(p.exists() for p in (top.finished, top.model, top.report)):
        runtime.on_main(lambda: _finish(config, top, links, done))
    elif runtime.is_main:
        say(f"{top.path}: all {len(links)} trainings are already finished")
    return result


def config_of_link(
    config: RunConfig,
    method: Method[RunConfig],
    link: Link,
    previous: Path | None,
    *,
    last: bool,
) -> RunConfig:
    """The recipe of one link, which starts from the model in `previous`; None: from the chain's own.

    Only the last one is uploaded.
    """
    raw = {**written(config), **link.changes}
    raw["output_dir"] = str(Path(config.output_dir) / link.name)
    if config.run_name is not None:
        raw["run_name"] = f"{config.run_name} {link.name}"
    if not last:
        raw = {k: v for k, v in raw.items() if k != "push_to_hub" and not k.startswith("hub_")}
    return parse(
        raw if previous is None else going_on(raw, previous), method.config, origin=link.name
    )


def _require_room(config: RunConfig, top: RunFolder) -> None:
    resume = config.resume_from_checkpoint
    if isinstance(resume, str):
        raise ConfigError(
            f"resume_from_checkpoint {resume!r} is a checkpoint of one training, and this recipe makes several: use "
            "--resume, which finds where they stopped"
        )
    if resume and top.metrics.exists() and not _has_begun_over_one(top):
        raise ResumeError(
            f"{top.path}: holds a single training, and this recipe makes several; pass --overwrite to start anew, or "
            "set another output_dir"
        )
    if resume:
        finish_removals(top)
        return
    if top.recipe.exists() and not config.overwrite_output_dir:
        state = "finished" if top.finished.exists() else "unfinished"
        raise ResumeError(
            f"{top.path}: already holds a run ({state}); pass --resume to go on, --overwrite to start anew, or set "
            "another output_dir"
        )
    for folder in (top, *earlier_links(top)):
        open_folder(
            folder, resume=False, overwrite=config.overwrite_output_dir, inputs=input_paths(config)
        )


def _has_begun_over_one(top: RunFolder) -> bool:
    """Whether a link was begun that writes over the single training whose files are still there."""
    begun = any(link.recipe.exists() for link in earlier_links(top))
    return begun and bool(_read_chain(top).get("over_one_training"))


def earlier_links(top: RunFolder) -> list[RunFolder]:
    """The run folders of the chain that output_dir holds or has held; none where there was no chain."""
    return [RunFolder(top.path / name) for name in _names(_read_chain(top))]


def _names(chain: Mapping[str, JsonValue]) -> list[str]:
    listed = [chain.get(key) for key in ("links", "earlier")]
    return [str(name) for names in listed if isinstance(names, list) for name in names]


def finish_removals(top: RunFolder) -> None:
    """Remove what is left of runs that were being written over, here and in the folders of a chain."""
    for folder in (top, *earlier_links(top)):
        folder.finish_removal()


def require_no_chain(top: RunFolder) -> None:
    """Nothing where a single training can be resumed.

    Raises:
        ResumeError: output_dir holds a chain.
    """
    if (top.path / CHAIN).exists() and not top.metrics.exists():
        raise ResumeError(
            f"{top.path}: holds several trainings one after another, and this recipe makes a single one; pass "
            "--overwrite to start anew, or set another output_dir"
        )


def forget_chain(path: Path) -> None:
    """Remove what an earlier chain left in output_dir, which a single training has since taken over."""
    top = RunFolder(path)
    _remove(earlier_links(top))
    (path / CHAIN).unlink(missing_ok=True)


def _remove(folders: Sequence[RunFolder]) -> None:
    """Remove runs, and their folders where nothing else is in them."""
    for folder in folders:
        folder.clear()
        with suppress(OSError):
            folder.path.rmdir()


def _require_model(folder: RunFolder) -> None:
    if not folder.model.is_dir():
        raise ResumeError(
            f"{folder.model}: is gone, and the run is marked as finished; put it back, or remove {folder.finished} "
            "and pass --resume, which trains on from the last checkpoint there is"
        )


def _begin(config: RunConfig, top: RunFolder, folders: Sequence[RunFolder]) -> None:
    if not config.resume_from_checkpoint:
        for folder in folders:
            open_folder(
                folder,
                resume=False,
                overwrite=config.overwrite_output_dir,
                inputs=input_paths(config),
            )
    if (
        not top.recipe.exists()
    ):  # a run that is resumed may still be refused, and keeps its recipe then
        write_recipe(config, top.recipe)
    names: list[JsonValue] = [folder.path.name for folder in folders]
    facts = _read_chain(top)
    # The names of those that a shorter chain leaves over stay known until they are removed.
    facts["earlier"] = [n for n in _names(facts) if n not in names]
    facts["links"] = names
    if config.overwrite_output_dir:
        facts["over_one_training"] = top.metrics.exists()
    top.write_json(top.path / CHAIN, facts)


def _read_chain(top: RunFolder) -> dict[str, JsonValue]:
    """What the chain says about itself; empty where there is none, and where it cannot be read."""
    with suppress(OSError, ValueError):
        facts = json.loads((top.path / CHAIN).read_text(encoding="utf-8"))
        if isinstance(facts, dict):
            return cast("dict[str, JsonValue]", facts)
    return {}


def _go_on(config: RunConfig, top: RunFolder, before: RunFolder, rest: Sequence[RunFolder]) -> None:
    """Remove what went on from an earlier model than that of the training `before`, which is finished.

    `starts` in chain.json says what each link, and the model of the whole, went on from: the digest of the
    `finished.json` before it. A training that is done again writes another one, so what is left of the earlier chain is
    known as such whenever the run was killed.
    """
    facts = _read_chain(top)
    starts = facts.get("starts")
    starts = starts if isinstance(starts, dict) else {}
    follower = rest[0].path.name if rest else top.model.name
    known, digest = starts.get(follower), hashlib.sha256(before.finished.read_bytes()).hexdigest()
    if known == digest:
        return
    if known is not None or top.metrics.exists():
        for folder in (top, *rest):
            if folder.finished.exists() or folder.metrics.exists():
                folder.clear()
    elif not rest:
        top.finished.unlink(missing_ok=True)
    write_recipe(config, top.recipe)
    facts.pop("over_one_training", None)
    top.write_json(top.path / CHAIN, {**facts, "starts": {**starts, follower: digest}})


def _finish(
    config: RunConfig, top: RunFolder, links: Sequence[Link], done: Sequence[RunResult]
) -> None:
    write_recipe(config, top.recipe)
    names = [each.folder.name for each in done]
    _remove([each for each in earlier_links(top) if each.path.name not in names])
    top.write_json(top.path / CHAIN, {**_read_chain(top), "links": names, "earlier": []})
    _copy(done[-1].model, top.model)
    write_report([each.folder for each in done], top.report)
    facts = [_facts(link, each) for link, each in zip(links, done, strict=True)]
    say(f"model: {top.model}")
    say(f"report: {top.report}")
    # Last of all, as in each training.
    top.write_json(top.finished, {"metrics": done[-1].metrics, "links": facts})


def _facts(link: Link, result: RunResult) -> dict[str, object]:
    """What a link started from and what came of it; the digests are those that a resumed run must share."""
    finished = json.loads(RunFolder(result.folder).finished.read_text(encoding="utf-8"))
    identity = finished["identity"]
    return {
        "name": link.name,
        "starting_weights": identity["starting weights"],
        "reference": identity["reference"],
        "metrics": result.metrics,
    }


def _copy(model: Path, target: Path) -> None:
    """Copy a model folder as a whole or not at all; files are linked where the disk can, so they take no room."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(model, partial, copy_function=link_or_copy)
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
    except (OSError, shutil.Error) as error:
        raise StorageError(
            f"{target}: the model of {model} cannot be copied there ({error}); free space and pass --resume"
        ) from error


def link_or_copy(source: str, target: str) -> None:
    """Nothing; the file then is at `target` too, without taking room where the disk can do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
