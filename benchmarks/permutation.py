"""Why convolutions: an mlp and LeNet-5, trained on pictures and on the same pictures, shuffled.

    python benchmarks/permutation.py [--dataset mnist] [--epochs 3] [--seeds 3] [--threads 2]

One random permutation moves the pixels of every picture alike. A fully connected network takes its
inputs in any order and learns the same; a convolution counts on neighbours, which then are gone.
Adam, no distortion, no choice of an epoch: nothing but the order of the pixels differs. Prints the
test accuracy of each seed's training, as median (least to most), and what shuffling costs.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import nn

from models import MODELS
from pipeline.console import table
from pipeline.data import Split, load_dataset

NETWORKS = ("mlp", "lenet5")
SHAPE = (1, 28, 28)
BATCH = 128


def shuffled(split: Split, order: torch.Tensor) -> Split:
    """Every image's pixels in this order; `order` is a permutation of H x W numbers."""
    images = split.images.flatten(2)[:, :, order].view(split.images.shape)
    return Split(images, split.labels)


def trained(name: str, images: Split, epochs: int, seed: int) -> nn.Module:
    """A network after plain training."""
    torch.manual_seed(seed)
    network = MODELS[name]()
    optimizer = torch.optim.Adam(network.parameters())
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(BATCH):
            scores = network(images.images[chosen].float() / 255)
            loss = nn.functional.cross_entropy(scores, images.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module, images: Split) -> float:
    """Percent of the images."""
    answers = torch.cat(
        [network(part.float() / 255).argmax(1) for part in images.images.split(1000)]
    )
    return 100 * float((answers == images.labels).double().mean())


def main() -> None:
    """Train all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in NETWORKS:
        found: dict[str, list[float]] = {"plain": [], "shuffled": []}
        for seed in range(options.seeds):
            data = load_dataset(options.dataset, SHAPE, seed)
            order = torch.randperm(28 * 28, generator=torch.Generator().manual_seed(seed))
            for kind, train, test in (
                ("plain", data.train, data.test),
                ("shuffled", shuffled(data.train, order), shuffled(data.test, order)),
            ):
                network = trained(name, train, options.epochs, seed)
                found[kind].append(accuracy(network, test))
        middles = [statistics.median(values) for values in found.values()]
        cells = [
            f"{middle:.2f} ({min(values):.2f} to {max(values):.2f})"
            for middle, values in zip(middles, found.values(), strict=True)
        ]
        rows.append([name, *cells, f"{middles[1] - middles[0]:+.2f}"])
    title = f"{options.dataset}, % right, {options.epochs} epochs, {options.seeds} seeds"
    table(title, ("network", "pixels in place", "pixels shuffled", "points"), rows)


if __name__ == "__main__":
    main()
