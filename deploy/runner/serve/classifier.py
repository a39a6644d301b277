"""One picture at a time: from bytes that somebody sent to what the page and programs are told."""

from __future__ import annotations

import base64
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends import Model, as_input
from ..backends.c import CSession
from ..errors import BadInput
from ..images import Pixels, decode, prepare
from ..scores import probabilities, real

RAW = "application/octet-stream"
MAX_PIXELS = 2_500_000  # 200 MB while it is prepared: what a board with 512 MB can spare
MAPPED_LAYERS = 4
MAPPED_CHANNELS = 16


@dataclass(frozen=True)
class Answer:
    """What is sent as JSON, and how long the network alone took, in seconds."""

    document: dict[str, Any]
    seconds: float


class Classifier:
    """A model behind a lock: the runtimes' sessions are not for two threads at once, and memory for
    two large photographs is more than a small board has.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._since: float | None = None

    def describe(self) -> dict[str, Any]:
        """What /healthz says of the model."""
        contract = self._model.contract
        return {
            "model": contract.model,
            "dataset": contract.dataset,
            "precision": contract.precision,
            "runtime": self._model.runtime,
            "labels": list(contract.labels),
            "input_shape": list(contract.input_shape),
            "preparation": contract.preparation,
            "layers": isinstance(self._model.session, CSession),
        }

    def seconds_busy(self) -> float:
        """For how long the present picture has been in work; 0 where there is none."""
        since = self._since
        return time.monotonic() - since if since is not None else 0.0

    def answer(self, content: bytes, kind: str, layers: bool) -> Answer:
        """Classify a picture of any format that `images` reads, or, where its media type `kind` is
        RAW, the C x H x W bytes of the input. With `layers` the answer has what the network sees
        and, by the C library, what its first layers leave.

        Raises BadInput for what is no picture, Missing for a format that would need Pillow.
        """
        with self._lock:
            self._since = time.monotonic()
            try:
                return self._answer(content, kind, layers)
            finally:
                self._since = None

    def _answer(self, content: bytes, kind: str, layers: bool) -> Answer:
        contract = self._model.contract
        pixels = self._pixels(content, kind)
        begin = time.perf_counter()
        raw = self._model.run(pixels[None])[0]
        seconds = time.perf_counter() - begin
        chances = probabilities(real(raw, contract.output), contract)[0]
        best = int(np.argmax(chances))
        document: dict[str, Any] = {
            "label": contract.labels[best],
            "probability": float(chances[best]),
            "probabilities": [
                {"label": label, "probability": float(chance)}
                for label, chance in zip(contract.labels, chances, strict=True)
            ],
            "blank": contract.preparation == "glyph" and not pixels.any(),
            "runtime": self._model.runtime,
            "latency_ms": seconds * 1000,
        }
        if layers:
            document["input"] = _picture(pixels)
            document["layers"] = self._layers(pixels)
        return Answer(document, seconds)

    def _pixels(self, content: bytes, kind: str) -> Pixels:
        contract = self._model.contract
        shape = contract.input_shape
        if kind != RAW:
            image = decode(content, "the picture", MAX_PIXELS)
            return prepare(image, shape, contract.preparation)
        size = int(np.prod(shape))
        if len(content) != size:
            raise BadInput(
                f"{RAW} of {len(content)} bytes, the input has {size}",
                "send channels x height x width bytes, or a picture as image/png",
            )
        return np.frombuffer(content, np.uint8).reshape(shape)

    def _layers(self, pixels: Pixels) -> list[dict[str, Any]]:
        """The first layers that leave pictures; none where the runtime does not show them."""
        session = self._model.session
        if not isinstance(session, CSession):
            return []
        values = session.observe(as_input(pixels[None], session.inputs[0].dtype))[1]
        images = [
            (operators, values[name][0])
            for operators, _, name in session.layers
            if values[name].ndim == 4 and min(values[name].shape[2:]) > 1
        ]
        return [
            {"operators": operators, "channels": len(maps)} | _picture(_stretched(maps))
            for operators, maps in images[:MAPPED_LAYERS]
        ]


def _stretched(maps: npt.NDArray[Any]) -> Pixels:
    """The first channels of C x H x W as bytes: the least value of all is 0, the greatest 255."""
    shown = maps[:MAPPED_CHANNELS].astype(np.float64)
    shown = np.nan_to_num(shown - shown.min(), posinf=0.0)
    return np.asarray(np.rint(shown * (255 / (shown.max() or 1.0))), dtype=np.uint8)


def _picture(pixels: Pixels) -> dict[str, Any]:
    return {
        "shape": list(pixels.shape),
        "pixels": base64.b64encode(pixels.tobytes()).decode("ascii"),
    }
