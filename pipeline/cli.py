"""The command line: each command parses, calls one stage and prints what came of it.

Heavy libraries are imported inside the commands, so that `pipeline --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from . import __version__
from .cli_deploy import deploy
from .cli_evaluate import calibrate, evaluate
from .cli_machine import completion, doctor
from .cli_options import (
    DRY_RUN,
    FORMAT,
    FORMATS,
    JSON,
    PRECISION,
    PRECISIONS,
    RUN,
    flags,
    given_options,
    print_json,
    shape_of,
    show_plan,
    split,
    training,
    training_options,
)
from .cli_package import package
from .cli_quantize import quantize, sensitivity, train_in_int8
from .cli_report import bench, compare, report
from .cli_sweep import sweep
from .cli_verify import verify
from .errors import INTERRUPTED, Missing, UsageError, UserError, unknown

if TYPE_CHECKING:
    from .checkpoint import TrainConfig
    from .workers import Workers


class Pipeline(click.Group):
    """Catches every user error in one place, and guesses what a mistyped command meant."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error is one line on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(ctx, error, str(error), error.exit_code)
        except click.ClickException as error:
            if _told_elsewhere():
                ctx.exit(error.exit_code)
            raise
        except KeyboardInterrupt as error:
            _fail(ctx, error, "interrupted; nothing is half-written", INTERRUPTED)
        except BrokenPipeError:  # the reader of our output has gone, as with `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            _fail(ctx, error, f"{place}{error.strerror or error}", 3)

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


def _told_elsewhere() -> bool:
    """Whether another process that torchrun started has told the person already."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    from .workers import first_to_tell

    return not first_to_tell()


@click.group(cls=Pipeline, context_settings={"help_option_names": ["-h", "--help"]})
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


@main.command()
@training_options
@click.option("--resume", is_flag=True, help="Go on where an interrupted training stopped.")
@click.option("--overwrite", is_flag=True, help="Replace the weights of a run that has some.")
@click.option("--tensorboard", is_flag=True, help="Write event files for TensorBoard, too.")
@click.option("--qat", is_flag=True, help="Train a trained run's int8 program on, in int8.")
@DRY_RUN
@JSON
def train(
    resume: bool,
    overwrite: bool,
    tensorboard: bool,
    qat: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a network and freeze it. With --qat: from the float program of a run that is trained,
    few epochs in which every value is rounded as int8 does; --epochs, --lr and --seed are of that.

    \b
    Examples:
      pipeline train
      pipeline train --model lenet5-classic --dataset mnist --epochs 5
      pipeline train --model mynet.py:MyNet --dataset photos/ --run trial
      pipeline train --qat --run lenet5-mnist
    """
    if qat:
        train_in_int8(options, resume or overwrite or tensorboard, dry_run, as_json)
        return
    from .network import find_network
    from .train_stage import assist
    from .workers import joined

    with joined() as workers:
        if workers.first:
            _train(workers, resume, overwrite, tensorboard, dry_run, as_json, options)
            return
        given: tuple[str, TrainConfig] = workers.broadcast(None)
        name, config = given
        network = find_network(config.model, config.activation, config.input_shape)
        assist(name, network, config, resume, workers)


def _train(
    workers: Workers,
    resume: bool,
    overwrite: bool,
    tensorboard: bool,
    dry_run: bool,
    as_json: bool,
    options: dict[str, Any],
) -> None:
    """`train` in the one process, or the first of several."""
    from . import checkpoint
    from .console import TrainingProgress, say
    from .network import find_network
    from .run_folder import CHECKPOINT, METRICS, RunFolder
    from .train import choose_device
    from .train_stage import WEIGHTS, train_run

    if resume:
        run = RunFolder.open(options["run_name"], dry_run)
        saved = checkpoint.read(run.path / CHECKPOINT)
        config = saved.config
        _refuse_other_settings(dataclasses.asdict(config), options)
        if config.device == "cuda" and choose_device("auto") != "cuda":
            raise Missing(
                f"run {run.name} was begun on a CUDA device, and there is none here",
                "go on where it was begun, or train anew with --overwrite",
            )
        network = find_network(config.model, config.activation, config.input_shape)
        say(f"resuming run {run.name} after epoch {len(saved.history)} of {config.epochs}")
        now = checkpoint.arithmetic(workers.count)
        for name, then in saved.arithmetic.items():
            if now.get(name) != then:
                say(f"{name}: {then} then, {now.get(name)} now; the last bits will differ")
    else:
        network, config, name = training(options)
        run = RunFolder.create(name, network.name, dry_run)
        if WEIGHTS in run.record["artefacts"] and not overwrite:
            raise UsageError(
                f"run {name} is trained already",
                "give another --run NAME, or --overwrite to train it anew",
            )
        if (run.path / CHECKPOINT).is_file() and not overwrite:
            raise UsageError(
                f"run {name} has an interrupted training",
                "give --resume to go on with it, or --overwrite to start anew",
            )
    if dry_run:
        if workers.count > 1:
            raise UsageError("--dry-run under torchrun", "give it without torchrun")
        for file in (METRICS, WEIGHTS, run.artefact("fp32", "pt2")):
            run.wants(file)
        show_plan(run, as_json)
        return
    workers.broadcast((run.name, config))
    with TrainingProgress(config.epochs) as progress:
        facts = train_run(
            run,
            network,
            config,
            resume=resume,
            tensorboard=tensorboard,
            on_batch=progress.on_batch,
            on_epoch=progress.on_epoch,
            workers=workers,
        )
    if not facts["learned"]:
        say(
            "warning: nothing was learned, always the same answer would do as well; give another "
            f"--lr than {config.learning_rate:g}, more --epochs, or look at the data"
        )
    if as_json:
        print_json({"run": run.name, **facts})
        return
    click.echo(f"test accuracy {facts['test_accuracy']:.2%}, {facts['parameters']:,} parameters")
    say(f"in {run.path}; next: pipeline export")


def _refuse_other_settings(known: dict[str, Any], options: dict[str, Any]) -> None:
    """With --resume the settings are the checkpoint's; other ones are an error, not ignored."""
    names = {"lr": "learning_rate"}
    said = given_options().keys() - {"run_name"}
    for option, value in options.items():
        if option in ("data_dir", "input_shape"):
            value = str(value) if option == "data_dir" else shape_of(value)
        stated = known.get(names.get(option, option))
        if option in said and value != (tuple(stated) if isinstance(stated, list) else stated):
            raise UsageError(
                f"--{option.replace('_', '-')} {value}: the training to resume has {stated}",
                "leave it out, or train without --resume",
            )


@main.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@RUN
@FORMAT
@PRECISION
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where C of FILE goes.",
)
@click.option("--overwrite", is_flag=True, help="Replace C that is in FOLDER already.")
@DRY_RUN
@JSON
def export(
    file: Path | None,
    run_name: str | None,
    formats: str,
    precisions: str,
    output: Path | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Export a run to the files that runtimes read; int8 quantizes first where need be. Or generate
    C from an ONNX FILE of any origin.

    \b
    Examples:
      pipeline export --format onnx
      pipeline export --format onnx,tflite --precision int8
      pipeline export some-model.onnx --format c -o some-model-c
    """
    if file is not None:
        if dry_run:
            raise UsageError("--dry-run is for a run, not for a FILE", "leave it out")
        _export_file(file, run_name, formats, precisions, output, overwrite, as_json)
        return
    if output is not None or overwrite:
        raise UsageError("--output and --overwrite belong to a FILE", "leave them out for a run")
    chosen = split("format", formats, FORMATS), split("precision", precisions, PRECISIONS)
    from .console import say
    from .export import export_run
    from .run_folder import RunFolder

    run = RunFolder.open(run_name, dry_run)
    made = export_run(run, *chosen)
    if dry_run:
        show_plan(run, as_json)
        return
    if as_json:
        files = [
            {"file": str(run.path / name), "made": new, "bytes": run.entry(name)["bytes"]}
            for name, new in made.items()
        ]
        print_json({"run": run.name, "files": files})
        return
    for name, new in made.items():
        size = f"{run.entry(name)['bytes']:,} bytes"
        click.echo(f"{run.path / name}  {size}{'' if new else ' (unchanged)'}")
    say(f"next: pipeline verify{flags(formats, precisions)}")


def _export_file(
    file: Path,
    run_name: str | None,
    formats: str,
    precisions: str,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """C from an ONNX file that no run knows of."""
    if formats != "c" or output is None:
        raise UsageError(
            f"{file}: of a file only C is generated, into a folder", "give --format c -o FOLDER"
        )
    if run_name is not None or precisions != "all":
        raise UsageError("--run and --precision do not go with a FILE", "leave them out")
    from .console import say
    from .export import export_file

    generated = export_file(file, output, overwrite)
    if as_json:
        facts = {"arena": generated.arena, "peak": generated.peak, "optimum": generated.optimum}
        print_json({"folder": str(output), "files": sorted(generated.files), **facts})
        return
    click.echo(f"{output}  {len(generated.files)} files, an arena of {generated.arena:,} bytes")
    say(f"next: make -C {shlex.quote(str(output))}")


OTHERS = (
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
    chosen = split("format", formats, FORMATS), split("precision", precisions, PRECISIONS)
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
    from .run_folder import RunFolder

    if file is None:
        run = RunFolder.open(run_name)
        name = run.artefact("fp32", "onnx")
        if name not in run.record["artefacts"]:
            from .export import export_run

            export_run(run, ("onnx",), ("fp32",))
        file = run.need(name)
    graph = read_graph(file)
    if as_json:
        print_json(dataclasses.asdict(graph) | {"parameters": graph.parameters, "macs": graph.macs})
        return
    from .tables import show_graph

    show_graph(graph)


if __name__ == "__main__":
    main()
