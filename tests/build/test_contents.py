"""Digests of what a build reads: what makes another model, and what is the same under another name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.build.contents import Contents, contents_since, file_digests, model_digests
from prefopt.errors import RecordError


def model(folder: Path, weights: bytes = b"weights", **beside: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    for name, text in {"config": "{}", **beside}.items():
        (folder / f"{name}.json").write_text(text)
    return str(folder)


def digest(name: str) -> str:
    return model_digests([name])[name]


def test_a_model_is_its_weights_configuration_and_tokenizer(tmp_path: Path) -> None:
    first = digest(model(tmp_path / "a"))
    assert len(first) == 32
    assert digest(model(tmp_path / "b")) == first, "whatever its folder is called"
    (tmp_path / "b" / "README.md").write_text("a card")
    (tmp_path / "b" / "evaluation.json").write_text("{}")
    assert digest(str(tmp_path / "b")) == first
    others = [
        model(tmp_path / "c", b"other weights"),
        model(tmp_path / "d", config='{"rope_theta": 1}'),
        model(tmp_path / "e", tokenizer="{}"),
    ]
    assert len({first, *map(digest, others)}) == 4


def test_an_adapter_is_its_base_too(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    named = json.dumps({"base_model_name_or_path": base})
    adapter = model(tmp_path / "adapter", b"adapter", adapter_config=named)
    first = digest(adapter)
    model(tmp_path / "base", b"other weights")
    assert digest(adapter) != first


def test_hub_ids_and_what_is_gone_have_no_digest(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert model_digests(["owner/name", str(tmp_path / "gone"), str(tmp_path / "empty")]) == {}
    assert file_digests([str(tmp_path / "gone.jsonl"), str(tmp_path)]) == {}


def test_values_are_alike_where_they_name_the_same_content() -> None:
    found = Contents(read={"old": "1", "other": "2"}, now={"new": "1", "old": "3"})
    assert found.are_alike("old", "new")
    assert found.are_alike(["old", 1], ["new", 1])
    assert not found.are_alike("other", "new")
    assert not found.are_alike(["old"], ["new", "new"])
    assert not found.are_alike("unknown", "elsewhere")
    assert not found.are_alike(None, "new")
    assert found.replaced() == ["old"]


def test_two_names_of_one_place_are_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert Contents({}, {}).are_alike(str(tmp_path / "model"), "model")
    assert not Contents({}, {}).are_alike(str(tmp_path / "gone"), "gone")
    assert not Contents({}, {}).are_alike("a\0b", "model")


def test_damaged_digests_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "inputs.json"
    assert contents_since(file, {"a": "1"}).replaced() == []
    file.write_text("[")
    with pytest.raises(RecordError, match=r"inputs\.json") as error:
        contents_since(file, {"a": "1"})
    assert "\n" not in str(error.value)


def test_names_that_lead_nowhere_are_no_weights(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    before = model_digests([str(folder)])
    (folder / "extra.safetensors").symlink_to(tmp_path / "gone")
    assert model_digests([str(folder)]) == before != {}
