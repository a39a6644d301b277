"""Training: one visible loop. `train_stage.py` is what leaves its outcome in a run."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import Epoch, State, TrainConfig, load, restore, save
from .data import Dataset, Split
from .distortion import ELASTIC, distort
from .errors import Missing, VerificationFailed
from .muon import Muon, matrices_of
from .network import fastest_layout, lay_out, pooled_first
from .workers import ALONE, Workers

# The recipe, chosen on MNIST by validation accuracy, together with the amounts in distortion.py and
# the networks' own peak learning rate, weight decay and label smoothing (Szegedy et al. 2016).
RISE = 0.2  # of all steps, with the learning rate going up
EASE = 0.25  # of all epochs, the last: distortion falls to EASED of it, label smoothing to nothing
EASED = 0.5
AVERAGE_OVER = 0.2  # epochs; exponential moving average of the weights: Polyak and Juditsky 1992
REPORT_EVERY = 16  # batches

# Called now and then with (epoch, batches done, batches an epoch, loss, accuracy so far).
OnBatch = Callable[[int, int, int, float, float], None]
OnEpoch = Callable[[Epoch], None]
LossOf = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """One cycle (Smith and Topin 2018): a cosine up from 4 % of the peak, then down to nothing."""
    rise = RISE * steps
    if step < rise:
        return peak * (0.04 + 0.96 * (1 - math.cos(math.pi * step / rise)) / 2)
    return peak * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


def ease_at(epoch: int, epochs: int) -> float:
    """How far pictures and labels have come to what they are in use: 0, and in the end up to 1."""
    return max(0.0, 1 - (epochs - 1 - epoch) / (EASE * epochs))


def loss_function(network: nn.Module, config: TrainConfig) -> LossOf:
    """From a batch's uint8 N x C x H x W pictures and labels, and `ease_at`, a tensor so that it
    can change in what is compiled: the mean loss, the right answers.

    On CUDA in bfloat16, with all that happens up to the gradients compiled and replayed as CUDA
    graphs; on a CPU compiling takes longer than it saves.
    """
    cuda = config.device == "cuda"

    def loss_of(pictures: Tensor, labels: Tensor, ease: Tensor) -> tuple[Tensor, Tensor]:
        images = pictures.float() / 255  # N x C x H x W in [0, 1]
        if config.augment:
            amount = config.distortion * (1 - (1 - EASED) * ease)
            images = distort(images, amount, amount * ELASTIC)
        with torch.autocast(config.device, torch.bfloat16, enabled=cuda):
            scores = network(images).float()  # N x classes
        chances = scores.log_softmax(1)
        loss = nn.functional.nll_loss(chances, labels)
        smoothed = loss.lerp(-chances.mean(), config.label_smoothing * (1 - ease))
        return smoothed, (scores.argmax(1) == labels).sum()

    # CUDA graphs hold nothing of what several processes say to one another.
    alone = not isinstance(network, nn.parallel.DistributedDataParallel)
    mode = "reduce-overhead" if alone else "default"
    return torch.compile(loss_of, mode=mode, dynamic=False) if cuda else loss_of


def train_epoch(
    state: State,
    data: Split,
    config: TrainConfig,
    loss_of: LossOf,
    on_batch: OnBatch,
    workers: Workers = ALONE,
) -> tuple[float, float]:
    """One pass over the training images in an order that follows from seed and epoch alone.

    Of each batch every worker computes its share; the steps are those of one alone. Returns mean
    loss and accuracy over the epoch and all workers. Raises VerificationFailed when the loss or a
    weight is no longer finite.
    """
    epoch = len(state.history)
    seed = config.seed * 100_003 + epoch
    torch.manual_seed(seed)  # CUDA's generator too
    order = torch.randperm(len(data)).to(data.labels.device)
    if not workers.first:  # whose pictures are distorted by other numbers
        torch.manual_seed(seed + workers.rank * 0x9E3779B1)
    batches = order.split(config.batch_size)
    if len(batches) > 1 and len(batches[-1]) < 2:  # batch normalization needs two images
        batches = batches[:-1]
    totals = torch.zeros(2, device=order.device)  # loss and right answers, summed over images
    seen = 0
    ease = torch.tensor(ease_at(epoch, config.epochs), device=order.device)
    state.network.train()
    for number, batch in enumerate(batches):
        step = epoch * len(batches) + number
        rate = learning_rate_at(step, config.epochs * len(batches), config.learning_rate)
        share, stands_for = workers.share(batch)
        loss, right = loss_of(data.images[share], data.labels[share], ease)
        state.network.zero_grad()
        # The mean over the workers is the mean over the batch, also where shares differ by one.
        (loss * (stands_for * len(share) / len(batch))).backward()
        for optimizer in state.optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        move_average(state, step, len(batches))
        totals += torch.stack([loss.detach() * len(share), right]) * stands_for
        seen += len(batch)
        if number % REPORT_EVERY == 0 or number + 1 == len(batches):  # else CUDA would wait for us
            mean_loss, accuracy = (workers.mean(totals) / seen).tolist()
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

    Matrices are Muon's; all other parameters AdamW's, fused: one kernel a step for all of these.
    """
    lay_out(network.to(config.device), fastest_layout(network, input_shape))
    matrices = matrices_of(network)
    rest = [weights for weights in network.parameters() if all(weights is not m for m in matrices)]
    lr, decay = config.learning_rate, config.weight_decay
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=lr, weight_decay=decay))
    if rest:
        optimizers.append(torch.optim.AdamW(rest, lr=lr, weight_decay=decay, fused=True))
    return State(network, copy.deepcopy(network), optimizers)


def fit(
    network: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    path: Path | None,
    resume: bool,
    origin: dict[str, str | None],
    on_batch: OnBatch,
    on_epoch: OnEpoch,
    workers: Workers = ALONE,
) -> list[Epoch]:
    """Train in place; after each epoch the state is saved at `path`, from where `resume` goes on.
    Only the first worker reads and writes it; without a path nobody does.

    The network ends with the averaged weights of the epoch that did best on the validation images,
    the last of those that did equally well. They are bit-identical whether or not training was
    interrupted.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    input_shape = dataset.train.images.shape[1:]
    with pooled_first(network, input_shape):
        state = make_state(network, config, input_shape)
        if resume:
            restore(state, *workers.broadcast(load(path, origin) if path else None))
        device = torch.device(config.device)
        train, validation = _on(dataset.train, device), _on(dataset.validation, device)
        loss_of = loss_function(workers.parallel(network), config)
        while len(state.history) < config.epochs:
            started = time.perf_counter()
            loss, accuracy = train_epoch(state, train, config, loss_of, on_batch, workers)
            rate = len(train) / (time.perf_counter() - started)
            checked = workers.broadcast(
                evaluate(state.average, validation) if workers.first else None
            )
            if checked >= max((epoch.validation_accuracy for epoch in state.history), default=0):
                state.best = {name: t.clone() for name, t in state.average.state_dict().items()}
            state.history.append(
                Epoch(
                    len(state.history) + 1,
                    loss,
                    accuracy,
                    checked,
                    seconds=time.perf_counter() - started,
                    learning_rate=state.optimizers[0].param_groups[0]["lr"],
                    images_per_second=rate,
                )
            )
            on_epoch(state.history[-1])
            if path:
                save(state, path, config, origin, workers.count)
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
