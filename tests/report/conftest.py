from pathlib import Path

import pytest

from tests.report.synthetic import write_three


@pytest.fixture
def three_runs(tmp_path: Path) -> list[Path]:
    return write_three(tmp_path / "runs")
