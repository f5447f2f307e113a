"""Sparse gradients on GPUs: rows are found and checked there, without waiting; on a stand-in, and on a real GPU."""

import re

import cuda_stand_in
import numpy as np
import pytest
from gpu_steps import state_arrays
from tolerances import TRAJECTORY, assert_close

import fastopt
from fastopt import SparseRows

WORLD = cuda_stand_in.WORLD
F32 = np.float32
OPTIMIZERS = {
    "sgd": (fastopt.SGD, {"lr": 0.1}),
    "adagrad": (fastopt.Adagrad, {"lr": 0.1, "lr_decay": 0.1}),
    "momentum": (fastopt.SGD, {"lr": 0.1, "momentum": 0.9, "lazy_update": True}),
    "rmsprop": (fastopt.RMSprop, {"lr": 0.01, "lazy_update": True}),
    "adam": (fastopt.Adam, {"lr": 0.01, "lazy_update": True}),
}
ROWS = 50


def drawn(shape, seed, dtype=F32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def indices(n, seed, dtype=np.int64, rows=ROWS):
    """Indices among which many come more than once."""
    return (rows * np.random.default_rng(seed).random(n) ** 3).astype(dtype)


def there(device, rows):
    """The same rows on a device."""
    return SparseRows(device.array(rows.indices), device.array(rows.values))


def whole(rows, shape):
    """The same gradient, dense: values of one row added up in their order."""
    dense = np.zeros(shape, rows.values.dtype)
    for index, value in zip(rows.indices.ravel(), rows.values.reshape(-1, *shape[1:]), strict=True):
        dense[index] += value
    return dense


class Twins:
    """An optimizer over a table and a vector on a device, and one over copies on the host."""

    def __init__(self, device, make, shape=(ROWS, 7), dtype=F32, **options):
        self.device, self.shape = device, shape
        self.host = {"table": drawn(shape, 0, dtype), "w": drawn(5, 1)}
        self.params = {name: device.array(array) for name, array in self.host.items()}
        self.ours, self.theirs = make(self.params, **options), make(self.host, **options)

    def step(self, rows, seed=0):
        """Take a step with rows of the table; None leaves it out."""
        w = drawn(5, [seed, 1])
        self.ours.step({"table": rows and there(self.device, rows), "w": self.device.array(w)})
        self.theirs.step({"table": rows, "w": w})

    def assert_same(self):
        """Assert that both have come to the same parameters, states and counts."""
        for name, array in self.host.items():
            assert_close(self.device.get(self.params[name]), array.astype(np.float64), TRAJECTORY)
        states = self.ours.state
        assert states.keys() == self.theirs.state.keys()
        for key, entry in self.theirs.state.items():
            assert states[key]["step"] == entry["step"]
            for name in entry.keys() - {"step"}:
                assert_close(self.device.get(states[key][name]), entry[name].astype(np.float64), TRAJECTORY)
        assert self.ours.param_groups[0]["step"] == self.theirs.param_groups[0]["step"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_as_on_the_host(device, name):
    """With rows, without any, with a dense gradient and none in turn."""
    make, options = OPTIMIZERS[name]
    twins = Twins(device, make, **options)
    for step in range(6):
        n = (12, 0, 1, 300)[step % 4]
        rows = SparseRows(indices(n, step, (np.int32, np.int64)[step % 2]), drawn((n, 7), step))
        twins.step(None if step == 4 else rows, step)
    dense, w = drawn((ROWS, 7), 9), drawn(5, 10)
    twins.ours.step({"table": device.array(dense), "w": device.array(w)})
    twins.theirs.step({"table": dense, "w": w})
    twins.step(SparseRows(indices(12, 7), drawn((12, 7), 7)), 7)
    twins.assert_same()


@pytest.mark.parametrize("shape", [(ROWS, 1), (ROWS, 31), (ROWS, 128), (ROWS, 129), (3, 1030), (4, 3, 5), (1, 2)])
def test_the_bits_of_dense_gradients(device, shape):
    """Of rows of any width, and of indices of two axes; rows that are left out keep their bits."""
    params = [device.array(drawn(shape, 0)) for _ in range(2)]
    ours, theirs = (fastopt.Adagrad(param, lr=0.1) for param in params)
    for step in range(3):
        before = device.get(params[0])
        rows = SparseRows(indices((3, 5), step, rows=shape[0]), drawn((3, 5, *shape[1:]), step))
        ours.step(there(device, rows))
        theirs.step(device.array(whole(rows, shape)))
        left_out = np.setdiff1d(np.arange(shape[0]), rows.indices)
        assert device.get(params[0])[left_out].tobytes() == before[left_out].tobytes()
    assert device.get(params[0]).tobytes() == device.get(params[1]).tobytes()
    assert device.get(ours.state[0]["sum"]).tobytes() == device.get(theirs.state[0]["sum"]).tobytes()


def test_values_of_one_row_are_added_up_in_their_order(device):
    """Whatever comes between them."""
    table = device.array(np.zeros((4, 1), F32))
    values = np.array([[1e8], [5], [1], [-1e8], [1], [7]], F32)
    fastopt.SGD(table, lr=1.0).step(there(device, SparseRows(np.array([2, 0, 2, 2, 2, 3]), values)))
    assert device.get(table).ravel().tolist() == [-5, 0, -1, -7]


@pytest.mark.parametrize(
    ("make", "dtype", "values", "options"),
    [
        (fastopt.Adagrad, np.float64, np.float64, {}),
        (fastopt.SGD, np.float16, np.float16, {}),
        (fastopt.SGD, np.float16, F32, {"master_weights": True}),
        (fastopt.SGD, np.float16, np.float16, {"stochastic_rounding": True, "seed": 3}),
        (fastopt.Adagrad, F32, np.float16, {"state_dtype": "float16", "min_quantized_size": 0}),
    ],
)
def test_storages(device, make, dtype, values, options):
    """The bits of dense gradients of the dtype in which values are added up."""
    params = [device.array(drawn((ROWS, 64), 0, dtype)) for _ in range(2)]
    ours, theirs = (make(param, lr=0.1, **options) for param in params)
    for step in range(3):
        rows = SparseRows(indices(20, step), drawn((20, 64), step, values))
        wide = rows.values.astype(np.result_type(values, F32))
        ours.step(there(device, rows))
        theirs.step(device.array(whole(SparseRows(rows.indices, wide), (ROWS, 64))))
    assert device.get(params[0]).tobytes() == device.get(params[1]).tobytes()
    masters = [device.get(opt.master_state_dict()[0]).tobytes() for opt in (ours, theirs)]
    assert masters[0] == masters[1]
    if "master_weights" not in options:  # whose remainders begin with a row's first gradient
        for mine, other in zip(*map(state_arrays, (ours, theirs)), strict=True):
            assert device.get(mine).tobytes() == device.get(other).tobytes()


@pytest.mark.parametrize(
    "stages", [{"clip_grad_value": 0.3}, {"max_grad_norm": 0.5}, {"skip_nonfinite": True, "max_grad_norm": 2.0}]
)
def test_stages(device, stages):
    """The norm is that of rows once, after their values were added up."""
    twins = Twins(device, fastopt.Adagrad, lr=0.1, **stages)
    for step in range(5):
        values = drawn((20, 7), step)
        if step in (0, 3) and "skip_nonfinite" in stages:
            values[3, 2] = np.inf
        twins.step(SparseRows(indices(20, step), values), step)
        if "max_grad_norm" in stages:
            norm = float(device.get(twins.ours.grad_norm))
            assert norm == pytest.approx(twins.theirs.grad_norm, rel=1e-6, nan_ok=True)
    twins.assert_same()
    assert twins.ours.skipped_steps == twins.theirs.skipped_steps


def test_nobody_waits(device):
    """For rows, for their check, or for the norm, once there is room for all that a step takes."""
    twins = Twins(device, fastopt.Adagrad, lr=0.1, max_grad_norm=1.0)
    rows = [SparseRows(indices(20, step), drawn((20, 7), step)) for step in range(5)]
    for step, each in enumerate(rows[:3]):
        twins.step(each, step)
    given = [{"table": there(device, each), "w": device.array(drawn(5, 0))} for each in rows[3:]]
    before = WORLD.waits
    for each in given:
        twins.ours.step(each)
    assert WORLD.waits == before


# Indices that are no rows


@pytest.mark.parametrize("wrong", [ROWS, -1, 2**40, -(2**63)])
@pytest.mark.parametrize("first", [True, False])
def test_a_wrong_index_changes_nothing(device, wrong, first):
    """In no parameter; the error comes later, then training goes on."""
    twins = Twins(device, fastopt.Adagrad, lr=0.1, max_grad_norm=1.0)
    rows = [SparseRows(indices(9, step), drawn((9, 7), step)) for step in range(3)]
    if not first:
        twins.step(rows[0])
    bad = np.array([3, wrong, 4])
    twins.ours.step({"table": there(device, SparseRows(bad, drawn((3, 7), 8))), "w": device.array(drawn(5, 8))})
    device.synchronize()
    said = rf"the gradient of parameter 'table' had an index {wrong}, and the table has {ROWS} rows"
    with pytest.raises(ValueError, match=said):
        twins.ours.step({"table": there(device, rows[1]), "w": device.array(drawn(5, [1, 1]))})
    twins.assert_same()
    twins.step(rows[1], 1)
    twins.step(rows[2], 2)
    twins.assert_same()


@pytest.mark.parametrize(
    "ask", [lambda opt: opt.state_dict(), lambda opt: opt.param_groups[0]["step"], lambda opt: opt.state["table"]]
)
def test_whoever_asks_is_told_of_a_wrong_index(device, ask):
    """Once."""
    twins = Twins(device, fastopt.SGD, lr=0.1)
    rows = SparseRows(np.array([ROWS]), drawn((1, 7), 0))
    twins.ours.step({"table": there(device, rows), "w": device.array(drawn(5, 0))})
    with pytest.raises(ValueError, match=f"an index {ROWS}"):
        ask(twins.ours)
    assert twins.ours.param_groups[0]["step"] == 0
    twins.assert_same()


def test_steps_after_a_wrong_index_are_taken(device):
    """Before anybody knows of it; the first one is told."""
    twins = Twins(device, fastopt.SGD, lr=0.1)
    steps = [SparseRows(np.array([2, 2]), drawn((2, 7), step)) for step in range(3)]
    for bad in (-7, -8):
        rows = there(device, SparseRows(np.array([bad]), drawn((1, 7), 9)))
        twins.ours.step({"table": rows, "w": device.array(drawn(5, 9))})
    for step, rows in enumerate(steps):
        twins.step(rows, step)
    if device.log():  # a real GPU may be fast enough to tell a step
        with pytest.raises(ValueError, match="an index -7"):
            twins.ours.state_dict()
        twins.assert_same()


# Refusals


def refused(device, error, words, rows, table=None, w=None, make=fastopt.SGD, **options):
    """Assert that a step raises, and changes nothing."""
    table = drawn((ROWS, 64), 0) if table is None else table
    params = [device.array(table), drawn(3, 0) if w is None else device.array(w)]
    opt = make(params if w is not None else params[:1], **{"lr": 0.1, **options})
    with pytest.raises(error, match=words):
        opt.step([rows] if w is None else [rows, device.array(w)])
    assert device.get(params[0]).tobytes() == np.ascontiguousarray(table).tobytes()
    assert opt.param_groups[0]["step"] == 0


def test_rows_that_do_not_fit(device):
    """Wrong places, shapes and dtypes are named with a way out, and nothing changes."""
    there_ = there(device, SparseRows(np.array([1, 2]), drawn((2, 64), 0)))
    refused(device, TypeError, "is of NumPy, its table on a GPU", SparseRows(np.array([1]), drawn((1, 64), 0)))
    refused(device, ValueError, re.escape("rows of shape (64,)"), there_, table=drawn((ROWS, 63), 0))
    refused(device, ValueError, "two axes or more", there_, table=drawn(64, 0))
    refused(device, TypeError, re.escape("astype(np.float64) of its values"), there_, table=drawn((ROWS, 64), 0, "f8"))
    refused(device, ValueError, "do not lie one after the other", there_, table=np.asfortranarray(drawn((ROWS, 64), 0)))
    refused(device, RuntimeError, "pass lazy_update=True", there_, make=fastopt.Adam)
    refused(device, ValueError, "momentum or weight decay", there_, momentum=0.9)
    refused(device, ValueError, "momentum or weight decay", there_, weight_decay=0.1)
    codes = {"state_dtype": "int8", "min_quantized_size": 0}
    refused(device, ValueError, 'a group with state_dtype="float32"', there_, make=fastopt.Adagrad, **codes)
    refused(device, ValueError, "leave ema_decay out", there_, ema_decay=0.9)
    table = drawn((ROWS, 64), 0)
    with pytest.raises(TypeError, match=re.escape("pass .get() of its indices and values")):
        fastopt.SGD(table, lr=0.1).step(there_)


def test_rows_that_overlap_the_table(device):
    """Are refused."""
    table = device.array(drawn((ROWS, 8), 0))
    with pytest.raises(ValueError, match="overlaps parameter 0 in memory"):
        fastopt.SGD(table, lr=0.1).step(SparseRows(device.array(np.arange(3)), table[2:5]))


def test_parameters_elsewhere(stand_in):
    """All have to be on one GPU, since one check decides about the step."""
    table, w = stand_in.array(drawn((ROWS, 8), 0)), drawn(3, 0)
    opt = fastopt.SGD([table, w], lr=0.1)
    rows = there(stand_in, SparseRows(np.array([1]), drawn((1, 8), 0)))
    with pytest.raises(ValueError, match="an optimizer for each device"):
        opt.step([rows, w.copy()])
    with cuda_stand_in.Device(1):
        other = stand_in.array(drawn((ROWS, 8), 0))
    with pytest.raises(ValueError, match="indices on GPU 0, its table on GPU 1"):
        fastopt.SGD(other, lr=0.1).step(rows)


def test_what_sparse_gradients_cannot_do(device):
    """Be bound, set to zero, captured, or looked through on the host."""
    table = device.array(drawn((ROWS, 8), 0))
    rows = there(device, SparseRows(np.array([1]), drawn((1, 8), 0)))
    dense = device.array(drawn((ROWS, 8), 1))
    opt = fastopt.SGD(table, lr=0.1)
    with pytest.raises(TypeError, match="cannot be bound"):
        opt.bind(rows)
    with pytest.raises(TypeError, match="call step without zero_grads"):
        opt.step(rows, zero_grads=True)
    for _ in range(2):
        opt.step(rows)
    with pytest.raises(RuntimeError, match="cannot be captured"), device.capture(device.stream()):
        opt.step(rows)
    with pytest.raises(RuntimeError, match="warm up before the capture"), device.capture(device.stream()):
        opt.step(dense)  # whose launch takes memory
    with pytest.raises(TypeError, match=re.escape("cupy.flatnonzero")):
        SparseRows.from_dense(table)
    with pytest.raises(TypeError, match="a step adds them up itself"):
        rows.coalesce()
    with pytest.raises(TypeError, match="pass both where the table is"):
        SparseRows(np.array([1]), rows.values)
    with pytest.raises(TypeError, match="int32 or int64"):
        SparseRows(rows.values, rows.values)


# Others


def test_single_calls(device):
    """They wait for the check, so that the error is theirs."""
    host, state = drawn((ROWS, 8), 0), np.zeros((ROWS, 8), F32)
    table, sums = device.array(host), device.array(state)
    for step in range(3):
        rows = SparseRows(indices(9, step), drawn((9, 8), step))
        fastopt.fused.adagrad(table, there(device, rows), sums, lr=0.1)
        fastopt.fused.adagrad(host, rows, state, lr=0.1)
    fastopt.fused.sgd(table, there(device, rows), lr=0.1)
    fastopt.fused.sgd(host, rows, lr=0.1)
    assert_close(device.get(table), host.astype(np.float64), TRAJECTORY)
    before = device.get(table), device.get(sums)
    with pytest.raises(ValueError, match=f"g had an index {ROWS}"):
        fastopt.fused.adagrad(table, there(device, SparseRows(np.array([1, ROWS]), drawn((2, 8), 0))), sums, lr=0.1)
    with pytest.raises(ValueError, match="pass a dense gradient"):
        fastopt.fused.sgd(table, there(device, rows), lr=0.1, weight_decay=0.1)
    assert [device.get(array).tobytes() for array in (table, sums)] == [array.tobytes() for array in before]


def test_arrays_of_any_strides(device):
    """Are read as they lie, and never written."""
    table, values = drawn((ROWS, 6), 0), drawn((8, 12), 1)
    places = np.arange(16)
    rows = SparseRows(device.array(places)[::2], device.array(values)[:, ::2])
    param = device.array(table)
    fastopt.SGD(param, lr=1.0).step(rows)
    table[::2][:8] -= values[:, ::2]
    assert_close(device.get(param), table.astype(np.float64), TRAJECTORY)
    with pytest.raises(TypeError, match="indices must be an array of NumPy or CuPy, not"):
        SparseRows(device.only_dlpack(rows.indices), rows.values)


def test_a_checkpoint_goes_on(device):
    """With the states of the rows that were touched."""
    make, options = OPTIMIZERS["adam"]
    twins = Twins(device, make, **options)
    for step in range(4):
        if step == 2:
            saved = twins.ours.state_dict()
            twins.ours = make(twins.params, **options)
            twins.ours.load_state_dict(saved)
        twins.step(SparseRows(indices(9, step), drawn((9, 7), step)), step)
    twins.assert_same()


def test_two_tables_on_another_stream(device):
    """Each has rows of its own; memory that is let go is not read by what still runs."""
    tables = [drawn((ROWS, 8), seed) for seed in range(2)]
    params, stream = [device.array(table) for table in tables], device.stream()
    opt, twin = fastopt.Adagrad(params, lr=0.1), fastopt.Adagrad(tables, lr=0.1)
    device.synchronize()
    for step in range(5):
        rows = [SparseRows(indices(9 + step, [step, k]), drawn((9 + step, 8), [step, k])) for k in range(2)]
        with stream:
            opt.step([there(device, each) for each in rows])
        twin.step(rows)
        device.take_turns()
    stream.synchronize()
    for param, table in zip(params, tables, strict=True):
        assert_close(device.get(param), table.astype(np.float64), TRAJECTORY)
