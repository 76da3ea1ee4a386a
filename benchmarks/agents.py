"""What agents cost: training steps on branching trajectories, tree against separate rows; steps of environments.

    python benchmarks/agents.py --output benchmarks/results/agents-cpu.json

Packing: K trajectories of a task of `rooms` in ReAct, the expert's and K - 1 roll-outs that share its first turns, each
up to a random one, and go astray from there; K - 1 pairs. `tree` stores every shared token once, `rows` every
trajectory once, `pairs` both sides of every pair, as trainers of pairs do it (with K = 2 the same as `rows`). All sides
train on the same pairs in every step, so that their losses are compared too. Timed is the loop's own time of a whole
optimiser step of DMPO without the first step of a run; the cached reference is scored before. Sides take turns in one
process, round after round; a speed-up is the median over rounds of the ratio within a round.

Environments: steps per second of one environment called directly, of experts through a farm of worker processes, and of
roll-outs through it, in which a scripted agent needs next to no time to reply. The time includes resets and, for
experts through the farm, finding their moves. ScienceWorld is measured where it is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from shapes import make_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from vs_trl import machine

from prefopt.agents.environment import Environment, Move, Suite, Task
from prefopt.agents.environments.rooms import all_actions
from prefopt.agents.farm import Farm
from prefopt.agents.formats import REACT
from prefopt.agents.rollouts import Rollouts, demonstrate, roll_out
from prefopt.agents.suites import find_suite
from prefopt.build.trajectory_pairs import PairSettings, pair_trajectories
from prefopt.errors import AgentError, MissingExtraError
from prefopt.generate.base import Completion, Request, Sampling
from prefopt.methods.base import find_method
from prefopt.records import Pair, Preference, write_preferences
from prefopt.runs.train import run_training

PAD, START, END = "<pad>", "<s>", "</s>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<s>' + message['role'] + '\n' + message['content'] + '</s>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
SIDES = ("pairs", "rows", "tree")


def main() -> None:
    """Measure all, print the tables, write the JSON."""
    arguments = parse_arguments()
    packing = {} if arguments.only == "environments" else measure_packing(arguments)
    environments = {} if arguments.only == "packing" else measure_environments(arguments)
    if arguments.output:
        hidden = {"output", "only"}
        facts = {
            "machine": machine(arguments.device, ("prefopt", "torch", "transformers")),
            "settings": {k: v for k, v in vars(arguments).items() if k not in hidden},
            "packing": packing,
            "environments": environments,
        }
        Path(arguments.output).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print_packing(packing)
    print_environments(environments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=("packing", "environments"), help="one of the parts")
    parser.add_argument(
        "--trajectories", type=int, nargs="+", default=[2, 4, 8], help="K, of a task"
    )
    parser.add_argument("--per-step", type=int, default=8, help="trajectories of an optimiser step")
    parser.add_argument("--steps", type=int, default=3, help="of a run, the first not timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--episodes", type=int, default=2000, help="of rooms, in a round")
    parser.add_argument("--scienceworld-episodes", type=int, default=8, help="in a round")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", help="JSON file for the results")
    return parser.parse_args()


class Wanderer:
    """Does what the expert does up to a random turn, and anything from there; a `Generator` without a model."""

    identity = "wanderer"

    def __init__(self, moves: Mapping[str, Sequence[Move]], actions: Sequence[str]) -> None:
        self.moves = moves
        self.actions = actions

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        """One turn for every request."""
        for request in requests:
            task, _, turn = request.id.rpartition(", turn ")
            move = self.move(task, int(turn), request.sample)
            yield Completion(request.id, request.sample, REACT.write(move).content, "stop", 0)

    def move(self, task: str, turn: int, sample: int) -> Move:
        """What it does in a turn."""
        expert = self.moves[task]
        astray = random.Random(f"{task}/{sample}").randrange(len(expert))
        if turn < astray:
            return expert[turn]
        action = random.Random(f"{task}/{sample}/{turn}").choice(self.actions)
        return Move(action, expert[astray].thought)


class Played(NamedTuple):
    """Records, and what they were made of."""

    records: list[Preference]
    shared_turns: float
    """Mean number of first turns that a roll-out shares with the expert."""


def play(trajectories: int, count: int) -> Played:
    """`count` tasks with that many different trajectories each, really played."""
    suite = find_suite("rooms")
    tasks = suite.tasks("train", 20 * count)
    moves = {task.id: suite.open().expert(task) for task in tasks}
    settings = Rollouts(samples=2 * trajectories, temperature=1.0)
    with Farm(suite, workers=1) as farm:
        experts = demonstrate(tasks, farm, settings)
        found = roll_out(tasks, Wanderer(moves, all_actions()), farm, settings)
    built = pair_trajectories(experts, found, PairSettings()).records
    enough = [first(r, trajectories) for r in built if len(r.responses) >= trajectories][:count]
    if len(enough) < count:
        raise SystemExit(f"only {len(enough)} tasks with {trajectories} different trajectories")
    shared = [same_turns(r, pair) for r in enough for pair in r.pairs]
    return Played(enough, statistics.fmean(shared))


def first(record: Preference, responses: int) -> Preference:
    """The record with its first responses, the expert's among them, and their pairs."""
    pairs = tuple(p for p in record.pairs if max(p.chosen, p.rejected) < responses)
    return replace(record, responses=record.responses[:responses], pairs=pairs)


def same_turns(record: Preference, pair: Pair) -> int:
    """How many first turns of the agent both sides share."""
    sides = [record.responses[i].turns for i in (pair.chosen, pair.rejected)]
    same = [a == b for a, b in zip(*sides, strict=False)]
    shared = same.index(False) if False in same else len(same)
    return sum(message.role == "assistant" for message in sides[0][:shared])


def separate(records: Sequence[Preference]) -> list[Preference]:
    """Every pair as a record of its own."""
    return [
        replace(
            record,
            id=f"{record.id}/{number}",
            responses=(record.responses[pair.chosen], record.responses[pair.rejected]),
            pairs=(replace(pair, chosen=0, rejected=1),),
        )
        for record in records
        for number, pair in enumerate(record.pairs)
    ]


def make_agent(folder: Path, arguments: argparse.Namespace) -> None:
    """The model of the other benchmarks with a byte-level BPE tokenizer of the game's texts."""
    make_model(folder, hidden=arguments.hidden, layers=arguments.layers)
    texts = [m.content for r in play(2, 64).records for m in (*r.prompt, *r.responses[0].turns)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,  # of 16,000 in the model: about as many tokens per word as with large ones
        special_tokens=[PAD, START, END],  # 0 and 2 as in the model's configuration
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def measure_packing(arguments: argparse.Namespace) -> dict[str, dict]:
    """All numbers of trajectories."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_agent(work / "model", arguments)
        return {str(k): compare(k, arguments, work) for k in arguments.trajectories}


def compare(trajectories: int, arguments: argparse.Namespace, work: Path) -> dict:
    """All sides of one K, in turns."""
    tasks = max(1, arguments.per_step // trajectories)
    played = play(trajectories, tasks)
    sides = SIDES if trajectories > 2 else SIDES[1:]
    rounds = []
    for number in range(arguments.rounds):
        found: dict[str, dict] = {}
        for side in sides if number % 2 == 0 else sides[::-1]:
            run = f"{trajectories}-{number}-{side}"
            found[side] = train(side, played.records, work / run, arguments)
        rounds.append(found)
        print(f"K = {trajectories}: round {number + 1} of {arguments.rounds}", flush=True)
    return {
        "tasks": tasks,
        "pairs": sum(len(record.pairs) for record in played.records),
        "shared_turns": played.shared_turns,
        "sides": {side: summary(side, rounds) for side in sides},
    }


def train(
    side: str, records: list[Preference], folder: Path, arguments: argparse.Namespace
) -> dict:
    """Seconds per step of a short run without its first step, losses, tokens."""
    method = find_method("dmpo")
    given = separate(records) if side == "pairs" else records
    work, file = folder.parent, folder.with_suffix(".jsonl")
    write_preferences(file, given)
    shared = "tree" if arguments.device == "cpu" else "packed"
    layout = shared if side == "tree" else "rows"
    config = method.config(
        method="dmpo",
        model_name_or_path=str(work / "model"),
        train_file=str(file),
        output_dir=str(folder),
        cache_dir=str(work / "cache"),
        layout=layout,
        attn_implementation=None if arguments.device == "cpu" or layout == "packed" else "sdpa",
        max_length=2048,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        per_device_train_batch_size=len(given),
        max_steps=arguments.steps,
        logging_steps=1,
        save_strategy="no",
    )
    with contextlib.redirect_stderr(io.StringIO()):
        run_training(config, method)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    plan = json.loads((folder / "plan.json").read_text())
    return {
        "seconds": [row["seconds_per_step"] for row in rows[1:]],
        "losses": [row["loss"] for row in rows],
        "tokens": plan["tokens_tree"],
        "positions": plan["padded_tokens"],
    }


def summary(side: str, rounds: list[dict[str, dict]]) -> dict[str, object]:
    """A side's tokens and time, and the others' against it."""
    own = rounds[0][side]
    seconds = [{name: statistics.median(run["seconds"]) for name, run in r.items()} for r in rounds]
    losses = [run["losses"] for name, run in rounds[0].items() if name != side]
    return {
        "tokens": own["tokens"],
        "positions": own["positions"],
        "seconds_per_step": statistics.median(s[side] for s in seconds),
        "faster_than": {
            name: statistics.median(s[name] / s[side] for s in seconds)
            for name in rounds[0]
            if name != side
        },
        "seconds_by_round": [s[side] for s in seconds],
        "largest_relative_loss_difference": max(
            abs(a - b) / abs(b)
            for other in losses
            for a, b in zip(own["losses"], other, strict=True)
        ),
    }


def measure_environments(arguments: argparse.Namespace) -> dict[str, dict]:
    """Steps per second; environments that are not installed are left out, with the reason."""
    wanted = {
        "rooms": ({}, arguments.episodes),
        "scienceworld": ({"kinds": ["find-*"]}, arguments.scienceworld_episodes),
    }
    found: dict[str, dict] = {}
    for name, (options, episodes) in wanted.items():
        try:
            suite = find_suite(name, options)
            found[name] = speed(suite, suite.tasks(suite.splits[0], episodes), arguments)
        except (MissingExtraError, AgentError) as error:
            print(f"{name}: not measured: {error}", flush=True)
    if "scienceworld" in found:
        found["scienceworld"]["version"] = version("scienceworld")
    return found


def speed(suite: Suite, tasks: Sequence[Task], arguments: argparse.Namespace) -> dict:
    """All ways in turns; medians over rounds."""
    start = time.perf_counter()
    game = suite.open()
    game.reset(tasks[0])
    opened = time.perf_counter() - start
    moves = {task.id: game.expert(task) for task in tasks}
    rounds = []
    settings = Rollouts(temperature=1.0)
    with Farm(suite, workers=arguments.workers) as farm:
        demonstrate(tasks[: farm.capacity], farm, settings)  # starts the processes
        agent = Wanderer(
            moves, all_actions() if suite.name == "rooms" else ["look around", "inventory"]
        )
        for _ in range(arguments.rounds):
            rates = {"direct": direct(game, tasks, moves)}
            for way, act in (
                ("farm", lambda: demonstrate(tasks, farm, settings)),
                ("roll-outs", lambda: roll_out(tasks, agent, farm, settings)),
            ):
                before, start = farm.counts["steps"], time.perf_counter()
                act()
                rates[way] = (farm.counts["steps"] - before) / (time.perf_counter() - start)
            rounds.append(rates)
            print(f"{suite.name}: round {len(rounds)} of {arguments.rounds}", flush=True)
    game.close()
    return {
        "episodes": len(tasks),
        "seconds_to_open": opened,
        "steps_per_second": {way: statistics.median(r[way] for r in rounds) for way in rounds[0]},
        "rounds": rounds,
    }


def direct(game: Environment, tasks: Sequence[Task], moves: Mapping[str, Sequence[Move]]) -> float:
    """Steps per second of an environment in this process, which does what the expert does."""
    steps, start = 0, time.perf_counter()
    for task in tasks:
        game.reset(task)
        for move in moves[task.id]:
            game.step(move.action)
            steps += 1
    return steps / (time.perf_counter() - start)


def print_packing(results: Mapping[str, dict]) -> None:
    """A table in Markdown."""
    if not results:
        return
    heads = [f"{what}: {side}" for what in ("tokens", "seconds a step") for side in SIDES]
    print(f"\n| K | {' | '.join(heads)} | tree over pairs | tree over rows |")
    print("|---:" * 9 + "|")
    for k, found in results.items():
        own = found["sides"]
        sides = {side: own.get(side, own["rows"]) for side in SIDES}  # K = 2: pairs are rows
        faster = own["tree"]["faster_than"]
        cells = [
            k,
            *(f"{s['tokens']:,}" for s in sides.values()),
            *(f"{s['seconds_per_step']:.3g}" for s in sides.values()),
            f"{faster.get('pairs', faster['rows']):.2f}x",
            f"{faster['rows']:.2f}x",
        ]
        print(f"| {' | '.join(cells)} |")


def print_environments(results: Mapping[str, dict]) -> None:
    """A table in Markdown."""
    if not results:
        return
    print("\n| steps per second | direct | experts through the farm | roll-outs through the farm |")
    print("|---|---:|---:|---:|")
    for name, found in results.items():
        rates = found["steps_per_second"].values()
        print(f"| {name} | {' | '.join(f'{rate:,.0f}' for rate in rates)} |")


if __name__ == "__main__":
    main()
