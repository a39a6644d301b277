"""What a training writes while it goes on: metrics.jsonl, and TensorBoard's events where asked for.

Both are written anew from the checkpoint's epochs when a training goes on: whatever a kill has left
behind, each epoch is there once and whole.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint import Epoch
from .errors import BadInput, Missing
from .files import write_atomically
from .run_folder import EVENTS, METRICS

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

TAGS = {
    "loss/training": "loss",
    "accuracy/training": "accuracy",
    "accuracy/validation": "validation_accuracy",
    "learning rate": "learning_rate",
    "seconds": "seconds",
    "images per second": "images_per_second",
}


class Logs:
    """The logs of one training in its run's folder; `add` is called after each epoch.

    A training that goes on keeps writing the events that it began with. Raises Missing, BadInput.
    """

    def __init__(self, folder: Path, history: Sequence[Epoch], tensorboard: bool) -> None:
        self._metrics = folder / METRICS
        if history:
            write_atomically(self._metrics, "".join(_line(epoch) for epoch in history).encode())
        else:
            self._metrics.unlink(missing_ok=True)
        self._events: SummaryWriter | None = None
        wanted = tensorboard or bool(history and (folder / EVENTS).is_dir())
        shutil.rmtree(folder / EVENTS, ignore_errors=True)
        if wanted:
            self._events = event_writer()(str(folder / EVENTS))
            ago = sum(epoch.seconds for epoch in history)
            for epoch in history:
                ago -= epoch.seconds
                self._add_events(epoch, time.time() - ago)

    def add(self, epoch: Epoch) -> None:
        """One line, one event a tag; on disk when this returns. Raises BadInput."""
        try:
            with self._metrics.open("a") as file:
                file.write(_line(epoch))
        except OSError as error:
            raise BadInput(f"{self._metrics}: cannot be written ({error.strerror})") from error
        self._add_events(epoch, time.time())

    def _add_events(self, epoch: Epoch, when: float) -> None:
        if self._events is not None:
            for tag, field in TAGS.items():
                self._events.add_scalar(tag, getattr(epoch, field), epoch.number, walltime=when)
            self._events.flush()

    def close(self) -> None:
        """Let go of the event file."""
        if self._events is not None:
            self._events.close()


@contextmanager
def logs(folder: Path, history: Sequence[Epoch], tensorboard: bool) -> Iterator[Logs]:
    """Logs that hold the epochs of `history`, and nothing else. Raises Missing and BadInput."""
    writing = Logs(folder, history, tensorboard)
    try:
        yield writing
    finally:
        writing.close()


def event_writer() -> type[SummaryWriter]:
    """What writes TensorBoard's files. Raises Missing where its package is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise Missing(
            "--tensorboard needs the package tensorboardX",
            "run \"pip install 'pi-pipeline[tensorboard]'\"",
        ) from error
    writer: type[SummaryWriter] = SummaryWriter
    return writer


def _line(epoch: Epoch) -> str:
    record = asdict(epoch)
    return json.dumps({"epoch": record.pop("number")} | record) + "\n"
