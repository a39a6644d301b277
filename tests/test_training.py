"""Training itself: distortion, the averaged weights, the choice of an epoch, and going on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from models import MODELS
from pipeline import train
from pipeline.checkpoint import Epoch, TrainConfig, read, restore
from pipeline.data import Dataset, Split
from pipeline.distortion import ELASTIC, distort
from pipeline.errors import BadInput, VerificationFailed
from pipeline.network import fastest_layout, lay_out, pooled_first

SHAPE = (1, 20, 28)  # not square
ORIGIN: dict[str, str | None] = {"source": None, "dataset": "made"}


class Small(nn.Module):
    """A network with buffers, and parameters in every layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))
        return scores


class Views(Small):
    """A network whose `view` cannot be had of channels that lie last."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4 * 9 * 13, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(self.norm(self.conv(x)).relu().view(len(x), -1))
        return scores


class Frozen(Small):
    """A network with no matrix that learns."""

    def __init__(self) -> None:
        super().__init__()
        for layer in (self.conv, self.linear):
            layer.weight.requires_grad_(False)


class Normed(Small):
    """A network that computes a matrix from other parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.parametrizations.weight_norm(self.linear)


def made(count: int, seed: int) -> Split:
    """Pictures of three classes that differ in brightness and noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    noise = torch.randint(0, 120, (count, *SHAPE), generator=generator)
    return Split((noise + 60 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)


DATA = Dataset("made", ("a", "b", "c"), "glyph", made(90, 0), made(30, 1), made(30, 2), "made")
CONFIG = TrainConfig("small", "made", 4, 0.02, batch_size=16, augment=True, label_smoothing=0.1)


def fitted(
    path: Path,
    resume: bool = False,
    stop: tuple[int, int] = (99, 0),
    factory: type[nn.Module] = Small,
) -> tuple[dict[str, Tensor], list[Epoch]]:
    """Weights and history; interrupted once `stop`, (epoch, batch), is reported."""
    torch.manual_seed(0)
    network = factory()

    def on_batch(epoch: int, done: int, *_: object) -> None:
        if (epoch, done) >= stop:
            raise KeyboardInterrupt

    history = train.fit(network, DATA, CONFIG, path, resume, ORIGIN, on_batch, lambda _: None)
    return network.state_dict(), history


# --- distortion -----------------------------------------------------------------------------------


def pictures(count: int = 6) -> Tensor:
    return torch.rand(count, 2, 20, 28, generator=torch.Generator().manual_seed(0))


def test_no_distortion_is_the_picture_itself() -> None:
    # A place is computed in float32 from 39 terms up to 1, times half the side in pixels.
    limit = 39 * 2**-24 * 28 / 2 * 4
    torch.testing.assert_close(distort(pictures(), 0, 0), pictures(), rtol=0, atol=limit)


@pytest.mark.parametrize("amounts", [(1, 0), (0, ELASTIC), (1, ELASTIC)])
def test_distortion_follows_from_the_seed(amounts: tuple[float, float]) -> None:
    torch.manual_seed(1)
    first, other = (distort(pictures(), *amounts) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(distort(pictures(), *amounts), first)
    assert not torch.equal(first, other)
    assert (first - pictures()).abs().amax((1, 2, 3)).min() > 0.1  # no picture is left as it was


def test_what_comes_from_outside_is_0() -> None:
    torch.manual_seed(0)
    white = distort(torch.ones(50, 1, 20, 28))
    assert white.min() == 0
    assert white.max() <= 1 + 1e-5  # the four weights of a bilinear mean sum to 1, rounded
    assert torch.all((white[:, :, 8:12, 10:18] - 1).abs() < 1e-5)  # the middle is from inside


def test_the_elastic_displacement_has_its_size_everywhere() -> None:
    # On a ramp the value is the place: how far it moves is how much the value changes.
    torch.manual_seed(0)
    across = torch.arange(28.0).expand(2000, 1, 20, 28)
    down = torch.arange(20.0).view(1, 1, 20, 1).expand(2000, 1, 20, 28)
    for ramp, side in ((across, 28), (down, 20)):
        moved = (distort(ramp, 0, 0.01) - ramp)[:, 0, 2:-2, 2:-2]
        size = moved.square().mean(0).sqrt()  # of 2,000 draws: 1.6 % deviation, six of them allowed
        assert (size / (0.01 * side) - 1).abs().max() < 0.1
        neighbours = np.corrcoef(moved[:, 8, 8], moved[:, 8, 9])[0, 1]
        assert neighbours > 0.9  # smooth


def test_a_turn_keeps_lengths_where_the_picture_is_not_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for amount in ("SCALE", "SHEAR", "SHIFT"):
        monkeypatch.setattr(f"pipeline.distortion.{amount}", 0)
    monkeypatch.setattr("pipeline.distortion.ANGLE", 40)
    torch.manual_seed(0)
    across = (torch.arange(28.0) - 13.5).expand(1, 1, 20, 28)
    down = (torch.arange(20.0) - 9.5).view(1, 1, 20, 1).expand(1, 1, 20, 28)
    for _ in range(5):
        state = torch.get_rng_state()
        x = distort(across, elastic=0)[0, 0]
        torch.set_rng_state(state)
        y = distort(down, elastic=0)[0, 0]
        radius = (across**2 + down**2).sqrt()[0, 0]
        inside = radius < 8
        torch.testing.assert_close((x**2 + y**2).sqrt()[inside], radius[inside], rtol=1e-4, atol=0)


# --- going on, and the state that it needs --------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "factory"),
    [((1, 0), Small), ((2, 6), Small), ((3, 1), Small), ((2, 0), Frozen), ((2, 0), Normed)],
)
def test_going_on_ends_in_bit_identical_weights(
    tmp_path: Path, stop: tuple[int, int], factory: type[nn.Module]
) -> None:
    whole, history = fitted(tmp_path / "whole", factory=factory)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", stop=stop, factory=factory)
    assert len(read(tmp_path / "cut").history) == stop[0]
    weights, again = fitted(tmp_path / "cut", resume=True, factory=factory)
    assert [e.validation_accuracy for e in again] == [e.validation_accuracy for e in history]
    assert all(torch.equal(weights[name], whole[name]) for name in whole)
    states = [safetensors.torch.load_file(tmp_path / name) for name in ("whole", "cut")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_last_of_the_best_epochs_is_kept_and_survives_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = [0.5, 0.9, 0.9, 0.7]
    seen: list[dict[str, Tensor]] = []

    def evaluate(network: nn.Module, data: Split) -> float:
        assert torch.equal(data.images, DATA.validation.images)  # never the test's
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return accuracies[len(seen) - 1]

    monkeypatch.setattr(train, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "state", stop=(3, 1))
    weights, _ = fitted(tmp_path / "state", resume=True)
    assert len(seen) == 4
    equal = [all(torch.equal(weights[name], then[name]) for name in weights) for then in seen]
    assert equal == [False, False, True, False]


def test_what_is_judged_and_kept_is_the_mean_of_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = train.make_state(Small(), CONFIG, SHAPE)
    passed: list[Tensor] = []
    for step in range(3):
        nn.init.normal_(state.network.linear.weight)
        passed.append(state.network.linear.weight.detach().clone())
        train.move_average(state, step, batches=10**6)  # so slow that it is a plain mean
    mean = torch.stack(passed).mean(0)
    torch.testing.assert_close(state.average.linear.weight.detach(), mean)
    for step in range(100):  # an average over a fifth of 5 batches forgets the start
        train.move_average(state, step + 100, batches=5)
    torch.testing.assert_close(state.average.linear.weight.detach(), passed[-1])


@pytest.mark.parametrize(
    ("part", "before"), [("average.", "mean."), ("optimizer.0.0.", "optimizer.0.")]
)
def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, part: str, before: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "state", stop=(1, 1))
    tensors = safetensors.torch.load_file(tmp_path / "state")
    state = train.make_state(Small(), CONFIG, SHAPE)
    restore(state, safetensors.torch.save(tensors), [])
    older = {name.replace(part, before): value for name, value in tensors.items()}
    with pytest.raises(BadInput, match="does not hold a state of this network"):
        restore(state, safetensors.torch.save(older), [])


# --- divergence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["loss", "last step"])
def test_a_divergence_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    whole, _ = fitted(tmp_path / "whole")
    usual, steps = train.move_average, []

    def spoil(state: train.State, step: int, batches: int) -> None:
        usual(state, step, batches)
        steps.append(step)
        if step == {"loss": 2 * batches + 1, "last step": 3 * batches - 1}[place]:
            state.network.linear.weight.data[0, 0] = math.nan

    with monkeypatch.context() as patch:
        patch.setattr(train, "move_average", spoil)
        with pytest.raises(VerificationFailed, match="epoch 3; the checkpoint keeps epoch 2"):
            fitted(tmp_path / "spoilt")
    assert len(read(tmp_path / "spoilt").history) == 2
    weights, _ = fitted(tmp_path / "spoilt", resume=True)
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


# --- layouts --------------------------------------------------------------------------------------


def test_channels_lie_last_where_the_network_can_work_on_them(tmp_path: Path) -> None:
    assert fastest_layout(Small(), SHAPE) is torch.channels_last
    assert fastest_layout(MODELS["lenet5"](), (1, 28, 28)) is torch.channels_last
    assert fastest_layout(Views(), SHAPE) is torch.contiguous_format
    network = Views()
    quiet = (lambda *_: None, lambda _: None)
    train.fit(network, DATA, CONFIG, tmp_path / "state", False, ORIGIN, *quiet)
    assert train.evaluate(network, DATA.test) > 0.6
    weights, _ = fitted(tmp_path / "small")
    assert all(value.is_contiguous() for value in weights.values())


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_pooling_before_relu_changes_no_bit(layout: torch.memory_format) -> None:
    network = lay_out(MODELS["lenet5"](), layout)
    operators = [type(layer) for layer in network.layers]
    images = torch.randint(0, 3, (8, 1, 28, 28)).float() / 2  # of which many windows' maxima equal

    def scores_and_gradients() -> list[torch.Tensor]:
        network.zero_grad()
        scores = network(images)
        scores.square().sum().backward()
        return [scores, *(weights.grad for weights in network.parameters())]

    usual = scores_and_gradients()
    with pytest.raises(KeyboardInterrupt), pooled_first(network, (1, 28, 28)):
        found = [type(layer) for layer in network.layers]
        assert (found.index(nn.MaxPool2d), found.index(nn.ReLU)) == (1, 2)
        assert all(map(torch.equal, scores_and_gradients(), usual))
        raise KeyboardInterrupt
    assert [type(layer) for layer in network.layers] == operators


class Between(nn.Module):
    """Takes from a Sequential more than its outcome."""

    def __init__(self, forward: Callable[[nn.Sequential, Tensor], Tensor]) -> None:
        super().__init__()
        self.way = forward
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.layers, x).amax((2, 3))


@pytest.mark.parametrize(
    ("way", "places"),
    [
        (lambda layers, x: layers(x), (2, 1)),
        (lambda layers, x: layers(-layers(x).repeat_interleave(2, 2)[:, :1]), (2, 1)),
        (lambda layers, x: layers[:2](x), (1, 2)),
        (lambda layers, x: layers[2](layers[:2](x)), (1, 2)),
        (lambda layers, x: layers(x) + layers[:2](x).amax((2, 3), keepdim=True), (1, 2)),
        (lambda layers, x: layers[1](x), (1, 2)),
    ],
)
def test_what_is_between_relu_and_pooling_stays_where_it_is_seen(
    way: Callable[[nn.Sequential, Tensor], Tensor], places: tuple[int, int]
) -> None:
    network = Between(way)
    relu, pool = network.layers[1:]
    with pooled_first(network, SHAPE):
        assert (network.layers[places[0]], network.layers[places[1]]) == (relu, pool)
    assert (network.layers[1], network.layers[2]) == (relu, pool)
    seen = relu.register_forward_hook(lambda *_: None)
    with pooled_first(network, SHAPE):
        assert (network.layers[1], network.layers[2]) == (relu, pool)
    seen.remove()


def test_at_the_end_pictures_and_labels_are_nearly_what_they_are_in_use() -> None:
    assert [train.ease_at(epoch, 8) for epoch in range(8)] == [0, 0, 0, 0, 0, 0, 0.5, 1]
    assert train.ease_at(0, 1) == 1
    scores = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
    network = nn.Flatten()  # whose scores are the pixels
    pictures, labels = (scores * 40 + 128).to(torch.uint8).view(32, 1, 1, 10), torch.arange(32) % 10
    config = TrainConfig("flat", "made", 8, 1.0, label_smoothing=0.2)
    loss_of = train.loss_function(network, config)
    for ease, smoothing in ((0.0, 0.2), (0.5, 0.1), (1.0, 0.0)):
        loss, right = loss_of(pictures, labels, torch.tensor(ease))
        pixels = pictures.flatten(1) / 255
        wanted = nn.functional.cross_entropy(pixels, labels, label_smoothing=smoothing)
        assert float(loss) == pytest.approx(float(wanted), rel=1e-6)
        assert int(right) == int((pixels.argmax(1) == labels).sum())
