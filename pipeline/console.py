"""What a person sees: tables on stdout, progress and messages on stderr.

On a terminal progress is a moving bar, elsewhere plain lines. NO_COLOR is respected (rich does).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from textwrap import fill
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .checkpoint import Epoch

NARROWEST = 12  # a column of text that goes on in the next line


class _Output(Console):
    """A reader that has gone, as with `| head`, is no error."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)


def out() -> Console:
    """Data, on stdout; 80 columns where there is no terminal."""
    return _Output(highlight=False, width=None if sys.stdout.isatty() else 80)


def say(message: str) -> None:
    """A message, on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, markup=False)


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[str] = ()
) -> None:
    """Print a table; the first column and those of `text` are aligned to the left.

    What is `text` and has several words goes on in the next line where there is no room. Nothing
    else is broken, and nothing cut off: rather is the table wider than the terminal.
    """
    grid = Table(box=None, header_style="bold", pad_edge=False)
    needed = 0
    for number, column in enumerate(columns):
        cells = [row[number] for row in rows]
        widest = max(map(cell_len, cells), default=cell_len(column))
        broken = column in text and any(" " in cell for cell in cells)
        # A heading of several words is as narrow as its numbers.
        heading = column if broken else fill(column, max(widest, 1), break_long_words=False)
        widest = max(widest, *map(cell_len, heading.split("\n")))
        needed += 2 + (min(widest, NARROWEST) if broken else widest)
        grid.add_column(
            Text(heading),
            justify="left" if number == 0 or column in text else "right",
            no_wrap=not broken,
            overflow="fold",
        )
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    console = out()
    console.width = max(console.width, needed)
    console.print(Text(title, style="italic"))
    console.print(grid)
    console.print()


class Steps:
    """Says what is being done: one changing line on a terminal, elsewhere one for each new thing.

    What stands in brackets at a message's end is how far it is.
    """

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
        self._status = console.status("") if sys.stderr.isatty() else None
        self._last = ""

    def __enter__(self) -> Steps:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, message: str) -> None:
        """Say it, if it is new."""
        if self._status is not None:
            self._status.update(Text(message))
            return
        thing = message.partition(" (")[0]
        if thing != self._last:
            say(thing)
        self._last = thing


class TrainingProgress:
    """Shows a training: `on_batch` and `on_epoch` are what `train_run` calls."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.2%}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def on_batch(self, epoch: int, done: int, batches: int, loss: float, accuracy: float) -> None:
        """See `train.OnBatch`."""
        fields: dict[str, Any] = {
            "epoch": f"{epoch + 1}/{self.epochs}",
            "loss": loss,
            "accuracy": accuracy,
        }
        if self._task is None:
            self._task = self._bar.add_task("train", total=self.epochs * batches, **fields)
        self._bar.update(self._task, completed=epoch * batches + done, **fields)

    def on_epoch(self, epoch: Epoch) -> None:
        """One line an epoch, above the bar."""
        self._bar.console.print(
            f"epoch {epoch.number}/{self.epochs}  loss {epoch.loss:.4f}  "
            f"accuracy {epoch.accuracy:.2%}  validation {epoch.validation_accuracy:.2%}  "
            f"{epoch.seconds:.1f} s",
            highlight=False,
        )
