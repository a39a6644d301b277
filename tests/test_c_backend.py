"""Generated libraries in the Python runner: all goes in and out, layer by layer, or is refused."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

import deploy
from deploy.runner.backends import BACKENDS, c, open_session, open_with
from deploy.runner.backends.c import CSession
from deploy.runner.contract import Quantization
from deploy.runner.errors import BadInput, Missing, UsageError
from pipeline.verify.compiler import compiler

SOURCES = Path(deploy.__file__).parent / "c"
SOURCE = Path(__file__).parent / "small_model.c"

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


def compiled(folder: Path, *flags: str) -> Path:
    """The hand-made model as a library."""
    library = folder / "libmodel.so"
    command = [*(compiler() or ()), "-std=c99", "-O1", "-shared", "-fPIC", f"-I{SOURCES}", *flags]
    sources = [str(SOURCE), str(SOURCES / "runner.c")]
    subprocess.run([*command, "-o", str(library), *sources, "-lm"], check=True)
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("library"), "-DCONTRACT=NULL")


@pytest.fixture
def session(library: Path) -> CSession:
    found = open_session("c", library, kernels="portable")
    assert isinstance(found, CSession)
    return found


def images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    a, b = (random.integers(-50, 50, (count, 2, 2, 3)).astype(np.int8) for _ in range(2))
    return a, b


def expected(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    total = a.astype(int) + b
    doubled = 2.0 * total.reshape(-1, 12)
    return (total + 128).astype(np.uint8), doubled, doubled - b.reshape(-1, 12)


def test_inputs_and_outputs_are_described_in_plain_types(session: CSession) -> None:
    a, b = session.inputs
    assert (a.name, a.shape, a.dtype) == ("a", (-1, 2, 2, 3), np.int8)
    assert (a.quantization, b.quantization) == (Quantization(0.5, -3), Quantization(0.25, 0))
    scores, total = session.outputs
    assert (scores.shape, scores.dtype, scores.quantization) == ((-1, 12), np.float32, None)
    assert (total.dtype, total.quantization) == (np.uint8, Quantization(0.125, 128))
    assert session.runtime == "c 9.8 (portable)"


def test_a_batch_goes_through_image_by_image(session: CSession) -> None:
    a, b = images(5)
    total, _, difference = expected(a, b)
    scores, found = session.run(a, b)
    assert (scores.dtype, found.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(scores, difference)
    np.testing.assert_array_equal(found, total)
    scores, found = session.run(a[:0], b[:0])
    assert (scores.shape, found.shape) == ((0, 12), (0, 2, 2, 3))


def test_arrays_need_not_lie_in_order(session: CSession) -> None:
    a, b = images(4)
    strange = np.asfortranarray(a)[::2], np.frombuffer(b"x" + b.tobytes(), np.int8)[1:]
    found = session.run(strange[0], strange[1].reshape(b.shape)[::2])
    np.testing.assert_array_equal(found[0], expected(a[::2], b[::2])[2])


def test_every_layer_is_observed_before_its_memory_is_used_again(session: CSession) -> None:
    a, b = images(3)
    (scores, total), values = session.observe(a, b)
    assert list(values) == ["sum", "doubled", "scores"]
    for found, right in zip(values.values(), expected(a, b), strict=True):
        np.testing.assert_array_equal(found, right)
    np.testing.assert_array_equal(scores, values["scores"])
    np.testing.assert_array_equal(total, values["sum"])


def test_one_layer_is_computed_from_what_it_is_given(session: CSession) -> None:
    a, b = images(3)
    made = np.random.default_rng(1).normal(size=(3, 12)).astype(np.float32)
    found = session.compute("scores", {"doubled": made, "b": b})
    np.testing.assert_array_equal(found, made - b.reshape(-1, 12))
    # `doubled` is where `a` was, so `b` alone may be put early.
    total, _, difference = expected(a, b)
    np.testing.assert_array_equal(session.compute("scores", {"sum": total, "b": b}), difference)
    np.testing.assert_array_equal(session.compute("scores", {"b": b, "a": a}), difference)


@pytest.mark.parametrize(
    ("output", "given", "words"),
    [
        ("scores", {"doubled": (12,)}, "no layer makes it of doubled"),
        ("a", {"doubled": (12,)}, "no layer makes it"),
        ("scores", {"another": (12,)}, "no value 'another'; there are a, b, sum"),
        ("scores", {"doubled": (3, 4)}, "takes float32"),
    ],
)
def test_what_does_not_follow_is_refused(
    output: str, given: dict[str, tuple[int, ...]], words: str, session: CSession
) -> None:
    arrays = {name: np.zeros((1, *shape), np.float32) for name, shape in given.items()}
    with pytest.raises(BadInput, match=words):
        session.compute(output, arrays)


def test_values_of_another_kind_are_refused(session: CSession) -> None:
    a, b = images(1)
    for wrong in ((a,), (a, b.astype(np.float32)), (a, b[:, :1])):
        with pytest.raises(BadInput):
            session.run(*wrong)


def test_threads_may_share_a_session(session: CSession) -> None:
    found: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        found[seed] = session.run(*images(200, seed))[0]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        np.testing.assert_array_equal(found[seed], expected(*images(200, seed))[2])


def test_instructions_are_those_that_are_asked_for(library: Path) -> None:
    a, b = images(1)
    best = open_session("c", library)
    assert isinstance(best, CSession) and best.sets == ("portable", "avx2")
    assert best.runtime.endswith("(avx2)")  # the last one that this processor has
    assert not np.array_equal(best.run(a, b)[0], expected(a, b)[2])
    with pytest.raises(Missing, match=r"no neon instructions \(this processor lacks them\)"):
        open_session("c", library, kernels="neon")
    with pytest.raises(Missing, match=r"no dotprod .*the library has none.*portable, avx2"):
        open_session("c", library, kernels="dotprod")
    with pytest.raises(UsageError, match="unknown kernels"):
        open_session("c", library, kernels="sse")


def test_what_is_no_generated_library_is_one_line(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("no library")
    empty = compiled(tmp_path, "-DCONTRACT=NULL", "-Dlibrary_contract=another_name")
    for path, words in (
        (text, "not a library that runs here"),
        (empty, "it has no library_contract"),
        (tmp_path / "none.so", "not a library that runs here"),
    ):
        with pytest.raises(BadInput, match=words) as caught:
            open_session("c", path)
        assert "\n" not in str(caught.value) and path.name in str(caught.value)


def test_a_library_without_a_contract_runs_but_makes_no_model(library: Path) -> None:
    with pytest.raises(BadInput, match="no contract in this library"):
        open_with("c", library)


def test_it_is_the_first_that_is_tried() -> None:
    assert next(iter(BACKENDS)) == "c" and BACKENDS["c"] is c
