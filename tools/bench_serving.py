"""Measure the endpoint against onnxruntime in process, and beside other model servers.

Every figure is a ratio within a round; a round visits everybody, and the median over the rounds counts. The load is one
process (`serving_bench/load.py`) on the same cores, the same for all. Writes `.visionloop/bench/serving.json`; a
measurement, not a test: exits 0 whether or not the goals hold. Ten minutes on two
cores, where the other servers are installed already.

    python tools/bench_serving.py                    all
    python tools/bench_serving.py --rounds 1 --seconds 2 --without-rivals
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
CORES = os.cpu_count() or 1
SHOWN = 256
ANSWERS_DIFFER = 1e-3
Ask = Callable[[Images], NDArray[np.float32]]
Round = dict[str, float]
"""Figure -> value, of one round."""


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


@dataclass
class Bench:
    """How long, how often, with whom."""

    seconds: float
    warm_seconds: float
    rounds: int
    rivals: list[Rival] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    """What was not answered, by contender."""

    def load(self, who: str, protocol: Protocol, port: int, images: Images, connections: int) -> dict[str, float]:
        """Images a second, p50 and p99 in ms."""
        asked = {"port": port, "connections": connections, "warm_seconds": self.warm_seconds, "seconds": self.seconds}
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
    """Make the models, start the endpoint, go round."""
    bench, without = options()
    began = time.monotonic()
    BENCH.mkdir(parents=True, exist_ok=True)
    resnet, demo = made("resnet18", 64, 3, int8=False), made("small_cnn", 28, 1, int8=True)
    files = {name: BENCH / name for name in ("rivals.onnx", "rivals-mlflow", "rivals.log")}
    if not without:
        others = prepare_rivals()
        save_for_rivals(resnet, files)
        bench.rivals = rivals(others, files["rivals-mlflow"])
    found = []
    with endpoint([resnet, demo]) as (direct, through, url):
        for number in range(bench.rounds):
            say(f"round {number + 1} of {bench.rounds}", began)
            found.append(one_round(bench, resnet, demo, direct, through, url) | rivals_round(bench, resnet, files))
    report = reported(bench, found, resnet, demo, time.monotonic() - began)
    (BENCH / "serving.json").write_text(json.dumps(report, indent=1) + "\n")
    show(report)


def options() -> tuple[Bench, bool]:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="of each measurement, after a third of it unmeasured"
    )
    parser.add_argument("--without-rivals", action="store_true")
    asked = parser.parse_args()
    return Bench(asked.seconds, asked.seconds / 3, asked.rounds), asked.without_rivals


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


def one_round(bench: Bench, resnet: Model, demo: Model, direct: int, through: int, url: str) -> Round:
    """In process, straight to Triton, through a bare Envoy and ours, and with our own client."""
    one, many = resnet.images[:1], resnet.images[:16]
    protocol, demos = kserve(resnet.name), kserve(demo.name)
    check(resnet, lambda images: protocol.ask(images, direct))
    check(demo, lambda images: demos.ask(images, direct))
    found = {
        "resnet_in_process": speed(resnet, bench.seconds),
        "resnet_in_process_p50": in_process_p50_ms(resnet.data, one, CORES, bench.seconds / 2),
    }
    found |= named("resnet_direct", bench.load("direct", protocol, direct, one, CONNECTIONS))
    with bare_envoy(BENCH, direct) as bare:
        found |= named("resnet_bare_envoy", bench.load("bare envoy", protocol, bare, one, CONNECTIONS))
        found |= named("resnet_bare_envoy_c1", bench.load("bare envoy", protocol, bare, one, 1))
    found |= named("resnet_envoy", bench.load("envoy", protocol, through, one, CONNECTIONS))
    captured(resnet, 10)
    found |= named("resnet_captured", bench.load("captured", protocol, through, one, CONNECTIONS))
    captured(resnet, 0)
    found |= named("resnet_direct_16", bench.load("direct", protocol, direct, many, FEW))
    found |= named("resnet_direct_c1", bench.load("direct", protocol, direct, one, 1))
    found |= named("resnet_envoy_c1", bench.load("envoy", protocol, through, one, 1))
    found["resnet_client"] = by_client(url, resnet, bench.seconds)
    found["demo_in_process"] = speed(demo, bench.seconds)
    found |= named("demo_direct_64", bench.load("direct", demos, direct, demo.images[:64], FEW))
    found |= named("demo_direct_1", bench.load("direct", demos, direct, demo.images[:1], CONNECTIONS))
    found["demo_client"] = by_client(url, demo, bench.seconds)
    return found


def rivals_round(bench: Bench, model: Model, files: Mapping[str, Path]) -> Round:
    """Each rival alone, started and ended."""
    found: Round = {}
    side = ",".join(str(length) for length in model.images.shape[1:])
    environ = {
        "MODEL": str(files["rivals.onnx"]), "SHAPE": side, "THREADS": str(CORES),
        "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(BENCH / "bentoml"), "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    for rival in bench.rivals:
        with running(rival, environ, files["rivals.log"], model.images[:1]) as port:
            check(model, lambda images, port=port, rival=rival: rival.protocol.ask(images, port), at_once=1)
            figures = bench.load(rival.name, rival.protocol, port, model.images[:1], CONNECTIONS)
        found |= named(rival.name, figures)
        say(f"  {rival.name}: {figures['rate']:.0f} images/s, p99 {figures['p99']:.0f} ms")
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


def named(name: str, figures: Mapping[str, float]) -> Round:
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


def reported(bench: Bench, found: list[Round], resnet: Model, demo: Model, seconds: float) -> dict[str, Any]:
    """The measures with their goals, what each contender did, and on what."""
    return {
        "measures": {name: entry(name, value) for name, value in measures(bench, found).items()},
        "contenders": {name: round(value, 3) for name, value in medians(found).items()},
        "rounds": [{name: round(value, 3) for name, value in each.items()} for each in found],
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


def medians(found: list[Round]) -> Round:
    """Of each figure, over the rounds."""
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def measures(bench: Bench, found: list[Round]) -> Round:
    """What the goals are about: each a comparison within a round, the median over the rounds."""
    made: dict[str, list[float]] = defaultdict(list)
    for each in found:
        base = each["resnet_in_process"]
        made["resnet18_1_image_c64"].append(each["resnet_direct.rate"] / base)
        made["resnet18_16_images"].append(each["resnet_direct_16.rate"] / base)
        made["resnet18_client"].append(each["resnet_client"] / base)
        made["resnet18_p50_c1_added"].append(each["resnet_direct_c1.p50"] - each["resnet_in_process_p50"])
        made["envoy_throughput_cost"].append(1 - each["resnet_envoy.rate"] / each["resnet_direct.rate"])
        made["envoy_p50_added"].append(each["resnet_envoy_c1.p50"] - each["resnet_direct_c1.p50"])
        made["bare_envoy_throughput_cost"].append(1 - each["resnet_bare_envoy.rate"] / each["resnet_direct.rate"])
        made["bare_envoy_p50_added"].append(each["resnet_bare_envoy_c1.p50"] - each["resnet_direct_c1.p50"])
        made["capture_throughput_cost"].append(1 - each["resnet_captured.rate"] / each["resnet_envoy.rate"])
        made["demo_64_images"].append(each["demo_direct_64.rate"] / each["demo_in_process"])
        made["demo_client"].append(each["demo_client"] / each["demo_in_process"])
        made["demo_1_image_c64"].append(each["demo_direct_1.rate"] / each["demo_in_process"])
        made["demo_core_us_a_request"].append(1e6 * CORES / each["demo_direct_1.rate"])
        if bench.rivals:
            names = [rival.name for rival in bench.rivals]
            made["ahead_in_throughput"].append(each["resnet_envoy.rate"] / max(each[f"{n}.rate"] for n in names))
            made["ahead_in_p99"].append(each["resnet_envoy.p99"] / min(each[f"{n}.p99"] for n in names))
    return {name: statistics.median(values) for name, values in made.items()}


def entry(name: str, value: float) -> dict[str, Any]:
    """A measure with its goal."""
    goal, unit = GOALS.get(name, (None, UNITS.get(name, "x in process")))
    holds = None if goal is None else value >= goal if name in AT_LEAST else value <= goal
    return {"value": round(value, 3), "goal": goal, "holds": holds, "unit": unit}


def say(text: str, since: float | None = None) -> None:
    """Progress."""
    print(text if since is None else f"{text} ({time.monotonic() - since:.0f} s)", flush=True)


def show(report: dict[str, Any]) -> None:
    """The tables that a person reads."""
    console = Console()
    table = Table("measure", "value", "goal", "holds")
    for name, measure in report["measures"].items():
        bound = "" if measure["goal"] is None else f"{'>=' if name in AT_LEAST else '<='} {measure['goal']}"
        holds = "" if measure["holds"] is None else str(measure["holds"])
        table.add_row(name, f"{measure['value']} {measure['unit']}", bound, holds)
    console.print(table)
    beside = Table("ResNet-18, one image a request, 64 connections", "images/s", "p50 ms", "p99 ms")
    figures = report["contenders"]
    for name in ("resnet_direct", "resnet_bare_envoy", "resnet_envoy", "resnet_captured", *report["rivals"]):
        beside.add_row(name, *(f"{figures[f'{name}.{figure}']:.1f}" for figure in ("rate", "p50", "p99")))
    console.print(beside)
    if report["unanswered"]:
        console.print(f"not answered: {report['unanswered']}")


if __name__ == "__main__":
    main()
