"""Where reference log-probabilities come from: nowhere, the adapter switched off, a cache, or a live model.

A reference that moves with the policy is in `prefopt.models.moving`.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefopt.errors import ModelError, StorageError
from prefopt.models.divergence import PredictorStates
from prefopt.models.load import CausalModel, adapter_disabled
from prefopt.models.scorer import SCORER_VERSION, Scorer
from prefopt.pack.batch import PackedBatch

LOGP_BYTES = 4
_INSERT = "INSERT OR REPLACE INTO logps VALUES (?, ?)"


class ReferenceScores(NamedTuple):
    """The reference on one batch, without gradient."""

    logp: Tensor
    """[N] log-probability of every scored token, float32, nats."""
    entropy: Tensor | None = None
    """[N] entropy of the distribution it was predicted from, nats."""
    states: PredictorStates | None = None
    """The distributions themselves, where the reference is a model in memory and they were asked for."""


class Reference:
    """Where reference log-probabilities come from. The base class gives none, and stays where it is."""

    digest = ""
    """Identity of the reference weights, stored in checkpoints; empty for none."""

    def score(self, batch: PackedBatch) -> ReferenceScores | None:
        """The reference on `batch`, or None for objectives that have no reference."""
        del batch
        return None

    def follow(self, policy: CausalModel, *, step: int) -> None:
        """Called after each optimiser step (`step` of them done): a moving reference moves."""

    def save(self, folder: Path) -> None:
        """Write into a checkpoint what cannot be made anew: nothing for a reference that stays."""

    def load(self, folder: Path) -> None:
        """Read that back."""


class NoReference(Reference):
    """For objectives without a reference."""


class AdapterOffReference(Reference):
    """The policy itself with its PEFT adapter switched off: no second model, one more forward pass a step."""

    def __init__(self, scorer: Scorer, *, digest: str, with_states: bool = False) -> None:
        self.scorer = scorer
        self.digest = digest
        self.with_states = with_states

    def score(self, batch: PackedBatch) -> ReferenceScores:
        """Log-probabilities, and the states if asked for."""
        with torch.no_grad(), adapter_disabled(self.scorer.model):
            return _score(self.scorer, batch, with_states=self.with_states)


class LiveReference(Reference):
    """A second model in memory, for objectives that compare whole distributions."""

    def __init__(self, scorer: Scorer, *, digest: str, with_states: bool = False) -> None:
        self.scorer = scorer.eval()
        self.digest = digest
        self.with_states = with_states

    def score(self, batch: PackedBatch) -> ReferenceScores:
        """Log-probabilities, and the states if asked for."""
        with torch.no_grad():
            return _score(self.scorer, batch, with_states=self.with_states)


def _score(scorer: Scorer, batch: PackedBatch, *, with_states: bool) -> ReferenceScores:
    scored = scorer(batch)
    states = scorer.states(batch) if with_states else None
    return ReferenceScores(scored.logp, scored.entropy, states)


class CachedReference(Reference):
    """Log-probabilities scored once and kept per token, so masks and weights may change without rescoring.

    Args:
        store: log-probabilities.
        entropy: a second store with entropies, where they are needed.
    """

    def __init__(self, store: LogpStore, *, digest: str, entropy: LogpStore | None = None) -> None:
        self.store = store
        self.entropy = entropy
        self.digest = digest

    def score(self, batch: PackedBatch) -> ReferenceScores:
        """From the store; raises `ModelError` for an example that was never scored."""
        entropy = None if self.entropy is None else self.entropy.take(batch)
        return ReferenceScores(self.store.take(batch), entropy)


class LogpStore:
    """Per-token arrays by example key, in memory and in one SQLite file per (weights, precision, scorer version).

    The file name is that identity and the row key is the digest of the example's tokens, structure and scored
    positions (`Example.key`), so nothing stale can be read: whatever changes a value changes the key.
    Rows are committed as they are scored; a killed pass goes on where it stopped.
    """

    def __init__(
        self, folder: Path, *, weights: str, precision: str, quantity: str = "logp"
    ) -> None:
        identity = f"{weights}|{precision}|{SCORER_VERSION}"
        # Files of log-probabilities keep the names they had before there were other quantities.
        identity += "" if quantity == "logp" else f"|{quantity}"
        self.quantity = quantity
        name = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
        self.path = folder / f"{name}.sqlite"
        self.values: dict[bytes, np.ndarray] = {}
        self._session: sqlite3.Connection | None = None

    def take(self, batch: PackedBatch) -> Tensor:
        """[N] the stored values of a batch's scored tokens; `ModelError` for an example that has none."""
        missing = [
            i for i, key in zip(batch.ids, batch.keys, strict=True) if key not in self.values
        ]
        if missing:
            raise ModelError(f"no cached reference log-probabilities for record {missing[0]!r}")
        parts = [self.values[key] for key in batch.keys]
        joined = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        return torch.from_numpy(joined).to(batch.tokens.device)

    def load(self, keys: Iterable[bytes]) -> None:
        """Read what the file already has of `keys`."""
        wanted = set(keys) - self.values.keys()
        if not wanted or not self.path.exists():
            return
        with self._connect() as connection:
            for key, blob in connection.execute("SELECT key, logps FROM logps"):
                if key in wanted:
                    self.values[key] = np.frombuffer(blob, dtype=np.float32)

    def add(self, values: Mapping[bytes, np.ndarray], *, write: bool) -> None:
        """Keep `values`; with `write`, also commit them to the file."""
        self.values.update(values)
        if not write or not values:
            return
        rows = [(key, array.astype(np.float32).tobytes()) for key, array in values.items()]
        if self._session is None:
            with self._connect() as connection:
                connection.executemany(_INSERT, rows)
            return
        self._session.executemany(_INSERT, rows)
        self._session.commit()

    @contextmanager
    def session(self) -> Generator[None]:
        """One connection for many `add`s, each of them still committed: closing one syncs the file to disk."""
        with self._connect() as connection:
            self._session = connection
            try:
                yield
            finally:
                self._session = None

    def _connect(self) -> _Closing:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self.path.parent}: cannot make the reference cache folder ({error.strerror}); set cache_dir"
            ) from error
        return _Closing(self.path)


class _Closing:
    """A SQLite transaction that also closes its connection and turns errors into one line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> sqlite3.Connection:
        try:
            self.connection = sqlite3.connect(self.path, timeout=60)
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.execute("PRAGMA synchronous=NORMAL")
            self.connection.execute(
                "CREATE TABLE IF NOT EXISTS logps (key BLOB PRIMARY KEY, logps BLOB NOT NULL)"
            )
        except sqlite3.Error as error:
            raise self._readable(error) from error
        return self.connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        try:
            if kind is None:
                self.connection.commit()
        except sqlite3.Error as failure:
            raise self._readable(failure) from failure
        finally:
            self.connection.close()
        if isinstance(error, sqlite3.Error):
            raise self._readable(error) from error

    def _readable(self, error: sqlite3.Error) -> StorageError:
        return StorageError(
            f"{self.path}: the reference cache cannot be read or written ({error}); free space, or delete the file "
            "and it will be scored again"
        )
