"""The networks, by name. Adding one is a file here and a line in MODELS.

A network is any nn.Module whose `forward` takes float N x C x H x W in [0, 1] and returns
N x classes. It has `input_shape`, (C, H, W), and its constructor takes `classes`; it may have
`activations`, the names its `activation` argument takes, the default first; `learning_rate`, the
peak of its training with batches of 128, 0.01 where it does not say; `label_smoothing`, 0.1; and
`weight_decay`, 0.05.
"""

from __future__ import annotations

from torch import nn

from .lenet import LeNet5, LeNet5Classic
from .mlp import MLP

MODELS: dict[str, type[nn.Module]] = {
    "lenet5": LeNet5,
    "lenet5-classic": LeNet5Classic,
    "mlp": MLP,
}
