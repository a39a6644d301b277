"""Which network to train: one of `models/`, or a class in the person's own file."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import inspect
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from models import MODELS

from .errors import BadInput, Missing, UsageError, unknown

LEARNING_RATE_OF = 128  # pictures a batch: what the networks' own learning rates are for


@dataclass(frozen=True)
class Network:
    """A network that can be built. `name` begins the names of its artefacts."""

    name: str
    factory: type[nn.Module]
    input_shape: tuple[int, int, int]
    activation: str | None
    source_sha256: str | None  # of the person's own file

    def build(self, classes: int) -> nn.Module:
        """A new network on the CPU with weights from torch's generator; raises BadInput."""
        parameters = inspect.signature(self.factory).parameters
        arguments: dict[str, Any] = {
            name: classes for name in ("classes", "num_classes") if name in parameters
        }
        if self.activation is not None:
            arguments["activation"] = self.activation
        try:
            network = self.factory(**arguments).eval()
            with torch.no_grad():
                scores = network(torch.zeros(2, *self.input_shape))
        except Exception as error:  # the person's own code: whatever it raises, the cause is there
            raise BadInput(
                f"{self.name}: fails on an input of shape (2, {_commas(self.input_shape)}) "
                f"({_one_line(error)})",
                "check its constructor, forward and input_shape",
            ) from error
        found = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        if found != (2, classes):
            raise BadInput(
                f"{self.name}: for 2 images and {classes} classes forward gave {found}, "
                f"expected (2, {classes})",
                "return one tensor of N x classes"
                if any(name in parameters for name in ("classes", "num_classes"))
                else "let its constructor take the number as 'classes'",
            )
        return network

    def learning_rate(self, batch_size: int = LEARNING_RATE_OF) -> float:
        """The peak learning rate when none is given: the class's, times the square root of how much
        larger the batch is (Malladi et al. 2022, for Adam). A smaller one keeps it: few pictures
        want all that their few steps can do.
        """
        rate: float = getattr(self.factory, "learning_rate", 1e-2)
        return float(f"{rate * math.sqrt(max(batch_size / LEARNING_RATE_OF, 1)):.3g}")

    def label_smoothing(self) -> float:
        """The part of each label that training spreads over all classes."""
        return float(getattr(self.factory, "label_smoothing", 0.1))

    def weight_decay(self) -> float:
        """What part of itself a weight loses in a step, over the learning rate."""
        return float(getattr(self.factory, "weight_decay", 0.05))


def find_network(
    spec: str, activation: str | None = None, input_shape: tuple[int, int, int] | None = None
) -> Network:
    """The network called `spec`: a name in MODELS or FILE.py:ClassName.

    `input_shape` replaces the class's own. Raises UsageError, Missing or BadInput.
    """
    digest = None
    if spec in MODELS:
        name, factory = spec, MODELS[spec]
    elif ".py:" in spec:
        name, factory, digest = _from_file(spec)
    else:
        raise unknown("model", spec, MODELS, ", or FILE.py:ClassName")
    known: tuple[str, ...] = getattr(factory, "activations", ())
    if activation is not None and activation not in known:
        if not known:
            raise UsageError(f"{spec} has no choice of activation", "leave out --activation")
        raise unknown(f"activation of {spec}", activation, known)
    shape = input_shape or getattr(factory, "input_shape", None)
    if shape is None:
        raise UsageError(
            f"{spec} does not say what it takes",
            "give --input-shape C,H,W, or the class an attribute input_shape = (C, H, W)",
        )
    try:
        channels, height, width = (int(size) for size in shape)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{spec}: input_shape {shape!r}", "give it as (C, H, W)") from error
    if channels not in (1, 3) or min(height, width) < 1:
        raise UsageError(f"input shape {channels},{height},{width}", "C is 1 or 3, H and W above 0")
    return Network(name, factory, (channels, height, width), activation, digest)


def fastest_layout(network: nn.Module, input_shape: Sequence[int]) -> torch.memory_format:
    """Channels last, unless the network cannot work on it, as one that calls `view` cannot."""
    images = torch.zeros(2, *input_shape).to(memory_format=torch.channels_last)
    probe = lay_out(copy.deepcopy(network).cpu().eval(), torch.channels_last)
    try:
        with torch.no_grad():
            probe(images)
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


def lay_out(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The network itself, its convolutions' weights in that layout."""
    return network.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


@contextmanager
def pooled_first(network: nn.Module, input_shape: Sequence[int]) -> Iterator[None]:
    """The network, on the CPU, with its ReLUs after the max pooling that follows them in an
    nn.Sequential. Every bit and every gradient stays as it was, since a ReLU changes no order, and
    it has a quarter of the values to do: a step of LeNet-5 on a CPU takes some 5 % less.

    Only where nothing else can see what is between them: all three are called equally often, and
    have no hooks.
    """
    calls: Counter[nn.Module] = Counter()
    counting = register_module_forward_pre_hook(lambda module, _: calls.update([module]))
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(2, *input_shape))
    finally:
        counting.remove()
    pairs = [
        (layers, place)
        for layers in calls
        if type(layers) is nn.Sequential
        for place, (relu, pool) in enumerate(pairwise(layers))
        if type(relu) is nn.ReLU and type(pool) is nn.MaxPool2d
        if calls[layers] == calls[relu] == calls[pool]
        if not any(each._forward_hooks or each._forward_pre_hooks for each in (relu, pool))
    ]

    def swap() -> None:
        for layers, place in pairs:
            layers[place], layers[place + 1] = layers[place + 1], layers[place]

    swap()
    try:
        yield
    finally:
        swap()


def _from_file(spec: str) -> tuple[str, type[nn.Module], str]:
    place, class_name = spec.rsplit(":", 1)
    path = Path(place)
    if not path.is_file():
        raise Missing(f"{path}: no such file", "give --model FILE.py:ClassName")
    module_spec = importlib.util.spec_from_file_location(f"network_{path.stem}", path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # the person's own code
        raise BadInput(f"{path}: {_one_line(error)}", "mend the file") from error
    factory = getattr(module, class_name, None)
    if not (isinstance(factory, type) and issubclass(factory, nn.Module)):
        classes = [
            name
            for name, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, nn.Module)
            and value.__module__ == module.__name__
        ]
        raise unknown(f"nn.Module in {path}", class_name, classes or ["none"])
    words = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", class_name) or [class_name]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return "-".join(word.lower() for word in words), factory, digest


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _commas(shape: tuple[int, ...]) -> str:
    return ", ".join(str(size) for size in shape)
