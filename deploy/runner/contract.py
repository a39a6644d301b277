"""The contract between a trained model and the device: what goes in, what comes out, what it means.

It is embedded in every exported model file and in the bundle's manifest. Normalisation is
`pixel / 255` and nothing else, so an int8 input has scale 1/255 and zero point -128 and a camera
byte is the model's input.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import BadInput

SCHEMA = 1
PREPARATIONS = ("glyph", "picture")
SCORES = ("logits", "probabilities")
PRECISIONS = ("fp32", "int8", "fp16", "dynamic")


def default_precision(there: Collection[str]) -> str:
    """What is taken of some precisions where none is named: int8, the smallest and fastest."""
    return next(precision for precision in ("int8", *PRECISIONS) if precision in there)


@dataclass(frozen=True)
class Quantization:
    """real = scale * (integer - zero_point); the integers are int8."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Contract:
    """One record per model file.

    `input_shape` is (channels, height, width) and `layout` says that a batch is N x C x H x W.
    `preparation` says how a picture becomes pixels: `glyph` is bright ink on a dark background,
    scaled into a box and centred as MNIST was made (dark ink on paper is inverted); `picture` is
    resized and otherwise left alone. `scores` says whether the outputs are logits or already
    probabilities; `temperature` is what logits are divided by before they become some (Guo et al.
    2017). `input` and `output` are the quantization of an int8 model, whose scores may be float
    where its last layer is; None for others: fp16 and dynamic are float models with weights stored
    as float16 or int8.
    """

    model: str
    precision: str
    dataset: str
    labels: tuple[str, ...]
    input_shape: tuple[int, int, int]
    preparation: str
    scores: str
    input: Quantization | None
    output: Quantization | None
    program_sha256: str
    pipeline_version: str
    layout: str = "NCHW"
    temperature: float = 1.0
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Canonical JSON: the same contract is always the same bytes. A temperature of 1 is left
        out: older runners know of none.
        """
        record = asdict(self)
        if self.temperature == 1.0:
            del record["temperature"]
        return json.dumps(record, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Contract:
        """Parse and check; `source` names the file in the error. Raises BadInput."""
        try:
            record: dict[str, Any] = json.loads(text)
            if record["schema"] != SCHEMA:
                raise ValueError(f"schema {record['schema']}, this runner reads {SCHEMA}")
            record["labels"] = tuple(str(label) for label in record["labels"])
            channels, height, width = (int(size) for size in record["input_shape"])
            record["input_shape"] = (channels, height, width)
            for key in ("input", "output"):
                if record[key] is not None:
                    scale, zero_point = record[key]["scale"], record[key]["zero_point"]
                    record[key] = Quantization(float(scale), int(zero_point))
            missing = {field.name for field in fields(cls)} - {"temperature"} - set(record)
            if missing:
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            contract = cls(**record)
            contract._check()
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise BadInput(f"{source}: its contract is not readable ({error})") from error
        return contract

    def _check(self) -> None:
        for value, allowed in (
            (self.preparation, PREPARATIONS),
            (self.scores, SCORES),
            (self.precision, PRECISIONS),
            (self.layout, ("NCHW",)),
        ):
            if value not in allowed:
                raise ValueError(f"{value!r} is none of {', '.join(allowed)}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature}")
        if self.input_shape[0] not in (1, 3) or min(self.input_shape) < 1 or not self.labels:
            raise ValueError(f"input shape {self.input_shape} with {len(self.labels)} labels")
        sides = [side for side in (self.input, self.output) if side is not None]
        sound = all(0 < side.scale < math.inf for side in sides)
        stated = self.input is not None if self.precision == "int8" else not sides
        if not (stated and sound):
            raise ValueError(f"{self.precision} with quantization {self.input}, {self.output}")
