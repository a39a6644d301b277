"""The optimizer of weight matrices, against the singular values that it is about."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.muon import Muon, matrices_of, orthogonalized


@given(st.integers(1, 40), st.integers(1, 40), st.floats(1e-6, 1e6), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_singular_vectors_stay_and_values_come_near_1(
    rows: int, columns: int, scale: float, seed: int
) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    made = left.T @ orthogonalized(matrix).double() @ right.T
    torch.testing.assert_close(made, made.diagonal().diag(), rtol=0, atol=1e-3)
    counts = values > 1e-2 * values.norm()  # smaller ones grow, but do not come there
    assert ((made.diagonal() > 0.6) & (made.diagonal() < 1.25))[counts].all()


def test_a_gradient_of_few_directions_or_none_is_taken() -> None:
    single = torch.outer(torch.arange(5.0), torch.arange(7.0))
    values = torch.linalg.svdvals(orthogonalized(single))
    assert values[0] > 0.6
    assert values[1:].max() < 1e-4
    assert not orthogonalized(torch.zeros(5, 7)).any()


def stepped(weight: Tensor, gradient: Tensor, steps: int = 1, **settings: float) -> Tensor:
    """The weight after steps with the same gradient."""
    parameter = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
    optimizer = Muon([parameter], **{"lr": 0.1, "weight_decay": 0.0} | settings)
    for _ in range(steps):
        parameter.grad = gradient
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(120, 400), (84, 120), (300, 30), (16, 6, 5, 5)])
def test_a_step_is_as_large_as_adams(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(shape), torch.randn(shape) * 1e-3
    step = (stepped(weight, gradient) - weight) / 0.1
    assert 0.15 < step.square().mean().sqrt() < 0.25
    assert (step * gradient).sum() < 0


def test_where_weights_lie_in_memory_changes_nothing() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(16, 6, 5, 5), torch.randn(16, 6, 5, 5)
    last = {"memory_format": torch.channels_last}
    found = stepped(weight.to(**last), gradient.to(**last), steps=3)
    assert torch.equal(found, stepped(weight, gradient, steps=3))


def test_weights_decay_apart_from_the_gradient() -> None:
    weight, gradient = torch.full((3, 4), 2.0), torch.randn(3, 4)
    difference = stepped(weight, gradient) - stepped(weight, gradient, weight_decay=0.5)
    torch.testing.assert_close(difference, torch.full((3, 4), 2 * 0.1 * 0.5))


def test_a_weight_without_a_gradient_stays() -> None:
    unused = nn.Parameter(torch.ones(2, 2))
    Muon([unused], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(unused.detach(), torch.ones(2, 2))


def test_matrices_are_the_weights_in_which_every_output_sees_every_input() -> None:
    dense, tied = nn.Linear(4, 4), nn.Linear(4, 4)
    tied.weight = dense.weight
    whole, grouped = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4)
    network = nn.Sequential(whole, grouped, nn.BatchNorm2d(4), nn.Flatten(), dense, tied)
    found = matrices_of(network)
    assert [id(weights) for weights in found] == [id(whole.weight), id(dense.weight)]
