"""Image bytes from outside -> uint8 arrays, or a reason why not; and arrays -> PNG that is the same everywhere.

Only PIL decodes: other decoders were measured to crash on, or silently accept, broken files. Width and height are read
from the header and bounded before any pixel is allocated.
"""

import struct
import warnings
import zlib
from collections.abc import Iterable
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from visionloop.errors import DataError
from visionloop.project import ImageShape

Pixels = NDArray[np.uint8]
Reason = Literal["empty", "not_an_image", "truncated", "corrupt", "too_large"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
"""What cameras write. A short list on purpose: other PIL plug-ins start programs (EPS) or are rarely exercised."""
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"BM", b"II*\0", b"MM\0*")
MAX_SIDE = 8192
"""Pixels; the default bound of either side."""
MAX_FILE_BYTES = 256 << 20
"""A larger file is not read at all."""

# PIL's plug-ins raise all of these on broken files, as fuzzing shows; anything else is a fault of ours.
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError)
_BROKEN_TOO = (EOFError, struct.error, zlib.error)


class ImageError(DataError):
    """A file that cannot be used as an image; `reason` is one word for counting, the message says more."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason


def decode(data: bytes, *, max_side: int = MAX_SIDE, verify: bool = False) -> Pixels:
    """Decode one image to uint8 HWC with C = 1 (grey) or 3 (RGB); alpha is dropped, the camera's rotation applied.

    16-bit grey keeps its high byte. `verify` also checks PNG checksums, which PIL's decoder skips: use it once, when
    the bytes arrive. Raises ImageError.
    """
    if not data:
        raise ImageError("empty", "the file has no bytes")
    image = _open(data, max_side)
    try:
        if verify and image.format == "PNG":
            _open(data, max_side).verify()
        image.load()
        return _array(_upright(image))
    except ImageError:
        raise
    except (*_BROKEN, *_BROKEN_TOO) as error:
        raise _explained(error) from None


def decode_batch(blobs: Iterable[bytes], shape: ImageShape) -> Pixels:
    """Decode images that were checked before (a snapshot's) into one uint8 NHWC array of the model's shape."""
    return to_array((decode(blob) for blob in blobs), shape)


def to_array(images: Iterable[Pixels], shape: ImageShape) -> Pixels:
    """Fit uint8 HWC images to the model's shape (bilinear, aspect ratio not kept): contiguous uint8 NHWC."""
    fitted = [fit(image, shape) for image in images]
    if not fitted:
        return np.empty((0, shape.height, shape.width, shape.channels), np.uint8)
    return np.stack(fitted)


def fit(image: Pixels, shape: ImageShape) -> Pixels:
    """One uint8 HWC image in the model's height, width and channels (grey by ITU-R 601 luma, as PIL has it)."""
    if image.shape == (shape.height, shape.width, shape.channels):
        return image
    picture = _picture(image).convert("L" if shape.channels == 1 else "RGB")
    if picture.size != (shape.width, shape.height):
        picture = picture.resize((shape.width, shape.height), Image.Resampling.BILINEAR)
    return _array(picture)


def encode_png(pixels: Pixels) -> bytes:
    """PNG of a uint8 HW, HW1 or HW3 array, not compressed.

    Written here rather than by PIL so that the bytes, and with them the sample's id, do not depend on a version of
    zlib. Chunks as in PNG (ISO/IEC 15948) section 11, stored blocks as in RFC 1951 section 3.2.4.
    """
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if channels not in (1, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"expected uint8 HW, HW1 or HW3, found {pixels.dtype} {pixels.shape}")
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # the leading 0 of each row: filter type none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", _stored(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _open(data: bytes, max_side: int) -> Image.Image:
    """Read the header only, and refuse what would be too large to decode."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns at half of the size at which it refuses
            image = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from None
    except UnidentifiedImageError:
        if data.startswith(SIGNATURES):
            raise ImageError("corrupt", "it begins like an image, but its header cannot be read") from None
        raise ImageError("not_an_image", f"expected {', '.join(FORMATS)}, found {data[:8]!r}") from None
    except (*_BROKEN, *_BROKEN_TOO) as error:
        raise _explained(error) from None
    if max(image.size) > max_side:
        width, height = image.size
        raise ImageError("too_large", f"{width} x {height} pixels, at most {max_side} a side are allowed")
    return image


def _explained(error: Exception) -> ImageError:
    text = str(error) or type(error).__name__
    cut = isinstance(error, EOFError) or any(word in text.lower() for word in ("truncated", "premature", "end of file"))
    return ImageError("truncated" if cut else "corrupt", text)


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; looked for only where there is EXIF, since asking costs as much as decoding."""
    return ImageOps.exif_transpose(image) if "exif" in image.info or image.format == "TIFF" else image


def _array(image: Image.Image) -> Pixels:
    if image.mode == "F":
        raise ImageError("not_an_image", "pixels are floating-point numbers, expected 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits in 16 or 32
        return (np.asarray(image).clip(0, 65535).astype(np.uint16) >> 8).astype(np.uint8)[..., None]
    grey = image.mode in ("1", "L", "LA", "La")
    array = np.asarray(image.convert("L" if grey else "RGB"))
    return array[..., None] if grey else array


def _picture(image: Pixels) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _stored(raw: bytes) -> bytes:
    """A zlib stream (RFC 1950) of stored blocks: no compression, so nothing for versions to differ in."""
    blocks = [raw[at : at + 65535] for at in range(0, len(raw), 65535)]
    last = len(blocks) - 1
    parts = (
        struct.pack("<BHH", number == last, len(block), len(block) ^ 0xFFFF) + block
        for number, block in enumerate(blocks)
    )
    return b"\x78\x01" + b"".join(parts) + struct.pack(">I", zlib.adler32(raw))
