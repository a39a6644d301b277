"""manifest.json, and what must have been verified before there is one."""

from __future__ import annotations

from typing import Any

from deploy.runner import bundle

from .. import __version__
from ..errors import Missing, VerificationFailed
from ..precisions import USUAL
from ..run_folder import RunFolder
from ..verify import REPORT
from .order import Order


def manifest_of(
    run: RunFolder,
    order: Order,
    report: dict[str, Any],
    shipped: dict[str, str],
    contracts: dict[str, Any],
    compiler: str | None,
) -> dict[str, Any]:
    """manifest.json, but for its digests."""
    verified = [a for a in report["artefacts"] if a["file"] in shipped.values() and a["shipped"]]
    finals = {p: [a["final"] for a in verified if a["precision"] == p] for p in contracts}
    judged = [a for a in report["artefacts"] if a.get("final")]  # on whatever kernels
    of_float = {precision for precision, known in contracts.items() if known["output"] is None}
    manifest = {
        "schema": bundle.SCHEMA,
        "run": run.name,
        "pipeline_version": __version__,
        "contracts": contracts,
        "models": {file: _verdict(model, verified) for file, model in shipped.items()},
        "int8_steps": _steps(finals.get("int8", []) if "int8" not in of_float else []),
        "test_images": report["test_images"],
    }
    if "int16x8" in finals:
        manifest["int16x8_steps"] = _steps(finals["int16x8"])
    for precision in sorted(of_float & {"int8", "dynamic"}):  # other kernels round in another way
        found = [a["final"]["relative"] for a in judged if a["precision"] == precision]
        manifest[f"{precision}_relative"] = 2 * max(found)
    if order.place is not None:
        manifest["target"] = {
            "name": order.place.name,
            "hardware": order.place.target.hardware,
            "os": order.place.system,
            "python": order.place.python,
        }
        if compiler is not None:
            manifest["target"]["compiler"] = compiler
    return manifest


def _steps(finals: list[dict[str, Any]]) -> float:
    """How far outputs may be off on a device, where a tie may fall otherwise than it did here: one
    more than was found.
    """
    return 1 + max((float(final["largest"]) for final in finals), default=0.0)


def _verdict(model: str, verified: list[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest says of a file: the worst of the runtimes that it was verified with."""
    results = [artefact for artefact in verified if artefact["file"] == model]
    return {
        "precision": results[0]["precision"],
        "accuracy": min(result["final"]["accuracy"] for result in results),
        "verified_with": ", ".join(result["runtime"] for result in results),
        "equal_to_program": min(result["final"]["equal_part"] for result in results),
    }


def refuse_unverified(
    run: RunFolder, order: Order, report: dict[str, Any], models: list[str]
) -> None:
    """Raises VerificationFailed for what did not pass, and Missing for what was not judged."""
    some = f" --precision {','.join(order.precisions)}" if set(order.precisions) - {*USUAL} else ""
    mend = f"run 'pipeline verify --run {run.name}{some}'"
    for model in models:
        results = [a for a in report["artefacts"] if a["file"] == model and a["shipped"]]
        if not results:
            raise Missing(f"{model} has not been verified", mend)
        precision = results[0]["precision"]
        also = [run.artefact(precision, kind) for kind in ("pt2", "onnx")]  # the reference, too
        judged = [a for a in report["artefacts"] if a["file"] in (model, *also)]
        if not all(result["passed"] for result in judged):
            raise VerificationFailed(f"{model} did not pass verification", f"see {REPORT}; {mend}")
