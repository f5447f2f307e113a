"""Sparse gradients against torch.optim."""

import copy
import math

import pytest
import torch
import torch_cases
from pairs import swept, usually
from tolerances import TORCH
from torch_cases import advance, assert_same, bits, train

import fastopt
import fastopt.torch as subject
from fastopt.step.sparse import Given

STEPS = 30
DB = torch_cases.optim_db()
SPARSE = [
    ("SGD", DB["SGD"].metadata_for_sparse[0]),
    ("SGD", {"lr": 0.1, "maximize": True}),
    ("Adagrad", DB["Adagrad"].metadata_for_sparse[0]),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1, "eps": 1e-3, "maximize": True}),
]


def sparse(rows, shape, seed, coalesced=False, dims=1, dtype=torch.float32):
    """A sparse gradient with entries at some rows, or at elements on the diagonal of so many axes."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.tensor([rows] * dims, dtype=torch.int64).reshape(dims, len(rows))
    values = torch.randn((len(rows), *shape[dims:]), generator=generator, dtype=torch.float64).to(dtype)
    g = torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)
    return g.coalesce() if coalesced else g


ROWS = {
    "unique": [0, 2, 5],
    "unordered": [5, 0, 2],
    "duplicates": [3, 1, 3, 3, 0, 1],
    "all": list(range(8)),
    "one": [7],
    "none": [],
}


@swept(
    case=SPARSE,
    rows=ROWS,
    shape=[(8, 5), (8,), (8, 2, 3), (8, 0)],
)
def test_sparse_gradients(case, rows, shape):
    """Duplicates are summed before the update; coalesced or not is the same."""
    name, options = case
    for dtype in (torch.float32, torch.float64):
        mine, theirs, ours, others = torch_cases.pair(name, dtype, [shape], **options)
        for step in range(4):
            mine[0].grad = sparse(ROWS[rows], shape, step, coalesced=step % 2, dtype=dtype)
            theirs[0].grad = mine[0].grad.clone()
            before = bits(mine[0].grad)
            ours.step()
            others.step()
            assert bits(mine[0].grad) == before
        assert_same(mine, theirs, ours, others, TORCH)


@pytest.mark.parametrize(("name", "options"), SPARSE)
def test_sparse_gradients_of_single_elements(name, options):
    """Several sparse axes, as sparse_coo_tensor makes them."""
    mine, theirs, ours, others = torch_cases.pair(name, shapes=[(6, 7, 2)], **options)
    for step in range(10):
        mine[0].grad = sparse([4, 1, 4, 0], (6, 7, 2), step, dims=2)
        theirs[0].grad = mine[0].grad.clone()
        ours.step()
        others.step()
    assert_same(mine, theirs, ours, others, TORCH)


@pytest.mark.parametrize(("name", "options"), SPARSE)
def test_untouched_rows_stay_as_they_are(name, options):
    """To the bit, whatever is in them."""
    p = torch_cases.parameters([(8, 5)])[0]
    with torch.no_grad():
        p[1], p[4], p[6] = -0.0, math.nan, 1e-42
    optimizer = torch_cases.make(name, [p], **options)
    before = bits([p[[1, 3, 4, 6]], [s[[1, 3, 4, 6]] for s in [optimizer.state[p].get("sum", p)]]])
    for step in range(3):
        p.grad = sparse([0, 2, 5, 2, 7], (8, 5), step)
        optimizer.step()
    assert bits([p[[1, 3, 4, 6]], [s[[1, 3, 4, 6]] for s in [optimizer.state[p].get("sum", p)]]]) == before


def test_a_zero_in_a_sparse_gradient_touches_nothing_but_counts():
    """Without entries nothing changes, but the step counts, as in torch."""
    p = torch_cases.parameters([(8, 5)])[0]
    optimizer = subject.Adagrad([p], lr=0.1)
    before = bits([p, optimizer.state[p]["sum"]])
    p.grad = sparse([], (8, 5), 0)
    optimizer.step()
    assert bits([p, optimizer.state[p]["sum"]]) == before
    assert optimizer.state[p]["step"] == 1


class Bag(torch.nn.Module):
    """Sparse and dense parameters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embedding = torch.nn.Embedding(20, 6, sparse=True)
        self.linear = torch.nn.Linear(6, 1)

    def loss(self, seed):
        """A loss in which some of the words occur several times."""
        words = torch.randint(0, 12, (9,), generator=torch.Generator().manual_seed(seed))
        return self.linear(torch.tanh(self.embedding(words))).square().sum()


@pytest.mark.parametrize(("name", "options"), SPARSE)
def test_an_embedding_beside_a_dense_layer(name, options):
    """Sparse and dense gradients in one group, from backward, with the schedulers that torch tests it with."""
    runs = []
    for plainest in (False, True):
        model = Bag()
        optimizer = torch_cases.make(name, model.parameters(), plainest, **options)
        schedulers = [make(optimizer) for make in DB[name].metadata_for_sparse[1]]
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = model.loss(step)
            (-loss if options.get("maximize") else loss).backward()
            assert model.embedding.weight.grad.is_sparse
            optimizer.step()
            advance(schedulers, loss.item())
        runs.append((list(model.parameters()), optimizer))
    (mine, ours), (theirs, others) = runs
    assert_same(mine, theirs, ours, others, TORCH)


@pytest.mark.parametrize(("name", "options"), SPARSE)
def test_rows_for_which_there_is_no_memory(name, options, monkeypatch):
    """The step changes nothing then, neither dense parameters nor rows of others; the next one does."""
    params = torch_cases.parameters([(6,), (8, 5), (8, 5)])
    optimizer = torch_cases.make(name, params, **options)
    for p, g in zip(params, (torch.ones(6), sparse([3, 1], (8, 5), 0), sparse([0, 2, 3], (8, 5), 1)), strict=True):
        p.grad = g
    optimizer.step()

    cut = Given.cut

    def cut_two(given, copies=False):
        if len(given.keys) == 3:
            raise MemoryError("there is none")
        return cut(given, copies)

    with monkeypatch.context() as patch:
        patch.setattr(Given, "cut", cut_two)
        torch_cases.assert_refused(optimizer, optimizer.step, "there is none", MemoryError)
    before = [bits(p) for p in params]
    optimizer.step()
    assert all(bits(p) != old for p, old in zip(params, before, strict=True))


def test_a_parameter_with_sparse_and_dense_gradients_in_turn():
    """A parameter may have either from one step to the next."""
    for name, options in SPARSE:
        mine, theirs, ours, others = torch_cases.pair(name, shapes=[(8, 5)], **options)
        for step in range(10):
            g = sparse([3, 1, 3], (8, 5), step)
            mine[0].grad, theirs[0].grad = (g, g.clone()) if step % 3 else (g.to_dense(), g.to_dense())
            ours.step()
            others.step()
        assert_same(mine, theirs, ours, others, TORCH)


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("SGD", {"momentum": 0.9}, "momentum"),
        ("SGD", {"weight_decay": 0.1}, "weight.decay"),
        ("Adagrad", {"weight_decay": 0.1}, "weight.decay"),
    ],
)
def test_what_sparse_gradients_cannot_be_combined_with(name, options, word):
    """Weight decay and momentum would touch every row; nothing has changed, not even a dense parameter before it."""
    dense, p = torch_cases.parameters([(3,), (8, 5)])
    optimizer = torch_cases.make(name, [dense, p], lr=0.1, **options)
    dense.grad, p.grad = torch.ones(3), sparse([3, 1], (8, 5), 0)
    torch_cases.assert_refused(optimizer, optimizer.step, rf"(?s)(?i)(?=.*{word})(?=.*sparse)(?=.*\b1\b)")


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["RMSprop", "Adam", "AdamW"])
def test_sparse_gradients_are_refused_where_torch_refuses_them(name, scaled):
    """With torch's type of error; nothing has changed, neither a dense parameter before it nor a count."""
    dense, p = torch_cases.parameters([(3,), (8, 5)])
    optimizer = torch_cases.make(name, [dense, p])
    train(optimizer, [dense, p], 2)
    dense.grad, p.grad = torch.ones(3), sparse([3, 1], (8, 5), 0)
    if scaled:
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    torch_cases.assert_refused(optimizer, optimizer.step, r"(?s)(?=.*\b1\b)(?=.*sparse)", RuntimeError)
    train(optimizer, [dense, p], 1, start=2)
    theirs = torch_cases.make(name, [p], plainest=True)
    p.grad = sparse([3, 1], (8, 5), 0)
    with pytest.raises(RuntimeError, match="sparse"):
        theirs.step()


LAZY = [("SGD", {"momentum": 0.9, "weight_decay": 0.1}), ("RMSprop", {}), ("AdamW", {}), ("Lion", {})]


@pytest.mark.parametrize(("name", "options"), usually(LAZY[:1], LAZY))
def test_lazy_updates(name, options):
    """Rules that move every row leave those alone that have no gradient, with the bits of arrays' updates."""
    param = torch.nn.Parameter(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    table, start = param.detach().numpy().copy(), param.detach().clone()
    ours = getattr(subject, name)([param], lr=0.01, lazy_update=True, **options)
    arrays = getattr(fastopt, name)(table, lr=0.01, lazy_update=True, **options)
    for step in range(3):
        g = sparse([7, 3, 7, 12], (50, 4), step)
        param.grad = g
        ours.step()
        arrays.step(fastopt.SparseRows(g._indices()[0].numpy(), g._values().numpy()))
    assert (param.detach().numpy() == table).all()
    assert (param != start).any(1).nonzero().ravel().tolist() == [3, 7, 12]
    state = ours.state_dict()
    ours.load_state_dict(state)
    assert state["param_groups"][0]["lazy_update"] is True
    param.grad = sparse([1], (50, 4), 9)
    ours.step()  # still lazily


def test_autograd_sees_what_rows_change():
    """A graph that has saved the table cannot be walked back after the step; states have counters, too."""
    param = torch.nn.Parameter(torch.ones(6, 3))
    optimizer = subject.Adagrad([param], lr=0.1)
    loss = (param * param).sum()
    before = param._version
    param.grad = sparse([1, 4], (6, 3), 0)
    optimizer.step()
    assert param._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_indices_that_a_parameter_does_not_have():
    """Which torch does not check when it makes such a gradient; nothing changes then."""
    for indices in ([[0, 6]], [[0, -1]], [[0, 1], [0, 3]]):
        param = torch.nn.Parameter(torch.ones(6, 3))
        optimizer = subject.SGD([param], lr=0.1)
        values = torch.ones(2, *param.shape[len(indices) :])
        param.grad = torch.sparse_coo_tensor(indices, values, (6, 3), check_invariants=False)
        torch_cases.assert_refused(
            optimizer, optimizer.step, r"has an index (-1: indices are rows|6, the table has 6)", ValueError
        )


@pytest.mark.exhaustive  # compiles three kernels with codes
def test_states_in_8_bits():
    """Where each row has blocks of its own, rows are those of the whole gradient; narrower ones are refused."""
    params = [torch.nn.Parameter(torch.ones(100, 64)) for _ in range(2)]
    ours, whole = (subject.Adagrad([p], lr=0.1, state_dtype="int8", stochastic_rounding=False) for p in params)
    for step in range(3):
        g = sparse([7, 3, 7, 12], (100, 64), step)
        params[0].grad, params[1].grad = g, g.to_dense()
        ours.step()
        whole.step()
    assert torch.equal(*params)
    assert torch.equal(ours.state[params[0]]["sum"], whole.state[params[1]]["sum"])
    param = torch.nn.Parameter(torch.ones(2000, 8))
    narrow = subject.Adagrad([param], lr=0.1, state_dtype="int8")
    param.grad = sparse([1], (2000, 8), 0)
    torch_cases.assert_refused(narrow, narrow.step, "blocks of 64", ValueError)


@pytest.mark.parametrize("options", [{"lr": 0.1}, {"lr": 0.01, "betas": (0.5, 0.9), "eps": 0.1, "maximize": True}])
def test_sparse_adam(options):
    """torch's formula, whose eps is added to a root that is not corrected, in state dicts that go both ways."""
    params = [torch.nn.Parameter(torch.ones(50, 4)) for _ in range(2)]
    ours, theirs = subject.SparseAdam(params[:1], **options), torch.optim.SparseAdam(params[1:], **options)
    for step in range(STEPS):
        for param, optimizer in zip(params, (ours, theirs), strict=True):
            param.grad = sparse([1, 7, 1, 10 + step], (50, 4), step)
            optimizer.step()
        if step == STEPS // 2:
            saved = copy.deepcopy(theirs.state_dict())
            assert ours.state_dict()["param_groups"] == saved["param_groups"]
            assert ours.state_dict()["state"][0].keys() == saved["state"][0].keys()
            theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
            ours.load_state_dict(saved)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(params[0], params[1], rtol=0, atol=TORCH * eps * params[1].abs().max().item())
    params[0].grad = torch.ones(50, 4)
    torch_cases.assert_refused(ours, ours.step, "parameter 0 is dense.*lazy_update=True", RuntimeError)
