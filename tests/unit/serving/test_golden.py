"""Golden samples: when an answer is another answer, and which files are none."""

import io

import numpy as np
import pytest

from visionloop.errors import IntegrityError
from visionloop.serving.golden import TIE, Golden, extremes, read_golden, unsound

IMAGES = np.zeros((2, 4, 4, 1), np.uint8)
ANSWERS = np.array([[0.6, 0.3, 0.1], [0.4, 0.4 - TIE / 2, 0.2 + TIE / 2]], np.float32)
GOLDEN = Golden(IMAGES, ANSWERS)


def npz(**arrays: object) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@pytest.mark.parametrize(
    ("index", "answer", "disagrees"),
    [
        (0, [0.5, 0.4, 0.1], False),  # other figures, the same class
        (0, [0.4, 0.5, 0.1], True),
        (1, [0.3, 0.5, 0.2], False),  # two classes that were a tie
        (1, [0.3, 0.3, 0.4], True),
    ],
)
def test_another_class_is_another_answer_unless_it_was_a_tie(index: int, answer: list[float], disagrees: bool) -> None:
    assert GOLDEN.disagrees(index, np.array(answer, np.float32)) is disagrees


def test_disagreements_are_counted_over_all() -> None:
    assert GOLDEN.disagreements(ANSWERS) == 0
    assert GOLDEN.disagreements(ANSWERS[:, ::-1]) == 2


def test_what_was_written_is_read() -> None:
    found = read_golden(npz(images=IMAGES, probabilities=ANSWERS.astype(np.float64)))
    assert (found.images == IMAGES).all()
    assert found.probabilities.dtype == np.float32
    assert np.allclose(found.probabilities, ANSWERS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 no archive",
        npz(images=IMAGES),
        npz(images=IMAGES, probabilities=ANSWERS)[:-30],
        npz(images=IMAGES, probabilities=np.array([{"a": 1}], object)),  # a pickle is never opened
    ],
)
def test_what_is_no_golden_file_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"golden.npz cannot be read"):
        read_golden(data)


@pytest.mark.parametrize(
    ("images", "answers"), [(IMAGES, ANSWERS[:1]), (IMAGES[:0], ANSWERS[:0]), (IMAGES[0], ANSWERS)]
)
def test_images_without_answers_are_refused(images: np.ndarray, answers: np.ndarray) -> None:
    with pytest.raises(IntegrityError, match=r"golden.npz holds \d+ images and \d answers"):
        read_golden(npz(images=images, probabilities=answers))


def test_extremes_are_what_their_names_say() -> None:
    black, white, noise, half = extremes(8, 6, 3)
    assert black.max() == 0
    assert white.min() == 255
    assert noise.std() > 60
    assert (half[:4].min(), half[4:].max()) == (255, 0)
    assert np.array_equal(noise, extremes(8, 6, 3)[2])


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ([0.5, 0.5], False),
        ([1.0, 0.0], False),
        ([0.505, 0.505], False),
        ([0.51, 0.51], True),
        ([0.49, 0.49], True),
        ([float("nan"), 1.0], True),
        ([float("inf"), 0.0], True),
        ([-0.1, 1.1], True),
    ],
)
def test_what_no_probabilities_are(row: list[float], wrong: bool) -> None:
    rows = np.array([[0.25, 0.75], row], np.float32)
    assert unsound(rows).tolist() == [False, wrong]
