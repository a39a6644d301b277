"""`pipeline verify`: a run, its sensitivity, the semantics grid, or two files from elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
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
    flags,
    given_options,
    print_json,
    show_plan,
    split,
)
from .errors import UsageError, unknown

RUNTIMES = ("onnxruntime", "litert", "tflite-runtime", "c")
OPERATORS = ("conv", "max-pool", "avg-pool", "relu", "sigmoid", "tanh")


@click.command()
@click.argument("what", nargs=-1, metavar="[ops | FILE FILE...]")
@RUN
@FORMAT
@PRECISION
@click.option(
    "--images", type=int, default=1000, show_default=True, help="Test images through every layer."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of what is made up.")
@click.option("--require", metavar="RUNTIMES", help="By comma: it is a failure if one is missing.")
@click.option("--self-check", is_flag=True, help="Break the run's files: is each break found?")
@click.option("--op", "operators", help="ops: only these, by comma.")
@click.option("--full", is_flag=True, help="ops: thousands of cells, not some two hundred.")
@click.option(
    "--reproducers",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="ops: write a program that shows each defect alone.",
)
@DRY_RUN
@JSON
def verify(what: tuple[str, ...], **options: Any) -> None:
    """Judge every file of a run against the reference, layer by layer. Exit code 1 when one fails.

    With `ops`, one-layer models over the parameters of convolution, pooling and activations go
    through the same exporters and runtimes. With files, models from anywhere are compared; the
    first ONNX file among them is the reference.

    \b
    Examples:
      pipeline verify
      pipeline verify --format tflite --precision int8 --images 200 --json
      pipeline verify --require onnxruntime,litert,tflite-runtime,c
      pipeline verify --self-check
      pipeline verify ops --op conv
      pipeline verify a.onnx b.tflite folder-of-c
    """
    _refuse_misplaced(what)
    if options["images"] < 1:
        raise UsageError(f"--images {options['images']}", "give 1 or more")
    if "ops" in what and len(what) > 1:
        raise UsageError("ops takes no files", "give 'pipeline verify ops' alone")
    if what == ("ops",):
        _verify_operators(options)
    elif what:
        _verify_files([Path(name) for name in what], options)
    else:
        chosen = chosen_of(options["formats"], options["precisions"])
        if options["self_check"]:
            _self_check(options, *chosen)
        else:
            _verify_run(options, *chosen)


def _refuse_misplaced(what: tuple[str, ...]) -> None:
    """An option that means nothing for what is verified is an error, not ignored."""
    of_runs = {"run_name", "formats", "precisions", "self_check", "dry_run"}
    of_operators = {"operators", "full", "reproducers"}
    if what == ("ops",):
        wrong, name = of_runs | {"images", "require", "seed"}, "ops"
    elif what:
        wrong, name = of_runs | of_operators, "files"
    else:
        wrong, name = of_operators, "a run"
    for parameter, option in given_options().items():
        if parameter in wrong:
            raise UsageError(f"{option} is not for {name}", "leave it out")


def _required(options: dict[str, Any]) -> tuple[str, ...]:
    given = options["require"]
    return split("runtime", given, RUNTIMES) if given is not None else ()


def _verify_run(
    options: dict[str, Any], formats: tuple[str, ...], precisions: tuple[str, ...]
) -> None:
    require = _required(options)
    from .console import Steps, say
    from .run_folder import RunFolder
    from .verify import verify_run
    from .verify.show import show_verification

    run = RunFolder.open(options["run_name"], options["dry_run"])
    with Steps() as steps:
        report = verify_run(
            run, options["images"], formats, precisions, options["seed"], require, on_step=steps
        )
    if options["dry_run"]:
        show_plan(run, options["as_json"])
        return
    if options["as_json"]:
        print_json(report)
    else:
        show_verification(report)
        if report["passed"]:
            options_of = flags(options["formats"], options["precisions"], "--runtime")
            say(f"next: pipeline package{options_of}")
    if not report["passed"]:
        sys.exit(1)


def _self_check(
    options: dict[str, Any], formats: tuple[str, ...], precisions: tuple[str, ...]
) -> None:
    from .console import Steps
    from .run_folder import RunFolder
    from .verify.self_check import self_check
    from .verify.show import show_self_check

    run = RunFolder.open(options["run_name"], options["dry_run"])
    images = options["images"] if "images" in given_options() else 100
    with Steps() as steps:
        report = self_check(run, formats, precisions, images, options["seed"], on_step=steps)
    if options["dry_run"]:
        show_plan(run, options["as_json"])
        return
    if options["as_json"]:
        print_json(report)
    else:
        show_self_check(report)
    if not report["passed"]:
        sys.exit(1)


def _verify_operators(options: dict[str, Any]) -> None:
    chosen = (
        split("operator", options["operators"], OPERATORS)
        if options["operators"] is not None
        else OPERATORS
    )
    from .console import Steps, say
    from .verify.grid import core_cells, full_cells, run_cells, write_reproducers
    from .verify.show import show_grid

    cells = [c for c in (full_cells() if options["full"] else core_cells()) if c.operator in chosen]
    with Steps() as steps:
        outcomes = run_cells(cells, on_step=steps)
    if options["reproducers"] is not None:
        for path in write_reproducers(outcomes, options["reproducers"]):
            say(f"wrote {path}")
    passed = all(outcome.ok for outcome in outcomes)
    if options["as_json"]:
        print_json({"passed": passed, "outcomes": [outcome.as_json() for outcome in outcomes]})
    else:
        show_grid(outcomes)
    if not passed:
        sys.exit(1)


def _verify_files(paths: list[Path], options: dict[str, Any]) -> None:
    if len(paths) == 1:
        if not paths[0].suffix and not paths[0].exists():
            raise unknown("word", str(paths[0]), ["ops"], ", or two files")
        raise UsageError(f"{paths[0]} alone", "give a second file to compare it with")
    require = _required(options)
    from .console import Steps
    from .verify.pair import verify_files
    from .verify.show import show_verification

    with Steps() as steps:
        report = verify_files(paths, options["images"], options["seed"], require, on_step=steps)
    if options["as_json"]:
        print_json(report)
    else:
        show_verification(report)
    if not report["passed"]:
        sys.exit(1)
