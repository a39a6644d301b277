"""Training: one visible loop, and the stage that leaves a run behind."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from . import __version__
from .checkpoint import Epoch, TrainConfig, restore, save
from .data import Dataset, Split, load_dataset
from .errors import (
    BadInput,
    Interrupted,
    Missing,
    UsageError,
    UserError,
    VerificationFailed,
    first_line,
)
from .network import Network
from .program import capture, saved
from .run_folder import CHECKPOINT, RunFolder

WEIGHTS = "model.safetensors"


# Called after every batch with (epoch, batches done, batches an epoch, loss, accuracy so far).
OnBatch = Callable[[int, int, int, float, float], None]
OnEpoch = Callable[[Epoch], None]


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """One cycle (Smith and Topin 2018): a cosine up over the first 3/10, then down to nothing."""
    rise = 0.3 * steps
    if step < rise:
        return peak * (0.04 + 0.96 * (1 - math.cos(math.pi * step / rise)) / 2)
    return peak * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Split,
    config: TrainConfig,
    epoch: int,
    on_batch: OnBatch,
) -> tuple[float, float]:
    """One pass over the training images in an order that follows from seed and epoch alone.

    Returns mean loss and accuracy over the epoch. Raises VerificationFailed when the loss is no
    longer finite.
    """
    torch.manual_seed(config.seed * 100_003 + epoch)
    order = torch.randperm(len(data)).to(data.labels.device)
    batches = order.split(config.batch_size)
    if len(batches) > 1 and len(batches[-1]) < 2:  # batch normalization needs two images
        batches = batches[:-1]
    total_loss, correct, seen = 0.0, 0, 0
    network.train()
    for number, batch in enumerate(batches):
        step = epoch * len(batches) + number
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config.epochs * len(batches), config.learning_rate)
        images = data.images[batch].float() / 255  # N x C x H x W in [0, 1]
        if config.augment:
            images = random_affine(images)
        labels = data.labels[batch]
        scores = network(images)  # N x classes
        loss = nn.functional.cross_entropy(scores, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise VerificationFailed(
                f"training diverged: the loss is {value} in epoch {epoch + 1}",
                f"give a smaller --lr than {config.learning_rate:g}",
            )
        total_loss += value * len(batch)
        correct += int((scores.argmax(1) == labels).sum())
        seen += len(batch)
        on_batch(epoch, number + 1, len(batches), total_loss / seen, correct / seen)
    return total_loss / seen, correct / seen


def random_affine(images: Tensor) -> Tensor:
    """Each N x C x H x W image turned by up to 12 degrees, scaled by 1/10, moved by 1/20 at most.

    The whole batch at once; what comes in from outside is 0.
    """
    height, width = images.shape[2:]
    angle, scale, *shift = (torch.rand(4, len(images)) * 2 - 1) * torch.tensor(
        [[math.pi / 15], [0.1], [0.1], [0.1]]
    )
    cosine, sine = angle.cos() * (1 + scale), angle.sin() * (1 + scale)
    rows = [
        torch.stack([cosine, -sine * height / width, shift[0]], 1),
        torch.stack([sine * width / height, cosine, shift[1]], 1),
    ]
    matrices = torch.stack(rows, 1).to(images.device)  # N x 2 x 3
    grid = nn.functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)


def evaluate(network: nn.Module, data: Split, batch: int = 1000) -> float:
    """Accuracy of the network in evaluation mode."""
    network.eval()
    correct = 0
    with torch.inference_mode():
        for images, labels in zip(data.images.split(batch), data.labels.split(batch), strict=True):
            correct += int((network(images.float() / 255).argmax(1) == labels).sum())
    return correct / len(data)


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all parameters, fused: one kernel a step instead of one a parameter."""
    return torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=0.01, fused=True
    )


def fit(
    network: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    path: Path,
    resume: bool,
    origin: dict[str, str | None],
    on_batch: OnBatch,
    on_epoch: OnEpoch,
) -> list[Epoch]:
    """Train in place; after each epoch the state is saved at `path`, from where `resume` goes on.

    The weights are bit-identical whether or not training was interrupted.
    """
    device = torch.device(config.device)
    network.to(device)
    optimizer = make_optimizer(network, config)
    history = restore(network, optimizer, path, config, origin) if resume else []
    train, validation = _on(dataset.train, device), _on(dataset.validation, device)
    for epoch in range(len(history), config.epochs):
        started = time.perf_counter()
        loss, accuracy = train_epoch(network, optimizer, train, config, epoch, on_batch)
        checked = evaluate(network, validation)
        seconds = time.perf_counter() - started
        history.append(Epoch(epoch + 1, loss, accuracy, checked, seconds))
        on_epoch(history[-1])
        save(network, optimizer, path, config, history, origin)
    network.cpu().eval()
    return history


def _on(split: Split, device: torch.device) -> Split:
    return Split(split.images.to(device), split.labels.to(device))


def choose_device(name: str) -> str:
    """`auto` is CUDA where there is one. Raises Missing for `cuda` where there is none."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise Missing("no CUDA device here", "give --device cpu")
    return ("cuda" if available else "cpu") if name == "auto" else name


def train_run(
    run: RunFolder,
    network: Network,
    config: TrainConfig,
    *,
    resume: bool = False,
    int8: bool = False,
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
    checkpoint = run.path / CHECKPOINT
    try:
        dataset = load_dataset(config.dataset, network.input_shape, config.seed, data_dir)
        torch.manual_seed(config.seed)
        module = network.build(len(dataset.labels))
        # What cannot be frozen, or quantized where int8 is wanted, is better known now.
        frozen = capture(module, network.input_shape)
        if int8:
            from .quantize import check

            check(frozen)
        origin = {"source": network.source_sha256, "dataset": dataset.sha256}
        history = fit(module, dataset, config, checkpoint, resume, origin, on_batch, on_epoch)
    except KeyboardInterrupt as error:
        if checkpoint.is_file():
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
    checkpoint.unlink(missing_ok=True)
    return facts


def training_config(network: Network, config: TrainConfig) -> dict[str, Any]:
    """What run.json keeps to tell whether training again would give the same weights."""
    record = asdict(config) | {"source_sha256": network.source_sha256, "pipeline": __version__}
    del record["data_dir"]  # where the data lie does not change what they are
    return record
