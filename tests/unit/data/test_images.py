"""Images from outside: every way to be broken has its word, and no header makes this program allocate."""

import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from visionloop.data.images import ImageError, Pixels, decode, decode_batch, encode_png, to_array
from visionloop.project import ImageShape

from .deliveries import jpeg, pixels, png

shapes = st.tuples(st.integers(1, 70), st.integers(1, 400), st.sampled_from([1, 3]))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing of it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    claim = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + claim + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@settings(max_examples=40, deadline=None)
@given(shapes.flatmap(lambda shape: hnp.arrays(np.uint8, shape)))
def test_png_keeps_every_pixel(image: Pixels) -> None:
    assert np.array_equal(decode(encode_png(image), verify=True), image)


def test_png_of_an_image_above_one_stored_block() -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 301, 3), np.uint8)
    assert np.array_equal(decode(encode_png(image), verify=True), image)


def test_png_bytes_never_change() -> None:
    """They are the sample's id: this digest must hold for ever, on every machine."""
    assert zlib.crc32(encode_png(np.arange(12, dtype=np.uint8).reshape(3, 4))) == 0x4E14A75


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all, only text", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not_an_image"),
        (saved(Image.new("F", (9, 9)), "TIFF"), "not_an_image"),
        (png(1)[:60], "truncated"),
        (png(1)[:20], "truncated"),
        (jpeg(1)[: len(jpeg(1)) // 2], "truncated"),
        (flipped(png(1), 60), "corrupt"),
        (png_header(16, 16).replace(b"IDAT", b"IDAX"), "corrupt"),
    ],
    ids=["empty", "text", "postscript", "floats", "half-png", "png-header", "half-jpeg", "flipped", "no-pixels"],
)
def test_what_is_broken_has_a_word(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=f"^{reason}: ") as caught:
        decode(data, verify=True)
    assert caught.value.reason == reason


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([png(1), jpeg(1)]), st.data())
def test_damage_never_raises_anything_else(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data[: draw.draw(st.integers(0, len(data)))])
    for at in draw.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=6)):
        if damaged:
            damaged[at] = draw.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert decode(bytes(damaged), max_side=64, verify=True).dtype == np.uint8


@pytest.mark.parametrize(("side", "fits"), [(31, True), (32, True), (33, False)])
def test_bound_of_a_side(side: int, fits: bool) -> None:
    data = encode_png(np.zeros((5, side), np.uint8))
    if fits:
        assert decode(data, max_side=32).shape == (5, side, 1)
    else:
        with pytest.raises(ImageError, match="too_large: 33 x 5 pixels, at most 32"):
            decode(data, max_side=32)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (8000, 8_000), (1, 100_000)])
def test_a_bomb_is_refused_before_it_is_unpacked(width: int, height: int) -> None:
    tracemalloc.start()
    with pytest.raises(ImageError, match="too_large"):
        decode(png_header(width, height), max_side=7_000)
    assert tracemalloc.get_traced_memory()[1] < 5 << 20
    tracemalloc.stop()


def test_channels_depth_and_rotation() -> None:
    grey16 = Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16))
    assert decode(saved(grey16, "PNG"))[..., 0].tolist() == [[0, 0, 1, 255]]
    assert decode(saved(Image.new("RGBA", (3, 2), (9, 8, 7, 0)), "PNG"))[0, 0].tolist() == [9, 8, 7]
    assert decode(saved(Image.new("LA", (3, 2)), "PNG")).shape == (2, 3, 1)
    assert decode(saved(Image.new("P", (3, 2)), "PNG")).shape == (2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate
    assert decode(saved(Image.new("L", (3, 2)), "JPEG", exif=exif)).shape == (3, 2, 1)


def test_to_array_fits_the_model() -> None:
    shape = ImageShape(height=8, width=16, channels=3)
    found = to_array([np.full((8, 16, 3), 7, np.uint8), np.full((30, 20, 1), 9, np.uint8)], shape)
    assert found.shape == (2, 8, 16, 3) and found.dtype == np.uint8 and found.flags["C_CONTIGUOUS"]
    assert found[0].max() == 7 and found[1].min() == found[1].max() == 9
    grey = to_array([np.array([[[255, 0, 0]]], np.uint8)], ImageShape(height=8, width=8, channels=1))
    assert grey[0, 0, 0, 0] == 76  # 0.299 * 255
    assert to_array([], shape).shape == (0, 8, 16, 3)


def test_decode_batch_is_decode_of_each() -> None:
    found = decode_batch([png(1), png(2)], ImageShape(height=8, width=8, channels=1))
    assert np.array_equal(found[..., 0], np.stack([pixels(1), pixels(2)]))


@pytest.mark.parametrize("bad", [np.zeros((3, 3, 2), np.uint8), np.zeros((3, 3), np.float32)])
def test_only_grey_and_rgb_bytes_become_png(bad: Pixels) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        encode_png(bad)
