"""TRL's CPO, ORPO, TPO and KTO trainers against our objectives: values to 1e-6, gradients of the model to 1e-5.

CPO, ORPO and TPO average their likelihood term over the tokens of a batch, ours is a mean over pairs of each
response's mean; on batches whose chosen (or gold) responses are equally long, as here, the two are the same number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.objectives import (
    Losses,
    Pairs,
    Scores,
    alphapo,
    apo_zero_unpaired,
    cpo,
    gold_nll,
    hinge,
    ipo,
    kto,
    orpo,
    simpo,
    tpo,
    tpo_l,
    without_reference,
)
from tests.parity.conftest import PAIRS, Make, Models, agree, batch_of

trl = pytest.importorskip("trl", reason="the extra `bench` is not installed")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),  # TRL's own
    pytest.mark.skipif(not trl.__version__.startswith("1.16."), reason="written for TRL 1.16"),
]

ROWS = [
    {
        "prompt": f"What is {i}?",
        "chosen": " The answer is not there",
        "rejected": " She said: please" * (3 - i % 2) + " 2" * (2 * i),
        "reference": " The capital of France is Paris.",
    }
    for i in range(PAIRS)
]
PAIR_ROWS = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in ROWS]


def sums_of(trainer: Any, batch: dict[str, Tensor]) -> tuple[Pairs, Tensor]:
    """Log-probability sums and lengths from the trainer's forward pass, and its likelihood term (CPO, ORPO)."""
    chosen, rejected, _, _, nll = trainer.concatenated_forward(trainer.model, batch)[:5]
    lengths = [(batch[f"{side}_labels"][:, 1:] != -100).sum(1) for side in ("chosen", "rejected")]
    assert len(set(lengths[0].tolist())) == 1
    scale = lengths if takes_means(trainer) else [1, 1]
    n_chosen, n_rejected = (n.to(chosen.dtype) for n in lengths)
    pairs = Pairs(
        chosen * scale[0], rejected * scale[1], length_chosen=n_chosen, length_rejected=n_rejected
    )
    return pairs, nll


def takes_means(trainer: Any) -> bool:
    """Whether this trainer's log-probabilities are means over tokens."""
    return not hasattr(trainer, "cpo_alpha") or trainer.loss_type in {"ipo", "simpo"}


CPO: dict[str, tuple[dict[str, Any], Callable[..., Losses]]] = {
    "cpo": ({}, cpo),
    "cpo-smoothed": (
        {"label_smoothing": 0.2, "beta": 0.5, "cpo_alpha": 0.3},
        partial(cpo, label_smoothing=0.2, beta=0.5, cpo_alpha=0.3),
    ),
    "hinge": ({"loss_type": "hinge", "cpo_alpha": 0.0}, without_reference(hinge)),
    "ipo": ({"loss_type": "ipo", "cpo_alpha": 0.0}, without_reference(ipo)),
    "simpo": (
        {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0},
        simpo,
    ),
    "simpo-smoothed": (
        {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.5, "simpo_gamma": 0.3, "label_smoothing": 0.1},
        partial(simpo, beta=2.5, gamma=0.3, label_smoothing=0.1),
    ),
    "alphapo": (
        {"loss_type": "alphapo", "alpha": 0.25, "beta": 2.5, "simpo_gamma": 0.25},
        partial(alphapo, beta=2.5, gamma=0.25, alpha=0.25),
    ),
    "alphapo-negative": (
        {"loss_type": "alphapo", "alpha": -0.5, "beta": 1.0, "simpo_gamma": 0.1},
        partial(alphapo, beta=1.0, gamma=0.1, alpha=-0.5),
    ),
    "alphapo-zero": (
        {"loss_type": "alphapo", "alpha": 0.0, "beta": 2.0, "simpo_gamma": 0.5},
        partial(alphapo, beta=2.0, gamma=0.5, alpha=0.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "ours"), CPO.values(), ids=CPO)
def test_cpo_trainer(
    settings: dict[str, Any], ours: Callable[..., Losses], make: Make, models: Models
):
    from trl.experimental.cpo import (  # pyright: ignore[reportMissingImports] - an extra
        CPOConfig,
        CPOTrainer,
    )

    trainer = make(CPOTrainer, CPOConfig, PAIR_ROWS, reference=False, **settings)
    batch = batch_of(trainer)
    theirs, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    pairs, _ = sums_of(trainer, batch)
    agree(theirs, ours(pairs).loss.mean(), models)


@pytest.mark.parametrize("weight", [0.1, 0.5])
def test_orpo_trainer(weight: float, make: Make, models: Models):
    """TRL's likelihood term covers the prompt as well; the rest of the loss is compared as it stands."""
    from trl.experimental.orpo import (  # pyright: ignore[reportMissingImports] - an extra
        ORPOConfig,
        ORPOTrainer,
    )

    trainer = make(ORPOTrainer, ORPOConfig, PAIR_ROWS, reference=False, beta=weight)
    batch = batch_of(trainer)
    theirs, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    pairs, nll = sums_of(trainer, batch)
    assert pairs.length_chosen is not None
    own_nll = -(pairs.policy_chosen / pairs.length_chosen).mean()
    agree(theirs - nll + own_nll, orpo(pairs, beta=weight).loss.mean(), models)


def anchored(preference: Callable[..., Losses], pairs: Pairs) -> Losses:
    """What loss_type [preference, gold_nll] adds up."""
    return Losses(preference(pairs).loss + gold_nll(pairs).loss, {})


TPO: dict[str, tuple[dict[str, Any], Callable[..., Losses]]] = {
    "tpo": ({}, tpo),
    "tpo-smoothed": (
        {"beta": 0.2, "label_smoothing": 0.1, "tpo_alpha": 0.5},
        partial(tpo, beta=0.2, label_smoothing=0.1, tpo_alpha=0.5),
    ),
    "tpo-hinge": (
        {"loss_type": "hinge", "beta": 0.2, "tpo_alpha": 1.0},
        lambda pairs: anchored(without_reference(partial(hinge, beta=0.2)), pairs),
    ),
    "tpo-ipo": (
        {"loss_type": "ipo", "beta": 0.2, "tpo_alpha": 1.0},
        lambda pairs: anchored(without_reference(partial(ipo, beta=0.2)), pairs),
    ),
    "tpo-l": ({"loss_type": "tpo-l", "beta": 2.0, "tpo_l_gamma": 0.5}, tpo_l),
}


@pytest.mark.parametrize(("settings", "ours"), TPO.values(), ids=TPO)
def test_tpo_trainer(
    settings: dict[str, Any], ours: Callable[..., Losses], make: Make, models: Models
):
    from trl.experimental.tpo import (  # pyright: ignore[reportMissingImports] - an extra
        TPOConfig,
        TPOTrainer,
    )

    trainer = make(TPOTrainer, TPOConfig, ROWS, reference=False, **settings)
    batch = batch_of(trainer)
    logits = trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    mask = batch["completion_mask"][:, 1:]
    logps = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    chosen, rejected, gold = (logps * mask).sum(1).chunk(3)
    n_chosen, n_rejected, n_gold = mask.sum(1).to(logps.dtype).chunk(3)
    assert len(set(n_gold.tolist())) == 1
    pairs = Pairs(
        chosen,
        rejected,
        length_chosen=n_chosen,
        length_rejected=n_rejected,
        policy_gold=gold,
        length_gold=n_gold,
    )
    agree(trainer.compute_loss(trainer.model, batch), ours(pairs).loss.mean(), models)


LABELLED = [
    {"prompt": f"What is {i}?", "completion": " The answer is 7." * (i % 3 + 1), "label": i % 3 > 0}
    for i in range(6)
]
KTO: dict[str, tuple[dict[str, Any], Callable[..., Losses]]] = {
    "kto": ({}, kto),
    "kto-weights": (
        {"beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.7},
        partial(kto, beta=0.5, desirable_weight=1.5, undesirable_weight=0.7),
    ),
    "apo_zero_unpaired": (
        {"loss_type": "apo_zero_unpaired", "beta": 0.3},
        partial(apo_zero_unpaired, beta=0.3),
    ),
}


@pytest.mark.parametrize("exchanged", [False, True], ids=["", "exchanged"])
@pytest.mark.parametrize(("settings", "ours"), KTO.values(), ids=KTO)
def test_kto_trainer(
    settings: dict[str, Any],
    ours: Callable[..., Losses],
    exchanged: bool,
    make: Make,
    models: Models,
):
    """With policy and reference exchanged the KL estimate has the other sign, and one of the two is clamped to 0."""
    trainer = make(trl.KTOTrainer, trl.KTOConfig, LABELLED, reference=True, **settings)
    if exchanged:
        with torch.no_grad():
            for mine, other in zip(
                models.policy.parameters(), models.reference.parameters(), strict=True
            ):
                mine.data, other.data = other.data, mine.data
    batch = batch_of(trainer)
    scores = unpaired_scores(trainer, batch)
    losses = ours(scores).loss
    assert scores.mismatched is not None
    kept = losses[~scores.mismatched]
    agree(trainer.compute_loss(trainer.model, batch), kept.mean(), models)
    assert not losses[scores.mismatched].any()


def unpaired_scores(trainer: Any, batch: dict[str, Tensor]) -> Scores:
    """The labelled responses, then (if the loss has a KL estimate) the mismatched ones."""
    policy: list[Tensor] = []
    reference: list[Tensor] = []
    length: list[Tensor] = []
    prefixes = ["", "KL_"] if "KL_input_ids" in batch else [""]
    for prefix in prefixes:
        ids, mask = batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"]
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": batch[f"{prefix}attention_mask"],
            "labels": ids.masked_fill(mask == 0, -100),
            "fused_lm_head": True,
        }
        policy.append(trainer.model(**inputs).log_probs.sum(1))
        with torch.no_grad():
            reference.append(trainer.ref_model(**inputs).log_probs.sum(1))
        length.append(mask.sum(1).float())
    own = len(policy[0])
    total = own * len(prefixes)
    nan, none = torch.full((total,), torch.nan), torch.zeros(0, dtype=torch.long)
    return Scores(
        policy=torch.cat(policy),
        reference=torch.cat(reference),
        length=torch.cat(length),
        chosen=none,
        rejected=none,
        group=torch.arange(total) % own,
        score=nan,
        rank=nan,
        label=torch.cat(
            [batch["label"].float(), *([torch.full((own,), torch.nan)] * (total // own - 1))]
        ),
        margin=torch.zeros(0),
        mismatched=torch.arange(total) >= own,
    )
