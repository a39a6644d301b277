"""ONNX's operators in NumPy: one small function for each, and the table of them all.

A function gets a `Call`, and the node's attributes by keyword: its keywords are the attributes it
understands. What it cannot do it says with a ValueError. `reference.compute` is the way in: it
compares attributes and the inputs' number and dtypes with the standard's first, and names the node
in every error.
"""

from __future__ import annotations

import numpy as np

from . import arithmetic, shapes, types, windows
from .call import Operator

OPERATORS: dict[str, Operator] = {
    "Add": arithmetic.elementwise(np.add),
    "AveragePool": windows.average_pool,
    "BatchNormalization": arithmetic.batch_normalization,
    "Cast": types.cast,
    "CastLike": types.cast_like,
    "Clip": arithmetic.clip,
    "Concat": shapes.concat,
    "Constant": types.constant,
    "ConstantOfShape": types.constant_of_shape,
    "Conv": windows.conv,
    "DequantizeLinear": types.dequantize_linear,
    "Div": arithmetic.elementwise(arithmetic.divide),
    "Dropout": arithmetic.dropout,
    "Elu": arithmetic.elu,
    "Erf": arithmetic.elementwise(arithmetic.erf),
    "Exp": arithmetic.elementwise(np.exp),
    "Expand": shapes.expand,
    "Flatten": shapes.flatten,
    "Gather": shapes.gather,
    "Gelu": arithmetic.gelu,
    "Gemm": arithmetic.gemm,
    "GlobalAveragePool": windows.global_average_pool,
    "HardSigmoid": arithmetic.hard_sigmoid,
    "HardSwish": arithmetic.elementwise(arithmetic.hard_swish),
    "Identity": shapes.identity,
    "LeakyRelu": arithmetic.leaky_relu,
    "Less": arithmetic.elementwise(np.less),
    "Log": arithmetic.elementwise(np.log),
    "LogSoftmax": arithmetic.log_softmax,
    "MatMul": arithmetic.elementwise(np.matmul),
    "Max": arithmetic.every(np.maximum),
    "MaxPool": windows.max_pool,
    "Min": arithmetic.every(np.minimum),
    "Mul": arithmetic.elementwise(np.multiply),
    "Pad": shapes.pad,
    "Pow": arithmetic.elementwise(arithmetic.power),
    "QLinearConv": windows.q_linear_conv,
    "QuantizeLinear": types.quantize_linear,
    "Reciprocal": arithmetic.elementwise(lambda x: 1 / x),
    "ReduceMax": arithmetic.reduction(arithmetic.largest),
    "ReduceMean": arithmetic.reduction(arithmetic.mean),
    "ReduceSum": arithmetic.reduction(np.sum),
    "Relu": arithmetic.elementwise(lambda x: np.maximum(x, 0)),
    "Reshape": shapes.reshape,
    "Shape": shapes.shape,
    "Sigmoid": arithmetic.elementwise(arithmetic.sigmoid),
    "Slice": shapes.sliced,
    "Softmax": arithmetic.softmax,
    "Softplus": arithmetic.elementwise(lambda x: np.logaddexp(x, 0)),
    "Sqrt": arithmetic.elementwise(np.sqrt),
    "Squeeze": shapes.squeeze,
    "Sub": arithmetic.elementwise(np.subtract),
    "Sum": arithmetic.every(np.add),
    "Tanh": arithmetic.elementwise(np.tanh),
    "Transpose": shapes.transpose,
    "Unsqueeze": shapes.unsqueeze,
    "Where": arithmetic.elementwise(np.where),
}
