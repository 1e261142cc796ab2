"""What all pages share: templates that escape what they are given, and pictures inside the page."""

import base64
from io import BytesIO
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
EXAMPLE_SIDE = 112
"""Pixels of the longer side of an example; larger images are made smaller."""


def fill(template: str, **values: Any) -> str:
    """A template of `templates/` as HTML; a value that it misses is an error."""
    environment = Environment(
        loader=PackageLoader("visionloop.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(**values)


def data_uri(image_HWC: Pixels) -> str:
    """An image, uint8 [H, W, 1 or 3], as a small PNG in a URI."""
    picture = Image.fromarray(image_HWC[..., 0] if image_HWC.shape[2] == 1 else image_HWC)
    picture.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
