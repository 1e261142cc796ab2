"""The model: uint8 images in, logits and embedding out; a small CNN or any timm backbone. Weights know their shape."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from visionloop.errors import ConfigError, IntegrityError
from visionloop.project import ImageShape
from visionloop.training.small_cnn import SmallCnn

SMALL_CNN = "small_cnn"
META = "visionloop.model"


@dataclass(frozen=True)
class Architecture:
    """What rebuilds a model around its weights."""

    backbone: str
    outputs: int
    image: ImageShape


class VisionModel(nn.Module):
    """Pre-processing, backbone and head in one graph, so that training and serving cannot differ."""

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.channels_last = True
        self.backbone, width, (mean, std) = _backbone(architecture)
        self.head = nn.Linear(width, architecture.outputs)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, image_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, H, W, C] -> logits [B, K], embedding [B, D]."""
        image = image_BHWC.permute(0, 3, 1, 2).float().div(255.0)
        image = (image - self.mean) / self.std  # strides stay channels-last
        embedding = self.backbone(image if self.channels_last else image.contiguous())
        return self.head(embedding), embedding


def build(architecture: Architecture, *, seed: int, pretrained: Path | None = None) -> VisionModel:
    """A fresh model with seeded weights; `pretrained` fills the backbone. Raises ConfigError when that does not fit."""
    torch.manual_seed(seed)
    model = VisionModel(architecture)
    if pretrained is not None:
        _fill(model.backbone, pretrained, architecture.backbone)
    return model


def to_bytes(model: VisionModel) -> bytes:
    """Weights as safetensors, with the architecture in the header."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    about = {
        "backbone": model.architecture.backbone,
        "outputs": model.architecture.outputs,
        "image": model.architecture.image.model_dump(),
    }
    return bytes(save(weights, {META: json.dumps(about, sort_keys=True)}))


def from_bytes(data: bytes) -> VisionModel:
    """The model that `to_bytes` wrote, ready for inference. Raises IntegrityError for anything else."""
    try:
        size = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][META])
        image = ImageShape.model_validate(about["image"])
        model = VisionModel(Architecture(about["backbone"], about["outputs"], image))
        model.load_state_dict(load(data))
    except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise IntegrityError(f"these weights are no model of this version: {error}") from None
    return model.eval()


def parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _backbone(architecture: Architecture) -> tuple[nn.Module, int, tuple[list[float], list[float]]]:
    """Module, width of its embedding, and mean and standard deviation that it wants its input normalised by."""
    channels = architecture.image.channels
    if architecture.backbone == SMALL_CNN:
        return SmallCnn(architecture.image), SmallCnn.features_out, ([0.5] * channels, [0.25] * channels)
    import timm

    if not timm.is_model(architecture.backbone):
        near = ", ".join(timm.list_models(f"*{architecture.backbone.split('_')[0]}*")[:5]) or "resnet18, mobilenetv3"
        raise ConfigError(
            f"training.backbone: expected {SMALL_CNN} or a timm model, found {architecture.backbone!r} (near: {near})"
        )
    model = timm.create_model(architecture.backbone, pretrained=False, num_classes=0, in_chans=channels)
    config = cast(dict[str, Any], model.pretrained_cfg)
    mean, std = (list(config.get(name, (0.5, 0.5, 0.5))) for name in ("mean", "std"))
    if channels == 1:
        mean, std = [sum(mean) / 3], [sum(std) / 3]
    return model, int(model.num_features), (mean, std)


def _fill(backbone: nn.Module, path: Path, name: str) -> None:
    """Load pretrained weights; those of a classifier are left out, all others must fit."""
    try:
        with safe_open(str(path), "pt") as opened:
            names = set(opened.keys())
        missing = sorted(set(backbone.state_dict()) - names)
        if missing:
            raise ConfigError(f"training.pretrained: {path} has no {missing[0]}, which {name} needs: is it for {name}?")
        backbone.load_state_dict(load_file(path), strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConfigError(f"training.pretrained: {path} cannot be loaded into {name}: {error}") from None
