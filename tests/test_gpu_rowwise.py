"""AdaGrad with one accumulator for each row of a table on a GPU, on a stand-in and on a real one."""

import functools
import re

import cuda_stand_in
import host_cuda
import numpy as np
import pytest
from test_gpu_sparse import drawn, indices, there, whole
from tolerances import TRAJECTORY, assert_close

import fastopt
from fastopt import SparseRows

WORLD = cuda_stand_in.WORLD
F32 = np.float32
ROWS = 20
OPTIONS = [
    {},
    {"weight_decay": 0.1, "lazy_update": True},
    {"maximize": True, "lr_decay": 0.1, "initial_accumulator_value": 0.5},
]


def rows_of(shape, seed, dtype=F32, n=12):
    """A sparse gradient in which some rows come more than once."""
    return SparseRows(indices(n, seed, rows=shape[0]), drawn((n, *shape[1:]), seed, dtype))


class Twins:
    """An optimizer over a table and a vector on a device, and one over copies on the host."""

    def __init__(self, device, shape, dtype=F32, **options):
        self.device, self.shape = device, shape
        self.host = {"table": drawn(shape, 0, dtype), "w": drawn(5, 1, dtype)}
        self.params = {name: device.array(array) for name, array in self.host.items()}
        options = {"lr": 0.1, "rowwise": True, **options}
        self.ours, self.theirs = (fastopt.Adagrad(params, **options) for params in (self.params, self.host))

    def step(self, gradient, seed, **more):
        """Take a step with a gradient of the table, sparse or dense; None leaves it out."""
        w = drawn(5, [seed, 1], self.host["w"].dtype)
        is_sparse = isinstance(gradient, SparseRows)
        moved = there(self.device, gradient) if is_sparse else gradient is not None and self.device.array(gradient)
        self.ours.step({"table": None if moved is False else moved, "w": self.device.array(w)}, **more)
        self.theirs.step({"table": gradient, "w": w}, **more)

    def assert_same(self):
        """Assert that both have come to the same parameters, states and counts."""
        for name, array in self.host.items():
            assert_close(self.device.get(self.params[name]), array.astype(np.float64), TRAJECTORY)
        states = self.ours.state
        for key, entry in self.theirs.state.items():
            assert states[key]["step"] == entry["step"]
            assert states[key]["sum"].shape == entry["sum"].shape
            assert_close(self.device.get(states[key]["sum"]), entry["sum"].astype(np.float64), TRAJECTORY)
        assert self.ours.param_groups[0]["step"] == self.theirs.param_groups[0]["step"]
        assert self.ours.memory()["states"] == self.theirs.memory()["states"]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("width", "dtype"), [(1, F32), (31, F32), (64, F32), (129, F32), (1030, F32), (33, np.float64)]
)
def test_as_on_the_host(device, width, dtype, options):
    """Sparse gradients, dense ones and none, by turns."""
    shape = ROWS, width
    twins = Twins(device, shape, dtype, **options)
    for step in range(5):
        sparse, dense = rows_of(shape, step, dtype), drawn(shape, step, dtype)
        twins.step((sparse, dense, sparse, None, dense)[step], step)
    twins.assert_same()


@pytest.mark.parametrize("shape", [(4, 3, 5), (1, 2), (0, 3), (3, 0)])
def test_other_shapes(device, shape):
    """Also where there are no rows, or nothing in them."""
    twins = Twins(device, shape)
    for step in range(3):
        twins.step(drawn(shape, step) if step != 1 or not shape[0] else rows_of(shape, step, n=3), step)
    twins.assert_same()
    assert twins.ours.state["table"]["sum"].shape == (shape[0], *[1] * (len(shape) - 1))


@pytest.mark.parametrize("width", [1, 64, 129])
def test_sparse_gradients_have_the_bits_of_dense_ones(device, width):
    """And leave all other rows and their accumulators alone."""
    shape = ROWS, width
    params = [device.array(drawn(shape, 0)) for _ in range(2)]
    ours, theirs = (fastopt.Adagrad(param, lr=0.1, rowwise=True, initial_accumulator_value=0.1) for param in params)
    for step in range(3):
        rows = rows_of(shape, step)
        before = device.get(params[0]), device.get(ours.state[0]["sum"]) if step else np.full((ROWS, 1), 0.1, F32)
        ours.step(there(device, rows))
        theirs.step(device.array(whole(rows, shape)))
        left_out = np.setdiff1d(np.arange(ROWS), rows.indices)
        for now, then in zip((params[0], ours.state[0]["sum"]), before, strict=True):
            assert device.get(now)[left_out].tobytes() == then[left_out].tobytes()
    for ours_, theirs_ in ((params[0], params[1]), (ours.state[0]["sum"], theirs.state[0]["sum"])):
        assert device.get(ours_).tobytes() == device.get(theirs_).tobytes()


def test_threads_in_any_order(stand_in, monkeypatch):
    """The bits are the same: no thread reads what another one may have written."""
    launch, found = host_cuda.launch, []
    for seed in range(4):
        monkeypatch.setattr(host_cuda, "launch", functools.partial(launch, seed=seed))
        param = stand_in.array(drawn((6, 129), 0))
        opt = fastopt.Adagrad(param, lr=0.1, rowwise=True)
        for step in range(2):
            opt.step(there(stand_in, rows_of((6, 129), step)))
        found.append((stand_in.get(param).tobytes(), stand_in.get(opt.state[0]["sum"]).tobytes()))
    assert found == found[:1] * 4


@pytest.mark.parametrize(
    "options",
    [{"master_weights": True, "weight_decay": 0.1, "lazy_update": True}, {"stochastic_rounding": True, "seed": 3}],
)
def test_tables_of_16_bits(device, options):
    """Masters are what float32 gives; random bits are the same for sparse gradients and dense ones."""
    shape = ROWS, 64
    table = drawn(shape, 0, np.float16)
    params = [device.array(table) for _ in range(2)]
    ours, other = (fastopt.Adagrad(param, lr=0.1, rowwise=True, **options) for param in params)
    master = table.astype(F32)
    theirs = fastopt.Adagrad(master, lr=0.1, rowwise=True, weight_decay=options.get("weight_decay", 0))
    for step in range(3):
        g = drawn(shape, step, (np.float16, F32)[step % 2])
        ours.step(device.array(g))
        theirs.step(g)
        other.step(there(device, SparseRows(np.arange(ROWS)[::-1], g[::-1])))
    assert device.get(params[0]).tobytes() == device.get(params[1]).tobytes()
    if "master_weights" in options:
        assert_close(device.get(ours.master_state_dict()[0]), master.astype(np.float64), TRAJECTORY)
        assert_close(device.get(ours.state[0]["sum"]), theirs.state[0]["sum"].astype(np.float64), TRAJECTORY)
    else:
        assert device.get(params[0]).tobytes() != master.astype(np.float16).tobytes()
        np.testing.assert_allclose(device.get(params[0]).astype(F32), master, atol=0.02)


@pytest.mark.parametrize(
    "stages", [{"clip_grad_value": 0.3}, {"max_grad_norm": 0.5}, {"skip_nonfinite": True, "clip_grad_value": 0.5}]
)
def test_stages(device, stages):
    """Accumulators get what the step uses: gradients that are clipped."""
    shape = ROWS, 7
    twins = Twins(device, shape, **stages)
    for step in range(5):
        gradient = drawn(shape, step) if step % 2 else rows_of(shape, step)
        if step in (0, 3) and "skip_nonfinite" in stages:
            (gradient if step % 2 else gradient.values)[3, 2] = np.inf
        twins.step(gradient, step)
        if "max_grad_norm" in stages:
            assert float(device.get(twins.ours.grad_norm)) == pytest.approx(twins.theirs.grad_norm, rel=1e-6)
    twins.assert_same()
    assert twins.ours.skipped_steps == twins.theirs.skipped_steps


@pytest.mark.parametrize("make", [np.asfortranarray, lambda g: np.concatenate([g, g], 1)[:, ::2], lambda g: g[::-1]])
def test_gradients_in_another_order(device, make):
    """Are copied, and stay as they are."""
    param, host = device.array(drawn((ROWS, 6), 0)), drawn((ROWS, 6), 0)
    ours, theirs = (fastopt.Adagrad(table, lr=0.1, rowwise=True) for table in (param, host))
    for step in range(2):
        g = make(drawn((ROWS, 6), step + 1))
        given = device.array(g)
        ours.step(given)
        theirs.step(g)
        assert (device.get(given) == g).all()
    assert_close(device.get(param), host.astype(np.float64), TRAJECTORY)


def test_gradients_that_are_set_to_zero(device):
    """Those of tables after the step; sparse ones are refused."""
    shape = ROWS, 7
    param, host, g = device.array(drawn(shape, 0)), drawn(shape, 0), drawn(shape, 1)
    ours, theirs = (fastopt.Adagrad(table, lr=0.1, rowwise=True) for table in (param, host))
    for order in (np.ascontiguousarray, np.asfortranarray):
        given = device.array(order(g))
        ours.step(given, zero_grads=True)
        theirs.step(g)
        assert not device.get(given).any()
    assert_close(device.get(param), host.astype(np.float64), TRAJECTORY)
    with pytest.raises(TypeError, match="call step without zero_grads"):
        ours.step(there(device, rows_of(shape, 2)), zero_grads=True)


@pytest.mark.parametrize("kind", ["sparse", "dense", "transposed"])
def test_nobody_waits(device, kind):
    """For rows or their numbers, once there is room for all that a step takes."""
    shape = ROWS, 7
    twins = Twins(device, shape, max_grad_norm=1.0)
    given = [
        rows_of(shape, step) if kind == "sparse" else np.array(drawn(shape, step), order="CF"[kind == "transposed"])
        for step in range(5)
    ]
    for step, each in enumerate(given[:3]):
        twins.step(each, step)
    moved = [there(device, each) if kind == "sparse" else device.array(each) for each in given[3:]]
    steps = [{"table": each, "w": device.array(drawn(5, 0))} for each in moved]
    before = WORLD.waits
    for each in steps:
        twins.ours.step(each)
    assert WORLD.waits == before


def test_a_wrong_index_changes_nothing(device):
    """Neither the table nor its accumulators; the error comes later, then training goes on."""
    shape = ROWS, 7
    twins = Twins(device, shape)
    twins.step(drawn(shape, 0), 0)
    bad = SparseRows(np.array([3, ROWS, 4]), drawn((3, 7), 8))
    twins.ours.step({"table": there(device, bad), "w": device.array(drawn(5, 8))})
    device.synchronize()
    with pytest.raises(ValueError, match=f"had an index {ROWS}, and the table has {ROWS} rows"):
        twins.ours.step({"table": device.array(drawn(shape, 1)), "w": device.array(drawn(5, [1, 1]))})
    twins.assert_same()
    twins.step(drawn(shape, 1), 1)
    twins.assert_same()


def test_a_checkpoint_goes_on(device):
    """On another machine as well."""
    shape = ROWS, 7
    twins = Twins(device, shape)
    for step in range(4):
        twins.step(rows_of(shape, step) if step % 2 else drawn(shape, step), step)
        if step == 1:
            saved = twins.ours.state_dict()
            host = {
                key: {k: v if k == "step" else device.get(v) for k, v in e.items()} for key, e in saved["state"].items()
            }
            assert host["table"]["sum"].shape == (ROWS, 1)
            twins.ours = fastopt.Adagrad(twins.params, lr=0.1, rowwise=True)
            twins.ours.load_state_dict({**saved, "state": host})
    twins.assert_same()
    plain = fastopt.Adagrad(twins.params, lr=0.1)
    with pytest.raises(ValueError, match=re.escape(f"has shape ({ROWS}, 1)")):
        plain.load_state_dict(saved)
    plain.step({"table": device.array(drawn(shape, 1)), "w": None})
    with pytest.raises(ValueError, match=re.escape(f"has shape {shape}, and needs ({ROWS}, 1) to be rowwise")):
        twins.ours.load_state_dict(plain.state_dict())


# Refusals


def test_what_is_refused(device):
    """With a way out; nothing changes."""
    shape = ROWS, 8
    host = drawn(shape, 0)
    table, dense = device.array(host), device.array(drawn(shape, 1))
    with pytest.raises(ValueError, match="leave one of the two out"):
        fastopt.Adagrad(table, lr=0.1, rowwise=True, ema_decay=0.9).step(dense)
    with pytest.raises(ValueError, match="is none: put it into a group with rowwise=False"):
        fastopt.Adagrad(device.array(np.asfortranarray(host)), lr=0.1, rowwise=True)
    with pytest.raises(ValueError, match="leave state_dtype out of the group"):
        fastopt.Adagrad(table, lr=0.1, rowwise=True, state_dtype="int8")
    with pytest.raises(ValueError, match="is for Adagrad alone"):
        fastopt.SGD(table, lr=0.1, rowwise=True)
    opt = fastopt.Adagrad(table, lr=0.1, rowwise=True)
    with pytest.raises(TypeError, match="the gradient of parameter 0 is updated by rows, and cannot be bound"):
        opt.bind(dense)
    with pytest.raises(ValueError, match="overlaps parameter 0 in memory"):
        opt.step(table[::-1])
    with pytest.raises(ValueError, match="momentum or weight decay"):
        fastopt.Adagrad(table, lr=0.1, rowwise=True, weight_decay=0.1).step(there(device, rows_of(shape, 1)))
    assert device.get(table).tobytes() == host.tobytes()
    for _ in range(2):
        opt.step(dense)
    with pytest.raises(RuntimeError, match="cannot be captured"), device.capture(device.stream()):
        opt.step(dense)
    opt.step(dense)


def test_parameters_elsewhere(stand_in):
    """Sparse gradients take all on one GPU; dense ones do not, since there is nothing to check."""
    host, vector, g = drawn((ROWS, 8), 0), drawn(3, 0), drawn((ROWS, 8), 1)
    table, w = stand_in.array(host), vector.copy()
    ours = fastopt.Adagrad([table, w], lr=0.1, rowwise=True)
    with pytest.raises(ValueError, match=r"is sparse.*an optimizer for each device"):
        ours.step([there(stand_in, rows_of((ROWS, 8), 1)), w.copy()])
    theirs = fastopt.Adagrad([host, vector], lr=0.1, rowwise=True)
    for _ in range(2):
        ours.step([stand_in.array(g), np.ones(3, F32)])
        theirs.step([g, np.ones(3, F32)])
    assert_close(stand_in.get(table), host.astype(np.float64), TRAJECTORY)
    assert w.tobytes() == vector.tobytes()
    with cuda_stand_in.Device(1):
        other = stand_in.array(g)
    with pytest.raises(ValueError, match="is on GPU 1, its parameter on GPU 0"):
        ours.step([other, w.copy()])
