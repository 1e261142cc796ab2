"""Which number format the training computes in: bf16 where the processor has it, else fp32."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from visionloop.errors import ConfigError


@dataclass(frozen=True)
class Precision:
    """`fp32` or `bf16` on one kind of device."""

    name: Literal["fp32", "bf16"]
    device: str

    def autocast(self) -> AbstractContextManager[object]:
        """Weights stay float32; convolutions and products are computed in bf16, or nothing changes."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.partition(":")[0], torch.bfloat16)


def choose(wanted: Literal["auto", "fp32", "bf16"], device: str) -> Precision:
    """Raises ConfigError when bf16 is demanded where it is not to be had."""
    if wanted == "bf16" and not has_bf16(device):
        raise ConfigError(f"training.precision is bf16, but {device} has none: set auto or fp32")
    return Precision("bf16" if wanted != "fp32" and has_bf16(device) else "fp32", device)


def has_bf16(device: str) -> bool:
    """In hardware: emulated bf16 is slower than fp32."""
    if device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
