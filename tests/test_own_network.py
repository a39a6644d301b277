"""A network and pictures that have nothing to do with LeNet or MNIST go through everything."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import pipeline
from PIL import Image

NETWORK = """
from torch import nn


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(x + self.pointwise(self.relu(self.norm(self.depthwise(x)))))


class ShapeNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 12, (3, 5), stride=(1, 2), padding=(1, 2), bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.residual = Residual(12)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(12, num_classes)

    def forward(self, x):
        x = self.pool(self.residual(self.stem(x)))
        return self.head(self.drop(x.view(x.size(0), -1)))
"""
COLOURS = {
    "blue": (40, 60, 220),
    "green": (40, 200, 60),
    "grey": (128, 128, 128),
    "red": (220, 50, 40),
    "yellow": (220, 210, 40),
}


def paint(folder: Path) -> None:
    """Noisy pictures of five colours, none of them of the network's size."""
    random = np.random.default_rng(0)
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True)
        for number in range(30):
            height, width = random.integers(24, 60, 2)
            noise = random.integers(-40, 40, (height, width, 3))
            picture = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            name = f"{number}.png" if number % 2 else f"{number}.jpg"
            Image.fromarray(picture).save(folder / label / name)


@pytest.mark.slow
def test_a_residual_colour_network_goes_all_the_way(tmp_path: Path) -> None:
    (tmp_path / "shapenet.py").write_text(NETWORK)
    paint(tmp_path / "colours")
    options = ["--model", f"{tmp_path / 'shapenet.py'}:ShapeNet", "--input-shape", "3,20,28"]
    done = pipeline(
        *("run", *options, "--dataset", str(tmp_path / "colours"), "--epochs", "25"),
        *("--batch-size", "16", "--run", "own", "--json"),
        runs=tmp_path / "runs",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["verification"]
    assert report["programs"]["int8"]["accuracy"] >= 0.9
    for artefact in report["artefacts"]:
        kinds = {part for layer in artefact["layers"] for part in layer["kind"].split(" + ")}
        assert {"conv", "max pool", "average pool", "add", "linear"} <= kinds
        assert artefact["passed"]

    graph = json.loads(pipeline("describe", "--json", runs=tmp_path / "runs").stdout)
    shapes = {layer["operator"]: layer["output_shape"] for layer in graph["layers"]}
    assert shapes["MaxPool"] == [12, 10, 7]
    assert shapes["Gemm"] == [5]

    with tarfile.open(tmp_path / "runs" / "own" / "shape-net-bundle.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    runner = str(tmp_path / "shape-net-bundle" / "runner.pyz")
    pictures = [str(tmp_path / "colours" / label / "1.png") for label in COLOURS]
    answer = subprocess.run(
        [sys.executable, runner, "predict", "--json", *pictures],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    labels = [entry["label"] for entry in json.loads(answer.stdout)["answers"]]
    assert labels == list(COLOURS)
