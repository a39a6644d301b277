"""The stage that leaves a training behind in its run: weights, float program, facts, logs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from . import __version__, checkpoint
from .checkpoint import Epoch, TrainConfig
from .data import load_dataset
from .errors import BadInput, Interrupted, UsageError, UserError, first_line
from .logs import event_writer, logs
from .network import Network
from .program import capture, saved
from .run_folder import CHECKPOINT, RunFolder
from .train import OnBatch, OnEpoch, evaluate, fit

WEIGHTS = "model.safetensors"


def train_run(
    run: RunFolder,
    network: Network,
    config: TrainConfig,
    *,
    resume: bool = False,
    int8: bool = False,
    tensorboard: bool = False,
    on_batch: OnBatch = lambda *_: None,
    on_epoch: OnEpoch = lambda _: None,
) -> dict[str, Any]:
    """Train into a run: its weights, its float program, and what is known about both.

    `int8` refuses a network that cannot be quantized before it is trained. Returns the facts, as
    they stand in run.json under "training". Raises the errors of the data
    set, the network and the loop; a checkpoint of the last whole epoch stays for --resume.
    """
    for option, value, least in (
        ("--epochs", config.epochs, 1),
        ("--batch-size", config.batch_size, 1),
        ("--seed", config.seed, 0),
    ):
        if value < least:
            raise UsageError(f"{option} {value}", f"give {least} or more")
    torch.use_deterministic_algorithms(True, warn_only=True)
    data_dir = Path(config.data_dir) if config.data_dir else None
    path = run.path / CHECKPOINT
    try:
        if tensorboard:
            event_writer()
        dataset = load_dataset(config.dataset, network.input_shape, config.seed, data_dir)
        torch.manual_seed(config.seed)
        module = network.build(len(dataset.labels))
        # What cannot be frozen, or quantized where int8 is wanted, is better known now.
        frozen = capture(module, network.input_shape)
        if int8:
            from .quantize import check

            check(frozen)
        origin = {"source": network.source_sha256, "dataset": dataset.sha256}
        known = checkpoint.read(path)[1] if resume else []
        if not resume:  # what is left of another training must not be gone on with
            path.unlink(missing_ok=True)
        with logs(run.path, known, tensorboard) as writing:

            def log(epoch: Epoch) -> None:
                writing.add(epoch)
                on_epoch(epoch)

            history = fit(module, dataset, config, path, resume, origin, on_batch, log)
    except KeyboardInterrupt as error:
        if path.is_file():
            mend = f"go on with 'pipeline train --resume --run {run.name}'"
            raise Interrupted("interrupted; nothing is half-written", mend) from error
        run.remove_if_empty()
        raise
    except RuntimeError as error:  # out of the person's own forward, or memory
        raise BadInput(
            f"{network.name}: fails in training ({first_line(error)})", "see --debug"
        ) from error
    except UserError:
        run.remove_if_empty()
        raise
    facts = {
        "config": asdict(config),
        "source_sha256": network.source_sha256,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dataset_name": dataset.name,
        "dataset_sha256": dataset.sha256,
        "labels": list(dataset.labels),
        "preparation": dataset.preparation,
        "input_shape": list(network.input_shape),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "history": [asdict(epoch) for epoch in history],
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


def training_config(network: Network, config: TrainConfig) -> dict[str, Any]:
    """What run.json keeps to tell whether training again would give the same weights."""
    record = asdict(config) | {"source_sha256": network.source_sha256, "pipeline": __version__}
    del record["data_dir"]  # where the data lie does not change what they are
    return record
