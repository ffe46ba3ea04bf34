"""What the name of a leaf says of it."""

from __future__ import annotations

import re
from typing import Any

# What Flax, Equinox, PyTorch and Haiku call parameters, LoRA's among them.
KNOWN = ["kernel", "bias", "scale", "embedding", "weight", "w", "b", "offset", "embeddings"]
KNOWN += ["lora_a", "lora_b"]

# What Flax's boxes call the array in them.
_BOXED = ("value", "raw_value")


def last(path: tuple[Any, ...]) -> str | None:
    """The last name on a key path, whatever boxes it and however the tree is flattened.

    The key of a flattened tree may be a path itself: ("Dense_0", "kernel"), "Dense_0/kernel" or
    "bn1.weight". Places in a list are no names.
    """
    for entry in reversed(path):
        name = getattr(entry, "name", None)  # of an attribute
        if name in _BOXED:
            continue
        key = getattr(entry, "key", name)
        while isinstance(key, tuple) and key:
            key = key[-1]
        if isinstance(key, str):
            return re.split(r"[./]", key)[-1]
    return None


def is_known(name: str | None) -> bool:
    """Also in_proj_weight, bias_n and weight_ih_l0."""
    return name in KNOWN or bool(name and re.search(r"^(weight|bias)|(weight|bias|kernel)$", name))


def is_bias(name: str | None) -> bool:
    """Also bias_n and in_proj_bias."""
    return name in ("b", "offset") or bool(name and re.search(r"^bias|bias$", name))
