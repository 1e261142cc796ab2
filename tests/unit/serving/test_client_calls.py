"""Calls of both clients: cut up and joined, under way together, tried again where that is safe, marked, explained."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from visionloop.errors import ConfigError, DataError
from visionloop.project import Project, parse_project
from visionloop.serving.client import Answer, AsyncClient, Client, EndpointError, Model, connect, connect_async
from visionloop.serving.client.call import AT_ONCE
from visionloop.serving.client.channel import address_of
from visionloop.serving.triton_config import LABELS, TIMEOUT_MS, render

from .endpoint import Asked, Failed, Said, endpoint

TEXT = """\
project: p
task: {classes: [dark, bright], image: {height: 8, width: 8, channels: 1}}
suite: {scenarios: [{name: overall}]}
serving: {max_batch_size: 4, timeout_ms: 5000}
release: {approval: automatic}
"""
PROJECT: Project = parse_project(TEXT, Path("project.yaml"))
DOWN = Failed(grpc.StatusCode.UNAVAILABLE, "no healthy upstream")
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
Predict = Callable[..., list[Answer]]


@dataclass
class Lane:
    """Answers by brightness; `failures` come first, one per try of any request whose images they match."""

    asked: list[Asked] = field(default_factory=list)
    failures: list[Failed] = field(default_factory=list)
    fails_level: int | None = None
    seconds: float = 0.0
    most: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, asked: Asked) -> Said | Failed:
        with self.lock:
            self.asked.append(asked)
            self.now += 1
            self.most = max(self.most, self.now)
            hit = self.fails_level is None or asked.images[0, 0, 0, 0] == self.fails_level
            failure = self.failures.pop(0) if self.failures and hit else None
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1
        bright = asked.images.mean(axis=(1, 2, 3)) / 255
        return failure or Said("canary", 7, np.stack([1 - bright, bright], axis=1).astype(np.float32))

    def ids(self) -> list[str]:
        return [asked.headers["x-request-id"] for asked in self.asked]


@pytest.fixture
def lane() -> Lane:
    return Lane()


@pytest.fixture(params=[Client, AsyncClient])
def predict(request: pytest.FixtureRequest, lane: Lane, tmp_path: Path) -> Iterator[Predict]:
    """`predict(images, ...)` of a client that is opened for it; `opened=` goes to the client."""
    with endpoint(lane, render(PROJECT, 7)) as url:

        def sync(images: object, *, opened: dict | None = None, **asked: object) -> list[Answer]:
            with Client(url, PROJECT, **(opened or {})) as client:
                return client.predict(images, **asked)

        def awaited(images: object, *, opened: dict | None = None, **asked: object) -> list[Answer]:
            async def go() -> list[Answer]:
                async with AsyncClient(url, PROJECT, **(opened or {})) as client:
                    return await client.predict(images, **asked)

            return asyncio.run(go())

        yield sync if request.param is Client else awaited


def images(*levels: int) -> np.ndarray:
    return np.stack([np.full((8, 8, 1), level, np.uint8) for level in levels])


def test_many_images_come_back_in_order_from_several_requests_at_once(predict: Predict, lane: Lane) -> None:
    lane.seconds = 0.03
    levels = [(number * 37) % 256 for number in range(41)]
    answers = predict(images(*levels))
    assert [round(float(a.probabilities[1]) * 255) for a in answers] == levels
    assert Counter(len(asked.images) for asked in lane.asked) == {4: 10, 1: 1}
    assert 2 <= lane.most <= AT_ONCE == 4


def test_a_list_of_images_is_as_good_as_an_array(predict: Predict) -> None:
    answers = predict(list(images(0, 255, 0)))
    assert [a.label for a in answers] == ["dark", "bright", "dark"]
    assert answers[1].top(2) == [("bright", 1.0), ("dark", 0.0)]
    assert answers[1].top(1) == [("bright", 1.0)]


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ([], "found no images at all"),
        ([np.zeros((8, 8, 1), np.uint8), np.zeros((8, 9, 1), np.uint8)], r"found uint8 \[8, 8, 1\], uint8 \[8, 9, 1\]"),
        ([np.zeros((8, 8, 1))], r"found float64 \[8, 8, 1\]"),
        (["a.png"], r"found <U5 \[\]"),
        (np.zeros((8, 8, 1), np.uint8), r"found uint8 \[8, 8, 1\]"),
    ],
)
def test_what_is_no_images_of_the_model_is_never_sent(predict: Predict, lane: Lane, wrong: object, found: str) -> None:
    with pytest.raises(DataError, match=rf"p expects uint8 images \[N, 8, 8, 1\].*{found}"):
        predict(wrong)
    assert lane.asked == []


# --- request ids, sessions, traces


def test_an_id_of_the_callers_goes_there_and_back(predict: Predict, lane: Lane) -> None:
    assert [a.request_id for a in predict(images(1, 2), request_id="order-17")] == ["order-17"] * 2
    assert lane.ids() == ["order-17"]


def test_several_requests_have_ids_of_their_own(predict: Predict, lane: Lane) -> None:
    answers = predict(images(*range(9)), request_id="order-17")
    assert [a.request_id for a in answers] == ["order-17.1"] * 4 + ["order-17.2"] * 4 + ["order-17.3"]
    assert sorted(lane.ids()) == ["order-17.1", "order-17.2", "order-17.3"]


def test_without_one_each_call_has_its_own(predict: Predict) -> None:
    first, second = (predict(images(1))[0].request_id for _ in range(2))
    assert first != second
    assert len(first) == 32
    assert int(first, 16) >= 0


@pytest.mark.parametrize("trace", [TRACE, TRACE.replace("00-4", "01-4")])
def test_a_trace_goes_on_with_session_and_nothing_else_is_sent(predict: Predict, lane: Lane, trace: str) -> None:
    predict(images(*range(5)), session="u1", traceparent=trace)
    predict(images(1))
    sent = [(a.headers.get("traceparent"), a.headers.get("x-session"), a.headers.get("x-api-key")) for a in lane.asked]
    assert sent == [(trace, "u1", None)] * 2 + [(None, None, None)]


@pytest.mark.parametrize(
    "marks",
    [
        {"traceparent": TRACE.upper()},
        {"traceparent": TRACE[:-1]},
        {"traceparent": "ff" + TRACE[2:]},
        {"traceparent": TRACE + "\n"},
        {"traceparent": "00-" + "0" * 32 + "-00f067aa0ba902b7-01"},
        {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01"},
        {"request_id": ""},
        {"request_id": "a b"},
        {"request_id": "x" * 257},
        {"session": "é"},
        {"session": "a\r\nx-lane: stable"},
        {"deadline_seconds": 0.0},
        {"deadline_seconds": -1.0},
        {"deadline_seconds": float("inf")},
        {"deadline_seconds": float("nan")},
    ],
    ids=repr,
)
def test_marks_that_cannot_be_sent_are_refused(predict: Predict, lane: Lane, marks: dict) -> None:
    with pytest.raises(DataError, match="expected a"):
        predict(images(1), **marks)
    assert lane.asked == []


# --- what is tried again


def test_a_server_that_was_away_is_asked_again_with_the_same_id(predict: Predict, lane: Lane) -> None:
    lane.failures = [DOWN, DOWN, DOWN]
    began = time.monotonic()
    [answer] = predict(images(255))
    assert answer.label == "bright"
    assert len(lane.asked) == 4
    assert len(set(lane.ids())) == 1
    assert time.monotonic() - began >= 0.35  # half of 0.1 + 0.2 + 0.4
    assert answer.latency_ms >= 350


def test_after_so_many_tries_it_is_an_error_that_says_so(predict: Predict, lane: Lane) -> None:
    lane.failures = [DOWN] * 9
    with pytest.raises(EndpointError, match=r"tried 4 times.*UNAVAILABLE: no healthy upstream") as caught:
        predict(images(1), opened={"most_tries": 4})
    assert (caught.value.code, caught.value.tries, len(lane.asked)) == ("UNAVAILABLE", 4, 4)
    assert not caught.value.refused  # the endpoint was there: no lane was


def test_an_endpoint_where_nobody_listens_refused_it() -> None:
    with Client("http://127.0.0.1:1", PROJECT, most_tries=2) as client, pytest.raises(EndpointError) as caught:
        client.predict(images(1))
    assert caught.value.refused and caught.value.tries == 2


@pytest.mark.parametrize(
    "code", ["INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "INTERNAL", "DEADLINE_EXCEEDED"]
)
def test_what_the_server_judged_is_not_asked_again(predict: Predict, lane: Lane, code: str) -> None:
    lane.failures = [Failed(grpc.StatusCode[code], "no")]
    with pytest.raises(EndpointError, match=f"{code}: no"):
        predict(images(1))
    assert len(lane.asked) == 1


@pytest.mark.parametrize(("said", "tries"), [("20", 2), ("-1", 1), ("60000", 1)])
def test_an_overloaded_server_says_when(predict: Predict, lane: Lane, said: str, tries: int) -> None:
    pushback = (("grpc-retry-pushback-ms", said),)
    lane.failures = [Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down", trailing=pushback)]
    if tries == 1:
        with pytest.raises(EndpointError, match="RESOURCE_EXHAUSTED"):
            predict(images(1))
    else:
        assert predict(images(255))[0].label == "bright"
    assert len(lane.asked) == tries


@pytest.mark.parametrize("asked", [{"probe": True}, {"opened": {"most_tries": 1}}])
def test_probes_and_those_who_say_so_are_never_tried_again(predict: Predict, lane: Lane, asked: dict) -> None:
    """The rollout judges each answer."""
    lane.failures = [DOWN]
    with pytest.raises(EndpointError, match="UNAVAILABLE"):
        predict(images(1), **asked)
    assert len(lane.asked) == 1


def test_probes_go_one_after_the_other(predict: Predict, lane: Lane) -> None:
    lane.seconds = 0.02
    assert len(predict(images(*range(17)), probe=True)) == 17
    assert lane.most == 1
    assert [len(asked.images) for asked in lane.asked] == [4, 4, 4, 4, 1]


# --- deadlines, failures of one request among many


def test_a_deadline_is_for_the_whole_call(predict: Predict, lane: Lane) -> None:
    """20 requests of 0.1 s, 4 at once, take 0.5 s: more than 0.25 s, though each would be in time."""
    lane.seconds = 0.1
    began = time.monotonic()
    with pytest.raises(EndpointError) as caught:
        predict(images(*range(80)), deadline_seconds=0.25)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert time.monotonic() - began < 2
    assert len(lane.asked) < 20
    assert len(predict(images(*range(80)), deadline_seconds=20)) == 80


def test_a_pause_does_not_outlast_the_deadline(predict: Predict, lane: Lane) -> None:
    lane.failures = [DOWN] * 9
    with pytest.raises(EndpointError, match="UNAVAILABLE"):
        predict(images(1), deadline_seconds=0.04)
    assert len(lane.asked) == 1


def test_the_first_failure_ends_the_call(predict: Predict, lane: Lane) -> None:
    lane.failures, lane.fails_level = [Failed(grpc.StatusCode.INTERNAL, "stub died", "stable")], 8
    lane.seconds = 0.02
    with pytest.raises(EndpointError, match="INTERNAL: stub died") as caught:
        predict(images(*range(200)), request_id="many")
    assert (caught.value.lane, caught.value.request_id) == ("stable", "many.3")
    assert len(lane.asked) < 25


# --- what an error says


def test_an_error_names_request_model_version_input_and_what_was_expected(lane: Lane) -> None:
    with endpoint(lane) as url, Client(url, PROJECT) as client:
        client.predict(images(1))
        lane.failures = [Failed(grpc.StatusCode.INTERNAL, "stub  died", "canary")]
        with pytest.raises(EndpointError) as caught:
            client.predict(images(1, 2), request_id="r1")
    assert str(caught.value) == (
        "request r1 (sent uint8 [2, 8, 8, 1]; expected uint8 images [N, 8, 8, 1], at most 4 of them; lane canary; "
        f"last answered by version 7 in lane canary): the endpoint {url} did not answer for p: INTERNAL: stub died"
    )


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (0, 2)])
def test_an_answer_of_another_shape_is_none(shape: tuple[int, int]) -> None:
    with endpoint(lambda asked: Said("canary", 7, np.zeros(shape, np.float32))) as url, Client(url, PROJECT) as client:
        with pytest.raises(EndpointError, match=r"DATA_LOSS: expected probabilities float32 \[1, 2\], found") as caught:
            client.predict(images(1))
        assert caught.value.lane == "canary"


# --- the address is enough


def ask_without_a_project(kind: type, url: str, **given: object) -> tuple[Model, Answer]:
    if kind is Client:
        with connect(url, "p", **given) as client:
            return client.model, client.predict(images(255))[0]

    async def go() -> tuple[Model, Answer]:
        async with await connect_async(url, "p", **given) as client:
            return client.model, (await client.predict(images(255)))[0]

    return asyncio.run(go())


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_endpoint_says_what_the_model_is_like(kind: type, lane: Lane) -> None:
    with endpoint(lane, render(PROJECT, 7)) as url:
        model, answer = ask_without_a_project(kind, url)
        assert model == Model("p", (8, 8, 1), ("dark", "bright"), 4, PROJECT.serving.timeout_ms / 1000)
        assert answer.label == "bright"
        assert ask_without_a_project(kind, url, labels=["no", "yes"])[1].label == "yes"
        with pytest.raises(ConfigError, match="p has 2 classes, found 3 labels"):
            ask_without_a_project(kind, url, labels=["a", "b", "c"])


def test_a_model_packaged_without_labels_has_numbers(lane: Lane) -> None:
    text = render(PROJECT, 7).replace(LABELS, "other")
    with endpoint(lane, text) as url:
        assert ask_without_a_project(Client, url)[1].label == "1"


@pytest.mark.parametrize("broken", ["dark, bright", "{}", "[1, 2]", ""])
def test_labels_that_are_none_are_said(lane: Lane, broken: str) -> None:
    config = text_format.Parse(render(PROJECT, 7), model_config_pb2.ModelConfig())
    config.parameters[LABELS].string_value = broken
    with (
        endpoint(lane, text_format.MessageToString(config)) as url,
        pytest.raises(ConfigError, match="p: expected a JSON list of labels"),
    ):
        connect(url, "p")


@pytest.mark.parametrize(("said", "seconds"), [("1", 0.001), ("30000", 30.0), ("9999999999", 9_999_999.999)])
def test_without_a_deadline_a_request_has_the_projects_time(lane: Lane, said: str, seconds: float) -> None:
    with endpoint(lane, with_timeout(said)) as url, connect(url, "p") as client:
        assert client.model.timeout_seconds == seconds


def test_a_model_packaged_without_a_time_out_is_waited_for_half_a_minute(lane: Lane) -> None:
    with endpoint(lane, render(PROJECT, 7).replace(TIMEOUT_MS, "other")) as url, connect(url, "p") as client:
        assert client.model.timeout_seconds == 30.0


def test_the_endpoints_time_ends_a_call(lane: Lane) -> None:
    lane.seconds = 2.0
    with endpoint(lane, with_timeout("300")) as url, connect(url, "p") as client:
        began = time.monotonic()
        with pytest.raises(EndpointError, match="DEADLINE_EXCEEDED"):
            client.predict(images(255))
        assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("broken", ["", "0", "-1", "soon", "1.5", "1e9", "10000000000", "\u0661"])
def test_a_time_out_that_is_none_is_said(lane: Lane, broken: str) -> None:
    with (
        endpoint(lane, with_timeout(broken)) as url,
        pytest.raises(ConfigError, match="p: expected milliseconds, at least 1, in `visionloop_timeout_ms`, found"),
    ):
        connect(url, "p")


def with_timeout(text: str) -> str:
    """What the endpoint says of the model, with this time-out."""
    config = text_format.Parse(render(PROJECT, 7), model_config_pb2.ModelConfig())
    config.parameters[TIMEOUT_MS].string_value = text
    return text_format.MessageToString(config)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_model_that_is_not_there_and_one_of_another_kind_are_named(kind: type, lane: Lane) -> None:
    with endpoint(lane) as url, pytest.raises(EndpointError, match=r"did not describe p: NOT_FOUND: .*unknown model"):
        ask_without_a_project(kind, url)
    text = render(PROJECT, 7).replace('name: "image"', 'name: "pixels"')
    with (
        endpoint(lane, text) as url,
        pytest.raises(ConfigError, match="p is no model of visionloop: expected an input"),
    ):
        ask_without_a_project(kind, url)


@pytest.mark.parametrize(("side", "batch", "fitting"), [(8, 64, 64), (512, 64, 21), (2048, 64, 1)])
def test_a_request_fits_into_the_endpoints_largest_body(side: int, batch: int, fitting: int) -> None:
    """512 x 512 x 3 is 768 KiB: 21 of them are 15.75 MiB, 22 are more than 16."""
    assert Model("p", (side, side, 3), ("a",), batch).images_per_request == fitting


def test_an_image_that_fits_into_no_request_is_refused() -> None:
    with pytest.raises(DataError, match="one image of p is larger than the endpoint's largest request"):
        _ = Model("p", (4096, 4096, 1), ("a",), 8).images_per_request


# --- addresses and keys


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h:8000", ("http", "h:8000")),
        ("h:8000", ("http", "h:8000")),
        ("http://h", ("http", "h:80")),
        ("https://h", ("https", "h:443")),
        ("https://h:8443/", ("https", "h:8443")),
        ("http://[::1]:8000", ("http", "[::1]:8000")),
    ],
)
def test_addresses(url: str, address: tuple[str, str]) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize("url", ["", "ftp://h:1", "http://", "http://h:port", "http://h:99999", "http://u:secret@h:1"])
def test_what_is_no_address_is_said_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="expected the endpoint's address as http://host:port") as caught:
        address_of(url)
    assert "secret" not in str(caught.value)


def test_the_key_goes_along_and_nowhere_else(
    predict: Predict, lane: Lane, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "key"
    path.write_text("s3cret-s3cret-s3cret\n")
    predict(images(1), opened={"key_file": path})
    assert lane.asked[0].headers["x-api-key"] == "s3cret-s3cret-s3cret"
    lane.failures = [Failed(grpc.StatusCode.UNAUTHENTICATED, "Client authentication failed.")]
    with pytest.raises(EndpointError) as caught:
        predict(images(1), opened={"key_file": path})
    assert "s3cret" not in str(caught.value) + repr(caught.value.__dict__) + caplog.text


@pytest.mark.parametrize("text", ["", "a b", "a\nb", "s3cret\x01", "schlüssel"])
def test_a_file_that_holds_no_key_is_named_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=str(path)) as caught:
        Client("http://127.0.0.1:9", PROJECT, key_file=path)
    assert text.strip() not in str(caught.value) or not text.strip()
    with pytest.raises(ConfigError, match="No such file"):
        Client("http://127.0.0.1:9", PROJECT, key_file=tmp_path / "none")
