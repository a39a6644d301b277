"""The fully connected baseline: what a network does that does not know neighbouring pixels."""

from __future__ import annotations

from torch import Tensor, nn


class MLP(nn.Module):
    """One hidden layer of 76 units: 60,430 parameters, about as many as LeNet-5."""

    input_shape = (1, 28, 28)

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 76), nn.ReLU(), nn.Linear(76, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """N x 1 x 28 x 28 in [0, 1] to N x classes logits."""
        scores: Tensor = self.layers(x)
        return scores
