"""Models: size, embedding, any image size, weights that know their shape, timm backbones, pretrained files."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from visionloop.errors import ConfigError, IntegrityError
from visionloop.project import ImageShape
from visionloop.training.model import Architecture, VisionModel, build, from_bytes, parameters, to_bytes
from visionloop.training.small_cnn import StandardizedConv2d, folded

SMALL = Architecture("small_cnn", 10, ImageShape(height=28, width=28, channels=1))
TIMM = Architecture("test_convnext", 3, ImageShape(height=64, width=64, channels=3))


def images(architecture: Architecture, count: int = 3) -> torch.Tensor:
    shape = architecture.image
    generator = torch.Generator().manual_seed(1)
    size = (count, shape.height, shape.width, shape.channels)
    return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)


def test_the_small_cnn_has_157_thousand_parameters_and_an_embedding() -> None:
    model = build(SMALL, seed=0).eval()
    logits, embedding = model(images(SMALL))
    assert 150_000 < parameters(model) < 160_000
    assert logits.shape == (3, 10) and embedding.shape == (3, 32)
    assert torch.allclose(model.head(embedding), logits)


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 1), (28, 28, 3), (64, 48, 3), (224, 224, 3)])
def test_the_small_cnn_takes_any_image_size(height: int, width: int, channels: int) -> None:
    architecture = Architecture("small_cnn", 4, ImageShape(height=height, width=width, channels=channels))
    assert build(architecture, seed=0)(images(architecture, 2))[0].shape == (2, 4)


def test_a_sample_is_answered_alike_in_any_company() -> None:
    model = build(SMALL, seed=0).train()
    alone, together = model(images(SMALL)[:1])[0], model(images(SMALL))[0]
    assert torch.allclose(alone[0], together[0], atol=1e-5)


def test_the_memory_layout_changes_nothing() -> None:
    model = build(SMALL, seed=0).eval()
    expected = model(images(SMALL))[0]
    model.channels_last = False
    assert torch.allclose(model(images(SMALL))[0], expected, atol=1e-5)


def test_folded_convolutions_compute_the_same() -> None:
    model = build(SMALL, seed=0).eval()
    plain = folded(model)
    assert not any(isinstance(module, StandardizedConv2d) for module in plain.modules())
    assert any(isinstance(module, StandardizedConv2d) for module in model.modules())
    assert torch.allclose(plain(images(SMALL))[0], model(images(SMALL))[0], atol=1e-5)


@pytest.mark.parametrize("architecture", [SMALL, TIMM])
def test_weights_rebuild_their_model(architecture: Architecture) -> None:
    model = build(architecture, seed=4).eval()
    again = from_bytes(to_bytes(model))
    assert again.architecture == architecture
    assert torch.equal(again(images(architecture))[0], model(images(architecture))[0])


@pytest.mark.parametrize("data", [b"", b"no weights", to_bytes(build(SMALL, seed=0))[:-4]])
def test_damaged_weights_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="no model"):
        from_bytes(data)


def test_an_unknown_backbone_is_named_with_its_neighbours() -> None:
    with pytest.raises(ConfigError, match=r"resnet19.*resnet18"):
        VisionModel(Architecture("resnet19", 2, SMALL.image))


def test_pretrained_weights_fill_the_backbone_and_not_the_head(tmp_path: Path) -> None:
    donor = timm.create_model("test_convnext", pretrained=False, num_classes=1000, in_chans=3)
    save_file({name: tensor + 0.5 for name, tensor in donor.state_dict().items()}, tmp_path / "w.safetensors")
    model = build(TIMM, seed=0, pretrained=tmp_path / "w.safetensors")
    name = "stem.0.weight"
    assert torch.equal(model.backbone.state_dict()[name], donor.state_dict()[name] + 0.5)
    assert model.head.out_features == 3


def test_pretrained_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"w.safetensors has no .* is it for test_convnext"):
        build(TIMM, seed=0, pretrained=tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"absent.safetensors cannot be loaded"):
        build(TIMM, seed=0, pretrained=tmp_path / "absent.safetensors")
