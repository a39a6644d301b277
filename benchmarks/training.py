"""An epoch of `pipeline train` against a bare in-memory PyTorch loop on the same network and data.

    python benchmarks/training.py [--epochs 5] [--threads 2]

Prints seconds an epoch (median over interleaved epochs) and their ratio. Needs MNIST in
PIPELINE_DATA_DIR, or downloads it.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch
from torch import Tensor, nn

from models import MODELS
from pipeline.checkpoint import TrainConfig
from pipeline.data import Split, load_dataset
from pipeline.train import make_optimizer, train_epoch


def bare_epoch(network: nn.Module, optimizer: torch.optim.Optimizer, data: Split) -> None:
    """What one writes by hand: shuffle, slice, forward, backward, step."""
    network.train()
    order: Tensor = torch.randperm(len(data))
    for batch in order.split(256):
        images = data.images[batch].float() / 255
        loss = nn.functional.cross_entropy(network(images), data.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_dataset("mnist", (1, 28, 28), seed=0).train
    config = TrainConfig("lenet5", "mnist", arguments.epochs, 4e-3, batch_size=256)
    ours, bare = MODELS["lenet5"](), MODELS["lenet5"]()
    our_optimizer = make_optimizer(ours, config)
    bare_optimizer = torch.optim.AdamW(bare.parameters(), lr=config.learning_rate)
    seconds: dict[str, list[float]] = {"pipeline": [], "bare loop": []}
    for epoch in range(-1, arguments.epochs):  # epoch -1 warms up
        started = time.perf_counter()
        train_epoch(ours, our_optimizer, data, config, max(epoch, 0), lambda *_: None)
        between = time.perf_counter()
        bare_epoch(bare, bare_optimizer, data)
        if epoch >= 0:
            seconds["pipeline"].append(between - started)
            seconds["bare loop"].append(time.perf_counter() - between)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} threads")
    print(f"{len(data):,} images, batch 256, {arguments.epochs} epochs, interleaved, medians")
    for name, median in medians.items():
        print(f"{name:10} {median:7.2f} s an epoch")
    print(f"{'ratio':10} {medians['pipeline'] / medians['bare loop']:7.2f}")


if __name__ == "__main__":
    main()
