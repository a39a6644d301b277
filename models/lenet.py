"""LeNet-5, after LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document
Recognition, Proceedings of the IEEE 86 (11), 1998, section II.B.

Two stages of 5 x 5 convolution and 2 x 2 pooling, then three fully connected layers: 61,706
parameters and 416,520 multiply-accumulates for a 28 x 28 picture. As is usual today the first
convolution pads by 2 instead of taking 32 x 32 pictures, the second sees all six channels, and the
output is a plain linear layer.
"""

from __future__ import annotations

from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class LeNet5(nn.Module):
    """The modern form: ReLU and max pooling."""

    input_shape = (1, 28, 28)
    activations: tuple[str, ...] = ("relu",)
    learning_rate = 5e-3
    label_smoothing = 0.0  # chosen, as weight_decay, as train.py's recipe was
    weight_decay = 0.2
    pooling: type[nn.MaxPool2d] | type[nn.AvgPool2d] = nn.MaxPool2d

    def __init__(self, classes: int = 10, activation: str | None = None) -> None:
        super().__init__()
        act = ACTIVATIONS[activation or self.activations[0]]
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, kernel_size=5, padding=2),  # N x 6 x 28 x 28
            act(),
            self.pooling(kernel_size=2, stride=2),  # N x 6 x 14 x 14
            nn.Conv2d(6, 16, kernel_size=5),  # N x 16 x 10 x 10
            act(),
            self.pooling(kernel_size=2, stride=2),  # N x 16 x 5 x 5
            nn.Flatten(),  # N x 400
            nn.Linear(400, 120),
            act(),
            nn.Linear(120, 84),
            act(),
            nn.Linear(84, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """N x 1 x 28 x 28 in [0, 1] to N x classes logits."""
        scores: Tensor = self.layers(x)
        return scores


class LeNet5Classic(LeNet5):
    """The lecture's form: sigmoid (or tanh) and 2 x 2 average pooling with stride 2."""

    activations = ("sigmoid", "tanh")
    learning_rate = 1.5e-2
    weight_decay = 0.05  # more costs sigmoids accuracy
    pooling = nn.AvgPool2d

    def __init__(self, classes: int = 10, activation: str | None = None) -> None:
        super().__init__(classes, activation)
        # Squashing activations lose the signal with default weights: Glorot and Bengio 2010.
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
