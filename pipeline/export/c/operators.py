"""The ONNX operators that C is generated for: one function each, in one table."""

from __future__ import annotations

from . import elementwise, moves, weighted, windows
from .lowering import Rule

OPERATORS: dict[str, Rule] = {
    "Add": elementwise.binary,
    "AveragePool": windows.average_pool,
    "BatchNormalization": elementwise.batch_normalization,
    "Clip": elementwise.unary,
    "Concat": elementwise.concat,
    "Conv": weighted.conv,
    "DequantizeLinear": elementwise.dequantize,
    "Dropout": moves.move,
    "Flatten": moves.move,
    "Gemm": weighted.linear,
    "GlobalAveragePool": windows.average_pool,
    "HardSwish": elementwise.unary,
    "Identity": moves.identity,
    "LeakyRelu": elementwise.unary,
    "MatMul": weighted.linear,
    "MaxPool": windows.max_pool,
    "Mul": elementwise.binary,
    "Pad": moves.pad,
    "QLinearConv": weighted.q_linear_conv,
    "QuantizeLinear": elementwise.quantize,
    "ReduceMean": windows.average_pool,
    "Relu": elementwise.unary,
    "Reshape": moves.move,
    "Sigmoid": elementwise.unary,
    "Slice": moves.move,
    "Softmax": elementwise.softmax,
    "Squeeze": moves.move,
    "Sub": elementwise.binary,
    "Tanh": elementwise.unary,
    "Transpose": moves.move,
    "Unsqueeze": moves.move,
}
