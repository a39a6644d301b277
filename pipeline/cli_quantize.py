"""`pipeline quantize` and `pipeline sensitivity`."""

from __future__ import annotations

from typing import Any

import click

from .cli_options import JSON, RUN, print_json


@click.command()
@RUN
@click.option("--calibration-size", type=int, default=1000, show_default=True)
@click.option("--calibration-seed", type=int, default=0, show_default=True)
@click.option(
    "--observer",
    default="auto",
    show_default=True,
    help="minmax, percentile, mse: what ranges follow from. auto: the best on validation images.",
)
@JSON
def quantize(
    run_name: str | None,
    calibration_size: int,
    calibration_seed: int,
    observer: str,
    as_json: bool,
) -> None:
    """Quantize a run's float program to int8, calibrated on training images.

    \b
    Examples:
      pipeline quantize --calibration-size 500
      pipeline quantize --observer percentile
    """
    from .console import say
    from .quantize import Calibration, quantize_run
    from .run_folder import RunFolder

    run = RunFolder.open(run_name)
    made = quantize_run(run, Calibration(calibration_size, calibration_seed, observer))
    path = run.path / run.artefact("int8", "pt2")
    facts = run.entry(path.name)["facts"]
    if as_json:
        print_json({"run": run.name, "file": str(path), "made": made, **facts})
        return
    click.echo(f"{path}{'' if made else ' (unchanged)'}")
    tried = ", ".join(f"{name} {part:.2%}" for name, part in facts["validation_accuracy"].items())
    say(f"ranges by {facts['observer']}; on validation images: {tried}")
    say("next: pipeline export")


@click.command()
@RUN
@JSON
def sensitivity(run_name: str | None, as_json: bool) -> None:
    """What each layer of the int8 program costs: quantized alone, all else in float, on validation
    images.

    \b
    Example:
      pipeline sensitivity
    """
    from .console import Steps, say, table
    from .run_folder import RunFolder
    from .sensitivity import sensitivity_run

    run = RunFolder.open(run_name)
    with Steps() as steps:
        report = sensitivity_run(run, on_step=steps)
    if as_json:
        print_json(report)
        return

    def cells(row: dict[str, Any]) -> list[str]:
        noise = row["sqnr_db"]
        sqnr = f"{noise:.1f}" if noise is not None else "none"
        return [row["layer"], f"{row['accuracy']:.2%}", str(row["flips"]), sqnr]

    rows = [cells(row) for row in (*report["layers"], report["int8"])]
    title = f"quantized alone, {report['images']:,} validation images; fp32 {report['fp32']:.2%}"
    table(title, ["layer", "accuracy", "answers changed", "SQNR dB"], rows)
    say("next: pipeline report")
