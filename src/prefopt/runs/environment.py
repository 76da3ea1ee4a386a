"""What a run was made with, for `env.json`."""

from __future__ import annotations

import datetime as dt
import os
import platform

import torch

from prefopt.models.card import framework_versions


def environment() -> dict[str, str]:
    """Date, machine and versions, as text."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        **framework_versions(),
    }
