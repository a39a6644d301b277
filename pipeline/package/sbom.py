"""What is in a bundle and what is installed with it, as CycloneDX 1.6 in JSON: sbom.cdx.json.

Written by hand: it is one dictionary, and the library for it would stamp a time and a random
number. Here the serial number follows from the components. https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from deploy.runner.bundle import RUNNER, sha256

from .. import __version__
from .archive import INSTALL
from .licences import OURS, Linked, Wheel
from .native import CLASSIFY

SBOM = "sbom.cdx.json"
TYPES = {RUNNER: "application", CLASSIFY: "application", INSTALL: "application"}
MODEL = "machine-learning-model"


def sbom(
    name: str,
    models: Iterable[str],
    contents: Mapping[str, bytes],
    linked: Iterable[Linked],
    wheels: Iterable[Wheel],
) -> bytes:
    """The document for a bundle called `name`; `models` are names in `contents`.

    A wheel that is packed has its own hash; one that pip fetches has those of all wheels that it
    may be, and the scope "optional".
    """
    packed = {
        path: _hashes([sha256(content)])
        for path, content in contents.items()
        if path.startswith("wheels/")
    }
    components = [
        _component(MODEL, model, __version__, _hashes([sha256(contents[model])]))
        for model in sorted(models)
    ]
    sources = sorted({path.split("/")[1] for path in contents if path.startswith("c/")})
    components += [_component(MODEL, f"c/{folder}", __version__) for folder in sources]
    for file, kind in TYPES.items():
        if file in contents:
            hashes = _hashes([sha256(contents[file])])
            components.append(_component(kind, file, __version__, hashes, licence=OURS))
    for library in linked:
        known = _component("library", library.name, library.version, licence=library.licence)
        components.append(known | {"description": f"inside of {library.inside}"})
    for wheel in wheels:
        there = [h for path, h in packed.items() if _is_of(path, wheel)]
        known = _component(
            "library",
            wheel.name,
            wheel.version,
            there[0] if there else _hashes(wheel.sha256),
            licence=wheel.licence,
        )
        known["purl"] = f"pkg:pypi/{wheel.name}@{wheel.version}"
        components.append(known if there else known | {"scope": "optional"})
    for component in components:
        component["bom-ref"] = f"{component['name']}@{component['version']}"
    top = {"type": "application", "name": name, "version": __version__, "bom-ref": name}
    text = json.dumps([top, components], sort_keys=True)
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, sha256(text.encode()))}",
        "version": 1,
        "metadata": {"component": top},
        "components": components,
        "dependencies": [
            {"ref": name, "dependsOn": [component["bom-ref"] for component in components]}
        ],
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def _component(
    kind: str, name: str, version: str, hashes: Any = None, licence: str = ""
) -> dict[str, Any]:
    found: dict[str, Any] = {"type": kind, "name": name, "version": version}
    if hashes:
        found["hashes"] = hashes
    if licence:
        found["licenses"] = [{"expression": licence}]
    return found


def _hashes(digests: Iterable[str]) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest} for digest in digests]


def _is_of(path: str, wheel: Wheel) -> bool:
    """Whether a wheel's file name is of this distribution and version."""
    name, version = PurePosixPath(path).name.split("-")[:2]
    return (name.lower().replace("_", "-").replace(".", "-"), version) == (
        wheel.name,
        wheel.version,
    )
