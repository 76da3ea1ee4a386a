"""The objective of Step-Controlled DPO: the identity of front and tail, row counts as weights, what is scored."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from prefopt.build.cuts import ControlSettings, Cut, Solution, Solutions, Tail
from prefopt.build.mixing import combine
from prefopt.ledger import Ledger
from prefopt.methods.scdpo import METHOD, ScdpoConfig, masked
from prefopt.models.load import CausalModel, ModelSettings, load_model
from prefopt.models.scorer import Scorer, sum_by_response
from prefopt.objectives import dpo
from prefopt.objectives.types import Pairs
from prefopt.pack.batch import Example, Layout, collate
from prefopt.pack.prepare import PrepareSettings, prepare
from prefopt.records import Pair, Preference, Response
from prefopt.text.blocks import END_OF_MESSAGE, SPECIAL_TOKENS, Block, conversation, serialise
from tests.tiny import make_model_folder, make_tokenizer

TOKENIZER = make_tokenizer()
QUESTION = "What is 1 + 2 + 3?\n"
FRONT = "Step 1: 1 + 2 = 3\n"
RIGHT = "Step 2: 3 + 3 = 6\nThe answer is 6"
WRONG = "Step 2: 3 * 3 = 9\nStep 3: 9 = 9\nThe answer is 9"
NAIVE = "Step 1: 1 + 2 = 4\nThe answer is 7"


def record(name: str, prefix: str, chosen: str, rejected: str) -> Preference:
    responses = (Response(chosen), Response(rejected))
    return Preference(name, QUESTION, responses, (Pair(0, 1),), prefix)


CONTROLLED = record("tails", FRONT, RIGHT, WRONG)
WHOLE = record("whole", "", FRONT + RIGHT, FRONT + WRONG)
ORDINARY = record("naive", "", FRONT + RIGHT, NAIVE)


def examples(*records: Preference) -> list[Example]:
    return prepare(records, TOKENIZER, PrepareSettings(max_length=512), Ledger("test"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalModel, CausalModel]:
    """Policy and reference."""
    folder = tmp_path_factory.mktemp("models")
    found: list[CausalModel] = []
    for seed in (0, 1):
        path = make_model_folder(folder / str(seed), "llama", tokenizer=TOKENIZER, seed=seed)
        found.append(load_model(path, ModelSettings()).model)
    return found[0], found[1]


class Measured(NamedTuple):
    loss: Tensor
    """Mean over the pairs."""
    each: Tensor
    margins: Tensor
    """Of the implicit rewards, one a pair."""
    gradients: dict[str, Tensor]


def measure(models: tuple[CausalModel, CausalModel], *records: Preference) -> Measured:
    """DPO at beta 0.1 through the real scorer, token trees and all."""
    policy, reference = models
    batch = collate([[e] for e in examples(*records)], layout=Layout.TREE)
    policy.zero_grad()
    own = sum_by_response(batch, Scorer(policy)(batch).logp)
    with torch.no_grad():
        frozen = sum_by_response(batch, Scorer(reference)(batch).logp)
    pairs = Pairs(
        own[batch.chosen], own[batch.rejected], frozen[batch.chosen], frozen[batch.rejected]
    )
    losses = dpo(pairs, beta=0.1)
    each, margins = losses.loss, losses.terms["rewards/margins"]
    loss = (each * batch.pair_weight).sum() / batch.pair_weight.sum()
    loss.backward()
    named = policy.named_parameters()
    gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}
    return Measured(loss.detach(), each.detach(), margins, gradients)


def largest_difference(a: Measured, b: Measured) -> float:
    assert a.gradients.keys() == b.gradients.keys()
    return max(float((a.gradients[n] - b.gradients[n]).abs().max()) for n in a.gradients)


def test_a1_the_first_loss_is_ln_2_and_margins_are_0(
    models: tuple[CausalModel, CausalModel],
) -> None:
    found = measure((models[0], models[0]), CONTROLLED, ORDINARY)
    assert found.each.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-6)
    assert found.margins.tolist() == pytest.approx([0.0] * 2, abs=1e-6)
    moved = measure(models, CONTROLLED, ORDINARY).margins
    assert float(moved.abs().min()) > 1e-3, "it can be something else"


def test_a2_tails_after_a_front_are_whole_solutions(
    models: tuple[CausalModel, CausalModel],
) -> None:
    """The central identity: the shared front adds the same to both sides, value and gradient."""
    tails, whole = measure(models, CONTROLLED), measure(models, WHOLE)
    assert abs(float(tails.loss) - math.log(2)) > 1e-3, "the pair says something"
    assert max(float(g.abs().max()) for g in tails.gradients.values()) > 1e-2
    assert abs(float(tails.loss - whole.loss)) < 1e-5
    assert largest_difference(tails, whole) < 1e-5


def test_a2_fails_for_another_front(models: tuple[CausalModel, CausalModel]) -> None:
    """Negative control: the identity is not a matter of a dead model or a loose bound."""
    other = record("other", "Step 1: 2 + 1 = 3\n", RIGHT, WRONG)
    assert largest_difference(measure(models, other), measure(models, WHOLE)) > 1e-4


class Asked(NamedTuple):
    id: str = "q"
    prompt: str = QUESTION
    answer: str = "6"


def built(right: Solution, wrong: Solution) -> tuple[Preference, Preference]:
    """What the pipeline makes of a sampled pair, and of the same texts where the wrong one was written from start 0."""
    task = Asked()
    tail = Tail(Cut(task, right, 0), 0, wrong.tail(0), wrong.ends)
    data = combine(
        [task], {"q": Solutions([right], [wrong])}, [tail], ControlSettings(start_zero="controlled"), Counter(),
        prompt_of=lambda asked: asked.prompt,
    )  # fmt: skip
    (naive,), (zero,) = data.naive, data.controlled
    assert (naive.meta["kind"], zero.meta["kind"]) == ("naive", "controlled")
    assert naive.id != zero.id and zero.meta["start_steps"] == 0
    return naive, zero


@pytest.mark.parametrize("opening", ["", "Step 1:"])
@pytest.mark.parametrize("ends", [True, False])
def test_a4_a_whole_solution_written_anew_is_a_naive_pair(
    models: tuple[CausalModel, CausalModel], opening: str, *, ends: bool
) -> None:
    """The two records of the pipeline, through the objective: the same value and gradient."""
    right = Solution(0, (FRONT, RIGHT), opening=opening)
    naive, zero = built(right, Solution(1, (NAIVE,), opening=opening, ends=ends))
    (a,), (b,) = examples(naive), examples(zero)
    for x, y in ((a.tree.tokens, b.tree.tokens), (a.tree.scored, b.tree.scored)):
        assert torch.equal(torch.as_tensor(x), torch.as_tensor(y))
    whole, anew = measure(models, naive), measure(models, zero)
    assert abs(float(whole.loss) - math.log(2)) > 1e-3, "the pair says something"
    assert torch.equal(whole.each, anew.each) and torch.equal(whole.margins, anew.margins)
    assert largest_difference(whole, anew) == 0


def test_a5_the_two_kinds_weigh_what_their_numbers_are(
    models: tuple[CausalModel, CausalModel],
) -> None:
    naive = measure(models, ORDINARY)
    tails = measure(models, CONTROLLED)
    again = record("again", FRONT, RIGHT, WRONG)
    once, twice = (
        measure(models, ORDINARY, CONTROLLED),
        measure(models, ORDINARY, CONTROLLED, again),
    )
    assert float(once.loss) == pytest.approx(float(naive.loss + tails.loss) / 2, abs=1e-6)
    assert float(twice.loss) == pytest.approx(float(naive.loss + 2 * tails.loss) / 3, abs=1e-6)
    for name, gradient in twice.gradients.items():
        expected = (naive.gradients[name] + 2 * tails.gradients[name]) / 3
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


def test_a7_the_front_is_never_scored_and_the_end_token_is() -> None:
    (example,) = examples(CONTROLLED)
    tree = example.tree
    for r, text in enumerate((RIGHT, WRONG)):
        path = torch.as_tensor(tree.path(r))
        scored = torch.as_tensor(tree.scored)[path]
        ids = torch.as_tensor(tree.tokens)[path][scored].tolist()
        assert TOKENIZER.decode(ids) == f"{text}{TOKENIZER.eos_token}"
        context = torch.as_tensor(tree.tokens)[path][~scored].tolist()
        assert TOKENIZER.decode(context) == QUESTION + FRONT


def test_a7_both_ends_of_a_solution_with_code_are_scored_and_its_front_is_not() -> None:
    """One id each for the markers, as `special_tokens: blocks` makes them."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": list(SPECIAL_TOKENS)})  # pyright: ignore[reportArgumentType]
    front = serialise([Block("text", "So"), Block("code", "print(6)"), Block("execution", "6")])
    tails = [serialise([Block("text", text)]) + END_OF_MESSAGE for text in ("6", "Hence 7")]
    prompt = conversation("", QUESTION)
    responses = (Response(tails[0]), Response(tails[1]))
    pair = Preference("code", prompt, responses, (Pair(0, 1),), front)
    (example,) = prepare([pair], tokenizer, PrepareSettings(max_length=512), Ledger("test"))
    tree = example.tree
    for r, text in enumerate(tails):
        path = torch.as_tensor(tree.path(r))
        scored = torch.as_tensor(tree.scored)[path]
        ids = torch.as_tensor(tree.tokens)[path]
        assert tokenizer.decode(ids[scored].tolist()) == f"{text}{tokenizer.eos_token}"
        last = [tokenizer.convert_tokens_to_ids(END_OF_MESSAGE), tokenizer.eos_token_id]
        assert ids[scored].tolist()[-2:] == last
        assert tokenizer.decode(ids[~scored].tolist()) == prompt + front


CODE = (
    "<|text|>So<|endofblock|><|code|>print(6)<|endofblock|><|execution|>6<|endofblock|>"
    "<|text|>6<|endofblock|><|endofmessage|>"
)


def config(**keys: object) -> ScdpoConfig:
    return ScdpoConfig.model_validate(
        {"method": "scdpo", "model_name_or_path": "m", "train_file": "f", **keys}
    )


def test_b5_interpreter_output_is_context_only_on_request() -> None:
    pair = record("code", "", CODE, CODE.replace("6", "7"))
    assert config().mask_execution is False
    assert masked(pair, config()) is pair
    found = masked(pair, config(mask_execution=True))
    start = CODE.index("<|execution|>")
    end = CODE.index("<|text|>6")
    assert found.responses[0].masked == ((start, end),)
    own = Preference("own", "", (Response("abc", masked=((0, 1),)),))
    assert masked(own, config(mask_execution=True)).responses[0].masked == ((0, 1),)


def test_own_parameters() -> None:
    assert METHOD.name == "scdpo"
    assert config().beta == 0.1


def test_the_recipe_has_the_published_settings() -> None:
    """The settings for Mistral-7B of mathllm/Step-Controlled_DPO at b7ee1dd."""
    from prefopt.config import load_recipe

    raw = load_recipe(Path(__file__).parents[2] / "recipes" / "scdpo" / "scdpo.yaml")
    published = {
        "beta": 0.1,
        "learning_rate": 1e-7,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "max_length": 1024,
        "bf16": True,
        "gradient_checkpointing": True,
        "seed": 42,
    }
    assert published.items() <= raw.items()
