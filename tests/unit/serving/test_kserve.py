"""Inferences off the wire: every way a client may speak gives the same arrays; anything else is one kind of error."""

import contextlib
import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.errors import DataError
from visionloop.serving import kserve
from visionloop.serving.kserve import Message, read_inference

from .wire import ANSWERS, IMAGES, grpc_raw, grpc_typed, http_binary, http_json, packed

Way = Callable[..., tuple[Message, Message]]
WAYS = [http_json, http_binary, grpc_raw, grpc_typed]


def check(pair: tuple[Message, Message]) -> None:
    found = read_inference(*pair)
    assert (found.model, found.version) == ("m", 7)
    assert found.images.dtype == np.uint8
    assert (found.images == IMAGES).all()
    assert found.probabilities.dtype == np.float32
    assert np.allclose(found.probabilities, ANSWERS)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_speak_is_read(way: Way) -> None:
    check(way())


@pytest.mark.parametrize("way", [http_json, http_binary])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bodies(way: Way, encoding: str) -> None:
    check(tuple(packed(message, encoding) for message in way()))  # type: ignore[arg-type]


def test_compressed_messages_of_grpc() -> None:
    check(grpc_raw(encoding="gzip"))


@pytest.mark.parametrize("way", WAYS)
def test_a_body_cut_anywhere_is_a_data_error(way: Way) -> None:
    request, response = way()
    for cut in range(0, len(request.body), 7):
        with pytest.raises(DataError):
            read_inference(Message(request.headers, request.body[:cut]), response)
    for cut in range(0, len(response.body), 7):
        with pytest.raises(DataError):
            read_inference(request, Message(response.headers, response.body[:cut]))


@given(st.sampled_from(WAYS), st.integers(0, 400), st.integers(1, 255))
def test_a_flipped_byte_is_read_or_refused_and_nothing_else(way: Way, at: int, flip: int) -> None:
    request, response = way()
    body = bytearray(request.body)
    body[at % len(body)] ^= flip
    with contextlib.suppress(DataError):
        read_inference(Message(request.headers, bytes(body)), response)


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/grpc"}, {"content-encoding": "br"}])
@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b"\x00" * 9, b'{"inputs": []}', b"[" * 200_000])
def test_what_is_no_inference_is_refused(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(DataError, match="no KServe v2 inference"):
        read_inference(Message(headers, body), http_json()[1])


@pytest.mark.parametrize(
    ("images", "answers", "says"),
    [
        (IMAGES[:2], ANSWERS, "2 images, but 3 answers"),
        (IMAGES[..., 0], ANSWERS, r"expected images uint8 \[N,H,W,C\], found uint8 \[3, 4, 5\]"),
        (IMAGES, ANSWERS[:, :, None], "expected images"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_shapes_that_do_not_fit(way: Way, images: np.ndarray, answers: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_inference(*way(images, answers))


def test_values_that_are_no_pixels() -> None:
    request, response = http_json()
    body = json.loads(request.body)
    body["inputs"][0]["data"][0] = 256
    with pytest.raises(DataError, match="OverflowError"):
        read_inference(Message(request.headers, json.dumps(body).encode()), response)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr(kserve, "LARGEST_BYTES", 10_000)
    request, response = http_json()
    check((packed(request, encoding), response))
    bomb = packed(Message(request.headers, b" " * 10_001), encoding)
    assert len(bomb.body) < 100
    with pytest.raises(DataError):
        read_inference(bomb, response)
