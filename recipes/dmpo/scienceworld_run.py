"""The recipes of this folder from end to end on ScienceWorld, small: a model from scratch, short tasks, two cores.

    python recipes/dmpo/scienceworld_run.py --output scienceworld

Experts' trajectories on short training tasks (find-*, lifespan-*), a byte-level BPE tokenizer of their texts, a random
Llama of about a million parameters, fine-tuning, its roll-outs, pairs, DMPO, and an evaluation of both agents. Every
stage is a command of `prefopt` with a recipe of this folder, and is printed before it runs. The model is far too small
for the tasks: this shows that all stages work together, not what the method gains. Started again, the script goes on
where it stopped. At the end it prints the tables of README.md. Needs `pip install 'prefopt[agents]'` and Java.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefopt.cli.main import main as prefopt
from prefopt.models.save import save_model
from prefopt.records import read_preferences
from prefopt.values import JsonValue

RECIPES = Path(__file__).parent
RESULT = "agent-evaluation.json"
KINDS = 'kinds=["find-*", "lifespan-*"]'
START, END, PAD = "<|im_start|>", "<|im_end|>", "<pad>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCABULARY, HIDDEN, LAYERS, POSITIONS = 1500, 128, 4, 4096
SPREAD = 0.08
"""Of the random weights, near 1 / sqrt(HIDDEN): with the usual 0.02 so narrow a network learns nothing for long."""


def main() -> None:
    """Run the stages that are missing, then print."""
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    stages = Stages(arguments)
    stages.run()
    text = stages.tables()
    (arguments.output / "tables.md").write_text(text, encoding="utf-8")
    print(text)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--output", type=Path, default=Path("scienceworld"))
    found.add_argument("--train-tasks", type=int, default=24)
    found.add_argument("--test-tasks", type=int, default=6, help="of each split")
    found.add_argument("--samples", type=int, default=2, help="roll-outs of a training task")
    found.add_argument("--sft-epochs", type=int, default=30)
    found.add_argument("--dmpo-epochs", type=int, default=3)
    found.add_argument("--workers", type=int, default=2, help="simulators")
    found.add_argument("--threads", type=int, default=2, help="of the model")
    return found


class Stages:
    """The commands, and what they leave."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.output: Path = arguments.output
        self.data = self.output / "data"
        self.sft, self.dmpo = self.output / "sft", self.output / "dmpo"
        self.before = self.output / "evaluation-of-sft"
        self.experts = self.data / "experts.jsonl"
        self.file = self.output / "stages.json"
        self.require_same_settings()

    def require_same_settings(self) -> None:
        """Stop where the folder belongs to other settings; stages of both would be mixed."""
        hidden = {"output", "threads", "workers"}
        now = {k: v for k, v in vars(self.arguments).items() if k not in hidden}
        then = self.kept().get("settings", now)
        if then != now:
            raise SystemExit(f"{self.output} was made with {then}, not {now}: set another --output")
        self.keep("settings", now)

    def kept(self) -> dict:
        """What is known about the stages."""
        return read_json(self.file) if self.file.exists() else {}

    def keep(self, key: str, value: JsonValue) -> None:
        """Write something down about the stages."""
        facts = {**self.kept(), key: value}
        self.file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def run(self) -> None:
        """Everything, in order."""
        a, recipe = self.arguments, str(RECIPES / "build.yaml")
        if not (self.sft / "finished.json").exists():
            # Once more after the roll-outs, it would replace their files.
            settings = [*self.build_settings(), "build.rollouts=false"]
            self.command("experts", ["build", recipe, *settings], self.experts)
            self.make_model()
            again = ["resume_from_checkpoint=true"] if self.sft.exists() else []
            words = ["train", str(RECIPES / "sft.yaml"), *self.sft_settings(), *again]
            self.command("fine-tuning", words, self.sft / "finished.json")
        played = ["--environment", "scienceworld", "--option", KINDS, "--no-example", "--limit", str(a.test_tasks),
                  "--max-new-tokens", "32", "--workers", str(a.workers)]  # fmt: skip
        target = ["eval", str(self.sft), "--output", str(self.before), "--name", "SFT"]
        self.command("evaluation of it", [*target, *played], self.before / RESULT)
        settings = [*self.build_settings(), *self.dmpo_settings()]
        words = ["run", recipe, *settings]
        self.command("roll-outs, pairs, DMPO, evaluation", words, self.dmpo / RESULT)
        # `run` has played these episodes already; here they are compared.
        against = ["eval", str(self.dmpo), "--against", str(self.before), "--name", "DMPO"]
        self.command("comparison", [*against, *played], None)

    def command(self, stage: str, words: Sequence[str], result: Path | None) -> None:
        """One command of the program. Its time is kept, unless its result was there before."""
        print(f"\n$ prefopt {shlex.join(words)}", flush=True)
        timed = result is not None and not result.exists()
        start = time.perf_counter()
        if code := prefopt(list(words)):
            raise SystemExit(code)
        if timed:
            took = round(time.perf_counter() - start, 1)
            self.keep("seconds", {**self.kept().get("seconds", {}), stage: took})

    def build_settings(self) -> list[str]:
        """Data: what differs from build.yaml."""
        a = self.arguments
        return [
            f"model_name_or_path={self.sft / 'model'}",
            f"build.output_dir={self.data}",
            f"build.max_tasks={a.train_tasks}",
            "build.example=false",
            f"build.samples={a.samples}",
            f"build.temperature={0.7 if a.samples > 1 else 0.0}",
            "build.max_new_tokens=32",
            f"build.workers={a.workers}",
            f"evaluate.limit={a.test_tasks}",
        ]

    def sft_settings(self) -> list[str]:
        """What differs from sft.yaml: a model that knows nothing needs more steps, and larger ones."""
        return [
            f"model_name_or_path={self.output / 'blank'}",
            f"train_file={self.data / 'experts.jsonl'}",
            f"output_dir={self.sft}",
            f"num_train_epochs={self.arguments.sft_epochs}",
            "learning_rate=3e-3",
            "gradient_accumulation_steps=2",
            *self.small(),
        ]

    def dmpo_settings(self) -> list[str]:
        """What differs from build.yaml in training."""
        return [
            f"output_dir={self.dmpo}",
            f"num_train_epochs={self.arguments.dmpo_epochs}",
            "learning_rate=1e-4",
            *self.small(),
        ]

    def small(self) -> list[str]:
        """Without what large models need."""
        return ["bf16=false", "gradient_checkpointing=false", "save_strategy=no",
                f"cache_dir={self.output / 'cache'}"]  # fmt: skip

    def make_model(self) -> None:
        """The untrained model with its tokenizer; equal texts make equal ones."""
        folder = self.output / "blank"
        tokenizer = byte_level_tokenizer(texts(self.experts))
        model = random_llama(tokenizer)
        save_model(model, tokenizer, folder)
        count = sum(weights.numel() for weights in model.parameters())
        self.keep("parameters", count)

    def tables(self) -> str:
        """Markdown: both agents, then what the stages made."""
        lines = [
            "| agent | split | reward | solved | turns | format errors |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for name, folder in (("SFT", self.before), ("DMPO", self.dmpo)):
            found = read_json(folder / RESULT)
            lines += [agent_row(name, split, row) for split, row in found["splits"].items()]
        lines += ["", "| what | number |", "|---|---:|"]
        lines += [f"| {what} | {number} |" for what, number in self.facts()]
        return "\n".join(lines)

    def facts(self) -> Iterator[tuple[str, str]]:
        """What the stages made."""
        counts = read_json(self.data / "counts.json")
        plan = read_json(self.dmpo / "plan.json")
        experts = list(read_preferences(self.experts))
        yield "parameters", f"{self.kept()['parameters']:,}"
        yield "experts' trajectories", f"{len(experts)}"
        turns = [sum(m.role == "assistant" for m in e.responses[0].turns) for e in experts]
        yield "turns of an expert, mean", f"{statistics.fmean(turns):.1f}"
        for name, count in counts["counts"].items():
            if name not in {"tasks", "experts", "experts that can be trained on"}:
                yield name, f"{count}"
        yield (
            "tokens of the pairs, separate / as trees",
            f"{plan['tokens_rows']:,} / {plan['tokens_tree']:,}",
        )
        for name, folder in (("fine-tuning", self.sft), ("DMPO", self.dmpo)):
            rows = [
                json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
            ]
            losses = [row["loss"] for row in rows if "loss" in row]
            yield (
                f"loss of {name}, first and last of {len(losses)} steps",
                f"{losses[0]:.4f}, {losses[-1]:.4f}",
            )
        for stage, seconds in self.kept()["seconds"].items():
            yield f"seconds: {stage}", f"{seconds:.0f}"


def texts(file: Path) -> Iterator[str]:
    """Everything that is said in records."""
    for record in read_preferences(file):
        yield from (message.content for message in record.prompt)
        for response in record.responses:
            yield from (message.content for message in response.turns)


def byte_level_tokenizer(corpus: Iterator[str]) -> PreTrainedTokenizerFast:
    """BPE over bytes, which encodes any text, with a ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START, END],
    )
    fast.chat_template = CHATML
    return fast


def random_llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A float32 Llama of random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=8 * HIDDEN // 3,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=POSITIONS,
            initializer_range=SPREAD,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def read_json(path: Path) -> dict:
    """A JSON object."""
    return json.loads(path.read_text(encoding="utf-8"))


def agent_row(name: str, split: str, found: dict) -> str:
    """One split of an evaluation."""
    reward, solved = found["reward"], found["success"]
    return (
        f"| {name} | {split} | {reward['value']:.3f} ({reward['low']:.3f} to {reward['high']:.3f}) "
        f"| {solved['correct']}/{solved['total']} | {found['steps']:.1f} | {found['format_errors']} |"
    )


if __name__ == "__main__":
    main()
