"""The key of a sample's randomness: what local models and servers draw from alike. No torch."""

from __future__ import annotations

import hashlib
import json


def sample_key(*, seed: int, purpose: str, id: str, sample: int) -> int:
    """64-bit key of a sample's random stream."""
    text = json.dumps([seed, purpose, id, sample])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
