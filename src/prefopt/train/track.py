"""`metrics.jsonl`: the run's numbers on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prefopt.errors import StorageError


class MetricsFile:
    """Append-only JSON lines, flushed line by line; a line cut by a crash is dropped on resume."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, values: Mapping[str, float | int | str]) -> None:
        """Write one line; raises `StorageError` when the disk does not take it."""
        with self._readable_errors(), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(values)) + "\n")

    def read(self) -> list[dict[str, float]]:
        """All whole lines."""
        if not self.path.exists():
            return []
        rows: list[dict[str, float]] = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def rewind(self, step: int) -> None:
        """Forget lines after optimiser step `step`: the resumed run writes them again."""
        if not self.path.exists():
            return
        kept = [row for row in self.read() if row["step"] <= step]
        temporary = self.path.with_suffix(".tmp")
        with self._readable_errors():
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in kept)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)

    @contextmanager
    def _readable_errors(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be written ({error.strerror}); earlier checkpoints are intact: free space, "
                "then resume"
            ) from error
