"""`pipeline sweep`: a search for a better recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .cli_options import DRY_RUN, JSON, print_json, print_plan, subject_options, training
from .errors import UsageError

if TYPE_CHECKING:
    from .study import Sweep, Trial


@click.command()
@subject_options
@click.option("--study", metavar="NAME", help="Default: MODEL-DATASET.")
@click.option(
    "--trials", type=int, default=20, show_default=True, help="Until the study has so many."
)
@click.option("--storage", metavar="URL", help="Database of the study. Default: SQLite in runs/.")
@DRY_RUN
@JSON
def sweep(
    study: str | None,
    trials: int,
    storage: str | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Search for the settings that train best, by accuracy on validation images.

    Calling it again goes on with the study; so do other machines that are given the same --storage.

    \b
    Examples:
      pipeline sweep --trials 30
      pipeline sweep --dataset mnist --epochs 5 --study mnist
      pipeline sweep --storage postgresql://me@server/studies --study digits
    """
    if trials < 1:
        raise UsageError(f"--trials {trials}", "give 1 or more")
    network, config, name = training(options)
    from .console import say
    from .study import as_document, planned
    from .sweep import sweep as search
    from .sweep_pictures import draw

    if dry_run:
        print_plan(planned(study or name, storage), as_json)
        return

    def told(trial: Trial) -> None:
        accuracy = trial.validation_accuracy
        shown = "diverged" if accuracy is None else f"validation {accuracy:.2%}"
        say(f"trial {trial.number}: {shown}, {trial.state} after epoch {trial.epochs}")

    result = search(study or name, network, config, trials, storage, told)
    pictures = draw(result)
    if as_json:
        print_json(as_document(result) | {"pictures": [str(path) for path in pictures]})
        return
    _show(result)
    for path in pictures:
        say(f"{path}")
    say(f"next: {result.command}")


def _show(result: Sweep) -> None:
    """Trials, the best first, and the importance of what was searched."""
    from .console import table

    names = sorted({name for trial in result.trials for name in trial.settings})
    ranked = sorted(
        result.trials, key=lambda t: (t.state != "complete", -(t.validation_accuracy or 0))
    )
    rows = [
        [
            str(trial.number),
            "" if trial.validation_accuracy is None else f"{trial.validation_accuracy:.2%}",
            trial.state,
            str(trial.epochs),
            *(f"{trial.settings[name]:g}" if name in trial.settings else "" for name in names),
        ]
        for trial in ranked
    ]
    columns = [
        "trial",
        "validation",
        "state",
        "epochs",
        *(name.replace("_", " ") for name in names),
    ]
    table(f"study {result.study}", columns, rows, text=("state",))
    if result.importance:
        shares = [
            [name.replace("_", " "), f"{part:.0%}"] for name, part in result.importance.items()
        ]
        table("importance", ["setting", "part"], shares)
