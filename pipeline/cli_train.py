"""`pipeline train`: alone, under torchrun, from a checkpoint, or an int8 program."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from .cli_options import (
    DRY_RUN,
    JSON,
    given_options,
    print_json,
    shape_of,
    show_plan,
    training,
    training_options,
)
from .cli_quantize import train_in_int8
from .errors import Missing, UsageError

if TYPE_CHECKING:
    from .checkpoint import TrainConfig
    from .workers import Workers


@click.command()
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

    with joined(options["device"] != "cpu") as workers:
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
    from .train_stage import WEIGHTS, refuse_interrupted, train_run

    if resume:
        run = RunFolder.open(options["run_name"], dry_run)
        saved = checkpoint.read(run.path / CHECKPOINT)
        config = saved.config
        _refuse_other_settings(dataclasses.asdict(config), options)
        if options["data_dir"] is not None:  # it may have moved: its contents are compared
            config = dataclasses.replace(config, data_dir=str(options["data_dir"]))
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
        if not overwrite:
            refuse_interrupted(run)
    if dry_run:
        if workers.count > 1:
            raise UsageError("--dry-run under torchrun", "give it without torchrun")
        run.wants(METRICS, WEIGHTS, run.artefact("fp32", "pt2"))
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
    said = given_options().keys() - {"run_name", "data_dir"}
    for option, value in options.items():
        if option == "input_shape":
            value = shape_of(value)
        stated = known.get(names.get(option, option))
        if option in said and value != stated:
            raise UsageError(
                f"--{option.replace('_', '-')} {value}: the training to resume has {stated}",
                "leave it out, or train without --resume",
            )
