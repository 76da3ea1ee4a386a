"""The sections `build.text` and `build.code` of Step-Controlled DPO: what is special to each kind of solution."""

from __future__ import annotations

from pydantic import Field

from prefopt.build.settings import Count, Positive, Text
from prefopt.config import Section
from prefopt.text.segments import How


class TextSection(Section):
    """Chains of thought."""

    segments: How = "auto"
    """What a step is: markers ("Step 1:"), lines, or whichever a solution has."""
    leave: Count = 1
    """Steps that are always written anew."""
    max_segments: Count = 64
    """Tails of more new steps are left out as noise."""
    max_segment_characters: Count = 3000
    """Tails with a longer step are left out as noise."""
    drop_apologies: bool = False
    """Leave out right solutions with "error" or "apolog", as the published pipeline for code does."""
    count_truncated_as_wrong: bool = False
    """Solutions cut at the token limit count as wrong ones, as published for Mistral."""


class CodeSection(Section):
    """Solutions of text, code and interpreter output."""

    system: str = ""
    """System text of the conversation; published: empty, and a request to solve step by step for MathCoder."""
    max_calls: Count = 64
    """Blocks of text and code of one solution or tail."""
    packages: list[Text] = Field(default=[])
    """Packages that the code may import besides the standard library, such as sympy."""
    seconds: Positive = 6.0
    """Time for one block of code."""
    cpu_seconds: Positive = 60.0
    """Processor time of one solution."""
    memory_bytes: Count = 1 << 30
    """Memory of one solution."""
    processes: Count = 16
    """Processes and threads of one solution."""
    output_chars: Count = 10_000
    """Output of one block of code; the rest is cut."""
    disk_bytes: Count = 1 << 26
    """Size of the private temporary folder of one solution."""
    workers: Count = 32
    """Interpreters alive at once; a solution that has to give up its own runs its code again later."""
    unsafe_local_execution: bool = False
    """Run model-written code without isolation, with your files and your network in its reach."""
    drop_apologies: bool = True
    """Leave out right solutions with "error" or "apolog" in any block."""
    drop_similar: bool = True
    """Keep only one of the solutions of a problem with as many blocks and a length within 500 characters."""
    drop_noisy: bool = True
    """Leave out tails with more than 24 messages, overlong blocks, or output that the model made up."""
    count_failures_as_wrong: bool = False
    """Solutions that failed, were cut or never ended count as wrong ones, as published for Mistral."""
