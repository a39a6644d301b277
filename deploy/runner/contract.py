"""The contract between a trained model and the device: what goes in, what comes out, what it means.

It is embedded in every exported model file and in the bundle's manifest. Normalisation is
`pixel / 255` and nothing else, so an int8 input has scale 1/255 and zero point -128 (an int16 one
1/255 and 0), and a camera byte is the model's input.
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
PRECISIONS = ("fp32", "int8", "fp16", "dynamic", "int16x8")
# Those whose values are integers, and which: int16x8 has int16 values and int8 weights.
INTEGERS = {"int8": "int8", "int16x8": "int16"}


def default_precision(there: Collection[str]) -> str:
    """What is taken of some precisions where none is named: int8, the smallest and fastest."""
    return next(precision for precision in ("int8", *PRECISIONS) if precision in there)


@dataclass(frozen=True)
class Quantization:
    """real = scale * (integer - zero_point); the integers are of `dtype`, one of INTEGERS."""

    scale: float
    zero_point: int
    dtype: str = "int8"


@dataclass(frozen=True)
class Contract:
    """One record per model file.

    `input_shape` is (channels, height, width) and `layout` says that a batch is N x C x H x W.
    `preparation` says how a picture becomes pixels: `glyph` is bright ink on a dark background,
    scaled into a box and centred as MNIST was made (dark ink on paper is inverted); `picture` is
    resized and otherwise left alone. `scores` says whether the outputs are logits or already
    probabilities; `temperature` is what logits are divided by before they become some (Guo et al.
    2017). `input` and `output` are the quantization of a model of INTEGERS, where the scores of an
    int8 one may be float, as its last layer; None for others: fp16 and dynamic are float models
    with weights stored as float16 or int8.
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
        """Canonical JSON: the same contract is always the same bytes. A temperature of 1 and the
        dtype int8 are left out: older runners know of no others.
        """
        record = asdict(self)
        if self.temperature == 1.0:
            del record["temperature"]
        for side in (record["input"], record["output"]):
            if side is not None and side["dtype"] == "int8":
                del side["dtype"]
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
                    dtype = str(record[key].get("dtype", "int8"))
                    record[key] = Quantization(float(scale), int(zero_point), dtype)
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
        dtype = INTEGERS.get(self.precision)
        sound = all(0 < side.scale < math.inf and side.dtype == dtype for side in sides)
        stated = self.input is not None if dtype else not sides
        if not (stated and sound):
            raise ValueError(f"{self.precision} with quantization {self.input}, {self.output}")
