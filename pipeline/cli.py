"""The command line: each command parses, calls one stage and prints what came of it.

Heavy libraries are imported inside the commands, so that `pipeline --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import click

from . import __version__
from .cli_deploy import deploy
from .cli_evaluate import calibrate, evaluate
from .cli_export import export
from .cli_machine import completion, doctor
from .cli_options import (
    DRY_RUN,
    FORMAT,
    JSON,
    PRECISION,
    RUN,
    chosen_of,
    print_json,
    show_plan,
    training,
    training_options,
)
from .cli_package import package
from .cli_quantize import quantize, sensitivity
from .cli_report import bench, compare, report
from .cli_sweep import sweep
from .cli_train import train
from .cli_verify import verify
from .errors import INTERRUPTED, UsageError, UserError, unknown


class Pipeline(click.Group):
    """Catches every user error in one place, and guesses what a mistyped command meant."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error is one line on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(ctx, error, str(error), error.exit_code)
        except click.UsageError as error:
            _misused(ctx, error)
        except KeyboardInterrupt as error:
            _fail(ctx, error, "interrupted; nothing is half-written", INTERRUPTED)
        except BrokenPipeError:  # the reader of our output has gone, as with `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            _fail(ctx, error, f"{place}{error.strerror or error}", 3)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does; what is wrong before the command is told like the rest."""
        try:
            return super().parse_args(ctx, args)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            _misused(ctx, error)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but with the nearest command in the error."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            _fail(ctx, None, str(unknown("command", args[0], self.list_commands(ctx))), 2)
        return super().resolve_command(ctx, args)


def _fail(ctx: click.Context, error: BaseException | None, message: str, code: int) -> NoReturn:
    if error is not None and ctx.find_root().params.get("debug"):
        traceback.print_exception(error)
    if not _told_elsewhere():
        click.echo(f"error: {message}", err=True)
    ctx.exit(code)


def _misused(ctx: click.Context, error: click.UsageError) -> NoReturn:
    """Click's own complaint, as of a value that is no number, in one line."""
    message, guess = error.format_message(), ""
    if isinstance(error, click.NoSuchOption):
        message = f"no such option {error.option_name!r}"
        guess = f"did you mean {error.possibilities[0]!r}? " if error.possibilities else ""
    message = " ".join(message.split()).rstrip(".")
    words = [ctx.command_path, ctx.invoked_subcommand]
    place = error.ctx.command_path if error.ctx else " ".join(filter(None, words))
    told = UsageError(message[:1].lower() + message[1:], f"{guess}see '{place} --help'")
    _fail(ctx, error, str(told), told.exit_code)


def _told_elsewhere() -> bool:
    """Whether another process that torchrun started has told the person already."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    from .workers import first_to_tell

    return not first_to_tell()


@click.group("pipeline", cls=Pipeline, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pipeline")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Train a small CNN, quantize it once, export it, prove that every runtime computes the same,
    and package it for a Raspberry Pi.

    \b
    Example:
      pipeline train --model lenet5 --dataset digits
      pipeline export --format onnx
      pipeline verify
    """
    command = click.get_current_context().invoked_subcommand
    if "TORCHELASTIC_RUN_ID" in os.environ and command not in ("train", None):
        raise UsageError(f"torchrun is for training, not for 'pipeline {command}'", "leave it out")
    if debug:
        os.environ["PIPELINE_DEBUG"] = "1"
    else:  # the libraries' own remarks are not for the person at the terminal
        warnings.filterwarnings("ignore")
        for name in ("torchao", "torch.utils._pytree", "torch.onnx"):
            logging.getLogger(name).setLevel(logging.ERROR)


OTHERS = (
    train,
    export,
    quantize,
    sensitivity,
    verify,
    evaluate,
    calibrate,
    package,
    deploy,
    bench,
    report,
    compare,
    sweep,
    doctor,
    completion,
)
for command in OTHERS:
    main.add_command(command)


@main.command()
@training_options
@FORMAT
@PRECISION
@click.option("--images", type=int, default=1000, show_default=True, help="As for verify.")
@click.option("--overwrite", is_flag=True, help="Train a run anew that has other weights.")
@DRY_RUN
@JSON
def run(
    formats: str,
    precisions: str,
    images: int,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """All stages in order: train, quantize, export, verify, package, bench, report. What is current
    is skipped.

    \b
    Examples:
      pipeline run
      pipeline run --dataset mnist --epochs 5 --data-dir data
      pipeline run --model mynet.py:MyNet --dataset photos --precision fp32
    """
    chosen = chosen_of(formats, precisions)
    if images < 1:
        raise UsageError(f"--images {images}", "give 1 or more")
    network, config, name = training(options)
    from .console import TrainingProgress, say
    from .package import bundle_name
    from .report import PAGE
    from .run import Stage, run_all
    from .run_folder import RunFolder
    from .verify.show import show_verification

    folder = RunFolder.create(name, network.name, dry_run)

    def done(stage: Stage) -> None:
        state = f"done in {stage.seconds:.1f} s" if stage.made else "skipped, nothing has changed"
        if not dry_run:
            say(f"{stage.name}: {state}")

    with TrainingProgress(config.epochs) as progress:
        stages, report = run_all(
            folder,
            network,
            config,
            *chosen,
            images,
            overwrite=overwrite,
            on_done=done,
            on_batch=progress.on_batch,
            on_epoch=progress.on_epoch,
            on_step=say,
            on_report=lambda report: None if as_json or dry_run else show_verification(report),
        )
    if dry_run:
        show_plan(folder, as_json)
        return
    bundle = folder.path / bundle_name(folder)
    if as_json:
        print_json(
            {
                "run": folder.name,
                "stages": [dataclasses.asdict(stage) for stage in stages],
                "verification": report,
                "bundle": str(bundle),
                "report": str(folder.path / PAGE),
            }
        )
        return
    click.echo(f"{bundle}  {folder.entry(bundle.name)['bytes']:,} bytes")
    click.echo(f"{folder.path / PAGE}  all of it, to look at")
    say("next: copy it to the Pi, unpack it and follow its README.md")


@main.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@RUN
@JSON
def describe(file: Path | None, run_name: str | None, as_json: bool) -> None:
    """Shapes, parameters, MACs and receptive field of a run's network, or of an ONNX FILE.

    \b
    Examples:
      pipeline describe
      pipeline describe some-model.onnx
    """
    from .graph import read_graph
    from .run_exports import in_float
    from .run_folder import RunFolder

    kept: list[str] = []
    if file is None:
        run = RunFolder.open(run_name)
        kept = in_float(run)
        name = run.artefact("fp32", "onnx")
        if name not in run.record["artefacts"]:
            from .export import export_run

            export_run(run, ("onnx",), ("fp32",))
        file = run.need(name)
    graph = read_graph(file)
    if as_json:
        counts = {"parameters": graph.parameters, "macs": graph.macs}
        print_json(dataclasses.asdict(graph) | counts | ({"in_float": kept} if kept else {}))
        return
    from .tables import show_graph

    show_graph(graph)
    if kept:
        click.echo(f"int8 keeps in float: {', '.join(kept)}")


if __name__ == "__main__":
    main(prog_name="pipeline")
