"""`predict`: files and folders in, labels out; what cannot be read is named, and the rest is answered all the same."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from tests.unit.serving.endpoint import Asked, Failed, Said, endpoint
from visionloop.data.images import decode_batch
from visionloop.project import ImageShape, load_project
from visionloop.serving.keys import add_key, read_keys
from visionloop.serving.triton_config import render

from .conftest import Run


class Lane:
    """Bright images are `b`; keeps what it was asked; fails from the n-th request on."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.fails_from = 1 << 30

    def __call__(self, asked: Asked) -> Said | Failed:
        self.asked.append(asked)
        if len(self.asked) >= self.fails_from:
            return Failed(grpc.StatusCode.INTERNAL, "stub died", "stable")
        bright = asked.images.mean(axis=(1, 2, 3)) / 255
        return Said("stable", 3, np.stack([1 - bright, bright], axis=1).astype(np.float32))


@pytest.fixture
def lane() -> Lane:
    return Lane()


@pytest.fixture
def url(lane: Lane, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with endpoint(lane, render(load_project(project), 3)) as url:
        monkeypatch.setenv("VISIONLOOP_ENDPOINT_URL", url)
        yield url


def save(path: Path, level: int, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path)
    return path


def lines(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_table_of_files_labels_and_lanes(run: Run, url: str, tmp_path: Path) -> None:
    files = [save(tmp_path / "a.png", 51), save(tmp_path / "[red]b[x].png", 255)]
    shown = run("predict p", *map(str, files))
    assert (shown.code, shown.err) == (0, "")
    rows = [line.split() for line in shown.out.splitlines()]
    assert rows == [
        ["file", "label", "confidence", "lane", "version"],
        [str(files[0]), "a", "80.0%", "stable", "3"],
        [str(files[1]), "b", "100.0%", "stable", "3"],
    ]


def test_more_labels_on_request(run: Run, url: str, tmp_path: Path) -> None:
    path = str(save(tmp_path / "a.png", 51))
    assert run("predict p --top 2", path).out.split()[-6:] == ["a", "80.0%", "b", "20.0%", "stable", "3"]
    assert lines(run("predict p --json --top 1", path).out)[0]["probabilities"] == {"a": 0.8}
    refused = run("predict p --top 0", path)
    assert (refused.code, "--top" in refused.err) == (2, True)


def test_json_lines_have_all_probabilities_by_label(run: Run, url: str, lane: Lane, tmp_path: Path) -> None:
    files = [save(tmp_path / "a.png", 51), save(tmp_path / "b.png", 204)]
    first, second = lines(run("predict p --json --session u1", *map(str, files)).out)
    assert first.pop("request_id") == second["request_id"] == lane.asked[0].headers["x-request-id"]
    assert first == {
        **{"file": str(files[0]), "label": "a", "confidence": 0.8, "lane": "stable", "version": 3},
        "probabilities": {"a": 0.8, "b": 0.2},
    }
    assert second["probabilities"] == {"b": 0.8, "a": 0.2}
    assert lane.asked[0].headers["x-session"] == "u1"


def test_a_folder_means_its_images_sorted_and_asked_many_at_a_time(
    run: Run, url: str, lane: Lane, tmp_path: Path
) -> None:
    for number in range(150):
        save(tmp_path / "in" / f"{number % 2}" / f"{number:03}.PNG", number)
    (tmp_path / "in" / "metadata.csv").write_text("file\n")
    save(tmp_path / "in" / ".thumbs" / "x.png", 1)
    found = lines(run("predict p --json", str(tmp_path / "in")).out)
    assert [Path(line["file"]).stem for line in found] == [
        *(f"{n:03}" for n in range(0, 150, 2)),
        *(f"{n:03}" for n in range(1, 150, 2)),
    ]
    assert [line["probabilities"]["b"] for line in found] == pytest.approx(
        [n / 255 for n in [*range(0, 150, 2), *range(1, 150, 2)]], abs=1e-6
    )
    assert sorted(len(asked.images) for asked in lane.asked) == [22, 64, 64]


def test_images_are_fitted_as_the_training_data_are(run: Run, url: str, lane: Lane, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "photo.jpg"
    Image.fromarray(rng.integers(0, 256, (31, 17, 3), np.uint8)).save(path)
    run("predict p", str(path))
    expected = decode_batch([path.read_bytes()], ImageShape(height=8, width=8, channels=1))
    assert (lane.asked[0].images == expected).all()


def test_what_cannot_be_read_is_named_and_the_rest_answered(run: Run, url: str, lane: Lane, tmp_path: Path) -> None:
    good = save(tmp_path / "a.png", 10)
    cut = tmp_path / "cut.png"
    cut.write_bytes(save(tmp_path / "b.png", 9).read_bytes()[:-20])
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    large = save(tmp_path / "large.png", 1, (8193, 1))
    shown = run("predict p --json", *map(str, [tmp_path / "none.png", good, cut, text, large]))
    assert shown.code == 1
    assert [line["file"] for line in lines(shown.out)] == [str(good)]
    faults = dict(line.split(": ", 1) for line in shown.err.splitlines()[:-1])
    assert {Path(path).name: fault.split(":")[0] for path, fault in faults.items()} == {
        "none.png": "does not exist",
        "cut.png": "truncated",
        "notes.txt": "not_an_image",
        "large.png": "too_large",
    }
    assert shown.err.splitlines()[-1] == "4 of 5 files could not be read"


def test_nothing_readable_asks_nothing(run: Run, url: str, lane: Lane, tmp_path: Path) -> None:
    assert run("predict p", str(tmp_path / "none.png")).code == 1
    assert lane.asked == []


def test_a_folder_without_images_and_a_project_that_is_unknown_are_errors(run: Run, url: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shown = run("predict p", str(tmp_path / "empty"))
    assert (shown.code, shown.out) == (1, "")
    assert "empty holds no image: expected files that end in .bmp, .jpeg, .jpg" in shown.err
    shown = run("predict q", str(save(tmp_path / "a.png", 1)))
    assert shown.code == 1
    assert "no project q" in shown.err


def test_what_was_answered_before_the_endpoint_failed_is_shown(run: Run, url: str, lane: Lane, tmp_path: Path) -> None:
    for number in range(300):
        save(tmp_path / "in" / f"{number:03}.png", number % 256)
    lane.fails_from = 5
    shown = run("predict p", str(tmp_path / "in"))
    assert shown.code == 1
    assert "INTERNAL: stub died" in shown.err
    assert len(shown.out.splitlines()) == 1 + 256


def test_an_address_is_enough(
    run: Run, url: str, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A product team has no project file; the labels come with the model."""
    project.unlink()
    monkeypatch.delenv("VISIONLOOP_ENDPOINT_URL")
    path = str(save(tmp_path / "a.png", 255, (20, 30)))
    assert lines(run(f"predict p --json --url {url}", path).out)[0]["label"] == "b"
    assert "no project p" in run("predict p", path).err


def test_a_broken_project_file_is_not_passed_by(run: Run, url: str, project: Path, tmp_path: Path) -> None:
    project.write_text("project: p\ntask: 3\n")
    shown = run(f"predict p --url {url}", str(save(tmp_path / "a.png", 1)))
    assert (shown.code, shown.out) == (1, "")
    assert "project.yaml:2" in shown.err


def test_without_an_endpoint_it_says_what_to_set(run: Run, project: Path, tmp_path: Path) -> None:
    shown = run("predict p", str(save(tmp_path / "a.png", 1)))
    assert shown.code == 1
    assert "VISIONLOOP_ENDPOINT_URL is not set" in shown.err


def test_the_key_of_the_settings_goes_along(
    run: Run, url: str, lane: Lane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("s3cret-s3cret-s3cret\n")
    monkeypatch.setenv("VISIONLOOP_ENDPOINT_KEY", str(tmp_path / "key"))
    shown = run("predict p --json", str(save(tmp_path / "a.png", 1)))
    assert lane.asked[0].headers["x-api-key"] == "s3cret-s3cret-s3cret"
    assert "s3cret" not in shown.out + shown.err


def test_the_loops_own_key_goes_to_its_own_endpoint_only(
    run: Run, url: str, lane: Lane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = add_key(tmp_path / "keys", "belt") and read_keys(tmp_path / "keys")["visionloop"]
    monkeypatch.setenv("VISIONLOOP_ENDPOINT_KEYS", str(tmp_path / "keys"))
    path = str(save(tmp_path / "a.png", 1))
    elsewhere = url.replace("127.0.0.1", "localhost")
    for options in ("", f"--url {url}", f"--url {elsewhere}"):
        run(f"predict p {options}", path)
    assert [asked.headers.get("x-api-key") for asked in lane.asked] == [key, key, None]
