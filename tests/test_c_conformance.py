"""ONNX's own conformance cases, through the layers in NumPy and through compiled C."""

import concurrent.futures
import warnings

import numpy as np
import onnx
import pytest
from c_networks import PORTABLE, QUICK, Compiled, bound

from pipeline.errors import BadInput
from pipeline.export.c.evaluate import evaluate, seen
from pipeline.export.c.lowering import Lowering
from pipeline.export.c.operators import OPERATORS
from pipeline.export.c.passes import give_margins, merge_pooling
from pipeline.export.c.reading import read
from pipeline.verify.compiler import compiler

with warnings.catch_warnings(action="ignore"):  # onnx divides by zero where it makes its cases
    from onnx.backend.test.loader import load_model_tests

    ALL = {case.name: case for case in load_model_tests(kind="node")}


def operator(name):
    nodes = ALL[name].model.graph.node
    return nodes[0].op_type if len(nodes) == 1 else None


CASES = sorted(name for name in ALL if operator(name) in OPERATORS)
# Why a case is not for images of fixed shape, in float32 or bytes; one of these is in the message.
REASONS = (
    "only images are known",
    "only its first output is known",
    "only float32 is known",
    "float32, int8 and uint8 are known",
    "only with 0",
    "only one float32 scale for the whole tensor is known",
    "block_size is not known",
    "only int8 and uint8",
    "transA is not known",
    "a bias of shape",
    "the product of",
    "training_mode is not known",
    "is no tensor",
    "is empty",
)


def array(value):
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def fixed(name):
    """The case with its constants bound, its variable inputs, and what must come out."""
    case = ALL[name]
    inputs, outputs = case.data_sets[0]
    names = [value.name for value in case.model.graph.input]
    given = {name: array(value) for name, value in zip(names, inputs, strict=False)}
    model = bound(case.model, given)
    return model, [given[value.name] for value in model.graph.input], array(outputs[0])


def lowered(name):
    """(program, inputs, expected) of a case. Raises BadInput where C is not generated for it."""
    model, inputs, expected = fixed(name)
    source = read(model.SerializeToString(), name)
    program = merge_pooling(Lowering(source).program(OPERATORS))
    return give_margins(program)[0], inputs, expected


def refused(name):
    try:
        lowered(name)
    except BadInput as error:
        return str(error)
    return None


REFUSED = {name: reason for name in CASES if (reason := refused(name)) is not None}
PASSING = [name for name in CASES if name not in REFUSED]


def signed(value, array):
    """As the layers in NumPy take it: floats, or integers in signed terms."""
    if value.is_float:
        return array.astype(np.float64)
    if array.dtype == np.float32:  # quantized where it is put in
        steps = np.rint(array.astype(np.float64) / float(value.scale)) + value.zero
        return np.clip(steps, -128, 127).astype(np.int64)
    return array.astype(np.int64) - (128 if value.dtype == np.uint8 else 0)


def as_expected(value, array, expected):
    """Back: a float where the graph's output is one."""
    if value.is_float:
        return array
    if expected.dtype == np.float32:
        return (array - value.zero) * float(value.scale)
    return array + (128 if value.dtype == np.uint8 else 0)


@pytest.mark.parametrize("name", PASSING)
def test_the_layers_in_numpy_compute_it(name):
    program, inputs, expected = lowered(name)
    given = zip(program.inputs, inputs, strict=True)
    memory = evaluate(program, {value.name: signed(value, x) for value, x in given})
    (output,) = program.outputs
    found = as_expected(output, seen(output, memory[output.root]), expected)
    # float64 against expectations that are float32, of which some have four digits
    np.testing.assert_allclose(found, expected.astype(np.float64), rtol=1e-3, atol=1e-6)
    assert found.shape == expected.shape


def test_what_is_refused_is_refused_by_name():
    assert {n: r for n, r in REFUSED.items() if not any(reason in r for reason in REASONS)} == {}
    assert len(PASSING) >= 140
    passing = {operator(name) for name in PASSING}
    assert set(OPERATORS) - passing == {"ReduceMean"}  # whose cases are of three axes


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """Every case that is not refused, compiled: two at a time."""
    folder = tmp_path_factory.mktemp("conformance")

    def compiled(name):
        every = operator(name) in {"Conv", "QLinearConv", "Gemm", "MatMul"}
        options = QUICK if every else PORTABLE  # the others have no vectors of their own
        return Compiled(fixed(name)[0].SerializeToString(), folder / name, options)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(PASSING, pool.map(compiled, PASSING), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
def test_generated_c_computes_every_case(libraries):
    wrong = []
    for name in PASSING:
        program, inputs, expected = lowered(name)
        given = zip(program.inputs, inputs, strict=True)
        memory = evaluate(program, {value.name: signed(value, x) for value, x in given})
        (output,) = program.outputs
        exact = as_expected(output, seen(output, memory[output.root]), expected)
        for instructions in libraries[name].sets:
            (found,) = libraries[name].run(*inputs, instructions=instructions)
            integers = expected.dtype != np.float32
            # Expectations of the standard were made in float32, some of them with four digits.
            close = np.allclose(found, expected.astype(np.float64), rtol=1e-3, atol=1e-5 + integers)
            close &= not integers or np.array_equal(found, exact)
            if found.shape != expected.shape or not close:
                wrong.append((name, instructions))
    assert wrong == []
