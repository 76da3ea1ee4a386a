"""Every objective that TRL 1.16 has, against TRL's running code: values to 1e-6, gradients of the model to 1e-5.

The real trainers compute their loss on a batch of a tiny model; our objectives get the log-probabilities that the
same model gives, and both losses are differentiated down to its parameters. TRL's fused output head works in
float32, which bounds the agreement.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, get_args

import pytest
import torch
from torch import Tensor

from prefopt.objectives import (
    Losses,
    Pairs,
    Scores,
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    bco,
    discopop,
    dpo,
    dpo_norm,
    exo,
    f_dpo,
    hinge,
    ipo,
    ipo_sum,
    ld_dpo,
    nca,
    robust,
    sft,
    sppo,
    with_divergence,
    with_wpo,
    wpo,
)
from prefopt.objectives.modifiers import Divergence
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
        "chosen": " The answer is not there." * (i % 3 + 1) + " 7" * i,
        "rejected": " She said: please" * (3 - i % 2) + " 2" * (2 * i),
    }
    for i in range(PAIRS)
]

Ours = Callable[["Computed"], Tensor]
"""The batch loss by our objectives."""


class Computed(NamedTuple):
    """What TRL's model computed on a batch of [chosen, rejected] rows; all `[2 P, T]`."""

    policy: Tensor
    """Log-probability of each token, 0 outside responses."""
    reference: Tensor
    collision: Tensor
    """log sum_v p_v^2."""
    mask: Tensor

    def pairs(self) -> Pairs:
        length = self.mask.sum(1).float()
        alignment = (self.policy.detach() - self.collision) * self.mask
        common = self.mask * (self.mask.cumsum(1) <= _shorter(length)[:, None])
        parts = [
            self.policy.sum(1),
            self.reference.sum(1),
            length,
            alignment.sum(1),
            (self.policy * common).sum(1),
            (self.reference * common).sum(1),
        ]
        names = ("policy", "reference", "length", "alignment", "policy_common", "reference_common")
        fields: dict[str, Tensor] = {}
        for name, part in zip(names, parts, strict=True):
            kind, _, tail = name.partition("_")
            for side, values in zip(("chosen", "rejected"), part.chunk(2), strict=True):
                fields["_".join([kind, side, *([tail] if tail else [])])] = values
        return Pairs(**fields)


def _shorter(length: Tensor) -> Tensor:
    chosen, rejected = length.chunk(2)
    return torch.minimum(chosen, rejected).repeat(2)


def computed(trainer: Any, batch: dict[str, Tensor]) -> Computed:
    """The log-probabilities of policy (with gradient) and reference, by the heads that the trainer uses."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    out = trainer.model(**inputs, labels=labels, fused_lm_head=True)
    with torch.no_grad():
        reference = trainer.ref_model(**inputs, labels=labels, fused_lm_head=True).log_probs
    collision = out.log_sum_sq_probs
    if collision is None:
        collision = torch.zeros_like(reference)
    return Computed(out.log_probs, reference, collision, batch["completion_mask"][:, 1:])


def mean_of(objective: Callable[..., Losses], **parameters: Any) -> Ours:
    bound = partial(objective, **parameters)
    return lambda c: bound(c.pairs()).loss.mean()


def weighted(objective: Callable[..., Losses], **parameters: Any) -> Ours:
    """An objective under WPO's weights."""
    return mean_of(with_wpo(partial(objective, **parameters)))


def diverging(objective: Callable[..., Losses], divergence: Divergence, **parameters: Any) -> Ours:
    """An objective under another divergence."""
    return mean_of(with_divergence(partial(objective, **parameters), divergence=divergence))


def chosen_nll(c: Computed) -> Tensor:
    """SFT of the chosen responses as a run of ours weighs it: by the number of scored tokens."""
    pairs = c.pairs()
    assert pairs.length_chosen is not None
    nan, none = torch.full((PAIRS,), torch.nan), torch.zeros(0, dtype=torch.long)
    scores = Scores(
        policy=pairs.policy_chosen,
        reference=None,
        length=pairs.length_chosen,
        chosen=none,
        rejected=none,
        group=torch.arange(PAIRS),
        score=nan,
        rank=nan,
        label=nan,
        margin=torch.zeros(0),
    )
    return (sft(scores).loss * scores.length).sum() / scores.length.sum()


def both(settings: dict[str, Any], objective: Callable[..., Losses]) -> tuple[dict[str, Any], Ours]:
    """A case in which the parameters have the same names."""
    return settings, mean_of(objective, **settings)


def mixed(*parts: tuple[float, Ours]) -> Ours:
    return lambda c: torch.stack([weight * ours(c) for weight, ours in parts]).sum()


B = 0.1
CASES: dict[str, tuple[dict[str, Any], Ours]] = {
    "sigmoid": ({}, mean_of(dpo)),
    "sigmoid-beta": ({"beta": 0.7}, mean_of(dpo, beta=0.7)),
    "sigmoid ignores smoothing": ({"label_smoothing": 0.3}, mean_of(dpo)),
    "hinge": ({"loss_type": "hinge"}, mean_of(hinge, beta=B)),
    "ipo": ({"loss_type": "ipo", "beta": 0.4}, mean_of(ipo, beta=0.4)),
    "exo_pair": ({"loss_type": "exo_pair", "label_smoothing": 1e-3}, mean_of(exo)),
    "nca_pair": ({"loss_type": "nca_pair", "beta": 0.01}, mean_of(nca)),
    "robust": ({"loss_type": "robust", "label_smoothing": 0.1}, mean_of(robust)),
    "bco_pair": ({"loss_type": "bco_pair", "beta": 0.05}, mean_of(bco, beta=0.05, delta=0.0)),
    "sppo_hard": ({"loss_type": "sppo_hard", "beta": 0.05}, mean_of(sppo, beta=0.05)),
    "sppo_hard-default": ({"loss_type": "sppo_hard", "beta": 0.001}, mean_of(sppo)),
    "aot": ({"loss_type": "aot", "beta": 0.01}, mean_of(aot)),
    "aot-smoothed": (
        {"loss_type": "aot", "label_smoothing": 0.2},
        mean_of(aot, beta=B, label_smoothing=0.2),
    ),
    "aot_unpaired": (
        {"loss_type": "aot_unpaired", "label_smoothing": 0.1},
        mean_of(aot_unpaired, beta=B, label_smoothing=0.1),
    ),
    "apo_zero": ({"loss_type": "apo_zero"}, mean_of(apo_zero)),
    "apo_down": ({"loss_type": "apo_down"}, mean_of(apo_down)),
    "discopop": ({"loss_type": "discopop", "beta": 0.05}, mean_of(discopop)),
    "discopop-tau": (
        {"loss_type": "discopop", "discopop_tau": 0.3},
        mean_of(discopop, beta=B, tau=0.3),
    ),
    "sft": ({"loss_type": "sft"}, chosen_nll),
    "sigmoid_norm": ({"loss_type": "sigmoid_norm", "beta": 5.0}, mean_of(dpo_norm)),
    "mixture-rpo": (
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.005]},
        mixed((1.0, mean_of(dpo)), (0.005, chosen_nll)),
    ),
    "mixture-mpo": (
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        mixed((0.8, mean_of(dpo)), (0.2, mean_of(bco, beta=B, delta=0.0)), (1.0, chosen_nll)),
    ),
    "wpo": ({"use_weighting": True}, mean_of(wpo)),
    "wpo-ipo": ({"use_weighting": True, "loss_type": "ipo"}, weighted(ipo)),
    "wpo-apo_zero": ({"use_weighting": True, "loss_type": "apo_zero"}, weighted(apo_zero)),
    "ld": ({"ld_alpha": 0.5}, mean_of(ld_dpo)),
    "ld-zero": ({"ld_alpha": 0.0}, mean_of(ld_dpo, ld_alpha=0.0)),
    "ld-one": ({"ld_alpha": 1.0}, mean_of(dpo)),
    **{
        kind: both({"f_divergence_type": kind, "beta": 0.3}, f_dpo) for kind in get_args(Divergence)
    },
    **{
        f"alpha_divergence {order}": both(
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": order}, f_dpo
        )
        for order in (0.8, 1.0, 1.5)
    },
    **{
        f"js {loss_type}": (
            {"f_divergence_type": "js_divergence", "loss_type": loss_type, **settings},
            diverging(objective, "js_divergence", beta=B),
        )
        for loss_type, objective, settings in (
            ("sigmoid_norm", dpo_norm, {}),
            ("hinge", hinge, {}),
            ("ipo", ipo, {}),
            ("exo_pair", exo, {"label_smoothing": 1e-3}),
            ("robust", robust, {"label_smoothing": 0.1}),
            ("discopop", discopop, {}),
        )
    },
}
"""Name -> settings of TRL's DPOConfig, our loss."""


@pytest.mark.parametrize(("settings", "ours"), CASES.values(), ids=CASES)
def test_dpo_trainer(settings: dict[str, Any], ours: Ours, make: Make, models: Models):
    trainer = make(trl.DPOTrainer, trl.DPOConfig, ROWS, reference=True, **settings)
    batch = batch_of(trainer)
    agree(trainer.compute_loss(trainer.model, batch), ours(computed(trainer, batch)), models)


def test_every_loss_type_of_trl_is_compared():
    """TRL names them in the error for one that it does not know."""
    source = inspect.getsource(trl.DPOTrainer._compute_loss)
    known = set(re.findall(r'loss_type == "(\w+)"', source))
    types = [settings.get("loss_type", "sigmoid") for settings, _ in CASES.values()]
    assert known == {name for t in types for name in ([t] if isinstance(t, str) else t)}
    assert len(known) == 15


def test_log_probabilities_are_those_of_the_logits(make: Make):
    """What the cases above take from TRL's fused head, computed from the logits in float64."""
    trainer = make(trl.DPOTrainer, trl.DPOConfig, ROWS, reference=True, use_weighting=True)
    batch = batch_of(trainer)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logps = trainer.model(**inputs).logits[:, :-1].double().log_softmax(-1)
    mask = batch["completion_mask"][:, 1:].bool()
    own = logps.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    c = computed(trainer, batch)
    torch.testing.assert_close(c.policy[mask].double(), own[mask], rtol=1e-5, atol=1e-5)
    collision = (2 * logps).logsumexp(-1)
    torch.testing.assert_close(c.collision[mask].double(), collision[mask], rtol=1e-5, atol=1e-5)
    assert not c.policy[~mask].any()


def test_online_dpo_trainer_sums(make: Make, models: Models):
    """OnlineDPO's `ipo` is over sums; from one pair, whose log-ratio difference the trainer logs."""
    from trl.experimental.online_dpo import (  # pyright: ignore[reportMissingImports] - an extra
        OnlineDPOConfig,
        OnlineDPOTrainer,
    )

    for loss_type, objective in (("sigmoid", dpo), ("ipo", ipo_sum)):
        trainer = make(
            partial(
                OnlineDPOTrainer,
                reward_funcs=lambda completions, **_: [len(c) for c in completions],
            ),
            OnlineDPOConfig,
            [{"prompt": "What is the capital of France?"}],
            reference=True,
            loss_type=loss_type,
            beta=0.5,
            max_new_tokens=12,
            max_length=64,
        )
        loss = trainer.training_step(trainer.model, {"prompt": ["What is the capital of France?"]})
        chosen, rejected = (
            trainer.stats[f"rewards/{side}"][0] / 0.5 for side in ("chosen", "rejected")
        )
        zero = torch.zeros(1, dtype=torch.float64)
        pairs = Pairs(zero + chosen, zero + rejected, zero, zero)
        torch.testing.assert_close(
            loss.double(), objective(pairs, beta=0.5).loss[0], rtol=1e-6, atol=1e-6
        )
