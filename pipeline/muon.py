"""The optimizer of weight matrices: momentum, orthogonalized. Everything else takes AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
STEPS = 5
# Of Jordan et al. 2024: x -> ax + bx³ + cx⁵ brings the singular values of a matrix near 1 in five
# steps, also small ones, and never past 1.21 or, once there, below 0.68.
A, B, C = 3.4445, -4.7750, 2.0315
# Root mean square of a step's elements, over the learning rate: what AdamW's come to in a long
# training, so that both take the same rate and weight decay (Liu et al. 2025). Early on AdamW's are
# nearer 1, hence rates that are larger than is usual for it.
STEP_SIZE = 0.2


class Muon(torch.optim.Optimizer):
    """Moves matrices by their momentum (Nesterov's) with all its singular values made about 1.

    So directions in which gradients are rarely large are learned as fast as the others (Jordan et
    al. 2024). Parameters of more than two axes are matrices of output channels x all the rest.
    Weight decay is decoupled, as AdamW's.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step for every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
                ahead = weight.grad.lerp(momentum, MOMENTUM)
                direction = orthogonalized(ahead.flatten(1))
                size = STEP_SIZE * max(direction.shape) ** 0.5
                weight.mul_(1 - rate * decay)
                weight.add_(direction.view(weight.shape), alpha=-rate * size)


def orthogonalized(matrix: Tensor) -> Tensor:
    """About U Vᵀ of a matrix U S Vᵀ: singular values, as far as they are not tiny, near 1.

    What is iterated on is not the matrix but its square of the shorter side, and the polynomials of
    it are multiplied: fewer operations where a matrix is more than 1.5 times as long as it is wide.
    """
    is_wide = matrix.shape[0] <= matrix.shape[1]
    wide = matrix if is_wide else matrix.T
    wide = wide / wide.norm().clamp(min=torch.finfo(wide.dtype).tiny)
    gram = wide @ wide.T
    product = polynomial = _polynomial(gram)
    for _ in range(STEPS - 1):
        gram = polynomial @ gram @ polynomial
        polynomial = _polynomial(gram)
        product = polynomial @ product
    found: Tensor = product @ wide
    return found if is_wide else found.T


def _polynomial(gram: Tensor) -> Tensor:
    """What, times X, has ax + bx³ + cx⁵ for each singular value x of X. `gram` is XXᵀ."""
    polynomial = torch.addmm(gram, gram, gram, beta=B, alpha=C)
    polynomial.diagonal().add_(A)
    return polynomial


def matrices_of(network: nn.Module) -> list[Tensor]:
    """The weights of dense layers and of convolutions in which every output sees every input.

    Not those that a parametrization computes from other parameters.
    """
    weights = [
        layer.weight
        for layer in network.modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]
    return list(dict.fromkeys(each for each in weights if isinstance(each, nn.Parameter)))
