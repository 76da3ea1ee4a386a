"""What `prefopt doctor` finds out about the installation and the machine. Facts only, no printing."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Mapping

DISTRIBUTION = "prefopt"


class Package(NamedTuple):
    """A dependency and whether it is there."""

    name: str
    version: str | None
    """None when it is not installed."""
    wanted: str
    """Version specifier; may be empty."""
    fits: bool


class Extra(NamedTuple):
    """An optional feature of the installation."""

    name: str
    missing: tuple[str, ...]
    """Requirements that are not met; empty when the extra is usable."""

    @property
    def command(self) -> str:
        """What installs it."""
        return f'pip install "{DISTRIBUTION}[{self.name}]"'


class Device(NamedTuple):
    """Something torch computes on."""

    name: str
    """torch's name: `cpu`, `cuda:0`, `mps`."""
    description: str
    memory: int
    """Bytes; 0 where unknown."""
    bf16: bool
    attention: str
    """How trees are computed there."""


def packages() -> list[Package]:
    """The required packages, as the installed metadata declares them."""
    return [_package(r) for r in _requirements() if _applies(r, extra="")]


def extras() -> list[Extra]:
    """The optional features, as the installed metadata declares them."""
    names = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    core = {r.name for r in _requirements() if _applies(r, extra="")}
    found: list[Extra] = []
    for name in names:
        needed = [r for r in _requirements() if r.name not in core and _applies(r, extra=name)]
        missing = tuple(f"{r.name}{r.specifier}" for r in needed if not _package(r).fits)
        found.append(Extra(name, missing))
    return found


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]


def _applies(requirement: Requirement, *, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _package(requirement: Requirement) -> Package:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Package(requirement.name, None, str(requirement.specifier), fits=False)
    fits = requirement.specifier.contains(version, prereleases=True)
    return Package(requirement.name, version, str(requirement.specifier), fits)


def devices() -> list[Device]:
    """The CPU and every accelerator that torch sees."""
    import torch

    found = [
        Device(
            "cpu",
            platform.processor() or platform.machine(),
            memory_bytes(),
            bf16=False,  # it works, but is slower than float32 on most CPUs: never chosen by itself
            attention="SDPA with a dense tree mask",
        )
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        found.append(
            Device(
                f"cuda:{index}",
                f"{properties.name}, capability {capability}",
                properties.total_memory,
                bf16=torch.cuda.is_bf16_supported(including_emulation=False),
                attention="FlexAttention over packed trees",
            )
        )
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU", 0, bf16=False, attention=found[0].attention))
    return found


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory of the machine, or of the container where that is less; 0 where the system does not say."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def remarks(environment: Mapping[str, str], *, cores: int) -> list[str]:
    """Settings of the environment that cost speed or fail later, each with what to do."""
    found: list[str] = []
    threads = environment.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > cores:
        found.append(
            f"OMP_NUM_THREADS={threads} is more than the {cores} cores there are: threads will wait "
            f"for each other; set OMP_NUM_THREADS={cores} or unset it"
        )
    if threads == "1" and cores > 1 and "WORLD_SIZE" not in environment:
        found.append(
            f"OMP_NUM_THREADS=1 uses one of {cores} cores: unset it, unless several processes share them"
        )
    if environment.get("TOKENIZERS_PARALLELISM", "").lower() in {"0", "false", "off", "no"}:
        found.append(
            "TOKENIZERS_PARALLELISM=false makes tokenising slow: unset it; prefopt forks no workers"
        )
    if environment.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "on", "yes"}:
        found.append(
            "HF_HUB_OFFLINE is set: hub ids in recipes work only for what is cached already"
        )
    if environment.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1":
        found.append(
            "PYTORCH_ENABLE_MPS_FALLBACK=1 moves unsupported operations to the CPU silently"
        )
    return found


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where built models and reference scores are kept: $PREFOPT_HOME or ~/.cache/prefopt."""
    home = environment.get("PREFOPT_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "prefopt"


def nearest_existing(folder: Path) -> Path:
    """The folder, or its closest parent that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
