"""What verification found: layers, artefacts, their verdicts, and all of it as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from deploy.runner.scores import steps

from ..data import Dataset
from .evidence import machine
from .judgement import Judgement, in_words
from .subject import LayerVerdict, Subject, judged_of

Array = npt.NDArray[Any]
WORST = 3  # layers that are shown first


@dataclass(frozen=True)
class Finals:
    """The test set, and by precision the real scores of its program, N x classes."""

    dataset: Dataset
    scores: dict[str, Tensor]

    @property
    def labels(self) -> Array:
        """N, the right answers."""
        return np.asarray(self.dataset.test.labels.numpy())

    def decisions(self, precision: str) -> Array:
        """N, the program's answers."""
        return np.asarray(self.scores[precision].argmax(1).numpy())


def report_of(
    finals: Finals,
    subjects: Sequence[Subject],
    varied: list[dict[str, Any]],
    require: Sequence[str] = (),
    skipped: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything that verify.json says, but for what was asked for.

    Passed is what has at least one artefact, all of which passed, in every runtime of `require`.
    """
    absent = absent_of(subjects, require)
    return {
        "passed": bool(subjects) and all(s.passed for s in subjects) and not absent,
        "required": list(require),
        "absent": absent,
        "skipped": list(skipped),
        "test_images": len(finals.labels),
        "dataset_sha256": finals.dataset.sha256,
        "machine": machine(),
        "programs": {
            precision: {
                "accuracy": float(np.mean(finals.decisions(precision) == finals.labels)),
                "confusion_with_fp32": _confusion(
                    finals.decisions(precision), finals.decisions("fp32"), finals.labels
                ),
            }
            for precision in finals.scores
        },
        "artefacts": [artefact_record(subject, finals) for subject in subjects],
        "varied": varied,
        "worst": worst_of(subjects),
    }


def absent_of(subjects: Sequence[Subject], require: Sequence[str]) -> list[str]:
    """The runtimes of `require` in which nothing ran."""
    ran = {s.configuration.split(" ")[0] for s in subjects if s.error is None}
    return [runtime for runtime in require if runtime not in ran]


def artefact_record(subject: Subject, finals: Finals | None = None) -> dict[str, Any]:
    """A subject as JSON; with its final outputs on the test set, where there is one."""
    record: dict[str, Any] = {
        "file": subject.file,
        "precision": subject.precision,
        "configuration": subject.configuration,
        "shipped": subject.shipped,
        "runtime": subject.runtime,
        "threads": 1,
        "passed": subject.passed,
        "error": subject.error,
    }
    if subject.error is not None:
        return record
    broken = subject.first_broken
    return record | {
        "observer": {"elements": subject.observed, "differ": subject.observer},
        "first_broken": broken.layer.name if broken else None,
        "output": judgement_record(subject.output) if subject.output != Judgement() else None,
        "fingerprints": fingerprints(subject),
        "layers": [_layer(verdict) for verdict in subject.layers],
        "final": _final(subject, finals) if finals is not None and subject.finals else None,
    }


def _layer(verdict: LayerVerdict) -> dict[str, Any]:
    hidden = verdict.together is not None
    return {
        "layer": verdict.layer.name,
        "kind": verdict.layer.kind,
        "passed": verdict.passed,
        "fingerprint": fingerprint(verdict),
        # Without a value of its own a layer has no judgement, but passes or fails with another.
        "with": verdict.together.layer.name if verdict.together else None,
        "isolated": judgement_record(verdict.isolated),
        "in_place": judgement_record(None if hidden else verdict.in_place),
        "accumulated": judgement_record(None if hidden else verdict.accumulated),
    }


def has_bound(layer: dict[str, Any]) -> bool:
    """Whether a layer's record tells of floats, which have bounds, and of no problem."""
    judged = [j for j in (layer["isolated"], layer["in_place"]) if j is not None]
    return bool(judged) and all(
        j["fraction_of_bound"] is not None and j["problem"] is None for j in judged
    )


def fingerprint(verdict: LayerVerdict) -> str:
    """How an int8 layer rounds, told by the inputs on which schemes disagree; "" for fp32."""
    return _telling(verdict).fingerprint


def _telling(verdict: LayerVerdict) -> Judgement:
    alone, inside = verdict.isolated, verdict.in_place
    return alone if alone is not None and alone.telling else inside


def fingerprints(subject: Subject) -> dict[str, str]:
    """Per kind of int8 layer the schemes that reproduce all of its layers, in words."""
    groups: dict[str, list[list[str]]] = {}
    candidates: dict[str, set[str]] = {}
    for verdict in subject.layers:
        judgement = _telling(verdict)
        if not judgement.matches:
            continue
        found = judgement.reproducing
        kind = verdict.layer.kind.partition(" + ")[0]
        candidates.setdefault(kind, set()).update(judgement.matches)
        known = groups.setdefault(kind, [])
        for number, schemes in enumerate(known):
            if shared := [name for name in schemes if name in found]:
                known[number] = shared
                break
        else:
            known.append(found)
    return {
        kind: ", ".join(in_words(schemes, candidates[kind]) for schemes in known)
        for kind, known in groups.items()
    }


def judgement_record(judgement: Judgement | None) -> dict[str, Any] | None:
    """A judgement as JSON: with its verdict, without the sums that measures are made from."""
    if judgement is None:
        return None
    elements = max(judgement.elements, 1)
    outside = judgement.first_outside
    return {
        "passed": judgement.passed,
        "problem": judgement.problem,
        "elements": judgement.elements,
        "equal_part": judgement.equal / elements,
        "outside": judgement.outside,
        "unlikely": judgement.unlikely,
        "largest": judgement.largest,
        "mean": judgement.total / elements,
        "fraction_of_bound": None if judgement.histogram else judgement.fraction,
        "sqnr_db": judgement.sqnr if math.isfinite(judgement.sqnr) else None,
        "cosine": judgement.cosine,
        "schemes": judgement.reproducing,
        "telling": judgement.telling,
        "steps": {str(step): count for step, count in sorted(judgement.histogram.items())},
        "worst": asdict(judgement.worst) if judgement.worst else None,
        "first_outside": asdict(outside) if outside else None,
    }


def _final(subject: Subject, finals: Finals) -> dict[str, Any]:
    """The shipped file's own outputs on the whole test set, against the program's."""
    found = np.concatenate(subject.finals)
    scores = finals.scores[subject.precision].numpy()
    answers, decisions = found.argmax(1), finals.decisions(subject.precision)
    quantization = subject.layers[-1].layer.quantization
    left, right = (found, scores)
    if quantization is not None:
        left, right = steps(found, quantization), steps(scores, quantization)
    off = np.abs(left.astype(np.float64).reshape(right.shape) - right)
    flipped = np.flatnonzero(answers != decisions)
    two = np.sort(scores, axis=1)[:, -2:]
    return {
        "accuracy": float(np.mean(answers == finals.labels)),
        "confusion_with_fp32": _confusion(answers, finals.decisions("fp32"), finals.labels),
        "in_steps": quantization is not None,
        "largest": float(off.max()),
        "relative": float(off.max() / max(np.abs(right).max(), np.finfo(np.float32).tiny)),
        "equal_part": float(np.mean(off == 0)),
        # The margin is the program's: between the answer it gave and the one that came second.
        "flips": [
            {
                "image": int(image),
                "program": int(decisions[image]),
                "found": int(answers[image]),
                "margin": float(two[image, 1] - two[image, 0]),
            }
            for image in flipped
        ],
    }


def worst_of(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """The layers nearest to failing, failed ones first: by elements outside, then by how much of
    its bound one takes.
    """
    entries: list[tuple[Any, dict[str, Any]]] = []
    for subject in subjects:
        for verdict in judged_of(subject.layers) if subject.error is None else ():
            for name, judgement in (("alone", verdict.isolated), ("in place", verdict.in_place)):
                if judgement is None or (judgement.matches and judgement.passed):
                    continue  # an int8 layer is explained or not: none is nearer to failing
                part = judgement.outside / max(judgement.elements, 1)
                broken = judgement.problem is not None
                size = (broken, part, 0.0 if judgement.matches else judgement.fraction)
                entry: dict[str, Any] = {
                    "file": subject.file,
                    "precision": subject.precision,
                    "configuration": subject.configuration,
                    "layer": verdict.layer.name,
                    "kind": verdict.layer.kind,
                    "fed": name,
                    "fingerprint": judgement.fingerprint,
                    "fraction_of_bound": judgement.fraction,
                    "outside": judgement.outside,
                    "problem": judgement.problem,
                }
                entries.append((size, entry))
    entries.sort(key=lambda pair: pair[0], reverse=True)
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    for _, entry in entries:  # of each layer of a precision only the worst
        worst.setdefault((entry["precision"], entry["layer"]), entry)
    return list(worst.values())[:WORST]


def _confusion(answers: Array, fp32: Array, labels: Array) -> dict[str, int]:
    """Test images by which of the two decided rightly."""
    right, fp32_right = answers == labels, fp32 == labels
    return {
        "both right": int((right & fp32_right).sum()),
        "only fp32 right": int((~right & fp32_right).sum()),
        "only this right": int((right & ~fp32_right).sum()),
        "both wrong": int((~right & ~fp32_right).sum()),
    }
