"""Sparse gradients of arrays: rows of a table, as `SparseRows` gives them."""

import contextlib
import re
import weakref

import numpy as np
import pytest
from fastopt.bench import oracle
from fastopt.kernels import pool
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import usually
from tolerances import TRAJECTORY

import fastopt
from fastopt import SparseRows

F32 = np.float32
STEPS = 4
ROWS, WIDTH = 300, 64  # whole blocks of states in 8 bits; 19,200 elements, so that no state is a small one
EXACT = {"SGD": {"lr": 0.1, "maximize": True}, "Adagrad": {"lr": 0.1, "lr_decay": 0.1}}
RULE = {"SGD": "sgd", "Adagrad": "adagrad"}
LAZY = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
    "RMSprop": {"lr": 0.01, "momentum": 0.9, "centered": True},
    "AdamW": {"lr": 0.01, "amsgrad": True},
    "Lion": {"lr": 0.01},
}


def table(dtype=F32, shape=(ROWS, WIDTH), seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def drawn(seed, shape=(5, 40), dtype=F32, index=np.int64, row=(WIDTH,), rows=ROWS):
    """Rows at random, in a batch of sequences; of so many some come more than once."""
    rng = np.random.default_rng(seed)
    return SparseRows(rng.integers(0, rows, shape).astype(index), rng.standard_normal((*shape, *row)).astype(dtype))


def dense(rows, like, dtype=None):
    """The same gradient as a whole array, its values added up one after the other."""
    found = np.zeros(like.shape, dtype or rows.values.dtype)
    for index, value in zip(rows.indices.ravel(), rows.values.reshape(-1, *like.shape[1:]), strict=True):
        found[index] += value
    return found


def bits(*arrays):
    return [array.tobytes() for array in arrays]


def states_of(opt):
    return [array for entries in opt.state.values() for array in entries.values() if isinstance(array, np.ndarray)]


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize(("name", "dtype"), usually([("Adagrad", F32)], [("SGD", np.float64), ("Adagrad", F32)]))
def test_rows_against_the_oracle(name, dtype, index):
    """By the formula over the whole gradient: rows without a gradient would not have changed."""
    param, weights = table(dtype), np.ones(7, dtype)
    trainer = oracle.Trainer([param, weights])
    opt = getattr(fastopt, name)({"table": param, "weights": weights}, **EXACT[name])
    for step in range(STEPS):
        rows, others = drawn(step, dtype=dtype, index=index), np.full(7, 0.1 * step, dtype)
        before, touched = param.copy(), np.isin(np.arange(ROWS), rows.indices)
        opt.step({"table": rows, "weights": others})
        trainer.step(RULE[name], [dense(rows, param, np.float64), others], EXACT[name])
        assert bits(param[~touched]) == bits(before[~touched])
        assert (param[touched] != before[touched]).any(axis=1).all()
    for got, expected in zip((param, weights), trainer.params, strict=True):
        np.testing.assert_allclose(
            got, expected, rtol=0, atol=TRAJECTORY * np.finfo(dtype).eps * np.abs(expected).max()
        )
    assert [entries["step"] for entries in opt.state.values()] == [STEPS, STEPS]


STORAGES = {
    "float32": {},
    "bfloat16": {"state_dtype": "bfloat16"},
    "int8": {"state_dtype": "int8", "stochastic_rounding": False},
}


@pytest.mark.parametrize("storage", usually(["float32"], STORAGES))
@pytest.mark.parametrize("name", EXACT)
def test_rows_have_the_bits_of_the_whole_gradient(name, storage):
    """In every storage of the states: what no gradient touches keeps its bits in all of them."""
    ours, theirs = table(), table()
    options = {**EXACT[name], **STORAGES[storage]}
    sparse, whole = (getattr(fastopt, name)(param, **options) for param in (ours, theirs))
    for step in range(STEPS):
        rows = drawn(step)
        sparse.step(rows)
        whole.step(dense(rows, theirs))
    assert bits(ours, *states_of(sparse)) == bits(theirs, *states_of(whole))


@pytest.mark.parametrize(
    "options",
    usually(
        [{"master_weights": True}],
        [{"stochastic_rounding": True, "seed": 3}, {"master_weights": True}, {"master_weights": 24}],
    ),
    ids=["stochastic", "masters", "24 bits"],
)
def test_tables_in_bfloat16(options):
    """Random bits and remainders are those of the elements, whoever else has a gradient; values stay float32."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    ours, theirs = (table().astype(ml_dtypes.bfloat16) for _ in range(2))
    sparse, whole = (fastopt.Adagrad(param, lr=0.1, **options) for param in (ours, theirs))
    for step in range(STEPS):
        rows = drawn(step)
        sparse.step(rows)
        whole.step(dense(rows, theirs))
    assert bits(ours) == bits(theirs)
    narrow = SparseRows(rows.indices, rows.values.astype(ml_dtypes.bfloat16))
    sparse.step(narrow)
    whole.step(dense(SparseRows(narrow.indices, narrow.values.astype(F32)), theirs))
    assert bits(ours) == bits(theirs)


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), max_size=40), st.sampled_from([(), (1,), (3,), (2, 2)]), st.integers(0, 2**32))
def test_any_rows(indices, inner, seed):
    """Any number of any rows, of a width from one element on, has the bits of the whole gradient."""
    shape = (7, 2, *inner)
    values = np.random.default_rng(seed).standard_normal((len(indices), *shape[1:])).astype(F32)
    rows = SparseRows(np.array(indices, np.int32), values)
    ours, theirs = table(shape=shape), table(shape=shape)
    sparse, whole = (fastopt.Adagrad(param, lr=0.1) for param in (ours, theirs))
    for _ in range(2):
        sparse.step(rows)
        whole.step(dense(rows, theirs))
    assert bits(ours, *states_of(sparse)) == bits(theirs, *states_of(whole))
    once = rows.coalesce()
    assert once.indices.tolist() == sorted({*indices})
    assert bits(dense(once, ours)) == bits(dense(rows, ours))


@pytest.mark.parametrize("name", usually(["SGD"], LAZY))
def test_lazy_updates_are_those_of_a_smaller_table(name):
    """Of the rows that have a gradient, and no others; averages and weight decay of the rest stand still."""
    ours = table()
    opt = getattr(fastopt, name)(ours, lazy_update=True, **LAZY[name])
    chosen = np.array([7, 2, 299])
    theirs, start = ours[chosen], ours.copy()
    alone = getattr(fastopt, name)(theirs, **LAZY[name])
    for step in range(STEPS):
        values = table(seed=step, shape=(3, WIDTH))
        opt.step(SparseRows(chosen, values))
        alone.step(values)
    assert bits(ours[chosen]) == bits(theirs)
    rest = np.delete(np.arange(ROWS), chosen)
    assert bits(ours[rest]) == bits(start[rest])
    assert not any(state[rest].any() for state in states_of(opt))


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("SGD", {"momentum": 0.9}, ValueError, ["lazy_update=True", "group"]),
        ("Adagrad", {"weight_decay": 0.1}, ValueError, ["lazy_update=True", "group"]),
        ("Adam", {}, RuntimeError, ["lazy_update=True", "dense", "Adagrad"]),
        ("NAdam", {"lazy_update": True}, RuntimeError, ["pass a dense one"]),
    ],
)
def test_rules_that_move_other_rows_refuse(name, options, error, words):
    """With what to do; NAdam has a number that each row would need."""
    param = table()
    opt = getattr(fastopt, name)(param, lr=0.1, **options)
    for word in words:
        with pytest.raises(error, match=re.escape(word)):
            opt.step(drawn(0))
    assert bits(param) == bits(table())
    assert opt.param_groups[0]["step"] == 0


def test_the_same_bits_on_any_number_of_threads():
    """Rows that come more than once are added up before, in their order."""
    found, before = [], pool.get_num_threads()
    try:
        for threads in (1, 2, 5):
            pool.set_num_threads(threads)
            param = table(shape=(5000, WIDTH))
            opt = fastopt.Adagrad(param, lr=0.1)
            for step in range(2):
                opt.step(drawn(step, shape=(9000,), rows=5000))
            found.append(bits(param))
    finally:
        pool.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_clipping_skipping_and_averages():
    """The norm is that of each row's sum, and of all gradients; averages of all rows go on."""
    options = {"max_grad_norm": 0.5, "clip_grad_value": 0.3, "skip_nonfinite": True, "ema_decay": 0.9}
    pairs = [[table(), np.ones(5, F32)] for _ in range(2)]
    ours, theirs = pairs
    sparse, whole = (fastopt.SGD(params, lr=0.1, **options) for params in pairs)
    for step in range(STEPS):
        rows, others = drawn(step), table(shape=(5,), seed=step)
        if step == 2:
            rows.values[1, 1, 1] = np.nan
        sparse.step([rows, others])
        whole.step([dense(rows, theirs[0]), others])
        np.testing.assert_allclose(sparse.grad_norm, whole.grad_norm, rtol=1e-6)
    assert sparse.skipped_steps == whole.skipped_steps == 1
    for got, expected in zip([*ours, *states_of(sparse)], [*theirs, *states_of(whole)], strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=TRAJECTORY * np.finfo(F32).eps)


def test_dense_sparse_and_no_gradients_in_turn():
    """A step with one kind does not repeat the last one with another."""
    params, twins = ([table(), np.ones(5, F32)] for _ in range(2))
    ours, theirs = (fastopt.Adagrad(each, lr=0.1) for each in (params, twins))
    ones = np.ones(5, F32)
    for step, kind in enumerate("dddssdsnnssdnddnssd"):
        rows = drawn(step)
        whole = dense(rows, twins[0])
        ours.step([{"d": whole, "s": rows, "n": None}[kind], ones])
        theirs.step([None if kind == "n" else whole, ones])
    assert bits(*params, *states_of(ours)) == bits(*twins, *states_of(theirs))
    assert ours.state[0]["step"] == theirs.state[0]["step"] == 15


def test_time_does_not_grow_with_the_table():
    """A step's chunks are the rows', not the table's."""
    param = table(shape=(100_000, 2))
    opt = fastopt.SGD({"table": param, "other": np.ones(3, F32)}, lr=0.1)
    opt.step({"table": drawn(0, row=(2,), shape=(3,)), "other": np.ones(3, F32)})
    (launch,) = opt._stepper.plan.launches
    assert launch.count == 1
    opt.step({"table": np.ones_like(param), "other": np.ones(3, F32)})
    assert launch.count > 40


def test_single_calls():
    """`fused.sgd` and `fused.adagrad` take rows; others would move the rest of the table."""
    param, twin, state, other = table(), table(), np.zeros((ROWS, WIDTH), F32), np.zeros((ROWS, WIDTH), F32)
    rows = drawn(1)
    fastopt.fused.adagrad(param, rows, state, lr=0.1)
    fastopt.fused.adagrad(twin, dense(rows, twin), other, lr=0.1)
    fastopt.fused.sgd(param, rows, lr=0.1)
    fastopt.fused.sgd(twin, dense(rows, twin), lr=0.1)
    assert bits(param, state) == bits(twin, other)
    for call in (
        lambda: fastopt.fused.momentum(param, rows, state, lr=0.1, momentum=0.9),
        lambda: fastopt.fused.adagrad(param, rows, state, lr=0.1, weight_decay=0.1),
        lambda: fastopt.fused.adagrad(param, rows, np.asfortranarray(state), lr=0.1),
        lambda: fastopt.fused.adagrad(param, rows, param, lr=0.1),
        lambda: fastopt.fused.sgd(param[:10], rows, lr=0.1),
    ):
        with pytest.raises(ValueError, match=r"dense gradient|ascontiguousarray|overlap|index"):
            call()
    assert bits(param, state) == bits(twin, other)


def test_what_is_made_of_dense_gradients():
    """The rows that are not zero, NaN among them."""
    gradient = np.zeros((6, 2, 2), F32)
    gradient[4, 1, 0], gradient[1] = np.nan, 3
    rows = SparseRows.from_dense(gradient)
    assert rows.indices.tolist() == [1, 4]
    np.testing.assert_array_equal(dense(rows, gradient), gradient)
    assert repr(rows) == "SparseRows(2 rows of shape (2, 2), float32)"
    assert SparseRows.from_dense(np.zeros((3, 2))).values.shape == (0, 2)
    empty = SparseRows(np.array([3, 1, 3]), np.ones((3, 0), F32)).coalesce()
    assert (empty.indices.tolist(), empty.values.shape) == ([1, 3], (2, 0))
    with pytest.raises(ValueError, match="two axes"):
        SparseRows.from_dense(np.ones(3))
    with pytest.raises(TypeError, match="list"):
        SparseRows.from_dense([[1.0]])


ONES = np.ones((2, 3), F32)


@pytest.mark.parametrize(
    ("indices", "values", "error", "words"),
    [
        ([0, 1], ONES, TypeError, "indices must be an array of NumPy or CuPy, not list"),
        (np.array([0, 1], np.int16), ONES, TypeError, "ndarray of int16"),
        (np.array([0, 1]), ONES.tolist(), TypeError, "values must be an array of NumPy or CuPy, not list"),
        (np.array([0, 1]), np.ones(2, F32), ValueError, "one at least"),
        (np.array([0, 1, 2]), ONES, ValueError, r"\(2, 3\), indices \(3,\)"),
        (np.array([[0], [1]]), ONES, ValueError, "axes of indices"),
        (np.ma.array([0, 1]), ONES, TypeError, "masked"),
    ],
)
def test_what_are_no_rows(indices, values, error, words):
    with pytest.raises(error, match=words):
        SparseRows(indices, values)


@pytest.mark.parametrize(
    ("param", "rows", "error", "words"),
    [
        (np.ones((4, 3), F32), ([0, 4], ONES), ValueError, "has an index 4, the table has 4 rows"),
        (np.ones((4, 3), F32), ([0, -1], ONES), ValueError, "has an index -1"),
        (np.ones((4, 3), F32), ([0, 2**62], ONES), ValueError, f"has an index {2**62}"),
        (np.ones((4, 2), F32), ([0, 1], ONES), ValueError, r"rows of shape \(3,\), its parameter of \(2,\)"),
        (np.ones(4, F32), ([0, 1], ONES), ValueError, "two axes or more"),
        (np.ones((4, 3)), ([0, 1], ONES), TypeError, r"astype\(np.float64\) of its values"),
        (np.ones((4, 3), F32), ([0, 1], ONES.astype(int)), TypeError, "has dtype int64"),
        (np.ones((4, 3), F32), ([0, 1], ONES.astype(">f4")), TypeError, "foreign byte order"),
        (np.ones((3, 4), F32).T, ([0, 1], ONES), ValueError, "np.ascontiguousarray"),
    ],
)
def test_rows_that_do_not_fit(param, rows, error, words):
    """Nothing has changed then, of another parameter either."""
    other = np.ones(2, F32)
    opt = fastopt.Adagrad([param, other], lr=0.1)
    with pytest.raises(error, match="the gradient of parameter 0.*" + words):
        opt.step([SparseRows(np.array(rows[0]), rows[1]), other])
    assert (param == 1).all()
    assert (other == 1).all()
    assert opt.param_groups[0]["step"] == 0


def test_rows_that_overlap_the_table():
    param = table(shape=(8, 4))
    opt = fastopt.SGD(param, lr=0.1)
    before = param.copy()
    with pytest.raises(ValueError, match=r"overlaps parameter 0 in memory: pass a .copy\(\)"):
        opt.step(SparseRows(np.array([0, 1]), param[2:4]))
    assert bits(param) == bits(before)


def test_narrow_rows_of_states_in_8_bits():
    """Blocks cannot be shared by rows of which one has a gradient."""
    opt = fastopt.Adagrad(table(shape=(3000, 8)), lr=0.1, state_dtype="int8")
    with pytest.raises(ValueError, match=r"blocks of 64 .* rows of 8 elements .*float32"):
        opt.step(drawn(0, row=(8,)))


def test_what_sparse_gradients_cannot_do():
    """Be bound, or set to zero."""
    opt = fastopt.SGD(table(), lr=0.1)
    with pytest.raises(TypeError, match="pass it to step"):
        opt.bind(drawn(0))
    with pytest.raises(TypeError, match="without zero_grads"):
        opt.step(drawn(0), zero_grads=True)
    assert opt.param_groups[0]["step"] == 0


def test_values_of_any_strides_are_only_read():
    """Of read-only memory, of memory that is not aligned, and of a transposed array."""
    values = table(shape=(6, WIDTH))
    buffer = np.zeros(values.nbytes + 1, np.uint8)
    odd = buffer[1:].view(F32).reshape(values.shape)
    odd[...] = values
    frozen = values.copy()
    frozen.flags.writeable = False
    indices = np.array([[4, 2, 4], [0, 1, 2]])
    found = []
    for given_values in (values, frozen, odd, np.asfortranarray(values), np.repeat(values, 2, axis=0)[::2]):
        param = table()
        opt = fastopt.Adagrad(param, lr=0.1)
        opt.step(SparseRows(indices, given_values.reshape(2, 3, WIDTH)))
        found.append(bits(param))
    assert found == found[:1] * 5
    assert bits(values) == bits(table(shape=(6, WIDTH)))


@settings(deadline=None)
@given(indices=st.lists(st.integers(0, 2**61 - 1) | st.integers(0, 3), max_size=4), bits=st.integers(0, 61))
def test_rows_are_sorted_and_their_places_stay_in_order(indices, bits):
    """Whatever their numbers are: as far apart as keys have room for, or the same."""
    from fastopt.step.sparse import Given

    rows = np.array(indices, np.int64) >> bits
    keys = Given.of("g", rows, np.zeros((len(rows), 1), F32)).keys
    place = max(len(rows) - 1, 0).bit_length()
    order = np.argsort(rows, kind="stable")
    assert keys.tolist() == ((rows[order] << place) | order).tolist()


@pytest.mark.filterwarnings("ignore:the matrix subclass")  # NumPy advises against it, and people have them
def test_indices_in_a_matrix():
    """Which keeps two axes whatever one does."""
    ours, theirs = table(), table()
    values = drawn(0, (2, 3)).values
    fastopt.Adagrad(ours, lr=0.1).step(SparseRows(np.matrix([[1, 2, 3], [3, 2, 0]]), values))
    fastopt.Adagrad(theirs, lr=0.1).step(SparseRows(np.array([[1, 2, 3], [3, 2, 0]]), values))
    assert bits(ours) == bits(theirs)


def test_no_memory_for_the_rows(monkeypatch):
    """The step changes nothing then, and the next one does."""
    from fastopt.step.sparse import Given

    params = [np.ones(3, F32), table()]
    opt = fastopt.Adagrad(params, lr=0.1)
    opt.step([np.ones(3, F32), drawn(0)])
    before = bits(*params, *states_of(opt))

    def cut(given_rows, copies=False):
        raise MemoryError("there is none")

    with monkeypatch.context() as patch:
        patch.setattr(Given, "cut", cut)
        with pytest.raises(MemoryError, match="there is none"):
            opt.step([np.ones(3, F32), drawn(1)])
    assert bits(*params, *states_of(opt)) == before
    assert opt.param_groups[0]["step"] == 1
    opt.step([np.ones(3, F32), drawn(1)])
    assert opt.param_groups[0]["step"] == 2


def test_a_checkpoint_goes_on():
    """State dicts are those of dense gradients; whether updates are lazy is the optimizer's own."""
    ours, theirs = table(), table()
    opt = fastopt.Adam(ours, lazy_update=True)
    opt.step(drawn(0))
    theirs[...] = ours
    other = fastopt.Adam(theirs, lazy_update=True)
    saved = opt.state_dict()
    del saved["param_groups"][0]["lazy_update"]
    other.load_state_dict(saved)
    for each in (opt, other):
        each.step(drawn(1))
    assert bits(ours, *states_of(opt)) == bits(theirs, *states_of(other))


def test_gradients_are_let_go():
    """Nothing keeps the values of a step, or of one that fails."""
    opt = fastopt.Adagrad([table(), np.ones(3, F32)], lr=0.1)
    for others, raises in ((np.ones(3, F32), False), (np.ones(4, F32), True)):
        rows = drawn(0)
        alive = weakref.ref(rows.values)
        with pytest.raises(ValueError, match="shape") if raises else contextlib.nullcontext():
            opt.step([rows, others])
        del rows
        assert alive() is None
