"""The mutations of a TFLite file."""

from __future__ import annotations

import copy
import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from .changes import CONSTANTS, Array, ModelFile, Window, moved

OP, OPTIONS = schema.BuiltinOperator, schema.BuiltinOptions
TYPES = {0: np.float32, 2: np.int32, 4: np.int64, 7: np.int16, 9: np.int8}
TO_OIHW = {  # weights to O x I x rows x columns
    OP.CONV_2D: (0, 3, 1, 2),
    OP.DEPTHWISE_CONV_2D: (3, 0, 1, 2),
    OP.FULLY_CONNECTED: (0, 1),
}
POOLS = {OP.AVERAGE_POOL_2D, OP.MAX_POOL_2D}
WINDOWS = {OP.CONV_2D, OP.DEPTHWISE_CONV_2D, *POOLS}
ACTIVATIONS = {OP.RELU, OP.RELU6, OP.LOGISTIC, OP.TANH, OP.LEAKY_RELU, OP.HARD_SWISH, OP.ELU}
MAX_FOR = {OP.AVERAGE_POOL_2D: OP.MAX_POOL_2D, OP.MEAN: OP.REDUCE_MAX}
# Operators whose result has a scale of its own: not the input's, and not one that is prescribed.
REQUANTIZING = {*TO_OIHW, OP.ADD, OP.SUB, OP.MUL, OP.MEAN}
SAME, VALID = 0, 1


def _kind(model: Any, op: Any) -> int:
    code = model.operatorCodes[op.opcodeIndex]
    return int(flatbuffer_utils.get_builtin_code_from_operator_code(code))


def _become(model: Any, op: Any, kind: int) -> None:
    kinds = [flatbuffer_utils.get_builtin_code_from_operator_code(c) for c in model.operatorCodes]
    if kind not in kinds:
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = kind, min(kind, 127), 1
        model.operatorCodes.append(code)
    op.opcodeIndex = [*kinds, kind].index(kind)


def _tensor(model: Any, index: int) -> Any:
    return model.subgraphs[0].tensors[index]


def _shape(model: Any, index: int) -> Array:
    return np.array(_tensor(model, index).shape)


def _array(model: Any, op: Any, position: int) -> Array | None:
    """A constant input of an operator."""
    if position >= len(op.inputs) or op.inputs[position] < 0:
        return None
    tensor = _tensor(model, op.inputs[position])
    data = model.buffers[tensor.buffer].data
    if data is None or tensor.type not in TYPES:
        return None
    return np.frombuffer(bytes(data), TYPES[tensor.type]).reshape(tensor.shape)


def _new(model: Any, like: int, shape: Any, value: Array | None = None) -> int:
    """Another tensor, quantized like one that is there but apart from it; a constant if `value`."""
    tensor = copy.deepcopy(_tensor(model, like))
    tensor.name, tensor.shape, tensor.shapeSignature = b"mutant", [int(n) for n in shape], None
    tensor.buffer = 0
    if value is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(value.tobytes(), np.uint8)
        model.buffers.append(buffer)
        tensor.buffer = len(model.buffers) - 1
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def _int32(model: Any, values: Any) -> int:
    array = np.array(values, np.int32)
    index = _new(model, 0, array.shape, array)
    _tensor(model, index).type, _tensor(model, index).quantization = 2, None
    return index


def _insert(model: Any, op: Any, after: bool, kind: int, shape: Any, constants: list[int]) -> int:
    """Put an operator before another, or after it. Returns the tensor between the two."""
    side = op.outputs if after else op.inputs
    outer, inner = side[0], _new(model, side[0], shape)
    side[0] = inner
    new = schema.OperatorT()
    _become(model, new, kind)
    new.inputs = [inner if after else outer, *constants]
    new.outputs = [outer if after else inner]
    if kind == OP.MUL:
        new.builtinOptionsType, new.builtinOptions = OPTIONS.MulOptions, schema.MulOptionsT()
    operators = model.subgraphs[0].operators
    operators.insert(next(i for i, other in enumerate(operators) if other is op) + after, new)
    return inner


def _constant(model: Any, op: Any, position: int, change: Callable[[Array], Array | None]) -> bool:
    axes: tuple[int, ...] = TO_OIHW.get(_kind(model, op), ())
    value = _array(model, op, position) if axes else None
    if value is None:
        return False
    axes = axes if position == 1 else (0,)
    changed = change(value.transpose(axes))
    if changed is None or np.array_equal(changed, value.transpose(axes)):
        return False
    changed = changed.transpose(np.argsort(axes))
    op.inputs[position] = _new(model, op.inputs[position], changed.shape, changed)
    return True


def _scales(model: Any, index: int) -> Array | None:
    quantization = _tensor(model, index).quantization
    scale = None if quantization is None else quantization.scale
    return None if scale is None or len(scale) == 0 else np.array(scale, np.float32)


def _weight_scale(model: Any, op: Any) -> bool:
    weight = _array(model, op, 1) if _kind(model, op) in TO_OIHW else None
    scale = None if weight is None else _scales(model, op.inputs[1])
    if weight is None or scale is None:
        return False
    scale[0] *= np.float32(1.01)
    op.inputs[1] = _new(model, op.inputs[1], weight.shape, weight)
    _tensor(model, op.inputs[1]).quantization.scale = scale
    return True


def _result(model: Any, op: Any, zero_point: int, scale: float) -> bool:
    """Quantize otherwise; a RESHAPE moves the integers to the tensor that is read as before."""
    scales = _scales(model, op.outputs[0]) if _kind(model, op) in REQUANTIZING else None
    if scales is None:
        return False
    shape = _shape(model, op.outputs[0])
    inner = _insert(model, op, True, OP.RESHAPE, shape, [_int32(model, shape)])
    wrong = _tensor(model, inner).quantization
    wrong.scale = scales * np.float32(scale)
    step = zero_point if wrong.zeroPoint[0] < 127 else -zero_point
    wrong.zeroPoint = np.array(wrong.zeroPoint) + step
    return True


def _layout(model: Any, op: Any) -> bool:
    """A RESHAPE for a TRANSPOSE: the other shape, but the values stay where they lie."""
    axes = _array(model, op, 1) if _kind(model, op) == OP.TRANSPOSE else None
    shape = _shape(model, op.inputs[0])
    if axes is None or (np.diff([axis for axis in axes if shape[axis] > 1]) > 0).all():
        return False
    op.inputs[1] = _int32(model, shape[axes])
    _become(model, op, OP.RESHAPE)
    op.builtinOptions, op.builtinOptionsType = None, OPTIONS.NONE
    return True


def _window(model: Any, op: Any) -> Window | None:
    kind, options = _kind(model, op), op.builtinOptions
    if kind not in WINDOWS:
        return None
    pool = kind in POOLS
    kernel = (
        np.array([options.filterHeight, options.filterWidth])
        if pool
        else _shape(model, op.inputs[1])[1:3]
    )
    dilation = 1 if pool else np.array([options.dilationHFactor, options.dilationWFactor])
    size, out = _shape(model, op.inputs[0])[1:3], _shape(model, op.outputs[0])[1:3]
    stride, pads = np.array([options.strideH, options.strideW]), np.zeros((2, 2), int)
    window = Window(size, out, dilation * (kernel - 1) + 1, stride, pads)
    if options.padding == SAME:  # the odd one after
        total = np.maximum(window.full - size, 0)
        window = replace(window, pads=np.stack([total // 2, total - total // 2], 1))
    return window


def _grow(model: Any, op: Any, pads: Array) -> None:
    """Pad an operator's input, (before, after) of rows and columns; crop where it is negative."""
    for kind, part in ((OP.SLICE, np.minimum(pads, 0)), (OP.PAD, np.maximum(pads, 0))):
        if not part.any():
            continue
        shape = _shape(model, op.inputs[0])
        grown = shape + np.array([0, *part.sum(1), 0])
        constants = (
            [[0, 0, 0, 0], grown] if kind == OP.SLICE else [[[0, 0], *part.tolist(), [0, 0]]]
        )
        _insert(model, op, False, kind, grown, [_int32(model, values) for values in constants])


def _pads(model: Any, op: Any, number: int) -> bool:
    if _kind(model, op) == OP.PAD:
        explicit = _array(model, op, 1)
        changed = None if explicit is None else moved(explicit, number)
        if changed is not None:
            op.inputs[1] = _int32(model, changed)
        return changed is not None
    window = _window(model, op) if _kind(model, op) in TO_OIHW else None
    changed = None if window is None else moved(window.pads, number)
    if changed is None:
        return False
    op.builtinOptions.padding = VALID
    _grow(model, op, changed)
    return True


def _strides(model: Any, op: Any) -> bool:
    window = _window(model, op)
    # A pooling does not see its padding, so there is none to insert.
    if window is None or (window.stride == 1).all():
        return False
    if window.pads.any() and _kind(model, op) in POOLS:
        return False
    wrong = window.with_wrong_strides()
    grow = wrong.full - window.size
    options = op.builtinOptions
    options.padding, (options.strideH, options.strideW) = VALID, wrong.stride.tolist()
    _grow(model, op, wrong.pads + np.stack([0 * grow, grow], 1))
    return True


def _divisor(model: Any, op: Any) -> bool:
    if _kind(model, op) not in MAX_FOR:
        return False
    pool, shape = op.builtinOptions, _shape(model, op.inputs[0])
    mean = _kind(model, op) == OP.MEAN
    area = shape[1] * shape[2] if mean else pool.filterHeight * pool.filterWidth
    factor, out = np.float32(area / (area + 1)), op.outputs[0]
    scale = _scales(model, out)
    dtype = TYPES[_tensor(model, out).type]
    held = _new(model, out, (), np.asarray(factor if scale is None else 127, dtype))
    if scale is not None:
        quantization = _tensor(model, held).quantization
        quantization.scale, quantization.zeroPoint = scale * 0 + factor / 127, np.array([0])
    _insert(model, op, True, OP.MUL, _shape(model, out), [held])
    return True


def _ceil(model: Any, op: Any) -> bool:
    """SAME padding completes windows as ceil_mode does, where it is all after."""
    window = _window(model, op) if _kind(model, op) in POOLS else None
    if window is None or op.builtinOptions.padding != VALID:
        return False
    if (window.reach < 2).any() or (window.reach > window.stride + 1).any():
        return False
    grow = window.full - 1 - window.size
    _grow(model, op, np.stack([0 * grow, grow], 1))
    op.builtinOptions.padding = SAME
    return True


def _count(model: Any, op: Any) -> bool:
    """TFLite never counts its own padding; a PAD before it is counted."""
    window = _window(model, op) if _kind(model, op) == OP.AVERAGE_POOL_2D else None
    if window is None:
        return False
    if op.builtinOptions.padding == SAME:
        if window.pads.any():
            op.builtinOptions.padding = VALID
            _grow(model, op, window.pads)
        return bool(window.pads.any())
    cut = (window.reach > 1).astype(int)
    if not cut.any():
        return False
    for grow in (window.full - cut - window.size, cut):
        _grow(model, op, np.stack([0 * grow, grow], 1))
    return True


def _pooling(model: Any, op: Any, other: dict[int, int]) -> bool:
    if _kind(model, op) not in other:
        return False
    _become(model, op, other[_kind(model, op)])
    return True


def _activation(model: Any, op: Any) -> bool:
    if getattr(op.builtinOptions, "fusedActivationFunction", 0):
        op.builtinOptions.fusedActivationFunction = 0
        return True
    if _kind(model, op) not in ACTIVATIONS:
        return False
    op.builtinOptions, op.builtinOptionsType = None, OPTIONS.NONE
    if _scales(model, op.inputs[0]) is None:
        op.inputs = [op.inputs[0], _int32(model, _shape(model, op.inputs[0]))]
        _become(model, op, OP.RESHAPE)
    else:
        _become(model, op, OP.QUANTIZE)  # the same value with the output's scale
    return True


MUTATIONS: dict[str, Callable[[Any, Any], bool]] = {
    **{
        name: partial(_constant, position=position, change=change)
        for name, (position, change) in CONSTANTS.items()
    },
    "weight scale x1.01": _weight_scale,
    "NCHW/NHWC swap": _layout,
    "swapped pad sides": partial(_pads, number=0),
    "shifted padding": partial(_pads, number=1),
    "swapped stride axes": _strides,
    "pooling divisor": _divisor,
    "ceil_mode": _ceil,
    "count_include_pad": _count,
    "max for average": partial(_pooling, other=MAX_FOR),
    "average for max": partial(_pooling, other={OP.MAX_POOL_2D: OP.AVERAGE_POOL_2D}),
    "dropped activation": _activation,
    "zero point": partial(_result, zero_point=1, scale=1.0),
    "scale x1.01": partial(_result, zero_point=0, scale=1.01),
}


def opened(path: Path) -> ModelFile:
    """Layers are named by the number and kind of their operator."""
    flatbuffer = path.read_bytes()

    def layers(model: Any) -> list[tuple[str, Any]]:
        names = {number: name for name, number in vars(OP).items() if isinstance(number, int)}
        operators = enumerate(model.subgraphs[0].operators)
        return [(f"{number} {names[_kind(model, op)]}", op) for number, op in operators]

    def content(model: Any) -> bytes:
        file = io.BytesIO(flatbuffer_utils.convert_object_to_bytearray(model))
        if zipfile.is_zipfile(path):  # the contract, see export.tflite
            with zipfile.ZipFile(path) as archive, zipfile.ZipFile(file, "a") as copied:
                for member in archive.infolist():
                    copied.writestr(member, archive.read(member))
        return file.getvalue()

    return ModelFile(
        MUTATIONS, lambda: flatbuffer_utils.read_model_from_bytearray(flatbuffer), layers, content
    )
