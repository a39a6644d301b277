"""The state of a training after a whole epoch, as safetensors: what --resume goes on from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import BadInput, Missing
from .run_folder import write_atomically


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


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; accuracies in [0, 1]."""

    number: int
    loss: float
    accuracy: float
    validation_accuracy: float
    seconds: float


def save(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    path: Path,
    config: TrainConfig,
    history: list[Epoch],
    origin: dict[str, str | None],
) -> None:
    """Replace the checkpoint by the state after the last epoch of `history`."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    metadata = {
        "config": json.dumps(asdict(config)),
        "origin": json.dumps(origin),
        "history": json.dumps([asdict(epoch) for epoch in history]),
    }
    # Clones: tied weights share memory, which safetensors refuses.
    contiguous = {
        name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    write_atomically(path, safetensors.torch.save(contiguous, metadata))


def restore(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    path: Path,
    config: TrainConfig,
    origin: dict[str, str | None],
) -> list[Epoch]:
    """Put network and optimizer back into the saved state; returns the history so far."""
    _, history, known = read(path)
    if known != origin:
        raise BadInput(
            f"{path}: the network's file or the data set has changed since",
            "train anew with --overwrite",
        )
    tensors = safetensors.torch.load_file(path, device=str(config.device))
    network.load_state_dict(
        {
            name.removeprefix("network."): value
            for name, value in tensors.items()
            if name.startswith("network.")
        }
    )
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            states.setdefault(int(index), {})[key] = value
    # Moments take their parameter's memory layout: the fused kernel pairs them as they lie there.
    for number, parameter in enumerate(network.parameters()):
        for key, value in states.get(number, {}).items():
            if value.shape == parameter.shape and value.dim():
                states[number][key] = torch.empty_like(parameter.detach()).copy_(value)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
    return history


def read(path: Path) -> tuple[TrainConfig, list[Epoch], dict[str, str | None]]:
    """The settings, the history and the origin in a checkpoint. Raises Missing or BadInput.

    The origin is the SHA-256 of the person's own network file, if any, and of the data set.
    """
    if not path.is_file():
        raise Missing(f"{path}: nothing to resume", "run 'pipeline train' without --resume")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        record = json.loads(metadata["config"])
        config = TrainConfig(**record | {"input_shape": tuple(record["input_shape"])})
        history = [Epoch(**epoch) for epoch in json.loads(metadata["history"])]
        origin: dict[str, str | None] = json.loads(metadata["origin"])
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise BadInput(
            f"{path}: not a checkpoint ({error})", "run 'pipeline train' without --resume"
        ) from error
    return config, history, origin
