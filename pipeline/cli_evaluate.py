"""`pipeline evaluate`: accuracy of every artefact, what int8 cost, and the lecture's challenges."""

from __future__ import annotations

import sys
from typing import Any

import click

from .cli_options import (
    DRY_RUN,
    FORMAT,
    JSON,
    PRECISION,
    RUN,
    SEED,
    chosen_of,
    print_json,
    show_plan,
)
from .errors import UsageError


@click.command()
@RUN
@FORMAT
@PRECISION
@click.option("--dataset", "other", metavar="NAME", help="Test images of another data set.")
@click.option(
    "--max-drop",
    type=float,
    metavar="POINTS",
    help="Percentage points below fp32 that are still a pass.",
)
@click.option("--challenges", is_flag=True, help="Also on images that are harder to recognise.")
@click.option("--images", type=int, help="Of the challenges, at most. Default: all test images.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the challenges.")
@DRY_RUN
@JSON
def evaluate(
    run_name: str | None,
    formats: str,
    precisions: str,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Accuracy of every artefact on all test images, in the runtimes that it has on a device; exit
    code 1 when one is further below the fp32 program than --max-drop.

    With --challenges also on images seen from elsewhere, larger or smaller, badly lit, bent, half
    covered, and before a cluttered background, at five severities.

    \b
    Examples:
      pipeline evaluate --max-drop 0.1
      pipeline evaluate --challenges --images 1000
      pipeline evaluate --run lenet5-digits --dataset mnist
    """
    if options["images"] is not None and not options["challenges"]:
        raise UsageError("--images is of --challenges", "leave it out, or give --challenges")
    chosen = chosen_of(formats, precisions)
    from .console import Steps, say
    from .evaluation import evaluate_run
    from .evaluation.show import show_evaluation
    from .run_folder import RunFolder

    run = RunFolder.open(run_name, dry_run)
    with Steps() as steps:
        report = evaluate_run(run, *chosen, **options, on_step=steps)
    if dry_run:
        show_plan(run, as_json)
        return
    if as_json:
        print_json(report)
    else:
        show_evaluation(report)
    if not report["passed"]:
        worst = max(report["artefacts"], key=lambda row: float(row["drop"]))
        say(
            f"FAILED: {worst['file']} in {worst['configuration']} is {worst['drop']:.2f} points "
            f"below fp32, --max-drop is {options['max_drop']:g}"
        )
        sys.exit(1)


@click.command()
@RUN
@DRY_RUN
@JSON
def calibrate(run_name: str | None, dry_run: bool, as_json: bool) -> None:
    """Make probabilities mean what they say: fit a temperature on validation images, for the
    contract of everything that is exported from now on. Answers stay what they are.

    \b
    Example:
      pipeline calibrate
    """
    from .console import say, table
    from .evaluation.calibration import calibrate_run
    from .run_folder import RunFolder

    run = RunFolder.open(run_name, dry_run)
    report = calibrate_run(run)
    if dry_run:
        show_plan(run, as_json)
        return
    if as_json:
        print_json(report)
        return
    rows = [
        [name, f"{row['temperature']:g}", f"{row['before']:.2%}", f"{row['after']:.2%}"]
        for name, row in report.items()
    ]
    table("expected calibration error, test images", ["", "temperature", "before", "after"], rows)
    say(f"next: pipeline export --run {run.name}; then verify and package")
