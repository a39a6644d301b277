"""Seconds until LeNet-5 knows 99.0 % of MNIST's test images: the recipe against a plain loop.

    python benchmarks/training.py [--epochs 3] [--runs 3] [--threads 2]

The plain loop is what one writes first: a Dataset that prepares one picture at a time, a
DataLoader, Adam with its usual learning rate. It runs until it is there; the recipe has to know
beforehand for how many epochs, which `--epochs` says. Both train the same network on the same
55,000 pictures; evaluating costs neither of them time. Needs MNIST in PIPELINE_DATA_DIR, or
downloads it.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils import data as torch_data

from models import MODELS
from pipeline.checkpoint import Epoch, TrainConfig
from pipeline.data import Split, load_dataset
from pipeline.network import find_network
from pipeline.train import evaluate, loss_function, make_state, train_epoch

GOAL = 0.99
MOST_EPOCHS = 40


class Pictures(torch_data.Dataset[tuple[Tensor, Tensor]]):
    """One picture at a time, float in [0, 1], and its label."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.split.images[number].float() / 255, self.split.labels[number]


def plain(seed: int, images: Split) -> Iterator[nn.Module]:
    """The network after each epoch of the plain loop."""
    torch.manual_seed(seed)
    network = MODELS["lenet5"]()
    optimizer = torch.optim.Adam(network.parameters())
    loader = torch_data.DataLoader(Pictures(images), batch_size=128, shuffle=True)
    for _ in range(MOST_EPOCHS):
        network.train()
        for batch, labels in loader:
            loss = nn.functional.cross_entropy(network(batch), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield network


def recipe(seed: int, images: Split, epochs: int) -> Iterator[nn.Module]:
    """The averaged network after each epoch of the recipe."""
    torch.manual_seed(seed)
    network = MODELS["lenet5"]()
    known = find_network("lenet5")
    config = TrainConfig(
        "lenet5",
        "mnist",
        epochs,
        known.learning_rate(),
        seed=seed,
        augment=True,
        label_smoothing=known.label_smoothing(),
        weight_decay=known.weight_decay(),
    )
    state = make_state(network, config, images.images.shape[1:])
    loss_of = loss_function(network, config)
    for number in range(epochs):
        loss, accuracy = train_epoch(state, images, config, loss_of, lambda *_: None)
        state.history.append(Epoch(number + 1, loss, accuracy, 0, 0, 0, 0))
        yield state.average


def until_there(epochs: Iterator[nn.Module], test: Split) -> tuple[float, int, float]:
    """Seconds of training, epochs and accuracy when the goal, or the end, is reached."""
    seconds, count, accuracy = 0.0, 0, 0.0
    while accuracy < GOAL:
        started = time.perf_counter()
        network = next(epochs, None)
        if network is None:
            break
        seconds += time.perf_counter() - started
        count, accuracy = count + 1, evaluate(network, test)
    return seconds, count, accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = load_dataset("mnist", (1, 28, 28), seed=0)
    print(f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} threads")
    print(f"{'':12} seed  epochs  seconds  an epoch  accuracy")
    taken: dict[str, list[float]] = {"plain loop": [], "recipe": []}
    for seed in range(arguments.runs):
        trainings = (plain(seed, images.train), recipe(seed, images.train, arguments.epochs))
        for name, training in zip(taken, trainings, strict=True):
            seconds, count, accuracy = until_there(training, images.test)
            reached = accuracy >= GOAL
            taken[name].append(seconds if reached else float("inf"))
            numbers = f"{seed:4} {count:7} {seconds:8.1f} {seconds / count:9.2f} {accuracy:9.2%}"
            print(f"{name:12} {numbers}" + ("" if reached else "  not there"), flush=True)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    print(f"median seconds to {GOAL:.1%}: " + ", ".join(f"{k} {v:.1f}" for k, v in medians.items()))
    print(f"the recipe is {medians['plain loop'] / medians['recipe']:.1f} times as fast")


if __name__ == "__main__":
    main()
