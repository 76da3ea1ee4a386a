"""Every objective in a whole run, and the coupled and stateful ones under micro-batches, processes and resumption."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch

from prefopt.errors import ConfigError, RecordError, ResumeError
from prefopt.objectives import find_objective, needs_of, objective_names
from tests.integration.runs import (
    Row,
    Settings,
    largest_difference,
    losses,
    read_json,
    read_rows,
    run,
    weights,
    write_rows,
)
from tests.integration.test_processes import TORCHRUN

COUPLED = [name for name in objective_names() if needs_of(find_objective(name)).coupled]
STATEFUL = [name for name in objective_names() if needs_of(find_objective(name)).running]


def annotated(count: int = 12) -> list[Row]:
    """Ranked lists of two or three responses of unequal lengths, with scores, pairs and margins."""
    rows: list[Row] = []
    for i in range(count):
        texts = [f"The answer is {i + 4}.", f"{i + 5}" + " or so" * (i % 4 + 1), "I do not know."]
        k = 2 + i % 2
        rows.append(
            {
                "id": f"r{i}",
                "prompt": f"What is {i} + 4?\n",
                "responses": [
                    {"text": t, "score": 3.0 - j - i / 50} for j, t in enumerate(texts[:k])
                ],
                "pairs": [
                    {"chosen": 0, "rejected": j, "margin": 0.1 * (i % 5)} for j in range(1, k)
                ],
            }
        )
    return rows


@pytest.fixture
def family(settings: Settings, tmp_path: Path) -> Settings:
    """One epoch of three steps; each step holds four records."""
    file = write_rows(tmp_path / "annotated.jsonl", annotated())
    return settings.with_(train_file=str(file), num_train_epochs=1.0, learning_rate=1e-4)


@pytest.mark.parametrize("name", objective_names())
def test_every_objective_trains(name: str, family: Settings):
    done = family.with_(loss_type=[name]).train()
    rows = read_rows(done.folder / "metrics.jsonl")
    assert len(rows) == 3
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(row["grad_norm"] > 0 for row in rows)
    assert read_json(done.folder / "finished.json")["identity"]["loss_type"] == f'["{name}"]'


@pytest.mark.parametrize("name", [*COUPLED, "plackett_luce", "tdpo", "mallows", "wpo", "ld_dpo"])
def test_micro_batches_do_not_change_an_objective(name: str, family: Settings, tmp_path: Path):
    family |= {"loss_type": [name, "sft"], "beta": 0.5}
    whole = family.with_(output_dir=str(tmp_path / "whole")).train()
    split = family.with_(per_device_train_batch_size=1, gradient_accumulation_steps=4).train()
    assert losses(split.folder) == pytest.approx(losses(whole.folder), rel=2e-5)
    assert largest_difference(weights(whole.model), weights(split.model)) < 1e-5


@pytest.mark.parametrize("name", STATEFUL)
def test_running_statistics_are_resumed(name: str, family: Settings, tmp_path: Path):
    family |= {"loss_type": [name], "save_strategy": "steps", "save_steps": 1, "beta": 0.5}
    whole = family.train()
    middle = whole.folder / "checkpoints" / "checkpoint-2"
    stored = read_json(middle / "objectives.json")["0"]
    assert any(value != 0 for value in stored.values())
    (whole.folder / "finished.json").unlink()
    expected = weights(whole.model)
    resumed = family.with_(resume_from_checkpoint=str(middle)).train()
    for key, value in weights(resumed.model).items():
        assert torch.equal(value, expected[key]), key


def test_a_moving_reference_moves_and_is_resumed(family: Settings):
    family |= {
        "reference": "moving",
        "reference_sync_steps": 2,
        "reference_mixup_alpha": 1.0,
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 1e-3,
    }
    whole = family.train()
    rows = read_rows(whole.folder / "metrics.jsonl")
    # After step 2 the reference is the policy: the loss of step 3 is that of a fresh start.
    assert rows[1]["loss"] < 0.6925 and rows[2]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    expected = weights(whole.model)
    (whole.folder / "finished.json").unlink()
    middle = str(whole.folder / "checkpoints" / "checkpoint-2")
    resumed = family.with_(resume_from_checkpoint=middle).train()
    assert all(torch.equal(v, expected[k]) for k, v in weights(resumed.model).items())


def test_a_moving_reference_is_mixed_by_alpha(family: Settings):
    half = {"reference": "moving", "reference_sync_steps": 1, "reference_mixup_alpha": 0.5}
    family |= {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "learning_rate": 1e-3}
    done = family.with_(**half).train()
    checkpoint = done.folder / "checkpoints" / "checkpoint-1"
    from safetensors.torch import load_file

    start = weights(Path(family["model_name_or_path"]))
    moved, policy = load_file(checkpoint / "moving_reference.safetensors"), weights(done.model)
    name = next(n for n in policy if n.endswith("layers.0.mlp.up_proj.weight"))
    torch.testing.assert_close(moved[name], (start[name] + policy[name]) / 2)
    assert not torch.equal(start[name], policy[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aot", "beta_dpo", "kto"])
def test_two_processes_do_not_change_a_coupled_objective(
    name: str, family: Settings, tmp_path: Path
):
    family |= {"loss_type": [name], "beta": 0.5}
    whole = family.with_(output_dir=str(tmp_path / "whole")).train()
    halves = family.with_(per_device_train_batch_size=2)
    done = run(halves.write(tmp_path / "recipe.yaml"), command=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(whole.folder), rel=2e-5)
    assert largest_difference(weights(whole.model), weights(tmp_path / "run" / "model")) < 1e-5


def test_evaluation_draws_nothing_and_moves_no_statistic(family: Settings):
    """Two evaluations of the same weights give the same numbers, also between steps."""
    family |= {
        "loss_type": ["beta_dpo"],
        "eval_file": family["train_file"],
        "eval_strategy": "steps",
        "eval_steps": 1,
        "learning_rate": 1e-12,
    }
    rows = read_rows(family.train().folder / "metrics.jsonl")
    values = [row["eval_loss"] for row in rows]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_shares_of_a_mix_are_logged_by_name(family: Settings):
    rows = read_rows(
        family.with_(loss_type=["dpo", "sft"], loss_weights=[1.0, 0.5]).train().folder
        / "metrics.jsonl"
    )
    first = rows[0]
    assert first["loss/dpo"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["loss"] == pytest.approx(first["loss/dpo"] + first["loss/sft"])
    assert first["loss/sft"] == pytest.approx(0.5 * first["nll"])


def test_an_anchor_trains_on_chosen_responses_only(family: Settings, tmp_path: Path):
    """The likelihood term of a mix is the SFT loss of the best responses alone."""
    anchored = family.with_(loss_type=["dpo", "sft"]).train()
    alone = family.with_(method="sft", output_dir=str(tmp_path / "sft"))
    alone.pop("loss_type", None)
    expected = read_rows(alone.train().folder / "metrics.jsonl")[0]["loss"]
    assert read_rows(anchored.folder / "metrics.jsonl")[0]["nll"] == pytest.approx(
        expected, rel=1e-5
    )


def test_records_without_what_an_objective_needs_are_dropped_by_name(
    family: Settings, tmp_path: Path
):
    rows = annotated()
    del rows[3]["pairs"][0]["margin"]
    family |= {"train_file": str(write_rows(tmp_path / "some.jsonl", rows))}
    done = family.with_(loss_type=["dpo_margin"]).train()
    ledger = read_json(done.folder / "data-ledger.json")["train"]
    assert "a pair without a margin left out" in str(ledger)
    assert read_json(done.folder / "plan.json")["pairs"] == sum(len(r["pairs"]) for r in rows) - 1
    for row in rows:
        for response in row["responses"]:
            del response["score"]
    write_rows(tmp_path / "some.jsonl", rows)
    with pytest.raises(RecordError, match="a pair without two scores left out"):
        family.with_(loss_type=["mmpo"], overwrite_output_dir=True).train()


def test_scores_that_an_objective_refuses_name_the_records(family: Settings, tmp_path: Path):
    rows = annotated()
    rows[5]["responses"][0]["score"] = -7.0
    family |= {"train_file": str(write_rows(tmp_path / "inverted.jsonl", rows))}
    with pytest.raises(
        RecordError, match=r"records .*r5.*: odpo: .* the lower score on the chosen"
    ):
        family.with_(loss_type=["odpo"]).train()


def test_a_ranking_starts_at_the_log_of_the_number_of_orders(family: Settings, tmp_path: Path):
    """ln 2 for lists of two, ln 6 for lists of three, averaged over prompts; half of each here."""
    family |= {"per_device_train_batch_size": 12, "max_steps": 1}
    rows = read_rows(family.with_(loss_type=["plackett_luce"]).train().folder / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx((math.log(2) + math.log(6)) / 2, abs=1e-6)


def test_a_plain_pair_is_a_ranking_of_two(settings: Settings, tmp_path: Path):
    one = settings.with_(loss_type=["plackett_luce"], output_dir=str(tmp_path / "pl")).train()
    other = settings.with_(loss_type=["dpo"]).train()
    assert losses(one.folder) == pytest.approx(losses(other.folder), rel=1e-5)


def test_a_response_that_is_both_counts_nowhere(family: Settings, tmp_path: Path):
    """Chosen in one pair and rejected in another: neither desirable nor undesirable, and not in the mean."""
    rows = [row | {"pairs": [{"chosen": 0, "rejected": 1}, {"chosen": 1, "rejected": 2}]} for row in annotated()
            if len(row["responses"]) == 3]  # fmt: skip
    family |= {"train_file": str(write_rows(tmp_path / "chain.jsonl", rows))}
    rows = read_rows(family.with_(loss_type=["kto"]).train().folder / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-6)


def test_weights_of_pairs_have_no_place_in_a_sorted_batch(family: Settings, tmp_path: Path):
    rows = annotated()
    rows[2]["pairs"][0]["weight"] = 3.0
    family |= {"train_file": str(write_rows(tmp_path / "weighted.jsonl", rows))}
    with pytest.raises(RecordError, match="weighted.jsonl:3: a pair has a weight, and aot sorts"):
        family.with_(loss_type=["aot"]).train()


@pytest.mark.parametrize("change", ["score", "label"])
def test_other_annotations_are_other_data(change: str, family: Settings, tmp_path: Path):
    rows: list[Row] = [
        {"id": f"r{i}", "prompt": f"What is {i}?\n", "pairs": [{"chosen": 0, "rejected": 1}],
         "responses": [{"text": "a", "score": 2.0 + i, "label": True},
                                                     {"text": "b", "score": 1.0, "label": False}]}
        for i in range(12)
    ]  # fmt: skip
    file = write_rows(tmp_path / "some.jsonl", rows)
    family |= {"train_file": str(file), "loss_type": ["kto"] if change == "label" else ["mmpo"]}
    family |= {"save_strategy": "steps", "save_steps": 1}
    done = family.train()
    (done.folder / "finished.json").unlink()
    rows[4]["responses"][0][change] = False if change == "label" else 9.5
    write_rows(file, rows)
    with pytest.raises(ResumeError, match="data: "):
        family.with_(resume_from_checkpoint=True).train()


def test_what_would_train_nothing_is_refused(family: Settings, tmp_path: Path):
    rows = [{"prompt": f"{i}?\n", "completion": f"It is {i}.", "label": False} for i in range(6)]
    file = write_rows(tmp_path / "bad.jsonl", rows)
    with pytest.raises(RecordError, match="objective sft has nothing to train on"):
        family.with_(train_file=str(file), loss_type=["sft"]).train()
    with pytest.raises(ConfigError, match="would never move: the run has 3 steps"):
        family.with_(reference="moving", overwrite_output_dir=True).train()


def test_modifiers_leave_log_probabilities_alone(family: Settings, tmp_path: Path):
    plain = read_rows(family.train().folder / "metrics.jsonl")[0]
    for change in ({"ld_alpha": 0.5}, {"f_divergence_type": "forward_kl"}, {"use_weighting": True}):
        folder = str(tmp_path / next(iter(change)))
        row = read_rows(family.with_(output_dir=folder, **change).train().folder / "metrics.jsonl")[
            0
        ]
        for name in ("logps/chosen", "logps/rejected"):
            assert row[name] == pytest.approx(plain[name], rel=1e-6)


def test_kto_needs_two_prompts(family: Settings, tmp_path: Path):
    rows = [row | {"prompt": "Same?\n"} for row in annotated()]
    family |= {"train_file": str(write_rows(tmp_path / "one.jsonl", rows)), "loss_type": ["kto"]}
    with pytest.raises(RecordError, match="all records have the same prompt"):
        family.train()


def test_kto_trains_on_labels_without_pairs(family: Settings, tmp_path: Path):
    rows = [
        {"prompt": f"What is {i}?\n", "completion": f"It is {i}.", "label": i % 3 > 0}
        for i in range(12)
    ]
    family |= {"train_file": str(write_rows(tmp_path / "labels.jsonl", rows)), "loss_type": ["kto"]}
    rows = read_rows(family.train().folder / "metrics.jsonl")
    # At the reference every term is 1 - sigma(0) = 1/2 and z0 is 0.
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": ["tdpo"], "reference": "cached"}, "compares whole distributions"),
        ({"loss_type": ["simpo"], "reference": "live"}, "has no reference"),
        ({"reference": "moving", "use_peft": True}, "moving mixes whole models"),
    ],
)
def test_references_that_do_not_fit_are_refused(changes: Row, message: str, family: Settings):
    with pytest.raises(ConfigError, match=message):
        family.with_(**changes).train()


@pytest.mark.parametrize("name", ["tdpo", "mallows"])
def test_an_adapter_has_its_reference_too(name: str, family: Settings, tmp_path: Path):
    """Switched off, cached or in memory, the reference of a fresh adapter is the same model."""
    family |= {"loss_type": [name], "use_peft": True, "learning_rate": 1e-2}
    kinds = ["adapter_off", "live"] if name == "tdpo" else ["adapter_off", "live", "cached"]
    results = [
        losses(family.with_(reference=kind, output_dir=str(tmp_path / kind)).train().folder)
        for kind in kinds
    ]
    assert results[0][0] == pytest.approx(math.log(2), abs=1e-6)
    assert results[0][2] < results[0][0]
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5)


def test_rerun_with_other_objectives_is_another_run(family: Settings, tmp_path: Path):
    done = family.with_(loss_type=["ipo"]).train()
    shutil.rmtree(done.model)
    with pytest.raises(ResumeError, match="loss_type"):
        family.with_(loss_type=["hinge"], resume_from_checkpoint=True).train()
