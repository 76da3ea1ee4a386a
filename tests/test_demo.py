"""The demonstration end to end on a smaller world: every stage really runs, and a second call repeats nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prefopt.build.steps import StepSettings
from prefopt.demo import DemoSettings, run_demo
from prefopt.worlds.arithmetic import ArithmeticSettings, ArithmeticWorld


@pytest.mark.slow
def test_small_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFOPT_HOME", str(tmp_path / "home"))
    world = ArithmeticWorld(
        ArithmeticSettings(modulus=8, min_steps=2, max_steps=3, corpus_size=3200, hidden_size=64)
    )
    settings = DemoSettings(
        problems=60,
        test_problems=60,
        steps=StepSettings(
            samples=2,
            corrections=4,
            pairs_per_error=1,
            temperature=1.0,
            top_p=1.0,
            max_new_tokens=60,
        ),
    )
    first = run_demo(tmp_path / "demo", settings, world=world)
    assert set(first.evaluations) == {"base", "dpo", "step_dpo"}
    assert first.counts["pairs"] > 5
    page = first.report.read_text(encoding="utf-8")
    assert all(name in page for name in ("base", "step_dpo", "Step-DPO against DPO"))
    assert "http://" not in page.replace("http://www.w3.org", "")
    for name in ("dpo", "step_dpo"):
        metrics = (tmp_path / "demo" / name / "metrics.jsonl").read_text().splitlines()
        assert json.loads(metrics[0])["loss"] == pytest.approx(0.6931472, abs=1e-5)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("metrics.jsonl")}
    again = run_demo(tmp_path / "demo", settings, world=world)
    assert {n: e.value for n, e in again.evaluations.items()} == {
        n: e.value for n, e in first.evaluations.items()
    }
    assert files == {p: p.stat().st_mtime_ns for p in files}, "a finished run is not trained again"
    other = run_demo(tmp_path / "demo", replace(settings, seed=1), world=world)
    assert "seed: 1" in (tmp_path / "demo" / "dpo" / "run.yaml").read_text()
    assert {o.id for o in other.evaluations["base"].outputs}.isdisjoint(
        {o.id for o in first.evaluations["base"].outputs}
    )
