"""Which split a sample belongs to: a function of its group (or its own id) and the project's salt, and of nothing else.

So a sample never changes its split when others arrive, and what shares a group shares a split: the test split cannot
leak into training. Splits are stored with the samples; those of known groups are kept even if the shares change.
"""

import hashlib
from collections.abc import Mapping
from typing import Literal

from visionloop.project import Splits

SplitName = Literal["train", "validation", "test"]


def assign(sample_id: str, group: str, splits: Splits, known_groups: Mapping[str, str] | None = None) -> str:
    """The split of a sample; an empty group means that the sample stands alone."""
    if group and known_groups and group in known_groups:
        return known_groups[group]
    return _at(position(group or sample_id, splits.salt), splits)


def position(key: str, salt: str) -> float:
    """Where a key lies in [0, 1): the first 53 bits of SHA-256(salt, 0, key), uniform and the same everywhere."""
    head = hashlib.sha256(f"{salt}\0{key}".encode()).digest()[:8]
    return float((int.from_bytes(head, "big") >> 11) / (1 << 53))


def _at(where: float, splits: Splits) -> SplitName:
    if where < splits.train:
        return "train"
    return "validation" if where < splits.train + splits.validation else "test"
