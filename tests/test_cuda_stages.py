"""The stages of the CUDA kernels, and the norm, compiled for the host: against an oracle in float64."""

import itertools
import math

import numpy as np
import pytest
from cuda_cases import (
    MORE,
    THREE_GROUPS,
    Guards,
    assert_same,
    assert_updated,
    before,
    meant,
    model,
    normal,
    options_of,
    row_of,
    stored,
)
from cuda_jobs import Job, Numbers, Total, computed
from fastopt.kernels import cuda
from fastopt.kernels.dtypes import DTYPES
from fastopt.kernels.tables import CHUNK, POWERS
from gradient_layouts import STRIDED
from host_cuda import SOME
from pairs import swept, usually
from tolerances import ONE_STEP, assert_close

from fastopt.rules import RULES
from fastopt.step.gpu_launch import BLOCKS

TWO = ("momentum", "adamw")  # rules on which all stages meet
LIMIT, GAIN, COEFFICIENT = 0.75, 0.125, 0.3
STAGES = [stages for stages in SOME if stages]
SIZES = (0, 1, 3, 35, 128, 511, 512, 513, 1025, 4 * 128 * 8 + 1)

dtypes = pytest.mark.parametrize("dtype", DTYPES)


def usual(name, dtype):
    """Whether a case is no exhaustive one: each dtype of a rule is compiled for itself."""
    return (name, dtype) in ((TWO[0], "bfloat16"), (TWO[1], "float32"))


def cases(names, *more):
    """Cases of rules and dtypes, with more columns between them."""
    rows = itertools.product(names, *more, DTYPES)
    return [pytest.param(*row, marks=[] if usual(row[0], row[-1]) else pytest.mark.exhaustive) for row in rows]


staged = pytest.mark.parametrize(("name", "stages", "dtype"), cases(RULES, STAGES))
on_two = pytest.mark.parametrize(("name", "stages", "dtype"), cases(TWO, STAGES))
two_and_dtypes = pytest.mark.parametrize(("name", "dtype"), cases(TWO))


def numbers(coefficient=COEFFICIENT, scale=None, limit=LIMIT, gain=GAIN):
    """The numbers of all stages."""
    scale = None if scale is None else np.array([scale], np.float32)
    return Numbers(None if coefficient is None else np.array([coefficient]), scale, limit, gain)


def with_average(guards, tensor, rng):
    """Give a tensor an average."""
    real = computed("float64" if tensor.param.dtype == np.float64 else "float32")
    tensor.average = guards.place(rng.standard_normal(tensor.param.shape).astype(real))
    return tensor


def clipped(g, stages, limit=LIMIT):
    """The gradients that the rule gets, but for their factor."""
    return np.clip(g, -limit, limit) if "value" in stages else g


def assert_staged(name, dtype, tensor, was, stages, options, average, coefficient=COEFFICIENT):
    """Assert what the rule has made of a tensor, with its gradient multiplied and clipped, and the average after it."""
    g = coefficient * clipped(was[1], stages)
    assert_updated(name, dtype, tensor, [was[0], g, *was[2:]], options, 2)
    if "average" in stages:
        assert_averaged(tensor, dtype, average)
    else:
        assert tensor.average.tobytes() == average.tobytes()


def assert_averaged(tensor, dtype, average):
    """Assert that an average is as it was, and a share of the parameter as it is."""
    want = (1 - GAIN) * average.astype(np.float64) + GAIN * meant(tensor.param, dtype)
    assert_close(tensor.average, want, ONE_STEP)


def step(job, guards, stages, seed=0):
    """Launch, and assert that gradients are zero afterwards if that is a stage, and else as they were."""
    gradients = [tensor.grad for tensor in job.tensors if tensor.grad is not None]
    if "zero" not in stages:
        return guards.launch(job, seed)
    wide = job.launch(seed)
    for guarded in guards.all:
        guarded.assert_kept()
    for gradient in gradients:
        assert not gradient.view(f"u{gradient.itemsize}").any()  # nor is a sign left
    return wide


@staged
def test_stages(name, stages, dtype):
    """Each of them, and any together, at sizes around packs and chunks."""
    rng = np.random.default_rng(1)
    options = options_of(name, MORE)
    for size in SIZES:
        guards = Guards()
        tensor = guards.tensor(name, normal(rng, size, dtype), normal(rng, size, dtype), state=0.5)
        with_average(guards, tensor, rng)
        was, average = before(tensor, dtype), tensor.average.copy()
        job = Job(name, dtype, [tensor], [row_of(name, options, 2)], stages=stages, numbers=numbers())
        step(job, guards, stages)
        assert_staged(name, dtype, tensor, was, stages, options, average)


@on_two
def test_stages_of_a_model(name, stages, dtype):
    """Several groups, gradients in other orders, and missing ones, where parameters are averaged and stay."""
    rng, results = np.random.default_rng(2), []
    groups = [options_of(name, options) for options in THREE_GROUPS]
    averages = [rng.standard_normal(9000) for _ in range(10)]
    for seed in (0, 1):
        guards = Guards()
        tensors = model(name, dtype, np.random.default_rng(3), guards)
        for tensor, mean in zip(tensors, averages, strict=True):
            mean = mean[: tensor.param.size].reshape(tensor.param.shape)
            tensor.average = guards.place(mean.astype(computed(dtype)))
        kept = [tensor.average.copy() for tensor in tensors]
        was = [None if tensor.grad is None else before(tensor, dtype) for tensor in tensors]
        params = [tensor.param.copy() for tensor in tensors]
        rows = [row_of(name, options, 2) for options in groups]
        step(Job(name, dtype, tensors, rows, stages=stages, numbers=numbers()), guards, stages, seed)
        for tensor, values, param, average in zip(tensors, was, params, kept, strict=True):
            if values is not None:
                assert_staged(name, dtype, tensor, values, stages, groups[tensor.hyper], average)
                continue
            assert tensor.param.tobytes() == param.tobytes()
            if "average" in stages:
                assert_averaged(tensor, dtype, average)
            else:
                assert tensor.average.tobytes() == average.tobytes()
        results.append(tensors)
    assert_same(*results)
    assert [tensor.average.tobytes() for tensor in results[0]] == [tensor.average.tobytes() for tensor in results[1]]


@two_and_dtypes
def test_a_tensor_without_an_average(name, dtype):
    """In a kernel that averages: without a gradient it is left alone."""
    guards, rng = Guards(), np.random.default_rng(4)
    tensor = guards.tensor(name, normal(rng, 100, dtype), None)
    param = tensor.param.copy()
    job = Job(name, dtype, [tensor], [row_of(name, MORE, 2)], stages=("average",), numbers=numbers())
    guards.launch(job)
    assert tensor.param.tobytes() == param.tobytes()


@on_two
def test_sixteen_bytes_at_once(name, stages, dtype):
    """Averages and zeroes too; and nowhere where one array does not allow it."""
    rng, size = np.random.default_rng(5), 1000
    real = np.dtype(computed(dtype)).itemsize // DTYPES[dtype].itemsize  # pieces of a state's pack
    moved = 3 + 2 * len(RULES[name].states) * real + 2 * real * ("average" in stages) + ("zero" in stages)
    for offset in (0, 1):
        guards = Guards()
        tensor = guards.tensor(name, normal(rng, size, dtype), normal(rng, size, dtype), state=0.5)
        tensor.average = guards.place(np.zeros(size, computed(dtype)), offset)
        job = Job(name, dtype, [tensor], [row_of(name, MORE, 2)], stages=stages, numbers=numbers())
        wide = step(job, guards, stages)
        is_packed = offset == 0 or "average" not in stages
        assert wide == (size // cuda.pack(dtype) * moved if is_packed else 0)


@pytest.mark.parametrize("strided", STRIDED.values(), ids=STRIDED)
@two_and_dtypes
def test_strided_gradients(name, dtype, strided):
    """The same bits as with a gradient in the parameter's order; it is zeroed in its own."""
    rng = np.random.default_rng(6)
    g = strided(normal(rng, (67, 45), dtype))
    p, mean = normal(rng, g.shape, dtype), rng.standard_normal(g.shape).astype(computed(dtype))
    once_each = 0 not in g.strides  # else another element's gradient would be zeroed with it
    guards, tensors, stages = Guards(), [], ("value", "average", "zero") if once_each else ("value", "average")
    for gradient in (g, np.ascontiguousarray(g)):
        tensor = guards.tensor(name, p, gradient, state=0.5)
        tensor.average = guards.place(mean)
        job = Job(name, dtype, [tensor], [row_of(name, options_of(name, MORE), 2)], stages=stages, numbers=numbers())
        step(job, guards, stages)
        tensors.append(tensor)
    assert_same(tensors[:1], tensors[1:])
    assert tensors[0].average.tobytes() == tensors[1].average.tobytes()


@two_and_dtypes
def test_values_after_a_loss_scale(name, dtype):
    """Gradients are divided by AMP's scale, then clipped, then multiplied: as if they had come so."""
    rng, options = np.random.default_rng(7), options_of(name, MORE)
    for scale in (1.0, 1024.0, 1000.0, 2.0**127):
        unscaled = 0.75 * normal_values(rng, 500)
        if dtype == "float16" and scale > 1024.0:
            continue  # no gradient of the kind is that large
        scaled = np.clip(unscaled * scale, -(2.0**127), 2.0**127)
        guards = Guards()
        tensor = guards.tensor(name, normal(rng, 500, dtype), stored(scaled, dtype), state=0.5)
        was = before(tensor, dtype)
        was[1] /= scale
        tensor.average = np.zeros(500)
        row = row_of(name, options, 2)
        row = (float(np.float32(row[0] / scale)) if dtype != "float64" else row[0] / scale, *row[1:])
        given = numbers(scale=scale, limit=0.5)
        step(Job(name, dtype, [tensor], [row], stages=("value",), numbers=given), guards, ())
        g = COEFFICIENT * np.clip(was[1], -0.5, 0.5)
        assert_updated(name, dtype, tensor, [was[0], g, *was[2:]], options, 2)


def normal_values(rng, size):
    """Random numbers in float64."""
    return rng.standard_normal(size)


@pytest.mark.parametrize("dtype", usually(["float32"], DTYPES))
def test_values_that_are_not_finite(dtype):
    """An infinity becomes the limit, NaN stays NaN; zero, and what is the limit, stay as well."""
    g = np.array([np.inf, -np.inf, np.nan, 0.0, 0.5, -0.5, 0.25, 1.0, -3.0] * 5)
    guards = Guards()
    tensor = guards.tensor("momentum", stored(np.zeros(g.size), dtype), stored(g, dtype))
    given, row = numbers(coefficient=None, limit=0.5), (1.0, 0.0, 1.0, 0.0)
    guards.launch(Job("momentum", dtype, [tensor], [row], stages=("value",), numbers=given))
    np.testing.assert_array_equal(meant(tensor.param, dtype), -np.clip(g, -0.5, 0.5))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", RULES)
def test_coefficients(name, dtype):
    """As if gradients were multiplied, also where factor, coefficient or both are below float's normal numbers."""
    rng = np.random.default_rng(8)
    options = options_of(name, {**MORE, "maximize": False})
    factors, coefficients = (1.0, -0.25, 2.0**-126, 2.0**-127), (None, 1.0, 0.3, 2.0**-20, 1.25 * 2.0**-130, 0.0)
    for factor, coefficient in itertools.product(factors, coefficients):
        by = factor * (1.0 if coefficient is None else coefficient)
        guards = Guards()
        tensor = guards.tensor(name, normal(rng, 200, dtype), normal(rng, 200, dtype), state=0.5)
        raised = min(124, -math.frexp(by)[1])  # to sizes like 1
        tensor.grad[...] = stored(meant(tensor.grad, dtype) * 2.0**raised, dtype)
        was = before(tensor, dtype)
        was[1] *= by
        row = (factor, *row_of(name, options, 2)[1:])
        guards.launch(Job(name, dtype, [tensor], [row], numbers=numbers(coefficient)))
        damped = row_of(name, options, 2)[0]
        was[1] /= damped  # the oracle multiplies by that
        assert_updated(name, dtype, tensor, was, options, 2)


@pytest.mark.parametrize("coefficient", [np.nan, np.inf])
@dtypes
def test_a_coefficient_that_is_not_finite(dtype, coefficient):
    """It reaches every element."""
    guards = Guards()
    tensor = guards.tensor("sgd", stored(np.ones(100), dtype), stored(np.ones(100), dtype))
    guards.launch(Job("sgd", dtype, [tensor], [(1.0, 0.0, 1.0)], numbers=numbers(coefficient)))
    np.testing.assert_array_equal(meant(tensor.param, dtype), 1.0 - coefficient)


@on_two
def test_a_step_that_is_skipped_changes_nothing(name, stages, dtype):
    """No average, and no gradient."""
    guards, rng = Guards(), np.random.default_rng(9)
    tensors = model(name, dtype, rng, guards)
    for tensor in tensors:
        with_average(guards, tensor, rng)
    arrays = [array for tensor in tensors for array in (tensor.param, *tensor.states, tensor.average)]
    was = [array.tobytes() for array in arrays]
    rows = [row_of(name, options_of(name, options), 2) for options in THREE_GROUPS]
    skip = np.array([1], np.int32)
    guards.launch(Job(name, dtype, tensors, rows, skip=skip, stages=stages, numbers=numbers()))
    assert [array.tobytes() for array in arrays] == was


# The norm


def squared(gradients, dtype):
    """The exact sum of squares of some gradients, rounded once."""
    return math.fsum(x * x for g in gradients for x in meant(np.ascontiguousarray(g), dtype).ravel().tolist())


def norm_job(dtype, gradients, threads=128, **kept):
    """A launch over gradients alone."""
    guards = Guards()
    tensors = [guards.tensor("sgd", np.zeros_like(g), g) for g in gradients]
    return Job("sgd", dtype, tensors, threads=threads, **kept)


# A sum of n squares in float64, added in pairs within a block and one after the other by a thread, is off by fewer than
# 100 roundings here.
SUM = 100 * np.finfo(np.float64).eps


@swept(together=1, dtype=DTYPES, threads=sorted(threads for _, threads in BLOCKS))
def test_sums_of_squares(dtype, threads):
    """Of each chunk, wherever gradients lie, and the norm of all of them; 16 bytes at once where they are aligned."""
    rng = np.random.default_rng(10)
    elements = threads * cuda.pack(dtype)
    for size in (1, 7, elements - 1, elements, elements + 1, 3 * elements + 5):
        for offset in (0, 1, 3):
            guards, g = Guards(), normal(rng, size, dtype)
            tensor = guards.tensor("sgd", np.zeros_like(g), g, (0, offset, 0))
            job = Job("sgd", dtype, [tensor], threads=threads)
            sums = job.square()
            for chunk, got in zip(job.chunks, sums[0], strict=True):
                part = g[chunk["offset"] : chunk["offset"] + chunk["length"]]
                assert got == pytest.approx(squared([part], dtype), rel=SUM, abs=0.0)
            found = Total().launch(sums)
            assert found["norm"] == pytest.approx(math.sqrt(squared([g], dtype)), rel=SUM, abs=0.0)
            assert (found["coefficient"], found["skip"], found["skipped"]) == (1.0, 0, 0)


@dtypes
def test_chunks_cut_anywhere(dtype):
    """A chunk may begin and end between two packs."""
    edges = np.array([0, 1, 4, 12, 13, 48, 64, 81, 160, 167, 200])
    g = normal(np.random.default_rng(11), 200, dtype)
    job = norm_job(dtype, [g])
    job.chunks = np.zeros(len(edges) - 1, CHUNK)
    job.chunks["rows"] = 1
    job.chunks["offset"] = job.chunks["grad_offset"] = edges[:-1]
    job.chunks["length"] = np.diff(edges)
    want = [squared([g[a:b]], dtype) for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(job.square()[0], want, rtol=SUM)


@pytest.mark.parametrize("travels", [(), ("gradients",)])
@dtypes
def test_the_norm_of_a_model(dtype, travels):
    """Missing gradients count as zero, those in other orders as they are; threads in any order give the same bits."""
    found = []
    for seed in range(3):
        tensors = model("sgd", dtype, np.random.default_rng(12), Guards())
        job = Job("sgd", dtype, tensors, travels=travels)
        job.skip = np.ones(1, np.int32)  # of the last step
        sums = job.square(seed)
        total = Total().launch(sums, seed=seed)
        found.append((sums.tobytes(), total.tobytes()))
    want = squared([tensor.grad for tensor in tensors if tensor.grad is not None], dtype)
    assert total["norm"] == pytest.approx(math.sqrt(want), rel=SUM, abs=0.0)
    assert len(set(found)) == 1


@pytest.mark.parametrize("strided", STRIDED.values(), ids=STRIDED)
@dtypes
def test_the_norm_of_strided_gradients(dtype, strided):
    """Every element once."""
    g = strided(normal(np.random.default_rng(13), (67, 45), dtype))
    norm = Total().launch(norm_job(dtype, [g]).square())["norm"]
    assert norm == pytest.approx(math.sqrt(squared([g], dtype)), rel=SUM, abs=0.0)


@pytest.mark.parametrize("size", [2.0**600, 2.0**1023, 1.7e308, 2.0**-500, 2.0**-540, 2.0**-1000, 1e-307, 0.0])
@pytest.mark.parametrize("beside", [0.0, 1e-37, 1.0, 1e38])
def test_squares_beyond_the_range_of_doubles(size, beside):
    """Finite gradients count as finite; small ones are not lost, also beside gradients of other dtypes."""
    doubles = size * np.random.default_rng(14).uniform(0.5, 1.0, 3000)
    floats = np.full(1500, beside, np.float32)
    sums = [norm_job(dtype, [g]).square() for dtype, g in (("float64", doubles), ("float32", floats))]
    found = Total(max_norm=1.0, skips=True).launch(np.hstack(sums))
    exponent = 900 if size > 1e100 else -900 if size < 1e-100 and beside == 0.0 else 0
    scaled = [math.ldexp(x, -exponent) for x in (*doubles.tolist(), *floats.tolist())]
    root = math.sqrt(math.fsum(x * x for x in scaled))
    want = math.inf if math.frexp(root)[1] + exponent > 1024 else math.ldexp(root, exponent)
    assert found["norm"] == pytest.approx(want, rel=SUM, abs=0.0)
    assert (found["skip"], found["skipped"]) == (0, 0)
    assert found["coefficient"] == pytest.approx(min(1.0, 1.0 / (want + 1e-6)), rel=SUM, abs=0.0)


@swept(together=1, usual=lambda dtype, bad: dtype == "float32", dtype=DTYPES, bad=[np.inf, -np.inf, np.nan])
def test_gradients_that_are_not_finite(dtype, bad):
    """In any chunk; skipped steps are counted if they are to be skipped, but not those that AMP has found."""
    norm = math.nan if math.isnan(bad) else math.inf
    for at in (0, 511, 512, 1999):
        g = np.ones(2000)
        g[at] = bad
        sums = norm_job(dtype, [stored(g, dtype)]).square()
        for skips, amp, skip, skipped in ((0, None, 0, 0), (1, None, 1, 1), (1, 0, 1, 1), (1, 7, 1, 0), (0, -1, 1, 0)):
            total = Total(max_norm=2.0, skips=skips, skip=None if amp is None else np.array([amp], np.int32))
            found = total.launch(sums)
            np.testing.assert_equal(float(found["norm"]), norm)
            np.testing.assert_equal(float(found["coefficient"]), 0.0 if norm == math.inf else math.nan)
            assert (found["skip"], found["skipped"]) == (skip, skipped)
            assert total.launch(sums)["skipped"] == 2 * skipped
            assert Total(found=total.found).launch(np.ones((POWERS, 1)))["skip"] == 0  # the next step is not


@dtypes
def test_clipping_is_torchs(dtype):
    """The coefficient as clip_grad_norm_ computes it, of gradients after AMP's unscaling."""
    torch = pytest.importorskip("torch")
    g = normal(np.random.default_rng(15), 3000, dtype)
    sums = norm_job(dtype, [g]).square()
    for scale, max_norm in itertools.product((None, 1.0, 1024.0, 2.0**127), (0.0, 1e-3, 1.0, 50.0, 1e6, math.inf)):
        unscaled = meant(g, dtype) / (scale or 1.0)
        parameter = torch.nn.Parameter(torch.zeros(3000, dtype=torch.float64))
        parameter.grad = torch.from_numpy(unscaled.copy())
        norm = torch.nn.utils.clip_grad_norm_([parameter], max_norm)
        found = Total(max_norm, scale=None if scale is None else np.array([scale], np.float32)).launch(sums)
        assert found["norm"] == pytest.approx(float(norm), rel=SUM, abs=0.0)
        np.testing.assert_allclose(found["coefficient"] * unscaled, parameter.grad.numpy(), rtol=SUM)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 511, 512, 513, 5000])
@pytest.mark.parametrize("threads", [32, 128, 512])
def test_totals(count, threads):
    """The sum for each power, for a step on several GPUs: the total of totals is the total."""
    sums = np.random.default_rng(16).uniform(0.0, 1.0, (POWERS, count))
    totals = Total().add(sums, threads)
    np.testing.assert_allclose(totals, [math.fsum(row) for row in sums], rtol=SUM)
    parts = [Total().add(sums[:, : count // 2], threads), Total().add(sums[:, count // 2 :], threads)]
    together = Total(max_norm=1.0).launch(np.column_stack(parts))
    whole = Total(max_norm=1.0).launch(sums)
    for name in ("norm", "coefficient"):
        assert together[name] == pytest.approx(whole[name], rel=SUM, abs=0.0)


def test_names():
    """A kernel has its stages in its name, in the order in which they come; and the norm has one for each size."""
    assert cuda.Kind("adam", "float16", 4096, ("value", "zero")).name == (
        "adam_float16_float16_float32_value_zero_4096"
    )
    assert cuda.norm_name("bfloat16", 512) == "norm_bfloat16_512"
    names = {cuda.Kind("sgd", "float32", size, stages).name for size in cuda.SIZES for stages in SOME}
    assert len(names) == len(cuda.SIZES) * len(SOME)
