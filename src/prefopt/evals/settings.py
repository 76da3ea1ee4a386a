"""How an evaluation is made: what the user may choose, and the record of it that is stored beside the number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prefopt.errors import ConfigError
from prefopt.evals.target import Server, Target, choose_endpoint
from prefopt.generate.base import Sampling
from prefopt.sandbox.base import Limits
from prefopt.text.styles import PromptStyle
from prefopt.values import JsonValue

_LIMITS = Limits()
MAX_CALLS = 24
"""Blocks of a solution with programs, as in the published evaluation of Step-Controlled DPO."""


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """How problems are put, solved and graded. Decoding is greedy."""

    style: str | None = None
    """Prompt style; None is `chat`, for models with a chat template."""
    grader: str = "math-verify"
    max_new_tokens: int = 1024
    batch_size: int = 64
    """Rows decoded together; it does not change the results."""
    limit: int | None = None
    """Only the first problems of each file."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """What columns of the files mean, {"question": "text"}, where that is not recognised."""
    device: str = "auto"
    dtype: str = "auto"
    """Of the weights; auto: as stored."""
    server: Server | None = None
    code: bool = False
    """Whether solutions run programs (`prefopt.evals.code`)."""
    packages: tuple[str, ...] = ()
    """What programs may import beside the standard library."""
    limits: Limits = _LIMITS
    """Of the programs of one solution."""
    unsafe_local_execution: bool = False
    """Let programs run without isolation where there is none."""

    def __post_init__(self) -> None:
        for name, value in (
            ("max_new_tokens", self.max_new_tokens),
            ("batch_size", self.batch_size),
        ):
            if value < 1:
                raise ConfigError(f"{name} is {value}; use 1 or more")

    @property
    def sampling(self) -> Sampling:
        """How a solution is decoded."""
        return Sampling(max_new_tokens=self.max_new_tokens, purpose="evaluation")


def stored(
    settings: EvalSettings, *, file: Path, target: Target, style: PromptStyle, generator: str
) -> dict[str, JsonValue]:
    """Everything that decided the number of one file, as `evaluation.json` keeps it.

    Model and file are there by name and by digest; `prefopt.evals.earlier` compares the digests. Limits of programs are
    there where they are not the usual ones. What changes no result (batch size, device) is left out.

    Args:
        settings: as the user gave them.
        file: of problems.
        target: the model.
        style: the prompt style that was chosen.
        generator: the generator's identity.
    """
    server, sampling = settings.server, settings.sampling
    facts: dict[str, JsonValue] = {
        "target": target.model if server is None else server.model,
        "server": None if server is None else server.url,
        "endpoint": None if server is None else choose_endpoint(server, style),
        "extra_body": None if server is None or not server.extra_body else dict(server.extra_body),
        "generator": generator,
        "dtype": settings.dtype if server is None else None,
        "style": style.name,
        "grader": settings.grader,
        "code": settings.code,
        "isolated": not settings.unsafe_local_execution if settings.code else None,
        "max_calls": MAX_CALLS if settings.code else None,
        "packages": ",".join(sorted(settings.packages)) or None,
        "limits": _changed(settings.limits),
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "limit": settings.limit,
        "columns": dict(settings.columns),
        "problems": str(file),
        "problems_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    return facts


def _changed(limits: Limits) -> JsonValue:
    """The limits that are not the usual ones; None where all are."""
    usual = asdict(_LIMITS)
    found = {name: value for name, value in asdict(limits).items() if value != usual[name]}
    return found or None
