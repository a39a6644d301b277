"""The runtimes that generated C is compared with: one function each, in a process of its own.

    python competitors.py RUNTIME MODEL PIXELS CHANNELS HEIGHT WIDTH

`latency.py` starts this and talks to it in lines, as to calls.c: first it says the version; "check
N" gives the scores of the first N images, "time N" the nanoseconds of each of N calls, "all" the
images per second over the whole file at the best batch, and that batch.

A call is the runtime's own, without Python's checks where these can be gone round, and its input is
already there in the type that it takes: whatever is unclear counts for the competitor. It needs
nothing but NumPy and the runtime, for tflite-runtime has an environment of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

BATCHES = (1, 4, 8, 16, 32, 64, 128, 256)
TRIED = 1024  # images, by which the best batch is found


@dataclass(frozen=True)
class Session:
    """A model opened for one batch. `prepare` makes its input of uint8 pixels N x C x H x W, `put`
    places that, `call` computes, `scores` is float32 N x labels.
    """

    version: str
    prepare: Callable[[Any], Any]
    put: Callable[[Any], None]
    call: Callable[[], Any]
    scores: Callable[[], Any]


def _real(pixels: Any) -> Any:
    return (pixels / np.float32(255)).astype(np.float32)


def _tflite(module: Any, name: str, path: Path, shape: tuple[int, ...]) -> Session:
    interpreter = module.Interpreter(str(path), num_threads=1)
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], shape)
    interpreter.allocate_tensors()
    inner = interpreter._interpreter  # its Invoke lacks a check for arrays that are still in use
    view = interpreter.tensor(given["index"])()
    scale, zero_point = result["quantization"]

    def put(values: Any) -> None:
        view[...] = values

    def scores() -> Any:
        found = interpreter.get_tensor(result["index"])
        return (found.astype(np.float32) - zero_point) * np.float32(scale) if scale else found

    integers = given["dtype"] == np.int8
    prepare = (lambda pixels: (pixels ^ 0x80).view(np.int8)) if integers else _real
    return Session(name, prepare, put, inner.Invoke, scores)


def litert(path: Path, shape: tuple[int, ...]) -> Session:
    from ai_edge_litert import interpreter

    return _tflite(interpreter, f"LiteRT {version('ai-edge-litert')}", path, shape)


def tflite_runtime(path: Path, shape: tuple[int, ...]) -> Session:
    from tflite_runtime import interpreter

    return _tflite(interpreter, f"tflite-runtime {version('tflite-runtime')}", path, shape)


def onnxruntime(path: Path, shape: tuple[int, ...]) -> Session:
    import onnxruntime as ort

    from deploy.runner.backends.onnxruntime import EXACT_INT8

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(EXACT_INT8, "1")  # as in the runner; else its sums saturate
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    binding = session.io_binding()
    place = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
    binding.bind_ortvalue_input(given.name, place)
    binding.bind_output(result.name)
    inner, bound, plain = session._sess, binding._iobinding, ort.RunOptions()

    def scores() -> Any:
        return binding.copy_outputs_to_cpu()[0]

    def call() -> None:
        inner.run_with_iobinding(bound, plain)

    return Session(f"ONNX Runtime {ort.__version__}", _real, place.update_inplace, call, scores)


def openvino(path: Path, shape: tuple[int, ...]) -> Session:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(str(path))
    model.reshape(list(shape))
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    settings["INFERENCE_PRECISION_HINT"] = "f32"  # else bfloat16 where the processor has AMX
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    place = request.get_input_tensor(0).data

    def put(values: Any) -> None:
        place[...] = values

    def scores() -> Any:
        return request.get_output_tensor(0).data.copy()

    return Session(f"OpenVINO {ov.__version__.split('-')[0]}", _real, put, request.infer, scores)


@dataclass(frozen=True)
class Competitor:
    """`module` must be importable; `suffix` is of the file that it reads; `environment` is another
    environment's folder in .venv.
    """

    open: Callable[[Path, tuple[int, ...]], Session]
    module: str
    suffix: str
    environment: str = ""


COMPETITORS = {
    "litert": Competitor(litert, "ai_edge_litert", "tflite"),
    "onnxruntime": Competitor(onnxruntime, "onnxruntime", "onnx"),
    "tflite-runtime": Competitor(tflite_runtime, "tflite_runtime", "tflite", "tflite-runtime"),
    "openvino": Competitor(openvino, "openvino", "onnx"),
}


def scores_of(session: Session, pixels: Any) -> Any:
    """Of a session for one image, all images."""
    found = []
    for image in pixels:
        session.put(session.prepare(image[None]))
        session.call()
        found.append(np.array(session.scores(), np.float32).ravel())
    return np.concatenate(found)


def nanoseconds(session: Session, count: int) -> list[int]:
    """Of each call."""
    call, clock = session.call, time.perf_counter_ns
    for _ in range(count // 10):  # back into the caches
        call()
    times = []
    for _ in range(count):
        start = clock()
        call()
        times.append(clock() - start)
    return times


def file_for(path: Path, batch: int) -> Path:
    """The model for that batch, where it has one of its own (batched.py)."""
    own = path.with_suffix(f".{batch}{path.suffix}")
    return own if own.is_file() else path


def rate(competitor: Competitor, path: Path, pixels: Any, batch: int) -> float:
    """Images per second, batch by batch; the last one is left out if not whole.

    Raises ValueError where a batch gives other labels than its images one by one.
    """
    session = competitor.open(file_for(path, batch), (batch, *pixels.shape[1:]))
    whole = len(pixels) // batch
    inputs = [session.prepare(pixels[i * batch : (i + 1) * batch]) for i in range(whole)]
    session.put(inputs[0])
    session.call()
    single = competitor.open(path, (1, *pixels.shape[1:]))
    one_by_one = scores_of(single, pixels[:batch]).reshape(batch, -1)
    if (session.scores().argmax(1) != one_by_one.argmax(1)).any():
        raise ValueError(f"a batch of {batch} gives other labels")
    start = time.perf_counter()
    for values in inputs:
        session.put(values)
        session.call()
    return whole * batch / (time.perf_counter() - start)


def throughput(competitor: Competitor, path: Path, pixels: Any) -> tuple[float, int]:
    """Images per second over all of them at the batch that is best for the first TRIED."""
    tried = pixels[:TRIED]
    fitting = [batch for batch in BATCHES if batch <= len(tried)]
    best = max(fitting, key=lambda batch: rate(competitor, path, tried, batch))
    return rate(competitor, path, pixels, best), best


def main() -> None:
    competitor, path = COMPETITORS[sys.argv[1]], Path(sys.argv[2])
    shape = tuple(int(size) for size in sys.argv[4:7])
    pixels = np.fromfile(sys.argv[3], np.uint8).reshape(-1, *shape)
    session = competitor.open(path, (1, *shape))
    print(session.version, flush=True)
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        if word == "check":
            print(*scores_of(session, pixels[: int(number)]), flush=True)
        elif word == "time":
            print(*nanoseconds(session, int(number)), flush=True)
        else:
            print(*throughput(competitor, path, pixels), flush=True)


if __name__ == "__main__":
    main()
