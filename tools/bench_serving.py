"""Measure the endpoint against onnxruntime in process, and beside other model servers.

The two sides of a comparison are measured for two seconds each, one straight after the other, again and again, and
the middle half of their ratios is averaged: so a machine whose speed changes from minute to minute decides nothing.
The load is one process (`serving_bench/load.py`) on the same cores, the same for all. Writes
`.visionloop/bench/serving.json`; a measurement, not a test: exits 0 whether or not the goals hold. A quarter of an hour
on two cores.

    python tools/bench_serving.py                    all
    python tools/bench_serving.py --turns 3 --without-rivals
"""

import argparse
import base64
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import trim_mean
from serving_bench.bare_envoy import bare_envoy
from serving_bench.contenders import Images, Protocol, Rival, kserve, rivals, running, version_of

from visionloop import stack
from visionloop.data.images import to_array
from visionloop.demo import fashion
from visionloop.packaging.graph import INPUT, PROBABILITIES
from visionloop.packaging.onnx import export
from visionloop.packaging.quantize import quantize
from visionloop.packaging.session import open_session
from visionloop.project import Project
from visionloop.serving.client import connect
from visionloop.serving.envoy import read_addresses
from visionloop.serving.triton_config import render
from visionloop.settings import load_settings
from visionloop.stores import connect as connect_stores
from visionloop.tasks import open_task
from visionloop.training.model import Architecture, build

BENCH = Path(".visionloop/bench").absolute()
LOAD = Path(__file__).parent / "serving_bench" / "load.py"
GOALS = {
    "resnet18_1_image_c64": (0.85, "x in process"),
    "resnet18_16_images": (0.95, "x in process"),
    "demo_64_images": (0.85, "x in process"),
    "resnet18_p50_c1_added": (1.0, "ms"),
    "envoy_throughput_cost": (0.05, "share"),
    "envoy_p50_added": (0.5, "ms"),
    "capture_throughput_cost": (0.10, "share"),
    "ahead_in_throughput": (1.0, "x the best other"),
    "ahead_in_p99": (1.0, "x the best other"),
}
UNITS = {"demo_core_us_a_request": "us", "bare_envoy_throughput_cost": "share", "bare_envoy_p50_added": "ms"}
"""Of what has no goal and is no share of the speed in process."""
AT_LEAST = {"resnet18_1_image_c64", "resnet18_16_images", "demo_64_images", "ahead_in_throughput"}
"""The other goals are upper bounds."""

CONNECTIONS, FEW = 64, 8
BESIDE = 3
"""How often a rival and the endpoint take turns while the rival is up."""
ROUNDS = 2
"""How often each rival is started."""
CORES = os.cpu_count() or 1
SHOWN = 256
ANSWERS_DIFFER = 1e-3
Ask = Callable[[Images], NDArray[np.float32]]
Turn = dict[str, float]
"""Figure -> value, of one turn."""


class Way(NamedTuple):
    """How a model is run in process."""

    sessions: int
    threads: int
    """Of each session."""
    batch: int


@dataclass(frozen=True)
class Model:
    """A model, as it is served and as it is in process."""

    project: Project
    data: bytes
    images: Images
    best: Way

    @property
    def name(self) -> str:
        return self.project.name


class Ports(NamedTuple):
    """Of HTTP: of the stable lane, of a bare Envoy before it, of the endpoint."""

    direct: int
    bare: int
    through: int


@dataclass
class Bench:
    """How long, with whom."""

    seconds: float
    rivals: list[Rival] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    """What was not answered, by contender."""

    def load(self, who: str, protocol: Protocol, port: int, images: Images, connections: int) -> dict[str, float]:
        """Images a second, p50 and p99 in ms."""
        asked = {"port": port, "connections": connections, "warm_seconds": self.seconds / 3, "seconds": self.seconds}
        request = base64.b64encode(protocol.request(images, port)).decode()
        done = subprocess.run(
            [sys.executable, LOAD], input=json.dumps({**asked, "request": request}), check=True, capture_output=True,
            text=True,
        )  # fmt: skip
        found = json.loads(done.stdout)
        if found["errors"]:
            self.errors[who] = self.errors.get(who, 0) + sum(found["errors"].values())
        return {
            "rate": found["requests"] * len(images) / self.seconds,
            "p50": found["p50_ms"] or float("nan"),
            "p99": found["p99_ms"] or float("nan"),
        }


def main() -> None:
    """Make the models, start the endpoint, take turns, then the rivals."""
    asked, began = options(), time.monotonic()
    BENCH.mkdir(parents=True, exist_ok=True)
    bench = Bench(asked.seconds)
    resnet, demo = made("resnet18", 64, 3, int8=False), made("small_cnn", 28, 1, int8=True)
    files = {name: BENCH / name for name in ("rivals.onnx", "rivals-mlflow", "rivals.log")}
    if not asked.without_rivals:
        others = prepare_rivals()
        save_for_rivals(resnet, files)
        bench.rivals = rivals(others, files["rivals-mlflow"])
    turns: list[Turn] = []
    beside: dict[str, list[Turn]] = {rival.name: [] for rival in bench.rivals}
    with endpoint([resnet, demo]) as (direct, through, url), bare_envoy(BENCH, direct) as bare:
        for number in range(asked.turns):
            say(f"turn {number + 1} of {asked.turns}", began)
            turns.append(one_turn(bench, resnet, demo, Ports(direct, bare, through), url))
        for _ in range(ROUNDS):
            for rival in bench.rivals:
                beside[rival.name] += rival_turns(bench, rival, resnet, through, files)
    report = reported(bench, turns, beside, resnet, demo, time.monotonic() - began)
    (BENCH / "serving.json").write_text(json.dumps(report, indent=1) + "\n")
    show(report)


def options() -> argparse.Namespace:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=8, choices=range(1, 101), metavar="N", help="1 to 100")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of each measurement, after a third of it unmeasured"
    )
    parser.add_argument("--without-rivals", action="store_true")
    return parser.parse_args()


def made(backbone: str, side: int, channels: int, *, int8: bool) -> Model:
    """A network with seeded weights (they do not change its speed), and how it is fastest in process."""
    shape = {"height": side, "width": side, "channels": channels}
    task = {"classes": [str(number) for number in range(10)], "image": shape}
    name = f"bench-{backbone.replace('_', '-')}"
    draft = Project.model_validate(
        {
            "project": name,
            "task": task,
            "suite": {"scenarios": [{"name": "overall"}]},
            "release": {"approval": "automatic"},
        }
    )
    pixels, _ = fashion.clean("train", 0, 512)
    images = np.ascontiguousarray(to_array(pixels[..., None], draft.task.image))
    data = export(build(Architecture(backbone, 10, draft.task.image), seed=7), open_task(draft.task))
    if int8:
        data = quantize(data, images)
    rates = rates_in_process(data, images)
    best, chosen = max(rates, key=rates.__getitem__), to_serve(rates)
    for what, way in (("fastest in process", best), ("served as", chosen)):
        say(f"{name}, {what}: {way.sessions} x {way.threads} threads, batch {way.batch}, {rates[way]:.0f} images/s")
    serving = {"max_batch_size": 64, "instances": chosen.sessions, "threads": chosen.threads, "queue_delay_us": 0}
    project = Project.model_validate({**draft.model_dump(), "serving": {**draft.serving.model_dump(), **serving}})
    return Model(project, data, images[:SHOWN], best)


def rates_in_process(data: bytes, images: Images) -> dict[Way, float]:
    """Images a second of each way: the median of three, in turns."""
    ways = [Way(s, t, b) for s, t in {(1, CORES), (CORES, 1)} for b in (16, 32, 64, 128)]
    turns = [{way: in_process(data, images, way, seconds=0.5) for way in ways} for _ in range(3)]
    return {way: statistics.median(turn[way] for turn in turns) for way in ways}


def to_serve(rates: Mapping[Way, float]) -> Way:
    """Of those that are nearly the fastest, the one with the fewest sessions: it answers a single image soonest."""
    nearly = [way for way, rate in rates.items() if rate >= 0.95 * max(rates.values())]
    return min(nearly, key=lambda way: (way.sessions, -rates[way]))


def in_process(data: bytes, images: Images, way: Way, *, seconds: float) -> float:
    """Images a second, each session asked by a thread of its own."""
    opened = [open_session(data, threads=way.threads) for _ in range(way.sessions)]
    feed = {INPUT: np.resize(images, (way.batch, *images.shape[1:]))}
    for session in opened:
        session.run([PROBABILITIES], feed)
    ends = time.perf_counter() + seconds

    def work(session: ort.InferenceSession) -> int:
        runs = 0
        while time.perf_counter() < ends:
            session.run([PROBABILITIES], feed)
            runs += 1
        return runs

    start = time.perf_counter()
    with ThreadPoolExecutor(way.sessions) as pool:
        runs = sum(pool.map(work, opened))
    return runs * way.batch / (time.perf_counter() - start)


def in_process_p50_ms(data: bytes, image: Images, threads: int, seconds: float) -> float:
    """Of one image at a time."""
    session, times, feed = open_session(data, threads=threads), [], {INPUT: image}
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(times) < 20:
        start = time.perf_counter()
        session.run([PROBABILITIES], feed)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


@contextmanager
def endpoint(models: list[Model]) -> Iterator[tuple[int, int, str]]:
    """The real lanes and Envoy: HTTP port of the stable lane, of the endpoint, and its URL."""
    home = BENCH / "serving-home"
    os.environ["VISIONLOOP_HOME"] = str(home)
    shutil.rmtree(home, ignore_errors=True)
    try:
        stack.up(load_settings(), only=["envoy"])
        settings = load_settings()
        stores = connect_stores(settings)
        for model in models:
            entry = stores.stable.entry(model.name)
            digest = sha256(model.data).hexdigest()
            entry.write(version=1, config=render(model.project, 1), model=model.data, sha256=digest, signature="")
            stores.stable.load(model.name)
            captured(model, 0)
        assert settings.routes is not None and settings.endpoint_url is not None
        at = read_addresses(settings.routes)
        yield int(at.stable_http.rpartition(":")[2]), at.listener_port, settings.endpoint_url
    finally:
        stack.down(load_settings())
        shutil.rmtree(home, ignore_errors=True)


def captured(model: Model, percent: float) -> None:
    """Route the model to the stable lane, with so much of its traffic captured."""
    monitoring = model.project.monitoring.model_copy(update={"capture_percent": percent})
    project = model.project.model_copy(update={"monitoring": monitoring})
    connect_stores(load_settings()).routes.set(project, stable=100, canary=0)


def one_turn(bench: Bench, resnet: Model, demo: Model, ports: Ports, url: str) -> Turn:
    """In process, straight to Triton, through a bare Envoy and ours, by our client; what a goal compares adjoins."""
    one, many = resnet.images[:1], resnet.images[:16]
    protocol, demos = kserve(resnet.name), kserve(demo.name)
    check(resnet, lambda images: protocol.ask(images, ports.direct))
    check(demo, lambda images: demos.ask(images, ports.direct))
    found = named("resnet_direct_16", bench.load("direct", protocol, ports.direct, many, FEW))
    found["resnet_in_process"] = speed(resnet, bench.seconds)
    found |= named("resnet_direct", bench.load("direct", protocol, ports.direct, one, CONNECTIONS))
    found |= named("resnet_bare_envoy", bench.load("bare envoy", protocol, ports.bare, one, CONNECTIONS))
    found |= named("resnet_direct_again", bench.load("direct", protocol, ports.direct, one, CONNECTIONS))
    found |= named("resnet_envoy", bench.load("envoy", protocol, ports.through, one, CONNECTIONS))
    captured(resnet, 10)
    found |= named("resnet_captured", bench.load("captured", protocol, ports.through, one, CONNECTIONS))
    captured(resnet, 0)
    found["resnet_in_process_p50"] = in_process_p50_ms(resnet.data, one, CORES, bench.seconds)
    found |= named("resnet_direct_c1", bench.load("direct", protocol, ports.direct, one, 1))
    found |= named("resnet_bare_envoy_c1", bench.load("bare envoy", protocol, ports.bare, one, 1))
    found |= named("resnet_direct_c1_again", bench.load("direct", protocol, ports.direct, one, 1))
    found |= named("resnet_envoy_c1", bench.load("envoy", protocol, ports.through, one, 1))
    found["resnet_client"] = by_client(url, resnet, bench.seconds)
    found |= named("demo_direct_64", bench.load("direct", demos, ports.direct, demo.images[:64], FEW))
    found["demo_in_process"] = speed(demo, bench.seconds)
    found |= named("demo_direct_1", bench.load("direct", demos, ports.direct, demo.images[:1], CONNECTIONS))
    found["demo_client"] = by_client(url, demo, bench.seconds)
    return found


def rival_turns(bench: Bench, rival: Rival, model: Model, through: int, files: Mapping[str, Path]) -> list[Turn]:
    """One start of the rival, and the endpoint beside it; idle servers take memory and no processor."""
    side = ",".join(str(length) for length in model.images.shape[1:])
    environ = {
        "MODEL": str(files["rivals.onnx"]), "SHAPE": side, "THREADS": str(CORES),
        "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(BENCH / "bentoml"), "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    one, found = model.images[:1], []
    with running(rival, environ, files["rivals.log"], one) as port:
        check(model, lambda images: rival.protocol.ask(images, port), at_once=1)
        for _ in range(BESIDE):
            theirs = bench.load(rival.name, rival.protocol, port, one, CONNECTIONS)
            ours = bench.load("envoy", kserve(model.name), through, one, CONNECTIONS)
            found.append(named("theirs", theirs) | named("ours", ours))
    typical = medians(found)
    say(f"  {rival.name}: {typical['theirs.rate']:.0f} images/s, ours beside it {typical['ours.rate']:.0f}")
    return found


def speed(model: Model, seconds: float) -> float:
    """In process, at its best."""
    return in_process(model.data, model.images, model.best, seconds=seconds)


def by_client(url: str, model: Model, seconds: float) -> float:
    """Images a second of one call after the other with many images, as `visionloop predict` asks."""
    with connect(url, model.name) as client:
        client.predict(model.images)
        start, images = time.perf_counter(), 0
        while time.perf_counter() < start + seconds:
            images += len(client.predict(np.concatenate([model.images] * 4)))
        return images / (time.perf_counter() - start)


def check(model: Model, ask: Ask, *, at_once: int = 4) -> None:
    """Nobody is timed who answers something else than the model does in process."""
    for start in (0, 100):
        images = model.images[start : start + at_once]
        expected = open_session(model.data).run([PROBABILITIES], {INPUT: images})[0]
        difference = float(np.abs(ask(images) - expected).max())
        if difference > ANSWERS_DIFFER:
            raise RuntimeError(f"{model.name}: an answer differs by {difference:.4f} from that in process")


def named(name: str, figures: Mapping[str, float]) -> Turn:
    """With the contender's name before each."""
    return {f"{name}.{figure}": value for figure, value in figures.items()}


def prepare_rivals() -> Path:
    """The environment of the other servers, as the lock file has it."""
    place = BENCH / "rivals-venv"
    python, lock = place / "bin" / "python", Path("requirements/rivals.txt")
    done = place / "installed"
    if not done.is_file() or done.stat().st_mtime < lock.stat().st_mtime:
        say("installing the other servers")
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        uv = Path(sys.executable).parent / "uv"
        command = [uv, "pip", "sync", "-q", "--python", python, "--require-hashes", "--compile-bytecode", lock]
        subprocess.run(command, check=True)
        done.touch()
    return place


def save_for_rivals(model: Model, files: Mapping[str, Path]) -> None:
    """The same graph with its probabilities alone, as a file and as MLflow's own format."""
    import mlflow.onnx
    from mlflow.models import infer_signature

    proto = onnx.load_from_string(model.data)
    kept = [output for output in proto.graph.output if output.name == PROBABILITIES]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    onnx.save(proto, files["rivals.onnx"])
    shutil.rmtree(files["rivals-mlflow"], ignore_errors=True)
    answer = open_session(model.data).run([PROBABILITIES], {INPUT: model.images[:2]})[0]
    signature = infer_signature({INPUT: model.images[:2]}, {PROBABILITIES: answer})
    mlflow.onnx.save_model(proto, files["rivals-mlflow"], signature=signature, pip_requirements=["onnxruntime"])


def reported(
    bench: Bench, turns: list[Turn], beside: Mapping[str, list[Turn]], resnet: Model, demo: Model, seconds: float
) -> dict[str, Any]:
    """The measures with their goals, what each contender did, and on what."""
    comparisons = compared(turns) | ahead(beside)
    return {
        "measures": {name: entry(name, ratios) for name, ratios in comparisons.items()},
        "contenders": rounded(medians(turns)),
        "beside": {name: rounded(medians(found)) for name, found in beside.items()},
        "turns": [rounded(turn) for turn in turns],
        "unanswered": bench.errors,
        "in_process": {model.name: model.best._asdict() for model in (resnet, demo)},
        "served": {
            model.name: model.project.serving.model_dump(include={"instances", "threads"}) for model in (resnet, demo)
        },
        "rivals": {rival.name: {"version": version_of(rival), "batching": rival.batching} for rival in bench.rivals},
        "seconds": round(seconds, 1),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": CORES},
        "versions": {name: version(name) for name in ("onnxruntime", "tritonclient", "mlflow", "ray")},
    }


def rounded(turn: Turn) -> Turn:
    """For the report."""
    return {name: round(value, 3) for name, value in turn.items()}


def medians(turns: list[Turn]) -> Turn:
    """Of each figure, over the turns."""
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


def middle(ratios: list[float]) -> float:
    """The mean of the middle half: as hard to mislead as the median, and answers that come in batches round nothing."""
    return float(trim_mean(ratios, 0.25))


def compared(turns: list[Turn]) -> dict[str, list[float]]:
    """What the goals are about: each a comparison within a turn."""
    made: dict[str, list[float]] = defaultdict(list)
    for each in turns:
        base = each["resnet_in_process"]
        made["resnet18_1_image_c64"].append(each["resnet_direct.rate"] / base)
        made["resnet18_16_images"].append(each["resnet_direct_16.rate"] / base)
        made["resnet18_client"].append(each["resnet_client"] / base)
        made["resnet18_p50_c1_added"].append(each["resnet_direct_c1.p50"] - each["resnet_in_process_p50"])
        made["envoy_throughput_cost"].append(1 - each["resnet_envoy.rate"] / each["resnet_direct_again.rate"])
        made["envoy_p50_added"].append(each["resnet_envoy_c1.p50"] - each["resnet_direct_c1_again.p50"])
        made["bare_envoy_throughput_cost"].append(1 - each["resnet_bare_envoy.rate"] / each["resnet_direct.rate"])
        made["bare_envoy_p50_added"].append(each["resnet_bare_envoy_c1.p50"] - each["resnet_direct_c1.p50"])
        made["capture_throughput_cost"].append(1 - each["resnet_captured.rate"] / each["resnet_envoy.rate"])
        made["demo_64_images"].append(each["demo_direct_64.rate"] / each["demo_in_process"])
        made["demo_client"].append(each["demo_client"] / each["demo_in_process"])
        made["demo_1_image_c64"].append(each["demo_direct_1.rate"] / each["demo_in_process"])
        made["demo_core_us_a_request"].append(1e6 * CORES / each["demo_direct_1.rate"])
    return made


def ahead(beside: Mapping[str, list[Turn]]) -> dict[str, list[float]]:
    """Of the rival that comes nearest: in throughput, and in p99, which need not be the same."""
    if not beside:
        return {}
    rates = [[each["ours.rate"] / each["theirs.rate"] for each in found] for found in beside.values()]
    tails = [[each["ours.p99"] / each["theirs.p99"] for each in found] for found in beside.values()]
    return {
        "ahead_in_throughput": min(rates, key=middle),
        "ahead_in_p99": max(tails, key=middle),
    }


def entry(name: str, ratios: list[float]) -> dict[str, Any]:
    """A measure, the middle half of its turns, and its goal."""
    goal, unit = GOALS.get(name, (None, UNITS.get(name, "x in process")))
    value = middle(ratios)
    holds = None if goal is None else value >= goal if name in AT_LEAST else value <= goal
    low, high = np.quantile(ratios, (0.25, 0.75))
    return {
        "value": round(value, 3), "middle_half": [round(float(low), 3), round(float(high), 3)],
        "goal": goal, "holds": holds, "unit": unit,
    }  # fmt: skip


def say(text: str, since: float | None = None) -> None:
    """Progress."""
    print(text if since is None else f"{text} ({time.monotonic() - since:.0f} s)", flush=True)


def show(report: dict[str, Any]) -> None:
    """The tables that a person reads."""
    console = Console()
    table = Table("measure", "value", "middle half", "goal", "holds")
    for name, measure in report["measures"].items():
        bound = "" if measure["goal"] is None else f"{'>=' if name in AT_LEAST else '<='} {measure['goal']}"
        holds = "" if measure["holds"] is None else str(measure["holds"])
        half = " to ".join(str(end) for end in measure["middle_half"])
        table.add_row(name, f"{measure['value']} {measure['unit']}", half, bound, holds)
    console.print(table)
    beside = Table("ResNet-18, one image a request, 64 connections", "images/s", "p50 ms", "p99 ms")
    rows = [(name, report["contenders"], f"resnet_{name}") for name in ("direct", "bare_envoy", "envoy", "captured")]
    rows += [(name, found, "theirs") for name, found in report["beside"].items()]
    for name, found, key in rows:
        beside.add_row(name, *(f"{found[f'{key}.{figure}']:.1f}" for figure in ("rate", "p50", "p99")))
    console.print(beside)
    if report["unanswered"]:
        console.print(f"not answered: {report['unanswered']}")


if __name__ == "__main__":
    main()
