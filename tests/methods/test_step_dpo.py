"""What the sheet of Step-DPO asks of objective, mask and tokens, by its names (A1 to A11).

The A tests run records through the path of a training run: text, tokens, trees, scorer, objective.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.config import parse
from prefopt.ledger import Ledger
from prefopt.methods.step_dpo import METHOD, StepDpoConfig
from prefopt.models.load import LoadedModel, load_model
from prefopt.models.scorer import Scorer, sum_by_response
from prefopt.objectives import dpo
from prefopt.objectives.types import Losses, Pairs
from prefopt.pack.batch import Example, Layout, PackedBatch, collate
from prefopt.pack.prepare import PrepareSettings, prepare
from prefopt.pack.tree import build_tree
from prefopt.records import Pair, Preference, Response
from prefopt.text.render import RenderSettings, encode, render
from tests.tiny import make_model_folder, make_tokenizer

PROMPT = "What is 3 + 4 - 2?\n"
STEPS = "Step 1: 3 + 4 = 7.\nStep 2:"
WIN, LOSE = " 7 - 2 = 5.", " 7 - 2 = 9, so they were not there on time."
BETA = 0.5


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("m") / "llama"
    loaded = load_model(make_model_folder(folder, "llama", tokenizer=make_tokenizer(bos=True)))
    for parameter in loaded.model.parameters():
        parameter.data.mul_(3.0 if parameter.ndim > 1 else 1.0)
    return loaded


def record(
    chosen: str = WIN, rejected: str = LOSE, *, prompt: str = PROMPT, prefix: str = STEPS
) -> Preference:
    responses = (Response(chosen, ends=False), Response(rejected, ends=False))
    return Preference("r", prompt, responses, (Pair(0, 1),), prefix=prefix)


def batch_of(loaded: LoadedModel, *records: Preference, **settings: Any) -> PackedBatch:
    named = [replace(r, id=f"{r.id}{i}") for i, r in enumerate(records)]
    values: dict[str, Any] = {"max_length": 200, **settings}
    examples = prepare(named, loaded.tokenizer, PrepareSettings(**values), Ledger("test"))
    return collate([[e] for e in examples], layout=Layout.TREE)


def losses(
    loaded: LoadedModel, batch: PackedBatch, *, shift: float = 0.0, beta: float = BETA
) -> Losses:
    """The loss of each pair; the reference is the policy at `shift` 0, and lies below it by that per chosen token."""
    policy = sum_by_response(batch, Scorer(loaded.model)(batch).logp)
    length = torch.bincount(batch.response).float()
    reference = policy.detach() - shift * length
    pairs = Pairs(
        policy[batch.chosen],
        policy[batch.rejected],
        reference[batch.chosen],
        policy[batch.rejected].detach(),
    )
    return dpo(pairs, beta=beta)


def fixed(
    loaded: LoadedModel, batch: PackedBatch, chosen: float, rejected: float
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of one pair against given log-probabilities of the reference."""
    loaded.model.zero_grad()
    policy = sum_by_response(batch, Scorer(loaded.model)(batch).logp)
    given = torch.tensor([chosen]), torch.tensor([rejected])
    loss = dpo(Pairs(policy[batch.chosen], policy[batch.rejected], *given), beta=BETA).loss.sum()
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in loaded.model.parameters() if p.grad is not None]


def scored_text(loaded: LoadedModel, batch: PackedBatch, response: int) -> str:
    tokens = batch.target[batch.token[batch.response == response]]
    return str(loaded.tokenizer.decode(tokens.tolist()))


def test_a1_at_the_reference_the_loss_is_ln_2_and_the_slope_minus_half_beta(loaded) -> None:
    batch = batch_of(loaded, record(), record(LOSE, WIN))
    found = losses(loaded, batch)
    torch.testing.assert_close(found.loss, torch.full((2,), math.log(2)), rtol=0, atol=1e-6)
    assert found.terms["rewards/margins"].abs().max() == 0
    assert found.terms["rewards/accuracies"].tolist() == [0, 0], "ties are not right"
    h = torch.zeros(1, requires_grad=True)
    zero = torch.zeros(1)
    dpo(Pairs(h, zero, zero, zero), beta=BETA).loss.sum().backward()
    assert h.grad is not None and h.grad.item() == pytest.approx(-BETA / 2)


def test_a2_a_step_pair_is_a_pair_whose_prompt_ends_with_the_steps(loaded) -> None:
    step = batch_of(loaded, record())
    plain = batch_of(loaded, record(prompt=PROMPT + STEPS, prefix=""))
    assert step.keys == plain.keys
    a, b = (fixed(loaded, batch, -9.0, -8.0) for batch in (step, plain))
    assert torch.equal(a[0], b[0]) and all(map(torch.equal, a[1], b[1]))


def test_a3_the_prefix_cancels_when_it_stands_in_both_answers(loaded) -> None:
    step = batch_of(loaded, record())
    whole = batch_of(loaded, record(STEPS + WIN, STEPS + LOSE, prefix=""))
    with torch.no_grad():
        a, b = (sum_by_response(x, Scorer(loaded.model)(x).logp) for x in (step, whole))
    prefix = (b - a)[0].item()
    assert prefix < -1
    torch.testing.assert_close((b - a)[1].item(), prefix, rtol=1e-5, atol=1e-4)
    (loss_a, grads_a), (loss_b, grads_b) = (
        fixed(loaded, step, -9.0, -8.0),
        fixed(loaded, whole, -9.0 + prefix, -8.0 + prefix),
    )
    torch.testing.assert_close(loss_a, loss_b, rtol=1e-4, atol=1e-4)
    for x, y in zip(grads_a, grads_b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4 * float(y.abs().max()) + 1e-6)


def test_a4_swapping_adds_beta_h(loaded) -> None:
    forward, backward = batch_of(loaded, record()), batch_of(loaded, record(LOSE, WIN))
    with torch.no_grad():
        s = sum_by_response(forward, Scorer(loaded.model)(forward).logp)
    h = (s[0] + 20.0) - (s[1] + 30.0)
    there, _ = fixed(loaded, forward, -20.0, -30.0)
    back, _ = fixed(loaded, backward, -30.0, -20.0)
    torch.testing.assert_close(back, there + BETA * h, rtol=1e-5, atol=1e-4)


def test_a5_equal_steps_are_dropped_and_named(loaded) -> None:
    ledger = Ledger("test")
    assert prepare([record(WIN, WIN)], loaded.tokenizer, PrepareSettings(), ledger) == []
    assert "1 dropped" in (said := " ".join(ledger.summary())) and "chosen equals rejected" in said


@pytest.mark.parametrize("layout", [Layout.TREE, Layout.ROWS])
def test_a5_the_loss_of_equal_steps_is_ln_2_without_a_gradient(
    loaded: LoadedModel, layout: Layout
) -> None:
    """Built by hand, since `prepare` drops such a pair; the same step in two rows, or stored once."""
    texts = render(record(WIN, WIN), loaded.tokenizer, RenderSettings())
    tree = build_tree([e.sequence for e in encode(texts, loaded.tokenizer)])
    nothing = (None, None)
    example = Example("r", tree, ((0, 1),), (1.0,), (None,), nothing, nothing, nothing)
    batch = collate([[example]], layout=layout)
    assert batch.chosen.tolist() != batch.rejected.tolist()
    loss, gradients = fixed(loaded, batch, -9.0, -9.0)
    torch.testing.assert_close(loss.item(), math.log(2), rtol=0, atol=1e-6)
    assert gradients and max(float(g.abs().max()) for g in gradients) < 1e-6
    loaded.model.zero_grad()
    losses(loaded, batch_of(loaded, record())).loss.sum().backward()
    slope = [p.grad for p in loaded.model.parameters() if p.grad is not None]
    assert max(float(g.abs().max()) for g in slope) > 1e-2, "another pair of that loss has one"


def test_a6_a_step_counts_with_the_sum_over_its_tokens(loaded) -> None:
    one, ten = " 5", " 5" * 10
    batch = batch_of(loaded, record(one, LOSE), record(ten, LOSE))
    count = [int((batch.response == r).sum()) for r in batch.chosen.tolist()]
    assert count[1] == 10 * count[0]
    h = losses(loaded, batch, shift=0.1, beta=1.0).terms["rewards/margins"]
    torch.testing.assert_close(h, 0.1 * torch.tensor(count).float(), rtol=1e-4, atol=1e-5)


def test_a7_context_is_never_scored_but_matters(loaded) -> None:
    batch = batch_of(loaded, record())
    assert scored_text(loaded, batch, 0).strip() == WIN.strip()
    assert scored_text(loaded, batch, 1).strip() == LOSE.strip()
    other = batch_of(loaded, record(prefix=STEPS.replace("7", "5")))
    assert len(other.target) == len(batch.target)
    with torch.no_grad():
        a, b = (Scorer(loaded.model)(x).logp for x in (batch, other))
    assert float((a - b).abs().max()) > 1e-3


def test_a8_the_gradient_at_the_reference_is_proportional_to_beta(loaded) -> None:
    def gradient(beta: float) -> Tensor:
        loaded.model.zero_grad()
        losses(loaded, batch_of(loaded, record()), beta=beta).loss.sum().backward()
        return torch.cat(
            [p.grad.flatten() for p in loaded.model.parameters() if p.grad is not None]
        )

    torch.testing.assert_close(gradient(0.4), 4 * gradient(0.1), rtol=1e-4, atol=1e-6)


def test_a9_no_end_token_and_one_bos(loaded) -> None:
    batch = batch_of(loaded, record())
    tokenizer = loaded.tokenizer
    assert tokenizer.eos_token_id not in batch.target.tolist()
    tokens = batch.tokens[0].tolist()
    assert tokens[0] == tokenizer.bos_token_id and tokens.count(tokenizer.bos_token_id) == 1
    ending = replace(record(), responses=(Response(WIN, ends=True), Response(LOSE, ends=False)))
    assert batch_of(loaded, ending).target.tolist().count(tokenizer.eos_token_id) == 1
    bare = make_tokenizer(bos=False)
    sequence = encode(render(record(), bare, RenderSettings()), bare)[0].sequence
    assert str(bare.decode(list(sequence.tokens))).startswith("What")


def test_a10_a_token_across_the_boundary_belongs_to_the_step(loaded) -> None:
    """The published code moves the boundary by one token for such a pair and raises for more; here the text is encoded
    as a whole, so the token that holds the boundary is scored on both sides and nothing has to be raised."""
    tokenizer = make_tokenizer(["Step", " 1", ":", ": 5", " 5", " 6", "x", "\n", " "])
    rendered = render(
        record(" 5", " 6", prompt="x\n", prefix="Step 1:"), tokenizer, RenderSettings()
    )
    texts = [
        [
            tokenizer.decode([t])
            for t, s in zip(e.sequence.tokens, e.sequence.scored, strict=True)
            if s
        ]
        for e in encode(rendered, tokenizer)
    ]
    assert texts == [[": 5"], [" 6"]]


@pytest.mark.parametrize(
    ("prompt", "answer", "kept"),
    [(900, 300, (512, 300)), (100, 2000, (100, 924))],
    ids=["the prompt's start is cut", "the answer's end is cut"],
)
def test_a11_truncation(loaded, prompt: int, answer: int, kept: tuple[int, int]) -> None:
    """The published numbers for a long prompt; a long answer keeps all the room there is (924), where the published
    code cuts it to 512 though nothing else is there. Nothing is cut silently: the ledger names the record."""
    given = record(" 5" * answer, " 6" * answer, prompt="x" + " x" * (prompt - 1), prefix="")
    tokenizer = make_tokenizer(["x", " x", " 5", " 6"])
    ledger = Ledger("test")
    settings = PrepareSettings(
        max_length=1024, max_prompt_length=512, overlong_prompt="keep_end", overlong_response="cut"
    )
    (example,) = prepare([given], tokenizer, settings, ledger)
    tree = example.tree
    scored = int(tree.scored[tree.path(0)].sum())
    assert (int(tree.position[tree.leaf[0]]) + 1 - scored, scored) == kept
    assert "1 cut" in " ".join(ledger.summary())


def recipe(**changes: Any) -> StepDpoConfig:
    return parse(
        {"method": "step_dpo", "model_name_or_path": "m", "train_file": "d.jsonl", **changes},
        METHOD.config,
    )


def test_beta_is_the_published_one() -> None:
    assert recipe().beta == 0.5


@pytest.mark.parametrize(
    ("style", "prompt", "prefix"),
    [
        (None, "1 + 1?", STEPS),
        ("deepseek-math", "User: 1 + 1?\nPlease reason step by step, and put your final answer within \\boxed{}."
         "\n\nAssistant:", " " + STEPS),
        ("qwen2-boxed", "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n1 + 1?\nPlease "
         "reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n", STEPS),
    ],
)  # fmt: skip
def test_prompt_styles_of_training(style: str | None, prompt: str, prefix: str) -> None:
    assert METHOD.pair is not None
    styled = METHOD.pair(record(prompt="1 + 1?"), recipe(prompt_style=style))
    assert isinstance(styled, Preference)
    assert (styled.prompt, styled.prefix) == (prompt, prefix)


def test_an_unknown_prompt_style_is_one_line() -> None:
    with pytest.raises(ValueError, match="qwen2-boxed") as error:
        recipe(prompt_style="qwen2-boxt")
    assert "\n" not in str(error.value)
