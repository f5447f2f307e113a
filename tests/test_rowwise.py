"""AdaGrad with one accumulator for each row of a table: `rowwise=True`."""

import copy
import re

import numpy as np
import pytest
import torch
from fastopt.kernels import pool
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import usually
from tolerances import TRAJECTORY, assert_close
from torch.nn import Parameter

import fastopt
import fastopt.torch
from fastopt import SparseRows

F32 = np.float32
STEPS = 4
OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"maximize": True, "lr_decay": 0.1, "initial_accumulator_value": 0.5},
]


def drawn(shape, seed, dtype=F32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


class Oracle:
    """The formula in float64, over whole gradients."""

    def __init__(self, param, weight_decay=0.0, maximize=False, lr_decay=0.0, initial_accumulator_value=0.0):
        self.p = param.astype(np.float64)
        self.s = np.full((len(param), *[1] * (param.ndim - 1)), initial_accumulator_value)
        self.weight_decay, self.sign, self.lr_decay, self.t = weight_decay, -1 if maximize else 1, lr_decay, 0

    def step(self, gradient):
        """Take a step with a rate of 0.1."""
        g = self.sign * np.asarray(gradient, np.float64) + self.weight_decay * self.p
        if g.size:
            self.s += (g * g).mean(axis=tuple(range(1, g.ndim)), keepdims=True)
        self.p -= 0.1 / (1 + self.t * self.lr_decay) * g / (np.sqrt(self.s) + 1e-10)
        self.t += 1


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", usually([F32], [F32, np.float64]))
@pytest.mark.parametrize("shape", [(3, 1), (5, 7), (300, 64), (4, 3, 5), (2, 1030), (0, 3), (3, 0)])
def test_dense_gradients_against_the_oracle(shape, dtype, options):
    """Of arrays and of tensors, with the same bits."""
    param = drawn(shape, 0, dtype)
    tensor = Parameter(torch.tensor(param))
    oracle = Oracle(param, **options)
    ours = fastopt.Adagrad(param, lr=0.1, rowwise=True, **options)
    other = fastopt.torch.Adagrad([tensor], lr=0.1, rowwise=True, **options)
    for step in range(STEPS):
        g = drawn(shape, step + 1, dtype)
        ours.step(g)
        tensor.grad = torch.tensor(g)
        other.step()
        oracle.step(g)
        assert_close(param, oracle.p, TRAJECTORY)
        assert_close(ours.state[0]["sum"], oracle.s, TRAJECTORY)
    assert tensor.detach().numpy().tobytes() == param.tobytes()
    assert other.state[tensor]["sum"].numpy().tobytes() == ours.state[0]["sum"].tobytes()
    assert int(other.state[tensor]["step"]) == ours.state[0]["step"] == STEPS


@settings(deadline=None)
@given(indices=st.lists(st.integers(0, 5), max_size=12), width=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_sparse_gradients_have_the_bits_of_dense_ones(indices, width, seed):
    """Sparse and dense by turns; other rows and their accumulators keep their bits."""
    params = [drawn((6, width), seed) for _ in range(2)]
    tensor = Parameter(torch.tensor(params[0]))
    ours, theirs = (fastopt.Adagrad(param, lr=0.1, rowwise=True) for param in params)
    other = fastopt.torch.Adagrad([tensor], lr=0.1, rowwise=True)
    rows = np.array(indices, np.int64)
    for step in range(3):
        values = drawn((len(indices), width), [seed, step])
        whole = np.zeros((6, width), F32)
        for index, value in zip(indices, values, strict=True):
            whole[index] += value
        before = params[0].copy(), ours.state[0]["sum"].copy() if step else np.zeros((6, 1), F32)
        ours.step(SparseRows(rows, values) if step != 1 else whole)
        theirs.step(whole)
        tensor.grad = torch.sparse_coo_tensor(rows[None], torch.tensor(values), (6, width), check_invariants=True)
        other.step()
        untouched = np.setdiff1d(np.arange(6), rows)
        for now, then in zip((params[0], ours.state[0]["sum"]), before, strict=True):
            assert now[untouched].tobytes() == then[untouched].tobytes()
    assert params[0].tobytes() == params[1].tobytes() == tensor.detach().numpy().tobytes()
    assert ours.state[0]["sum"].tobytes() == theirs.state[0]["sum"].tobytes()


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_a_recommender_as_it_is_written_in_torch(weight_decay):
    """Row by row as torchrec's RowWiseAdagrad does it, in plain torch, over bags of an embedding."""
    torch.manual_seed(0)
    bags = torch.nn.EmbeddingBag(50, 16, sparse=weight_decay == 0, mode="sum")
    twin = copy.deepcopy(bags)
    total = torch.zeros(50, 1)
    optimizer = fastopt.torch.Adagrad(bags.parameters(), lr=0.05, eps=1e-8, weight_decay=weight_decay, rowwise=True)
    for _ in range(10):
        words, target = torch.randint(0, 50, (4, 6)), torch.randn(4, 16)
        for model in (bags, twin):
            model.zero_grad()
            (model(words) - target).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            g = twin.weight.grad.to_dense() + weight_decay * twin.weight
            total += g.square().mean(dim=1, keepdim=True)
            twin.weight.addcdiv_(g, total.sqrt() + 1e-8, value=-0.05)
    assert_close(bags.weight.detach().numpy(), twin.weight.detach().double().numpy(), 2 * TRAJECTORY)


def test_a_step_in_backward():
    """Each table has its gradient when backward comes to it, and no longer."""
    table = torch.nn.Embedding(9, 4, sparse=True)
    twin = copy.deepcopy(table)
    handle = fastopt.torch.step_in_backward(table, fastopt.torch.Adagrad, lr=0.1, rowwise=True)
    optimizer = fastopt.torch.Adagrad(twin.parameters(), lr=0.1, rowwise=True)
    for words in ([3, 5, 3], [8], [0, 3]):
        table(torch.tensor(words)).square().sum().backward()
        assert table.weight.grad is None
        optimizer.zero_grad()
        twin(torch.tensor(words)).square().sum().backward()
        optimizer.step()
    assert torch.equal(table.weight, twin.weight)
    handle.remove()


def test_of_one_axis_each_element_is_a_row():
    """It is AdaGrad as ever, and so beside a table."""
    given = {"table": drawn((6, 4), 0), "w": drawn(5, 1)}
    plain = given["w"].copy()
    opt, other = fastopt.Adagrad(given, lr=0.1, rowwise=True), fastopt.Adagrad(plain, lr=0.1)
    for step in range(STEPS):
        g = drawn(5, step + 2)
        opt.step({"table": SparseRows(np.array([1, 4]), np.ones((2, 4), F32)), "w": g})
        other.step(g)
    assert given["w"].tobytes() == plain.tobytes()
    assert opt.state["w"]["sum"].shape == (5,)
    assert opt.state["table"]["sum"].shape == (6, 1)
    assert opt.memory()["states"] == 4 * (6 + 5)
    averaged = fastopt.Adagrad(given, lr=0.1, rowwise=True, ema_decay=0.5)
    averaged.step({"table": np.ones((6, 4), F32), "w": np.ones(5, F32)})
    found = [array.nbytes for entry in averaged.state.values() for name, array in entry.items() if name != "step"]
    assert averaged.memory()["states"] == sum(found)


@pytest.mark.parametrize(
    "options",
    [
        {"max_grad_norm": 0.5},
        {"clip_grad_value": 0.25},
        {"max_grad_norm": 0.5, "clip_grad_value": 0.5, "ema_decay": 0.5},
    ],
)
def test_stages(options):
    """The accumulators get what the step uses: gradients that are clipped."""
    param = drawn((5, 7), 0)
    oracle = Oracle(param)
    opt = fastopt.Adagrad(param, lr=0.1, rowwise=True, **options)
    average = oracle.p.copy()
    for step in range(STEPS):
        g = drawn((5, 7), step + 1)
        opt.step(g)
        norm = np.linalg.norm(g.astype(np.float64))
        limit = options.get("clip_grad_value", np.inf)
        coefficient = min(1.0, options.get("max_grad_norm", np.inf) / (norm + 1e-6))
        oracle.step(np.clip(g.astype(np.float64), -limit, limit) * coefficient)
        average += 0.5 * (oracle.p - average)
        assert_close(param, oracle.p, TRAJECTORY)
        if "ema_decay" in options:
            assert_close(opt.state[0]["ema"], average, TRAJECTORY)


@pytest.mark.parametrize("grad", [torch.bfloat16, torch.float32])
def test_masters(grad):
    """The master of a bfloat16 table is what float32 gives, and decays as that does."""
    values = torch.tensor(drawn((6, 8), 0)).bfloat16()
    table, master = Parameter(values.clone()), Parameter(values.float())
    table.grad_dtype = None
    options = {"lr": 0.1, "weight_decay": 0.1, "rowwise": True}
    ours = fastopt.torch.Adagrad([table], master_weights=True, **options)
    theirs = fastopt.torch.Adagrad([master], **options)
    for step in range(STEPS):
        table.grad = torch.tensor(drawn((6, 8), step + 1)).to(grad)
        master.grad = table.grad.float()
        ours.step()
        theirs.step()
    assert torch.equal(ours.master_state_dict()[0], master.detach())
    assert torch.equal(ours.state[table]["sum"], theirs.state[master]["sum"])


def test_any_number_of_threads():
    before, found = pool.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            pool.set_num_threads(threads)
            param = drawn((4000, 64), 0)
            opt = fastopt.Adagrad(param, lr=0.1, rowwise=True)
            for step in range(2):
                opt.step(drawn((4000, 64), step + 1))
            found.append((param.tobytes(), opt.state[0]["sum"].tobytes()))
    finally:
        pool.set_num_threads(before)
    assert found == found[:1] * 3


def test_gradients_that_are_set_to_zero():
    """Those of tables after the step, others in it."""
    params = [drawn((5, 7), 0), drawn(3, 1)]
    grads = [drawn((5, 7), 2), drawn(3, 3)]
    oracle = Oracle(params[0])
    oracle.step(grads[0])
    fastopt.Adagrad(params, lr=0.1, rowwise=True).step(grads, zero_grads=True)
    assert_close(params[0], oracle.p, TRAJECTORY)
    assert not grads[0].any()
    assert not grads[1].any()


@pytest.mark.parametrize("zero_grads", [False, True])
def test_gradients_that_overlap_their_table(zero_grads):
    """Refused, also where what is read is a copy."""
    param = drawn((6, 4), 0)
    before = param.copy()
    opt = fastopt.Adagrad(param, lr=0.1, rowwise=True)
    with pytest.raises(ValueError, match="overlaps parameter 0 in memory"):
        opt.step(param[::-1], zero_grads=zero_grads)
    assert param.tobytes() == before.tobytes()


@pytest.mark.parametrize("axes", [0, 2])
def test_gradients_that_are_sparse_along_other_axes(axes):
    """Accumulators are those of rows; the advice works."""
    table, twin = (Parameter(torch.ones(3, 4)) for _ in range(2))
    opt = fastopt.torch.Adagrad([table], lr=0.1, rowwise=True)
    other = fastopt.torch.Adagrad([twin], lr=0.1, rowwise=True)
    g = torch.arange(12.0).reshape(3, 4)
    indices = torch.zeros((0, 1), dtype=torch.int64)
    table.grad = g.to_sparse(2) if axes else torch.sparse_coo_tensor(indices, g[None], g.shape, check_invariants=True)
    with pytest.raises(ValueError, match=r"the gradient of parameter 0 is sparse along .* assign \.to_dense\(\)"):
        opt.step()
    assert (table == 1).all()
    assert not opt.state[table]["sum"].any()
    table.grad = table.grad.to_dense().to_sparse(1)
    twin.grad = g
    opt.step()
    other.step()
    assert torch.equal(table, twin)


def test_gradients_in_another_order():
    param = drawn((5, 7), 0)
    oracle = Oracle(param)
    opt = fastopt.Adagrad(param, lr=0.1, rowwise=True)
    for step in range(2):
        g = np.asfortranarray(drawn((5, 7), step + 1))
        opt.step(g)
        oracle.step(g)
    assert_close(param, oracle.p, TRAJECTORY)


def test_a_checkpoint_goes_on():
    """Of arrays and tensors; whether states are of rows is the optimizer's own."""
    params = [drawn((5, 7), 0)]
    opt = fastopt.Adagrad(params, lr=0.1, rowwise=True)
    opt.step([drawn((5, 7), 1)])
    saved, there = opt.state_dict(), [params[0].copy()]
    other = fastopt.Adagrad(there, lr=0.5, rowwise=True)
    other.load_state_dict(saved)
    tensor = Parameter(torch.tensor(params[0]))
    third = fastopt.torch.Adagrad([tensor], lr=0.1, rowwise=True)
    third.load_state_dict(
        {**third.state_dict(), "state": {0: {k: torch.tensor(v) for k, v in saved["state"][0].items()}}}
    )
    opt.step([drawn((5, 7), 2)])
    other.step([drawn((5, 7), 2)])
    tensor.grad = torch.tensor(drawn((5, 7), 2))
    third.step()
    assert params[0].tobytes() == there[0].tobytes() == tensor.detach().numpy().tobytes()

    plain = fastopt.Adagrad([params[0].copy()], lr=0.1)
    with pytest.raises(ValueError, match=re.escape("has shape (5, 1)")):
        plain.load_state_dict(saved)
    plain.step([drawn((5, 7), 1)])
    with pytest.raises(ValueError, match=re.escape("has shape (5, 7), and needs (5, 1) to be rowwise")):
        other.load_state_dict(plain.state_dict())
    whole = fastopt.torch.Adagrad([tensor], lr=0.1)
    with pytest.raises(ValueError, match=re.escape("has shape (5, 7), and needs (5, 1)")):
        third.load_state_dict(whole.state_dict())


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_other_rules(name):
    """There is nothing that their rows could share."""
    for module, params in ((fastopt, [drawn((5, 7), 0)]), (fastopt.torch, [Parameter(torch.zeros(5, 7))])):
        with pytest.raises(ValueError, match="rowwise=True, of parameter 0, is for Adagrad alone"):
            getattr(module, name)(params, lr=0.1, rowwise=True)


TABLES = {
    "transposed": lambda: drawn((5, 7), 0).T,
    "in Fortran's order": lambda: np.asfortranarray(drawn((5, 7), 0)),
    "transposed tensor": lambda: Parameter(torch.zeros(5, 7).t()),
    "with gaps": lambda: Parameter(torch.zeros(5, 14)[:, ::2]),
    "complex": lambda: Parameter(torch.zeros(5, 7, dtype=torch.complex64)),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_without_plain_rows(kind):
    """And the way out: a group without."""
    table = TABLES[kind]()
    module = fastopt.torch if isinstance(table, torch.Tensor) else fastopt
    with pytest.raises(ValueError, match="parameter 0 is none: put it into a group with rowwise=False"):
        module.Adagrad([table], lr=0.1, rowwise=True)
    module.Adagrad([{"params": [table], "rowwise": False}], lr=0.1, rowwise=True)


def test_what_is_refused():
    opt = fastopt.Adagrad([drawn((5, 7), 0)], lr=0.1, rowwise=True)
    with pytest.raises(TypeError, match="the gradient of parameter 0 is updated by rows, and cannot be bound"):
        opt.bind([drawn((5, 7), 1)])
    with pytest.raises(ValueError, match=r"rowwise of group 0 is fixed.*rowwise=False, whose accumulators begin anew"):
        opt.param_groups[0]["rowwise"] = False
    with pytest.raises(ValueError, match="leave state_dtype out of the group"):
        fastopt.Adagrad([drawn((5, 7), 0)], rowwise=True, state_dtype="bfloat16")
    before = opt.state_dict()
    with pytest.raises(ValueError, match="shape"):
        opt.step([drawn((5, 8), 1)])
    assert opt.state_dict()["state"] == before["state"] == {}
