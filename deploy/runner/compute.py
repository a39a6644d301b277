"""The `compute` command: run any model file for a program at the other end of stdin and stdout.

So the program needs no runtime itself, and a pipe, ssh or an emulator may lie between. A message
is one line of JSON and then as many bytes as it says; a request that fails leaves the next one
readable. The answer to either request may be an error instead.

    {"open": "conv1.tflite", "threads": 1, "kernels": "builtin", "bytes": 4096}, the file
    {"session": 0, "runtime": "litert 2.3.0", "inputs": [...], "outputs": [...], "bytes": 0}

    {"run": 0, "bytes": 3264}, one array per input in NumPy's .npy format, one after another
    {"bytes": 168}, one array per output likewise

    {"error": "BadInput", "message": "conv1.tflite: no model", "mend": "", "bytes": 0}
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .backends import Session, TensorInfo, open_session
from .contract import Quantization
from .errors import BadInput, UserError, first_line

Message = tuple[dict[str, Any], bytes]


def compute(runtime: str, requests: IO[bytes]) -> None:
    """Answer `requests` on stdout until they end; whatever else is printed goes to stderr."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        serve(runtime, requests, answers)


def serve(runtime: str, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer each request, with an error where it cannot be done, until the stream ends."""
    sessions: list[Session] = []
    while True:
        answer: dict[str, Any] = {}
        content = b""
        try:
            message = receive(requests)
            if message is None:
                return
            request, given = message
            if "open" in request:
                session = _open(runtime, request, given)
                sessions.append(session)
                answer = {"session": len(sessions) - 1, **describe(session)}
            else:
                outputs = sessions[request["run"]].run(*unpack(given))
                content = pack(outputs)
        except UserError as error:
            answer = {"error": type(error).__name__, "message": error.message, "mend": error.mend}
        except Exception as error:  # a runtime may raise anything; the next request may be good
            reason = f"{type(error).__name__}: {first_line(error)}"
            answer = {"error": "BadInput", "message": reason, "mend": ""}
        send(answers, answer, content)


def _open(runtime: str, request: dict[str, Any], content: bytes) -> Session:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(request["open"]).name
        path.write_bytes(content)
        try:
            return open_session(runtime, path, request["threads"], request["kernels"])
        except UserError as error:  # name the file as it is called at the other end
            message = error.message.replace(str(path), request["open"])
            raise type(error)(message, error.mend) from error


def send(stream: IO[bytes], record: dict[str, Any], content: bytes = b"") -> None:
    """Write one message."""
    stream.write(json.dumps({**record, "bytes": len(content)}).encode() + b"\n" + content)
    stream.flush()


def receive(stream: IO[bytes]) -> Message | None:
    """Read one message; None where the stream ends. Raises BadInput for a line that is none."""
    line = stream.readline()
    if not line:
        return None
    try:
        record: dict[str, Any] = json.loads(line)
        size = int(record["bytes"])
        if size < 0:
            raise ValueError(f"{size} bytes")
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"no message: {line[:80]!r}") from error
    content = stream.read(size)
    return None if len(content) < size else (record, content)


def pack(arrays: Iterable[npt.NDArray[Any]]) -> bytes:
    """Arrays in .npy format, one after another."""
    stream = io.BytesIO()
    for array in arrays:
        np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def unpack(content: bytes) -> list[npt.NDArray[Any]]:
    """The arrays that were packed. Raises ValueError for other bytes."""
    stream = io.BytesIO(content)
    arrays = []
    while stream.tell() < len(content):
        arrays.append(np.lib.format.read_array(stream, allow_pickle=False))
    return arrays


def describe(session: Session) -> dict[str, Any]:
    """What JSON can say about a session."""
    return {
        "runtime": session.runtime,
        "inputs": [_describe(tensor) for tensor in session.inputs],
        "outputs": [_describe(tensor) for tensor in session.outputs],
    }


def _describe(tensor: TensorInfo) -> dict[str, Any]:
    found = tensor.quantization
    return {
        "name": tensor.name,
        "shape": tensor.shape,
        "dtype": tensor.dtype.str,
        "quantization": found and [found.scale, found.zero_point],
    }


def tensor_info(record: dict[str, Any]) -> TensorInfo:
    """The tensor that was described."""
    return TensorInfo(
        str(record["name"]),
        tuple(record["shape"]),
        np.dtype(record["dtype"]),
        record["quantization"] and Quantization(*record["quantization"]),
    )
