"""Which int8 program a run gets: of those asked for, the best on the validation images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .. import __version__
from ..data import Split, dataset_of
from ..errors import UsageError, VerificationFailed, unknown
from ..program import capture, layer_nodes, load, run, saved, tap_nodes
from ..run_folder import RunFolder
from .calibration import quantize
from .measure import OnStep, measured, rank
from .mixed import Tried, fewest, in_float, layers
from .observers import OBSERVERS

AUTO = "auto"
MIXED = ("max_drop", "keep")  # settings of a program in which some layers may be in float


@dataclass(frozen=True)
class Calibration:
    """How the int8 program is made: from `size` training images, all if there are fewer.

    `observer` is one of OBSERVERS, or auto: each is tried. `bias_correction` None is auto, too.
    Auto is the default, since no observer is best for all: of lenet5 (digits, MNIST) and
    lenet5-classic (digits), seed 0, minmax, minmax and percentile came nearest to fp32 on
    validation images, each with bias correction, 0.4 to 2.6 dB nearer than plain minmax.

    Some layers may stay in float, see `mixed`: those named by `keep`, or else, where there is a
    `max_drop` in percentage points, as few as bring the program within it.
    """

    size: int = 1000
    seed: int = 0
    observer: str = AUTO
    bias_correction: bool | None = None
    max_drop: float | None = None
    keep: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """For run.json, which says nothing of layers in float where all are to be int8."""
        config = asdict(self)
        return {k: v for k, v in config.items() if k not in MIXED or v not in (None, ())}

    def images(self, train: Split) -> Tensor:
        """The chosen training images, uint8 N x C x H x W."""
        generator = torch.Generator().manual_seed(self.seed)
        return train.images[torch.randperm(len(train), generator=generator)[: self.size]]

    def candidates(self) -> list[tuple[str, bool]]:
        """What is to be tried, (observer, bias correction), from the simplest on."""
        observers = list(OBSERVERS) if self.observer == AUTO else [self.observer]
        given = self.bias_correction
        return list(itertools.product(observers, [False, True] if given is None else [given]))


def choose(
    program: fx.GraphModule,
    pixels: Tensor,
    validation: Split,
    calibration: Calibration,
    on_step: OnStep = lambda _: None,
) -> tuple[fx.GraphModule, list[dict[str, Any]]]:
    """The best int8 program, and what was tried, the chosen one marked. Raises BadInput."""
    wanted = run(program, validation.images)[0]
    tried: list[dict[str, Any]] = []
    best: fx.GraphModule | None = None
    candidates = calibration.candidates()
    for number, (observer, correction) in enumerate(candidates, 1):
        on_step(f"quantizing ({number} of {len(candidates)})")
        int8 = quantize(program, pixels, observer, bias_correction=correction)
        entry = {"observer": observer, "bias_correction": correction, "chosen": False}
        tried.append(entry | measured(int8, wanted, validation))
        if best is None or max(tried, key=rank) is tried[-1]:
            best = int8
    assert best is not None
    max(tried, key=rank)["chosen"] = True
    return best, tried


def mix(
    program: fx.GraphModule,
    pixels: Tensor,
    validation: Split,
    calibration: Calibration,
    tried: Tried,
    on_step: OnStep = lambda _: None,
) -> tuple[fx.GraphModule, Tried]:
    """The int8 program with layers in float that `calibration` asks for, otherwise as the chosen
    one of `tried`; and the choices of layers, that of the program last, see `fewest`.

    Raises VerificationFailed as `fewest` does.
    """
    wanted = run(program, validation.images)[0]
    chosen = next(each for each in tried if each["chosen"])
    observer, correction = chosen["observer"], chosen["bias_correction"]

    def quantized(keep: Sequence[str]) -> fx.GraphModule:
        on_step(f"trying layers in float ({', '.join(keep) or 'none'})")
        return quantize(program, pixels, observer, bias_correction=correction, keep=keep)

    if calibration.keep:
        int8 = quantized(calibration.keep)
        return int8, [{"layers": list(in_float(int8)), **measured(int8, wanted, validation)}]
    assert calibration.max_drop is not None
    plain = quantize(program, pixels, observer)
    costs = layers(plain, wanted, validation, on_step)
    return fewest(plain, quantized, costs, wanted, validation, calibration.max_drop)


def _refuse_to_keep(keep: Sequence[str], program: fx.GraphModule, pixels: Tensor) -> None:
    """Raises UsageError for layers that cannot stay in float. Which can does not depend on the
    images, of which one is enough.
    """
    int8 = quantize(program, pixels)
    known = [tap.layer for tap in tap_nodes(int8)]
    nodes = {node.name: node for node in int8.graph.nodes}
    parts = {part.name: layer for layer in known for part in layer_nodes(nodes[layer])}
    for name in keep:
        if name not in known:
            if name in parts:
                whole = parts[name]
                raise UsageError(f"--keep {name}: it is a part of {whole}", f"give --keep {whole}")
            raise unknown("layer", name, known)
    if set(keep) == set(known):
        raise UsageError("--keep names every layer: that is the fp32 program", "leave one out")
    found = in_float(quantize(program, pixels, keep=keep))
    for name in keep:
        if not any(name in inside for inside in found.values()):
            raise UsageError(
                f"--keep {name}: it has no weights and stands between int8 values",
                "keep the layer before or after it, too",
            )


def is_trained(run: RunFolder) -> bool:
    """Whether the int8 program was trained, see `training.py`, and not calibrated."""
    entry = run.record["artefacts"].get(run.artefact("int8", "pt2"))
    return entry is not None and "qat" in entry["config"]


def quantize_run(
    run: RunFolder, calibration: Calibration | None = None, on_step: OnStep = lambda _: None
) -> bool:
    """Make a run's int8 program. Returns whether it was made now (else it was current).

    Without `calibration` the settings of the int8 program that is there are kept, and one that was
    trained is left as it is while its float program is. Calibrates on training images and chooses
    by validation images, never by test images. What was tried is kept in run.json. Raises
    UsageError, Missing, BadInput, or VerificationFailed as `fewest` does.
    """
    if calibration is not None:
        return _make(run, calibration, on_step)
    target = run.artefact("int8", "pt2")
    known = run.record["artefacts"].get(target, {}).get("config", {})
    if is_trained(run) and run.is_current(target, known):
        return False
    before = {key: known[key] for key in asdict(Calibration()) if key in known}
    before["keep"] = tuple(before.get("keep", ()))  # JSON's is a list
    try:
        return _make(run, Calibration(**before), on_step)
    except (UsageError, VerificationFailed) as error:
        raise type(error)(
            f"int8 was to be made as before, and cannot be: {error.message}",
            f"run 'pipeline quantize --run {run.name}', with other options or none",
        ) from error


def _make(run: RunFolder, calibration: Calibration, on_step: OnStep) -> bool:
    source, target = run.artefact("fp32", "pt2"), run.artefact("int8", "pt2")
    if calibration.size < 1:
        raise UsageError(f"--calibration-size {calibration.size}", "give 1 or more")
    if calibration.observer not in (AUTO, *OBSERVERS):
        raise unknown("observer", calibration.observer, [AUTO, *OBSERVERS])
    if calibration.max_drop is not None and not 0 <= calibration.max_drop <= 100:
        raise UsageError(
            f"--max-drop {calibration.max_drop:g}", "give percentage points, as in 0.1"
        )
    config = calibration.config | {"pipeline": __version__}
    path = run.need(source)
    if calibration.keep and not run.is_current(target, config):
        _refuse_to_keep(calibration.keep, load(path), torch.zeros(1, *run.input_shape).byte())
    if not run.wants(target, config=config):
        return False
    module = load(path)
    dataset = dataset_of(run)
    pixels = calibration.images(dataset.train)
    validation = dataset.validation
    int8, tried = choose(module, pixels, validation, calibration, on_step)
    facts: dict[str, Any] = {"tried": tried}
    if calibration.keep or calibration.max_drop is not None:
        int8, facts["mixed"] = mix(module, pixels, validation, calibration, tried, on_step)
    with run.workspace() as work:
        (work / target).write_bytes(saved(capture(int8, run.input_shape)))
        run.commit({target: work / target}, config, [source], facts)
    if in_float(int8):  # there is no C of it
        run.discard(run.artefact("int8", "c"))
    return True
