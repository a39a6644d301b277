"""The stage that leaves a training behind in its run: weights, float program, facts, logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from . import __version__, checkpoint
from .checkpoint import Epoch, TrainConfig
from .data import Dataset, Split, load_dataset
from .errors import BadInput, Interrupted, UsageError, UserError, first_line
from .logs import event_writer, logs
from .network import Network
from .precisions import INTEGERS
from .program import capture, saved
from .run_folder import CHECKPOINT, RunFolder
from .train import OnBatch, OnEpoch, evaluate, fit
from .workers import ALONE, LOST, WorkerLost, Workers, peer_is_lost

WEIGHTS = "model.safetensors"


def train_run(
    run: RunFolder,
    network: Network,
    config: TrainConfig,
    *,
    resume: bool = False,
    precisions: Sequence[str] = (),
    tensorboard: bool = False,
    on_batch: OnBatch = lambda *_: None,
    on_epoch: OnEpoch = lambda _: None,
    workers: Workers = ALONE,
) -> dict[str, Any]:
    """Train into a run: its weights, its float program, and what is known about both.

    A network that cannot be quantized to one of `precisions` is refused before it is trained. Of
    several workers this is for the first, `assist` for the others. Returns the facts, as they stand
    in run.json under "training". Raises the errors of the data set, the network and the loop; a
    checkpoint of the last whole epoch stays for --resume.
    """
    path = run.path / CHECKPOINT
    try:
        check_settings(config, workers)
        if tensorboard:
            event_writer()
        with explained(network.name, run.name, path.is_file):
            dataset, module = _prepared(network, config, workers)
            # What cannot be frozen, or quantized as is wanted, is better known now.
            frozen = capture(module, network.input_shape)
            if INTEGERS.keys() & set(precisions):
                from .quantization import check

                check(frozen, precisions)
            known = checkpoint.read(path).history if resume else []
            run.remove_leftovers()
            if not resume:  # what is left of another training must not be gone on with
                path.unlink(missing_ok=True)
            origin = _origin(network, dataset)
            with logs(run.path, known, tensorboard) as writing:

                def log(epoch: Epoch) -> None:
                    writing.add(epoch)
                    on_epoch(epoch)

                history = fit(module, dataset, config, path, resume, origin, on_batch, log, workers)
    except (UserError, KeyboardInterrupt):
        run.remove_if_empty()
        raise
    facts = {
        "config": asdict(config),
        "source_sha256": network.source_sha256,
        "threads": torch.get_num_threads(),
        "workers": workers.count,
        "torch": torch.__version__,
        "dataset_name": dataset.name,
        "dataset_sha256": dataset.sha256,
        "labels": list(dataset.labels),
        "preparation": dataset.preparation,
        "input_shape": list(network.input_shape),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "history": [asdict(epoch) for epoch in history],
        "learned": max(epoch.validation_accuracy for epoch in history) > guess(dataset.validation),
        "test_accuracy": evaluate(module, dataset.test),
    }
    program = run.artefact("fp32", "pt2")
    with run.workspace() as work:
        weights = {name: value.clone() for name, value in module.state_dict().items()}
        (work / WEIGHTS).write_bytes(safetensors.torch.save(weights))
        (work / program).write_bytes(saved(capture(module, network.input_shape)))
        run.record["training"] = facts  # saved with the weights, at once
        run.commit({WEIGHTS: work / WEIGHTS}, training_config(network, config), [])
        run.commit({program: work / program}, {"pipeline": __version__}, [WEIGHTS])
    path.unlink(missing_ok=True)
    return facts


def assist(
    run_name: str, network: Network, config: TrainConfig, resume: bool, workers: Workers
) -> None:
    """The part of the workers that are not the first: they compute, and write nothing."""
    with explained(network.name, run_name, lambda: True):
        dataset, module = _prepared(network, config, workers)
        quiet = (lambda *_: None, lambda _: None)
        fit(module, dataset, config, None, resume, _origin(network, dataset), *quiet, workers)


def guess(split: Split) -> float:
    """The accuracy of always answering the most frequent label."""
    return float(split.labels.bincount().max()) / len(split)


def refuse_interrupted(run: RunFolder) -> None:
    """Raises UsageError where a training that is not to be gone on with would be lost."""
    if (run.path / CHECKPOINT).is_file():
        raise UsageError(
            f"run {run.name} has an interrupted training",
            f"go on with 'pipeline train --resume --run {run.name}', or give --overwrite to start "
            "anew",
        )


def check_settings(config: TrainConfig, workers: Workers = ALONE) -> None:
    """Raises UsageError for what no training can have."""
    each = 1 if workers.count == 1 else 2 * workers.count
    why = f"2 images for each of {workers.count} processes: " if each > 1 else ""
    for option, value, fine, mend in (
        ("--epochs", config.epochs, config.epochs >= 1, "give 1 or more"),
        ("--batch-size", config.batch_size, config.batch_size >= each, f"{why}give {each} or more"),
        (
            "--lr",
            config.learning_rate,
            0 < config.learning_rate < math.inf,
            "give a number above 0",
        ),
        (
            "--weight-decay",
            config.weight_decay,
            0 <= config.weight_decay < math.inf,
            "give 0 or more",
        ),
        (
            "--label-smoothing",
            config.label_smoothing,
            0 <= config.label_smoothing < 1,
            "give 0 to 1, without 1",
        ),
        ("--distortion", config.distortion, 0 <= config.distortion < math.inf, "give 0 or more"),
    ):
        if not fine:
            shown = f"{value:g}" if isinstance(value, float) else value
            raise UsageError(f"{option} {shown}", mend)


def _prepared(network: Network, config: TrainConfig, workers: Workers) -> tuple[Dataset, nn.Module]:
    """The data set, the same for all workers, and the network with its first weights."""
    place = Path(config.data_dir) if config.data_dir else None
    dataset = workers.in_turn(
        lambda: load_dataset(config.dataset, network.input_shape, config.seed, place)
    )
    if workers.broadcast(dataset.sha256) != dataset.sha256:
        raise BadInput(
            f"data set {config.dataset}: on this machine it is not the first one's",
            "bring the same files to all machines",
        )
    torch.manual_seed(config.seed)
    return dataset, network.build(len(dataset.labels))


def _origin(network: Network, dataset: Dataset) -> dict[str, str | None]:
    return {"source": network.source_sha256, "dataset": dataset.sha256}


@contextmanager
def explained(network: str, run_name: str, has_checkpoint: Callable[[], bool]) -> Iterator[None]:
    """An interruption or a loss as an error that says how to go on."""
    mend = f"go on with 'pipeline train --resume --run {run_name}'"
    try:
        with fitting(network):
            yield
    except KeyboardInterrupt as error:
        if not has_checkpoint():
            raise
        raise Interrupted("interrupted; nothing is half-written", mend) from error
    except WorkerLost as error:
        raise Interrupted(LOST, mend) from error


@contextmanager
def fitting(network: str) -> Iterator[None]:
    """What goes wrong in a network's own forward, or for lack of memory. Raises BadInput."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RuntimeError) and peer_is_lost(error):
            raise WorkerLost(LOST) from error
        raise BadInput(
            f"{network}: fails in training ({first_line(error)})", "see --debug"
        ) from error


def training_config(network: Network, config: TrainConfig) -> dict[str, Any]:
    """What run.json keeps to tell whether training again would give the same weights."""
    record = asdict(config) | {"source_sha256": network.source_sha256, "pipeline": __version__}
    del record["data_dir"]  # where the data lie does not change what they are
    return record
