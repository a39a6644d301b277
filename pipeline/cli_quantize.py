"""The commands about int8: how a run is quantized."""

from __future__ import annotations

from typing import Any

import click

from .cli_options import DRY_RUN, JSON, RUN, SEED, given_options, print_json, show_plan
from .errors import UsageError


def _decibels(ratio: float | None) -> str:
    return "exact" if ratio is None else f"{ratio:.1f}"


def _show_tried(tried: list[dict[str, Any]]) -> None:
    from .console import table

    rows = [
        [
            each["observer"],
            "yes" if each["bias_correction"] else "no",
            f"{each['accuracy']:.2%}",
            str(each["flips"]),
            _decibels(each["sqnr_db"]),
            "chosen" if each["chosen"] else "",
        ]
        for each in tried
    ]
    columns = ["observer", "bias correction", "accuracy", "flips", "SQNR (dB)", ""]
    table("int8 on validation images", columns, rows)


def _show_mixed(tried: list[dict[str, Any]]) -> None:
    from .console import say, table

    rows = [
        [
            ", ".join(each["layers"]) or "none",
            f"{each['accuracy']:.2%}",
            str(each["flips"]),
            _decibels(each["sqnr_db"]),
            "chosen" if each is tried[-1] else "",
        ]
        for each in tried
    ]
    columns = ["in float", "accuracy", "flips", "SQNR (dB)", ""]
    table("layers in float, on validation images", columns, rows, columns[:1])
    if not tried[-1]["layers"]:
        say("int8 is within --max-drop: no layer needs to stay in float")


@click.command()
@RUN
@click.option("--calibration-size", type=int, default=1000, show_default=True)
@click.option("--calibration-seed", type=SEED, default=0, show_default=True)
@click.option(
    "--observer",
    default="auto",
    show_default=True,
    help="Ranges of activations: minmax, percentile, mse; auto tries all.",
)
@click.option(
    "--bias-correction/--no-bias-correction",
    default=None,
    help="Take the mean error of each layer out of its bias. Default: both are tried.",
)
@click.option(
    "--mixed", is_flag=True, help="Keep as few layers in float as bring it within --max-drop."
)
@click.option(
    "--max-drop",
    type=float,
    metavar="POINTS",
    help="Percentage points below fp32, on validation images, that --mixed allows.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="LAYERS",
    help="Keep these in float, named as by 'pipeline sensitivity'.",
)
@DRY_RUN
@JSON
def quantize(
    run_name: str | None,
    calibration_size: int,
    calibration_seed: int,
    observer: str,
    bias_correction: bool | None,
    mixed: bool,
    max_drop: float | None,
    keep: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Quantize a run's float program to int8, calibrated on training images. Of what is tried, the
    best on validation images is kept: by accuracy, then by how near its outputs are to fp32.

    With --mixed some layers stay in float: as few as --max-drop needs, none if it can be.

    \b
    Examples:
      pipeline quantize
      pipeline quantize --observer mse --no-bias-correction
      pipeline quantize --mixed --max-drop 0.5
      pipeline quantize --keep linear_2
    """
    if mixed != (max_drop is not None):
        raise UsageError("--mixed and --max-drop go together", "give both, like --max-drop 0.5")
    if mixed and keep:
        raise UsageError("--mixed chooses layers, and so does --keep", "give one of them")
    from .console import Steps, say
    from .quantization import Calibration, quantize_run
    from .run_folder import RunFolder

    run = RunFolder.open(run_name, dry_run)
    calibration = Calibration(
        calibration_size,
        calibration_seed,
        observer,
        bias_correction,
        max_drop,
        tuple(sorted({name for names in keep for name in names.split(",")})),
    )
    with Steps() as steps:
        made = quantize_run(run, calibration, steps)
    if dry_run:
        show_plan(run, as_json)
        return
    name = run.artefact("int8", "pt2")
    path, facts = run.path / name, run.entry(name)["facts"]
    if as_json:
        print_json({"run": run.name, "file": str(path), "made": made, **facts})
        return
    _show_tried(facts["tried"])
    if "mixed" in facts:
        _show_mixed(facts["mixed"])
    click.echo(f"{path}{'' if made else ' (unchanged)'}")
    say("next: pipeline export")


@click.command()
@RUN
@DRY_RUN
@JSON
def sensitivity(run_name: str | None, dry_run: bool, as_json: bool) -> None:
    """Measure what each layer of a run's int8 program costs: quantized alone, the others in float,
    on validation images. The report draws it.

    \b
    Example:
      pipeline sensitivity
    """
    from .console import Steps, say, table
    from .quantization.sensitivity import sensitivity_run
    from .run_folder import RunFolder

    run = RunFolder.open(run_name, dry_run)
    with Steps() as steps:
        found = sensitivity_run(run, steps)
    if dry_run:
        show_plan(run, as_json)
        return
    if as_json:
        print_json({"run": run.name, **found})
        return
    exact = found["fp32"]["accuracy"]
    rows = [
        [
            each["layer"],
            each["kind"],
            f"{each['accuracy']:.2%}",
            f"{100 * (each['accuracy'] - exact):+.2f}",
            str(each["flips"]),
            _decibels(each["sqnr_db"]),
        ]
        for each in (*found["layers"], {"layer": "int8 as it is", "kind": "", **found["int8"]})
    ]
    columns = ["quantized", "kind", "accuracy", "change (pp)", "flips", "SQNR (dB)"]
    table(f"{found['images']} validation images; fp32 {exact:.2%}", columns, rows, ["kind"])
    say("next: pipeline report")


OF_QAT = {"run_name", "epochs", "lr", "seed"}


def train_in_int8(options: dict[str, Any], others: bool, dry_run: bool, as_json: bool) -> None:
    """`pipeline train --qat`. Raises UsageError for options that only a training in float has."""
    float_only = options.keys() - OF_QAT
    wrong = ", ".join(
        option for name, option in sorted(given_options().items()) if name in float_only
    )
    if others or wrong:
        raise UsageError(
            f"--qat trains a run on as it is{f', without {wrong}' if wrong else ''}",
            "give --run, --epochs, --lr and --seed at most",
        )
    from .console import say
    from .quantization.training import FineTuning, qat_run
    from .run_folder import RunFolder

    run = RunFolder.open(options["run_name"], dry_run)
    named = {"epochs": options["epochs"], "learning_rate": options["lr"], "seed": options["seed"]}
    tuning = FineTuning(**{name: value for name, value in named.items() if value is not None})

    def told(epoch: int, found: dict[str, Any]) -> None:
        say(
            f"epoch {epoch}/{tuning.epochs}  validation {found['accuracy']:.2%}  "
            f"answers unlike fp32 {found['flips']}"
        )

    tried = qat_run(run, tuning, told)
    if dry_run:
        show_plan(run, as_json)
        return
    path = run.path / run.artefact("int8", "pt2")
    if as_json:
        print_json({"run": run.name, "file": str(path), "tried": tried})
        return
    click.echo(f"{path}")
    say(f"next: pipeline export --run {run.name}; 'pipeline quantize' goes back")
