"""Progress of a training as log lines: rate and time left, every few seconds (the log is what Airflow shows)."""

import logging
import time

log = logging.getLogger(__name__)
EVERY_S = 5.0


class Progress:
    """Counts the steps of this process; what an earlier one did is not part of the rate."""

    def __init__(self, epochs: int, steps: int, batch: int, *, done_epochs: int = 0) -> None:
        self._total, self._per_epoch, self._batch = epochs * steps, steps, batch
        self._epochs, self._before = epochs, done_epochs * steps
        self._started = self._shown = time.monotonic()

    def due(self) -> bool:
        """Is it time for the next line?"""
        return time.monotonic() - self._shown >= EVERY_S

    def show(self, epoch: int, step: int, loss: float) -> None:
        """Log where the training stands; `epoch` and `step` count from 1."""
        self._shown = time.monotonic()
        done = (epoch - 1) * self._per_epoch + step
        rate = (done - self._before) / max(1e-9, self._shown - self._started)
        left = (self._total - done) / rate
        log.info(
            "epoch %d/%d, %d %% of the training, %d images/s, %d s left, loss %.4f",
            epoch,
            self._epochs,
            100 * done // self._total,
            rate * self._batch,
            left,
            loss,
        )
