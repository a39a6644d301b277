"""Training: one visible loop, and the stage that leaves a run behind."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from . import __version__
from .checkpoint import Epoch, State, TrainConfig, restore, save
from .data import Dataset, Split, load_dataset
from .distortion import distort
from .errors import (
    BadInput,
    Interrupted,
    Missing,
    UsageError,
    UserError,
    VerificationFailed,
    first_line,
)
from .network import Network, fastest_layout, lay_out
from .program import capture, saved
from .run_folder import CHECKPOINT, RunFolder

WEIGHTS = "model.safetensors"


# The recipe, chosen on MNIST by validation accuracy, together with the amounts in distortion.py and
# the networks' own peak learning rate and label smoothing (Szegedy et al. 2016).
WEIGHT_DECAY = 0.05  # decoupled from the gradient: Loshchilov and Hutter 2019
RISE = 0.2  # of all steps, with the learning rate going up
AVERAGE_OVER = 0.2  # epochs; exponential moving average of the weights: Polyak and Juditsky 1992
REPORT_EVERY = 16  # batches

# Called now and then with (epoch, batches done, batches an epoch, loss, accuracy so far).
OnBatch = Callable[[int, int, int, float, float], None]
OnEpoch = Callable[[Epoch], None]
LossOf = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """One cycle (Smith and Topin 2018): a cosine up from 4 % of the peak, then down to nothing."""
    rise = RISE * steps
    if step < rise:
        return peak * (0.04 + 0.96 * (1 - math.cos(math.pi * step / rise)) / 2)
    return peak * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


def loss_function(network: nn.Module, config: TrainConfig) -> LossOf:
    """From a batch's uint8 N x C x H x W pictures and labels: its mean loss, its right answers.

    On CUDA in bfloat16, with all that happens up to the gradients compiled and replayed as CUDA
    graphs; on a CPU compiling takes longer than it saves.
    """
    cuda = config.device == "cuda"

    def loss_of(pictures: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = pictures.float() / 255  # N x C x H x W in [0, 1]
        if config.augment:
            images = distort(images)
        with torch.autocast(config.device, torch.bfloat16, enabled=cuda):
            scores = network(images).float()  # N x classes
        loss = nn.functional.cross_entropy(scores, labels, label_smoothing=config.label_smoothing)
        return loss, (scores.argmax(1) == labels).sum()

    return torch.compile(loss_of, mode="reduce-overhead", dynamic=False) if cuda else loss_of


def train_epoch(
    state: State, data: Split, config: TrainConfig, loss_of: LossOf, on_batch: OnBatch
) -> tuple[float, float]:
    """One pass over the training images in an order that follows from seed and epoch alone.

    Returns mean loss and accuracy over the epoch. Raises VerificationFailed when the loss or a
    weight is no longer finite.
    """
    epoch = len(state.history)
    torch.manual_seed(config.seed * 100_003 + epoch)  # CUDA's generator too
    order = torch.randperm(len(data)).to(data.labels.device)
    batches = order.split(config.batch_size)
    if len(batches) > 1 and len(batches[-1]) < 2:  # batch normalization needs two images
        batches = batches[:-1]
    totals = torch.zeros(2, device=order.device)  # loss and right answers, summed over images
    seen = 0
    state.network.train()
    for number, batch in enumerate(batches):
        step = epoch * len(batches) + number
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config.epochs * len(batches), config.learning_rate)
        loss, right = loss_of(data.images[batch], data.labels[batch])
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        move_average(state, step, len(batches))
        totals += torch.stack([loss.detach() * len(batch), right])
        seen += len(batch)
        if number % REPORT_EVERY == 0 or number + 1 == len(batches):  # else CUDA would wait for us
            mean_loss, accuracy = (totals / seen).tolist()
            if not math.isfinite(mean_loss):
                raise diverged(mean_loss, config, epoch)
            on_batch(epoch, number + 1, len(batches), mean_loss, accuracy)
    if not all(bool(weights.isfinite().all()) for weights in state.network.parameters()):
        raise diverged(math.nan, config, epoch)  # in the very last step, which no loss has seen
    return mean_loss, accuracy


@torch.no_grad()
def move_average(state: State, step: int, batches: int) -> None:
    """Move the averaged weights towards the network's: a mean at first, then a decaying one."""
    share = max(1 / (step + 1), 1 - math.exp(-1 / (AVERAGE_OVER * batches)))
    averaged: list[Tensor] = list(state.average.parameters())
    torch._foreach_lerp_(averaged, list[Tensor](state.network.parameters()), share)
    for ours, theirs in zip(state.average.buffers(), state.network.buffers(), strict=True):
        ours.copy_(theirs)


def diverged(loss: float, config: TrainConfig, epoch: int) -> VerificationFailed:
    """The error of a training whose numbers are no longer finite."""
    kept = f"; the checkpoint keeps epoch {epoch}" if epoch else ""
    return VerificationFailed(
        f"training diverged: the loss is {loss} in epoch {epoch + 1}{kept}",
        f"give a smaller --lr than {config.learning_rate:g}"
        + (" and --overwrite" if epoch else ""),
    )


def evaluate(network: nn.Module, data: Split, batch: int = 1000) -> float:
    """Accuracy of the network in evaluation mode."""
    network.eval()
    correct = 0
    with torch.inference_mode():
        for images, labels in zip(data.images.split(batch), data.labels.split(batch), strict=True):
            correct += int((network(images.float() / 255).argmax(1) == labels).sum())
    return correct / len(data)


def make_state(network: nn.Module, config: TrainConfig, input_shape: Sequence[int]) -> State:
    """A training before its first step; the network is moved to the device, in its fastest layout.

    AdamW over all parameters, fused: one kernel a step instead of one a parameter.
    """
    lay_out(network.to(config.device), fastest_layout(network, input_shape))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=WEIGHT_DECAY, fused=True
    )
    return State(network, copy.deepcopy(network), optimizer)


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

    The network ends with the averaged weights of the epoch that did best on the validation images,
    the last of those that did equally well. They are bit-identical whether or not training was
    interrupted.
    """
    state = make_state(network, config, dataset.train.images.shape[1:])
    if resume:
        restore(state, path, config, origin)
    device = torch.device(config.device)
    train, validation = _on(dataset.train, device), _on(dataset.validation, device)
    loss_of = loss_function(network, config)
    while len(state.history) < config.epochs:
        started = time.perf_counter()
        loss, accuracy = train_epoch(state, train, config, loss_of, on_batch)
        checked = evaluate(state.average, validation)
        if checked >= max((epoch.validation_accuracy for epoch in state.history), default=0):
            state.best = {name: t.clone() for name, t in state.average.state_dict().items()}
        seconds = time.perf_counter() - started
        state.history.append(Epoch(len(state.history) + 1, loss, accuracy, checked, seconds))
        on_epoch(state.history[-1])
        save(state, path, config, origin)
    network.load_state_dict(state.best)
    lay_out(network.cpu().eval(), torch.contiguous_format)
    return state.history


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
            from .quantization import check

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
