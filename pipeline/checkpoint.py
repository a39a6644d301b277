"""The state of a training after a whole epoch, as safetensors: what --resume goes on from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import BadInput, Missing, first_line
from .files import write_atomically

UNKNOWN = "0" * 64  # in place of a checkpoint's own SHA-256 while that is computed


@dataclass(frozen=True)
class TrainConfig:
    """What decides the weights, together with the network, the data and the thread count."""

    model: str
    dataset: str
    epochs: int
    learning_rate: float
    batch_size: int = 128
    seed: int = 0
    device: str = "cpu"
    activation: str | None = None
    input_shape: tuple[int, int, int] = (1, 28, 28)
    data_dir: str | None = None
    augment: bool = False
    label_smoothing: float = 0.0
    weight_decay: float = 0.05  # decoupled from the gradient: Loshchilov and Hutter 2019
    distortion: float = 1.0  # times the amounts in distortion.py, where `augment` is


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; accuracies in [0, 1].

    `seconds` are of training and validating, `images_per_second` of training alone; the learning
    rate is the last batch's.
    """

    number: int
    loss: float
    accuracy: float
    validation_accuracy: float
    seconds: float
    learning_rate: float
    images_per_second: float


@dataclass
class State:
    """A training after the epochs of its history: all that the next epoch depends on."""

    network: nn.Module
    average: nn.Module  # the same network with the moving average of the weights
    optimizers: list[torch.optim.Optimizer]  # of one group of parameters each
    best: dict[str, Tensor] = field(default_factory=dict)  # the average's state, by validation
    history: list[Epoch] = field(default_factory=list)


@dataclass(frozen=True)
class Saved:
    """What a checkpoint says of the training it is of.

    The origin is the SHA-256 of the person's own network file, if any, and of the data set.
    """

    config: TrainConfig
    history: list[Epoch]
    origin: dict[str, str | None]
    arithmetic: dict[str, str | int]


def arithmetic(processes: int = 1) -> dict[str, str | int]:
    """What the last bits of the weights depend on, beside the settings."""
    return {
        "torch": torch.__version__,
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def save(
    state: State, path: Path, config: TrainConfig, origin: dict[str, str | None], processes: int = 1
) -> None:
    """Replace the checkpoint by the state after the last epoch of its history."""
    parts = {
        "network": state.network.state_dict(),
        "average": state.average.state_dict(),
        "best": state.best,
    }
    for number, optimizer in enumerate(state.optimizers):
        for index, moments in optimizer.state_dict()["state"].items():
            parts[f"optimizer.{number}.{index}"] = moments
    metadata = {
        "config": json.dumps(asdict(config)),
        "origin": json.dumps(origin),
        "history": json.dumps([asdict(epoch) for epoch in state.history]),
        "arithmetic": json.dumps(arithmetic(processes)),
        "sha256": UNKNOWN,
    }
    # Clones: tied weights share memory, which safetensors refuses.
    tensors = {
        f"{part}.{name}": value.clone(memory_format=torch.contiguous_format)
        for part, values in parts.items()
        for name, value in values.items()
    }
    content = safetensors.torch.save(tensors, metadata)
    digest = hashlib.sha256(content).hexdigest()
    write_atomically(path, content.replace(UNKNOWN.encode(), digest.encode(), 1))


def load(path: Path, origin: dict[str, str | None]) -> tuple[bytes, list[Epoch]]:
    """A checkpoint's bytes and history. Raises Missing or BadInput."""
    saved = read(path)
    if saved.origin != origin:
        raise BadInput(
            f"{path}: the network's file or the data set has changed since",
            "train anew with --overwrite",
        )
    return path.read_bytes(), saved.history


def restore(state: State, content: bytes, history: list[Epoch]) -> None:
    """Bring a training into the state that `load` read. Raises BadInput."""
    device = next(state.network.parameters()).device
    tensors = {name: t.to(device) for name, t in safetensors.torch.load(content).items()}

    def part(name: str) -> dict[str, Tensor]:
        start = f"{name}."
        return {key[len(start) :]: t for key, t in tensors.items() if key.startswith(start)}

    another = BadInput(  # of another version of this program
        "the checkpoint does not hold a state of this network", "train anew with --overwrite"
    )
    try:
        state.network.load_state_dict(part("network"))
        state.average.load_state_dict(part("average"))
    except RuntimeError as error:
        raise another from error
    unknown = set(part("optimizer"))
    for number, optimizer in enumerate(state.optimizers):
        # Moments take their parameter's memory layout: the fused kernel pairs them as they lie.
        moments = {
            index: {
                key: torch.empty_like(parameter.detach()).copy_(value)
                if value.shape == parameter.shape and value.dim()
                else value
                for key, value in part(f"optimizer.{number}.{index}").items()
            }
            for index, parameter in enumerate(optimizer.param_groups[0]["params"])
        }
        unknown -= {f"{number}.{index}.{key}" for index in moments for key in moments[index]}
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
    if unknown:
        raise another
    state.best, state.history = part("best"), history


def read(path: Path) -> Saved:
    """All of a checkpoint but its tensors; every byte is checked. Raises Missing or BadInput."""
    if not path.is_file():
        raise Missing(f"{path}: nothing to resume", "run 'pipeline train' without --resume")
    try:
        content = path.read_bytes()
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        digest = metadata["sha256"]
        unsealed = content.replace(digest.encode(), UNKNOWN.encode(), 1)
        if hashlib.sha256(unsealed).hexdigest() != digest:
            raise ValueError("its SHA-256 is not the one in it")
        record = json.loads(metadata["config"])
        return Saved(
            TrainConfig(**record | {"input_shape": tuple(record["input_shape"])}),
            [Epoch(**epoch) for epoch in json.loads(metadata["history"])],
            json.loads(metadata["origin"]),
            json.loads(metadata["arithmetic"]),
        )
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise BadInput(
            f"{path}: damaged, or no checkpoint of this version ({first_line(error)})",
            "train anew with --overwrite",
        ) from error
