"""Product traffic: images sent to the endpoint, answers compared with the truth, measured or in the background."""

import threading
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from visionloop.errors import VisionLoopError
from visionloop.serving.client import Client

Images = NDArray[np.uint8]
IMAGES_PER_REQUEST = 10


@dataclass(frozen=True)
class Camera:
    """Images as a camera delivers them, uint8 NHWC, with the names of their true classes."""

    images: Images
    labels: list[str]

    def part(self, start: int, stop: int) -> "Camera":
        """Images from `start` to `stop`."""
        return Camera(self.images[start:stop], self.labels[start:stop])


@dataclass
class Served:
    """What came back."""

    images: int = 0
    right: int = 0
    failed_requests: int = 0
    versions: set[int] = field(default_factory=set)

    @property
    def accuracy(self) -> float:
        """Share of right answers; an unanswered image counts as wrong."""
        return self.right / self.images if self.images else 0.0


def serve(client: Client, camera: Camera) -> Served:
    """Send every image once, some per request as a product does, and count the right answers."""
    served = Served()
    for start in range(0, len(camera.images), IMAGES_PER_REQUEST):
        _request(client, camera.part(start, start + IMAGES_PER_REQUEST), served)
    return served


class Background:
    """Traffic that goes on while something else happens, at about `images_per_second`; a context manager."""

    def __init__(self, client: Client, camera: Camera, *, images_per_second: float) -> None:
        self.served = Served()
        self._client, self._camera = client, camera
        self._pause_seconds = IMAGES_PER_REQUEST / images_per_second
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()

    def _go_on(self) -> None:
        start = 0
        while not self._end.wait(self._pause_seconds):
            _request(self._client, self._camera.part(start, start + IMAGES_PER_REQUEST), self.served)
            start = (start + IMAGES_PER_REQUEST) % len(self._camera.images)


def _request(client: Client, camera: Camera, served: Served) -> None:
    served.images += len(camera.images)
    try:
        answers = client.predict(camera.images)
    except VisionLoopError:
        served.failed_requests += 1
        return
    served.right += sum(answer.label == label for answer, label in zip(answers, camera.labels, strict=True))
    served.versions |= {answer.version for answer in answers}
