"""Data sets as uint8 tensors in memory, split into training, validation and test.

Each image is prepared by the very code that prepares a picture on the device
(`deploy.runner.images`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deploy.runner.images import decode, glyph, prepare

from .errors import BadInput, Missing, unknown
from .idx import IdxFile, load
from .run_folder import RunFolder

VALIDATION_PART = 1 / 12  # of what is not test: 5,001 of MNIST's 60,000
TEST_PART = 1 / 5  # where a data set has no test split of its own
PICTURES = {".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".npy"}

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """`images` uint8 N x C x H x W, `labels` int64 N."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set in memory. `sha256` is over all images and labels of all three splits."""

    name: str
    labels: tuple[str, ...]
    preparation: str
    train: Split
    validation: Split
    test: Split
    sha256: str


@dataclass(frozen=True)
class Usual:
    """How to train on a data set when nothing is said; whether to distort its pictures at random.

    A small batch learns more an epoch, and a large one takes less time: so MNIST's are large.
    """

    epochs: int = 30
    augment: bool = False
    batch_size: int = 128


@dataclass(frozen=True)
class Source:
    """A data set by name: how to read it, what its pictures are, and how to train on them.

    `read` gives ((images, labels), test or None): uint8 N x H x W and int64 N.
    """

    read: Callable[[Path | None], tuple[tuple[Bytes, Labels], tuple[Bytes, Labels] | None]]
    labels: tuple[str, ...]
    preparation: str
    usual: Usual


def _idx_source(
    folder: str,
    mirrors: tuple[str, ...],
    content: tuple[str | None, ...],
    archives: tuple[str | None, ...],
) -> Callable[[Path | None], tuple[tuple[Bytes, Labels], tuple[Bytes, Labels] | None]]:
    names = [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    shapes = [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)]
    files = [IdxFile(*file) for file in zip(names, shapes, content, archives, strict=True)]

    def read(data_dir: Path | None) -> tuple[tuple[Bytes, Labels], tuple[Bytes, Labels] | None]:
        images, labels, test_images, test_labels = (
            load(file, folder, mirrors, data_dir) for file in files
        )
        return (images, labels.astype(np.int64)), (test_images, test_labels.astype(np.int64))

    return read


def _digits(_: Path | None) -> tuple[tuple[Bytes, Labels], None]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 with values 0 to 16, brought to 28 x 28."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = (bunch.images * 255 / 16).round().astype(np.uint8)
    images = np.stack([glyph(np.pad(image, 1), 28, 28) for image in small])
    return (images, bunch.target.astype(np.int64)), None


DATASETS: dict[str, Source] = {
    "digits": Source(_digits, tuple("0123456789"), "glyph", Usual(100, augment=True)),
    "mnist": Source(
        _idx_source(
            "mnist",
            (
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
            (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
            (None, None, None, None),
        ),
        tuple("0123456789"),
        "glyph",
        Usual(22, augment=True, batch_size=256),
    ),
    "fashion-mnist": Source(
        _idx_source(
            "fashion-mnist",
            (
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            ),
            (None, None, None, None),
            (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        ),
        (
            "T-shirt",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "boot",
        ),
        "picture",
        Usual(10),
    ),
}


def usual_training(name: str) -> Usual:
    """Of a data set by name, or of a folder of pictures."""
    return DATASETS[name].usual if name in DATASETS else Usual()


def load_dataset(
    name: str,
    input_shape: tuple[int, int, int],
    seed: int,
    data_dir: Path | None = None,
    preparation: str = "picture",
) -> Dataset:
    """Load a data set by name, or a folder of pictures with one subfolder per class.

    `input_shape` is the network's (C, H, W), to which pictures are brought; `preparation` says how,
    as in a contract, for those of a folder. `data_dir` falls back to PIPELINE_DATA_DIR where the
    files are there. The splits are stratified and follow from the seed. Raises UsageError for an
    unknown name, BadInput and Missing for what is wrong with files.
    """
    if data_dir is None and os.environ.get("PIPELINE_DATA_DIR"):
        place = Path(os.environ["PIPELINE_DATA_DIR"])
        if any((place / name).glob("*-ubyte*")) or any(place.glob("*-ubyte*")):
            data_dir = place
    if name in DATASETS:
        source = DATASETS[name]
        (images, labels), test = source.read(data_dir)
        images = _fit(images, input_shape, source.preparation)
        if test is not None:
            test = _fit(test[0], input_shape, source.preparation), test[1]
        return _split(name, source.labels, source.preparation, (images, labels), test, seed)
    if not Path(name).is_dir():
        raise unknown("data set", name, DATASETS, ", or a folder with one subfolder per class")
    classes, images, labels = _read_pictures(Path(name), input_shape, preparation)
    return _split(Path(name).resolve().name, classes, preparation, (images, labels), None, seed)


def dataset_of(run: RunFolder) -> Dataset:
    """The data set a run was trained on. Raises BadInput when it has changed since."""
    training = run.training
    config = training["config"]
    if config["dataset"] not in DATASETS and not Path(config["dataset"]).is_dir():
        raise Missing(
            f"the pictures of run {run.name}, {config['dataset']}, are not here",
            "run this where it was trained, or put them there",
        )
    dataset = load_dataset(
        config["dataset"],
        tuple(training["input_shape"]),
        config["seed"],
        Path(config["data_dir"]) if config["data_dir"] else None,
    )
    if dataset.sha256 != training["dataset_sha256"]:
        raise BadInput(
            f"data set {config['dataset']}: changed since run {run.name} was trained on it",
            f"restore it, or run 'pipeline train --overwrite --run {run.name}'",
        )
    return dataset


def _fit(images: Bytes, input_shape: tuple[int, int, int], preparation: str) -> Bytes:
    """uint8 N x H x W to N x C x H x W of the network's shape."""
    if input_shape == (1, *images.shape[1:]):
        return images[:, None]
    return np.stack([prepare(image[:, :, None], input_shape, preparation) for image in images])


def _read_pictures(
    folder: Path, input_shape: tuple[int, int, int], preparation: str
) -> tuple[tuple[str, ...], Bytes, Labels]:
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(classes) < 2:
        raise BadInput(
            f"{folder}: needs a subfolder for each of 2 or more classes, found {len(classes)}"
        )
    images, labels = [], []
    for number, name in enumerate(classes):
        paths = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in PICTURES)
        if len(paths) < 3:
            raise BadInput(
                f"{folder / name}: {len(paths)} pictures",
                "a class needs at least 3, one each to train, validate and test",
            )
        for path in paths:
            picture = decode(path.read_bytes(), str(path))
            images.append(prepare(picture, input_shape, preparation))
            labels.append(number)
    return tuple(classes), np.stack(images), np.array(labels, dtype=np.int64)


def stratified(
    labels: Labels, part: float, generator: np.random.Generator
) -> tuple[Labels, Labels]:
    """Indices (rest, chosen): of each class the rounded `part` is chosen, but at least one."""
    chosen: list[int] = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        chosen.extend(members[: max(1, round(len(members) * part))].tolist())
    inside = np.zeros(len(labels), dtype=bool)
    inside[chosen] = True
    return np.flatnonzero(~inside), np.flatnonzero(inside)


def _split(
    name: str,
    classes: tuple[str, ...],
    preparation: str,
    known: tuple[Bytes, Labels],
    test: tuple[Bytes, Labels] | None,
    seed: int,
) -> Dataset:
    generator = np.random.default_rng(seed)
    images, labels = known
    if test is None:
        rest, chosen = stratified(labels, TEST_PART, generator)
        test = images[chosen], labels[chosen]
        images, labels = images[rest], labels[rest]
    rest, chosen = stratified(labels, VALIDATION_PART, generator)
    splits = [(images[rest], labels[rest]), (images[chosen], labels[chosen]), test]
    digest = hashlib.sha256("\0".join(classes).encode())
    for part, part_labels in splits:
        if part_labels.min() < 0 or part_labels.max() >= len(classes):
            raise BadInput(
                f"{name}: labels go from {part_labels.min()} to {part_labels.max()}, "
                f"expected 0 to {len(classes) - 1}"
            )
        digest.update(np.ascontiguousarray(part).tobytes() + part_labels.tobytes())
    tensors = [
        Split(torch.from_numpy(np.array(part)), torch.from_numpy(part_labels))
        for part, part_labels in splits
    ]
    train, validation, held_out = tensors
    return Dataset(name, classes, preparation, train, validation, held_out, digest.hexdigest())
