"""What is wrong, too large, too slow or too much gets a clear error, and costs no lane and no other client anything."""

import contextlib
import gzip
import shutil
import signal
import struct
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from visionloop.serving.client import Client
from visionloop.serving.envoy_limits import Limits
from visionloop.stages import release
from visionloop.stores.routes import open_routes
from visionloop.stores.triton import open_lane

from . import mistakes, servers, tiny
from .conftest import make_project, put
from .mistakes import MODEL, Mistake, Wire, ask_grpc
from .world import World

QUICK = Limits(headers_seconds=1.0, request_seconds=2.0, idle_seconds=3.0)
FLOOD, AT_ONCE = 10_000, 25
"""Bad requests of the flood, and those sent on a connection before its answers are read."""
GROWTH_BYTES = 16 << 20
"""How much a server's memory may grow during the flood; measured: below 4 MiB."""


@pytest.fixture(scope="module")
def here():
    """Servers of this module's own, and a model in both lanes at 50 %."""
    folder = Path(tempfile.mkdtemp(prefix="vlb-"))
    found = servers.Servers(folder)
    try:
        found.link_backends()
        for lane in servers.LANES:
            found.start_lane(lane)
        found.start_envoy(limits=QUICK)
        project = make_project(found, MODEL)
        for version, lane in enumerate(servers.LANES, 1):
            put(found, project, lane, version)
        routes = open_routes(found.settings)
        routes.set(project, stable=50, canary=50)
        assert routes.wait_healthy(MODEL, "canary")
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def port(here):
    return here.ports["listener"]


@pytest.fixture
def channel(port):
    with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened


@pytest.fixture
def blameless(here):
    """What the test does is no lane's fault: none is charged with an error, and none is ejected."""
    before = blame(here)
    yield
    assert blame(here) == before


def blame(here) -> tuple[dict[str, int], int]:
    """Errors that each lane is charged with, and how often one was ejected."""
    routes = open_routes(here.settings)
    ejected = routes._stats(f"cluster.{MODEL}/canary/")
    kinds = [value for name, value in ejected.items() if name.endswith("ejections_enforced_total")]
    return {lane: count.errors for lane, count in routes.lane_stats(MODEL).items()}, sum(kinds)


def get(port: int, path: str) -> int:
    with Wire(port) as wire:
        return wire.send(Mistake("", 0, "", b"", path=path, method="GET").wire()).answer()[0]


@pytest.mark.parametrize("mistake", mistakes.HTTP, ids=lambda mistake: mistake.name)
def test_a_mistake_over_http_is_named_and_is_nobodys_but_the_clients(blameless, port, mistake):
    for _ in range(4):  # both lanes
        with Wire(port) as wire:
            status, text = wire.send(mistake.wire()).answer()
        assert (status, mistake.says in text) == (mistake.status, True), text


@pytest.mark.parametrize(("data", "code", "says"), [pytest.param(d, c, s, id=n) for n, c, s, d in mistakes.GRPC])
def test_a_mistake_over_grpc_is_named_and_is_nobodys_but_the_clients(blameless, channel, data, code, says):
    for _ in range(4):
        found, text = ask_grpc(channel, data)
        assert (found, says in text) == (code, True), text


@pytest.mark.parametrize("mistake", mistakes.DEADLY, ids=lambda mistake: mistake.name)
def test_what_would_kill_a_lane_does_not_reach_one(blameless, here, port, mistake):
    for _ in range(2):
        with Wire(port) as wire:
            status, text = wire.send(mistake.wire()).answer()
        assert (status, mistake.says in text) == (mistake.status, True), text
    assert [here.processes[lane].poll() for lane in servers.LANES] == [None, None]


def test_what_is_good_is_answered_whatever_is_looked_at(blameless, port):
    """Nested as tensors are, brackets in texts, packed; above 64 KiB bodies are looked at."""
    images = tiny.images(64)
    for extra in ({}, {"id": "[" * 100}, {"id": '\\"[' * 100}):
        body = mistakes.document(mistakes.tensor(shape=[64, 8, 8, 1], data=images.tolist()), **extra) + b" " * (
            64 << 10
        )
        for sent, headers in ((body, {}), (gzip.compress(body), {"content-encoding": "gzip"})):
            with Wire(port) as wire:
                assert wire.send(Mistake("", 200, "", sent, headers).wire()).answer()[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"[" * 64 + b"]" * 64 + b" " * (64 << 10), 400, "Unable to parse 'inputs'"),
        (b"[" * 65 + b"]" * 65 + b" " * (64 << 10), 400, "expected JSON of at most 64 nested brackets"),
        (b"[" * (64 << 10), 400, "failed to parse the request JSON buffer"),  # not looked at, and does no harm
        (b"[" * ((64 << 10) + 1), 400, "expected JSON of at most 64 nested brackets"),
        (b" " * (16 << 20), 400, "failed to parse the request JSON buffer"),
        (b" " * ((16 << 20) + 1), 413, "expected a request of at most 16777216 bytes"),
    ],
    ids=["64 deep", "65 deep", "64 KiB", "64 KiB and 1", "16 MiB", "16 MiB and 1"],
)
def test_both_sides_of_each_limit(blameless, here, port, body, status, says):
    with Wire(port) as wire:
        found, text = wire.send(Mistake("", status, says, body).wire()).answer()
    assert (found, says in text) == (status, True), text
    assert [here.processes[lane].poll() for lane in servers.LANES] == [None, None]


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ([("grpc-timeout-bin", b"x")], "OK"),
        ([("grpc-previous-rpc-attempts", "many")], "OK"),
        ([("x-model", "nobody")], "OK"),
        ([("x-envoy-upstream-rq-timeout-ms", "1")], "OK"),
        ([("x-envoy-upstream-rq-per-try-timeout-ms", "1")], "OK"),
    ],
)
def test_headers_steer_neither_the_endpoint_nor_a_lane(blameless, channel, metadata, code):
    for _ in range(4):
        assert ask_grpc(channel, mistakes.message(), metadata=metadata) == (code, "")


@pytest.mark.parametrize("frame", [b"\0\0", struct.pack(">BI", 0, 2 << 30), struct.pack(">BI", 1, 5) + b"hello"])
@pytest.mark.parametrize("path", [mistakes.GRPC_INFER, "/inference.GRPCInferenceService/ModelConfig"])
def test_a_grpc_frame_that_is_not_whole_or_is_packed_stops_at_the_endpoint(blameless, port, path, frame):
    head = refused_frame(port, frame, path)
    assert b"grpc-status: 3" in head or b"grpc-status: 12" in head, head
    assert b"grpc-message: " in head
    assert b"x-lane" not in head


@pytest.mark.parametrize("method", ["DELETE", "GET", "PUT"])
def test_grpc_with_another_method_stops_at_the_endpoint(blameless, here, port, method):
    """Triton dies of the first."""
    data = mistakes.message()
    head = refused_frame(port, struct.pack(">BI", 0, len(data)) + data, mistakes.GRPC_INFER, method)
    assert b"grpc-status: 12" in head
    assert b"expected the method POST" in head
    assert [here.processes[lane].poll() for lane in servers.LANES] == [None, None]


def refused_frame(port: int, frame: bytes, path: str, method: str = "POST") -> bytes:
    """The answer to bytes that call themselves gRPC: in HTTP/1.1, where a refusal is a head and nothing else."""
    wrong = Mistake("", 200, "", frame, {"content-type": "application/grpc"}, path, method)
    with Wire(port) as wire:
        return wire.send(wrong.wire()).head()


def test_two_gib_that_are_announced_are_refused_by_the_head(blameless, port):
    begun = time.monotonic()
    announced = Mistake("", 413, "", b"", {"content-length": str(2 << 30)})
    with Wire(port) as wire:
        status, text = wire.send(announced.wire()).answer()
        assert wire.rest() == b""  # closed: the rest would not be read
    assert (status, f"at most {16 << 20} bytes" in text, f"{2 << 30}" in text) == (413, True, True)
    assert time.monotonic() - begun < QUICK.headers_seconds + 1


@pytest.mark.parametrize("announced", [32 << 20, (32 << 20) + 1])
def test_a_length_is_believed_where_the_body_would_be_too_much_to_read(blameless, port, announced):
    """Up to twice the limit the body is read to the limit first."""
    with Wire(port) as wire:
        wire.send(Mistake("", 413, "", b"", {"content-length": str(announced)}).wire())
        status, text = wire.answer()
    wanted = (408, "expected a whole request") if announced == 32 << 20 else (413, f"announced: {announced} bytes")
    assert (status, wanted[1] in text) == (wanted[0], True), text


@pytest.mark.parametrize("by", [-1, 1])
def test_a_body_of_another_length_than_announced(blameless, port, by):
    body = mistakes.document()
    with Wire(port) as wire:
        wire.send(Mistake("", 0, "", body, {"content-length": str(len(body) - by)}).wire())
        status, text = wire.answer()
        wanted = (400, "failed to parse the request JSON") if by > 0 else (408, "expected a whole request within 2 s")
        assert (status, wanted[1] in text) == (wanted[0], True), text


def test_an_http_client_that_goes_away_costs_nothing(blameless, port, channel):
    whole = Mistake("", 0, "", mistakes.document()).wire()
    for cut in (10, len(whole) - 20, len(whole)):
        for _ in range(10):
            Wire(port).send(whole[:cut]).__exit__()
    assert ask_grpc(channel, mistakes.message())[0] == "OK"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (bytes(range(1, 256)) * 4, b"400 Bad Request"),
        (b"GET / HTTP/9.9\r\n\r\n", b"426 Upgrade Required"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 300, b"SETTINGS expected"),
    ],
)
def test_bytes_that_are_no_http_are_refused_and_the_connection_is_closed(blameless, port, data, says):
    with Wire(port) as wire:
        assert says in wire.send(data).rest()


def test_slow_clients_hold_nothing(blameless, port):
    """Neither a head nor a body that trickles, nor silence; meanwhile others are answered."""
    whole = Mistake("", 0, "", mistakes.document()).wire()
    at_body = whole.index(b"\r\n\r\n") + 10
    slow = [Wire(port).send(whole[:part]) for part in (20, at_body)]
    silent = Wire(port)
    begun, sent = time.monotonic(), 0
    while time.monotonic() - begun < QUICK.request_seconds - 0.5:
        for wire, start in zip(slow, (20, at_body), strict=True):
            with contextlib.suppress(OSError):  # closed on it, as it must be in the end
                wire.send(whole[start + sent : start + sent + 1])
        sent += 1
        with Wire(port) as good:
            assert good.send(whole).answer()[0] == 200
        time.sleep(0.1)
    for wire in slow:
        status, text = wire.answer()
        assert (status, "expected a whole request within" in text) == (408, True), text
    assert silent.rest() == b""
    assert time.monotonic() - begun < QUICK.idle_seconds + 3


def test_more_than_may_be_under_way_are_refused(here, port):
    project = make_project(here, "narrow")
    serving = project.serving.model_copy(update={"max_in_flight": 1})
    put(here, project, "stable", 1, busy=16)
    open_routes(here.settings).set(project.model_copy(update={"serving": serving}), stable=100, canary=0)
    wires = [
        Wire(port).send(Mistake("", 0, "", mistakes.document(), path="/v2/models/narrow/infer").wire())
        for _ in range(30)
    ]
    found = [wire.answer() for wire in wires]
    assert {status for status, _ in found} == {200, 503}
    assert {wire.heads["retry-after"] for wire, (status, _) in zip(wires, found, strict=True) if status == 503} == {"1"}
    assert all("too many requests are under way to this lane" in text for status, text in found if status == 503)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, ThreadPoolExecutor(20) as pool:
        codes = list(pool.map(lambda _: ask_grpc(channel, mistakes.message(model="narrow")), range(40)))
    assert {code for code, _ in codes} == {"OK", "RESOURCE_EXHAUSTED"}
    assert all("too many requests are under way" in text for code, text in codes if code != "OK")
    with Client(here.settings.need("endpoint_url"), project) as client, ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: client.predict(tiny.images(1)), range(3)))  # it waits as long as it is told to
    assert len(found) == 3


def test_a_stuck_lane_ends_with_a_deadline(here, port, channel):
    routes, project = open_routes(here.settings), make_project(here, "stuck")
    put(here, project, "stable", 1)
    routes.set(
        project.model_copy(update={"serving": project.serving.model_copy(update={"timeout_ms": 700})}),
        stable=100,
        canary=0,
    )
    here.kill("stable", signal.SIGSTOP)
    try:
        found = ask_grpc(channel, mistakes.message(model="stuck"))
        with Wire(port) as wire:
            status, text = wire.send(
                Mistake("", 0, "", mistakes.document(), path="/v2/models/stuck/infer").wire()
            ).answer()
    finally:
        here.kill("stable", signal.SIGCONT)
    assert (status, "did not answer within its time-out" in text) == (504, True)
    assert (found[0], "did not answer within its time-out" in found[1]) == ("DEADLINE_EXCEEDED", True)


def test_ready_is_whether_an_inference_would_be_answered_and_alive_is_the_endpoint(here, port):
    paths = ("/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}/ready")

    def becomes(*wanted: int) -> None:
        deadline = time.monotonic() + 15
        while (found := tuple(get(port, path) for path in paths)) != wanted:
            assert time.monotonic() < deadline, f"{found}, expected {wanted}"
            time.sleep(0.1)

    lanes = {name: open_lane(here.settings, name) for name in servers.LANES}
    becomes(200, 200, 200)
    lanes["canary"].unload(MODEL)
    becomes(200, 200, 200)  # what the canary would have answered, the stable lane does
    lanes["stable"].unload(MODEL)
    becomes(200, 200, 503)  # the server is there, the model is not
    for lane in lanes.values():
        lane.load(MODEL)
    becomes(200, 200, 200)
    assert open_routes(here.settings).wait_healthy(MODEL, "canary")
    children = psutil.Process(here.processes["stable"].pid).children()
    [stub] = [child for child in children if any(f"/{MODEL}/" in word for word in child.cmdline())]
    stub.kill()
    becomes(200, 200, 503)  # Triton itself says ready for ever
    assert get(port, f"/v2/models/{MODEL}/versions/1/ready") == 503
    here.kill("stable")
    becomes(200, 503, 503)
    here.start_lane("stable")
    becomes(200, 200, 200)


def test_ten_thousand_bad_requests_and_a_good_client(blameless, here, port):
    """The good client is answered rightly all the while, and no server grows."""
    goods = Good(here)
    flood(port, FLOOD // 10)  # what is kept once
    before = {name: resident(here, name) for name in ("envoy", *servers.LANES)}
    begun = time.monotonic()
    with goods:
        answered = flood(port, FLOOD)
    seconds = time.monotonic() - begun
    grown = {name: resident(here, name) - size for name, size in before.items()}
    print(f"{answered.total()} bad requests in {seconds:.1f} s beside {goods.answers} good; grown {grown}: {answered}")
    assert answered.total() == FLOOD
    assert set(answered) == {400, 404, 405, 413, "INVALID_ARGUMENT", "NOT_FOUND"}
    assert goods.faults == []
    assert goods.answers["stable"] > 20
    assert goods.answers["canary"] > 20
    assert all(size < GROWTH_BYTES for size in grown.values()), grown
    assert get(port, f"/v2/models/{MODEL}/ready") == 200
    assert open_routes(here.settings).wait_healthy(MODEL, "canary")


def test_a_client_that_sends_nonsense_does_not_roll_back_a_good_canary(here, port):
    """Triton answers it with 500, and all of it is on the canary's account too."""
    world = World(here, make_project(here, "spared"))
    world.release(1)
    inputs = world.inputs(world.candidate(2, bias=0.5))
    release.preflight(world.project, inputs, world.stores)
    wrong = Mistake("", 400, "", b"{", path="/v2/models/spared/infer").wire()
    end, statuses = threading.Event(), Counter()

    def send() -> None:
        with Wire(port) as wire:
            while not end.wait(0.005):
                statuses[wire.send(wrong).answer()[0]] += 1

    client = threading.Thread(target=send)
    client.start()
    try:
        release.canary(world.project, inputs, world.stores)
    finally:
        end.set()
        client.join()
    done = release.promote(world.project, inputs, world.stores)
    assert (done.outcome, set(statuses)) == ("promoted", {400})
    assert statuses[400] > 100


def test_a_client_that_asks_too_often_waits_and_others_do_not(here):
    """Each key has a count of its own, and the loop's own key none."""
    keys = {"visionloop": "own-key-own-key-own", "belt": "belt-key-belt-key-b", "door": "door-key-door-key-d"}
    here.kill("envoy")
    here.start_envoy(keys=keys, limits=Limits(client_requests_per_second=10))
    port, infer = here.ports["listener"], mistakes.document()

    def ask(client: str) -> tuple[int, str]:
        with Wire(port) as wire:
            return wire.send(Mistake("", 0, "", infer, {"x-api-key": keys[client]}).wire()).answer()

    found = {
        client: [ask(client) for _ in range(times)]
        for client, times in {"belt": 40, "door": 5, "visionloop": 40}.items()
    }
    counts = {client: Counter(status for status, _ in answers) for client, answers in found.items()}
    assert counts["belt"][429] > 0
    assert counts["belt"][200] >= 20
    assert (counts["door"], counts["visionloop"]) == ({200: 5}, {200: 40})
    assert "at most 10 requests a second of one client" in next(text for status, text in found["belt"] if status == 429)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        codes = [ask_grpc(channel, mistakes.message(), metadata=[("x-api-key", keys["belt"])]) for _ in range(40)]
    assert "RESOURCE_EXHAUSTED" in {code for code, _ in codes}
    assert {code for code, _ in codes} <= {"OK", "RESOURCE_EXHAUSTED"}
    (here.folder / "belt").write_text(keys["belt"])
    with Client(here.settings.need("endpoint_url"), make_project(here, MODEL), key_file=here.folder / "belt") as client:
        assert client.predict(tiny.images(1))[0].label in tiny.CLASSES  # it waits as long as it is told to
    assert get(port, "/v2/health/live") == 200


def test_an_endpoint_that_is_full_says_so_and_stays(here):
    here.kill("envoy")
    here.start_envoy(limits=Limits(heap_mib=1))
    port, asked = here.ports["listener"], Mistake("", 0, "", mistakes.document()).wire()
    deadline, status = time.monotonic() + 5, 200  # it measures itself four times a second
    while status == 200:
        assert time.monotonic() < deadline
        with Wire(port) as wire:
            status, text = wire.send(asked).answer()
    assert (status, "takes no request now (envoy overloaded)" in text) == (503, True), text
    assert wire.heads["retry-after"] == "1"
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        code, text = ask_grpc(channel, mistakes.message())
    assert (code, "takes no request now (envoy overloaded)" in text) == ("RESOURCE_EXHAUSTED", True), text
    here.kill("envoy")
    here.start_envoy(limits=Limits(max_connections=3))
    few = [Wire(port) for _ in range(3)]
    assert [wire.send(asked).answer()[0] for wire in few] == [200] * 3
    with pytest.raises(ConnectionError), Wire(port) as one_more:
        one_more.send(asked).answer()
    for wire in few:
        wire.__exit__()
    deadline, answered = time.monotonic() + 5, 0
    while answered != 200:  # as soon as it has seen them go
        assert time.monotonic() < deadline
        with contextlib.suppress(ConnectionError), Wire(port) as again:
            answered, _ = again.send(asked).answer()


class Good:
    """A client that asks what is right, all the while; a context manager."""

    def __init__(self, here) -> None:
        self._project, self._url = make_project(here, MODEL), here.settings.need("endpoint_url")
        self._batch = tiny.images(5)
        self._expected = tiny.offline(here.folder / f"{MODEL}-1.onnx", self._batch)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.answers: Counter = Counter()
        self.faults: list[str] = []

    def __enter__(self) -> "Good":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join(20)

    def _ask(self) -> None:
        with Client(self._url, self._project, most_tries=1) as client:
            while not self._end.wait(0.01):
                try:
                    answers = client.predict(self._batch)
                except Exception as error:
                    self.faults.append(str(error))
                    continue
                self.answers[answers[0].lane] += 1
                if not np.allclose([answer.probabilities for answer in answers], self._expected, atol=1e-5):
                    self.faults.append(f"another answer: {answers}")


def flood(port: int, count: int) -> Counter:
    """Send so many bad requests of all kinds, some at once; returns how many got which answer."""
    over_http, over_grpc, aside = count * 6 // 10, count * 3 // 10, count // 10
    with ThreadPoolExecutor(6) as pool:
        parts = [pool.submit(in_rows, port, over_http // 2) for _ in range(2)]
        parts += [pool.submit(calls, port, over_grpc // 2) for _ in range(2)]
        parts += [pool.submit(one_by_one, port, aside // 2) for _ in range(2)]
        return sum((part.result() for part in parts), Counter())


def in_rows(port: int, count: int) -> Counter:
    """Over HTTP, many on their way at once; every answer is read and must be the one of its request."""
    kinds = [mistake for mistake in mistakes.HTTP if mistake.status in (400, 404, 405)]
    row = [kinds[number % len(kinds)] for number in range(count)]
    found: Counter = Counter()
    with Wire(port) as wire:
        for start in range(0, count, AT_ONCE):
            part = row[start : start + AT_ONCE]
            wire.send(b"".join(mistake.wire() for mistake in part))
            for mistake in part:
                status, text = wire.answer()
                assert (status, mistake.says in text) == (mistake.status, True), text
                found[status] += 1
    return found


def calls(port: int, count: int) -> Counter:
    """Over gRPC."""
    kinds = [(code, data) for _, code, _, data in mistakes.GRPC if len(data) < 1000]
    found: Counter = Counter()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(mistakes.GRPC_INFER, request_serializer=bytes, response_deserializer=bytes)
        for start in range(0, count, AT_ONCE):
            part = [kinds[number % len(kinds)] for number in range(start, min(start + AT_ONCE, count))]
            for (code, _), begun in [(kind, call.future(kind[1], timeout=20)) for kind in part]:
                assert begun.code().name == code
                found[code] += 1
    return found


def one_by_one(port: int, count: int) -> Counter:
    """What ends its connection: bytes that are no HTTP, and bodies of 2 GiB."""
    large = Mistake("", 413, "", b"", {"content-length": str(2 << 30)}).wire()
    found: Counter = Counter()
    for number in range(count):
        with Wire(port) as wire:
            found[wire.send(large if number % 2 else bytes(range(1, 256))).answer()[0]] += 1
    return found


def resident(here, name: str) -> int:
    """Bytes of a server's memory, that of its models' processes included."""
    server = psutil.Process(here.processes[name].pid)
    return sum(process.memory_info().rss for process in (server, *server.children(recursive=True)))
