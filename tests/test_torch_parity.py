"""Trajectories against torch.optim in its plainest code: every configuration that torch tests, and the known bugs."""

import copy
import math

import numpy as np
import pytest
import torch
import torch_cases
from mpmath import mpf, sqrt
from sklearn.datasets import load_digits
from tolerances import HALF, TORCH, TORCH_TRAINING, TRAJECTORY, assert_close
from torch.nn import Parameter
from torch.optim import lr_scheduler, swa_utils
from torch_cases import FUSED, KINDS, NAMES, STATES, always, assert_near, assert_same, bits, late, now_and_then, train

import fastopt.torch as subject

STEPS = 30
SCHEDULED = 16  # steps with a scheduler
DB = torch_cases.optim_db()
FLAGS = [
    {"foreach": True},
    {"foreach": False},
    {"fused": True},
    {"fused": False},
    {"foreach": True, "fused": False},
    {"foreach": False, "fused": True},
]
CONFIGURATIONS = [(name, entry.kwargs) for name in NAMES for entry in DB[name].optim_inputs_func("cpu")]
EXTREMES = [
    ("SGD", {"lr": 0.0, "momentum": 0.9}),
    ("SGD", {"lr": 0.01, "momentum": 1.0, "dampening": 1.0}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "dampening": 1.5, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("SGD", {"lr": 0.05, "dampening": 0.5}),
    ("SGD", {"lr": 0.05, "weight_decay": torch.tensor(0.1), "momentum": 0.9}),
    ("Adagrad", {"lr": 0.1, "eps": 0.0, "lr_decay": 3.0}),
    ("Adagrad", {"lr": 0.1, "eps": 10.0, "initial_accumulator_value": 5.0, "maximize": True}),
    ("Adagrad", {"lr": torch.tensor([0.1], dtype=torch.float64), "lr_decay": 0.1}),
    ("RMSprop", {"lr": 0.01, "alpha": 0.5, "eps": 1.0, "momentum": 0.9, "centered": True, "maximize": True}),
    ("RMSprop", {"lr": 0.01, "alpha": 1.0, "eps": 1.0}),
    ("Adam", {"lr": 0.1, "betas": (0.0, 0.0), "eps": 1.0}),
    ("Adam", {"lr": torch.tensor(0.1, dtype=torch.float64), "betas": (0.999, 0.5), "amsgrad": True}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.5, "decoupled_weight_decay": True, "maximize": True}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.0, "eps": 0.1}),
]
BUGGY = torch.__version__.startswith("2.13")  # where the bugs were seen; elsewhere only our own behaviour is asserted


def assert_parity(name, dtype, given, **options):
    """Thirty steps agree with torch's."""
    mine, theirs, ours, others = torch_cases.pair(name, dtype, **options)
    train(ours, mine, STEPS, given=given)
    train(others, theirs, STEPS, given=given)
    assert_same(mine, theirs, ours, others, TORCH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS + EXTREMES)
def test_trajectories(name, options, dtype):
    """Parameters, states and counts, with gradients that miss now and then."""
    assert_parity(name, dtype, now_and_then, **options)


@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS + EXTREMES)
def test_foreach_and_fused_change_nothing(name, options):
    """They stand in the groups, as torch.optim has them, and all of them lead to the same bits."""
    ends = []
    for flags in ({}, *FLAGS):
        params = torch_cases.parameters()
        optimizer = torch_cases.make(name, params, **options, **flags)
        train(optimizer, params, 6, given=now_and_then)
        given = {key: flag for key, flag in flags.items() if key in optimizer.defaults}
        assert {key: optimizer.param_groups[0][key] for key in given} == given
        ends.append(bits([params, [torch_cases.states(optimizer, p) for p in params]]))
    assert all(end == ends[0] for end in ends)


@pytest.mark.parametrize("given", [always, late])
@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS + EXTREMES)
def test_gradients_that_come_always_or_late(name, options, given):
    """A parameter's count, and its first gradient's dampening, are its own."""
    assert_parity(name, torch.float64, given, **options)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS + EXTREMES)
def test_complex_parameters(name, options, dtype):
    """Complex numbers are pairs of real ones, AdaGrad's accumulator too."""
    assert_parity(name, dtype, now_and_then, **options)


@pytest.mark.parametrize("flags", [{}, *FLAGS[:3]], ids=str)
@pytest.mark.parametrize(("name", "options"), KINDS.values(), ids=KINDS)
def test_mixed_dtypes_in_one_optimizer(name, options, flags):
    """Float32, float64 and complex parameters side by side, each as if it were alone."""
    dtypes = [torch.float32, torch.float64, torch.complex64, torch.float32, torch.complex128]
    mine, theirs = ([torch_cases.parameters([(3, 4)], dtype)[0] for dtype in dtypes] for _ in range(2))
    ours, others = torch_cases.make(name, mine, **options, **flags), torch_cases.make(name, theirs, True, **options)
    train(ours, mine, STEPS, given=now_and_then)
    train(others, theirs, STEPS, given=now_and_then)
    assert_same(mine, theirs, ours, others, TORCH)


@pytest.mark.parametrize("kind", KINDS)
def test_non_finite_gradients_propagate(kind):
    """Infinity and NaN go where they go in torch; and to the same elements of the states."""
    name, options = KINDS[kind]
    mine, theirs, ours, others = torch_cases.pair(name, shapes=[(40,)], **options)
    for step in range(3):
        for p, optimizer in ((mine[0], ours), (theirs[0], others)):
            torch_cases.give([p], step)
            p.grad[7 * step + 3], p.grad[7 * step + 4], p.grad[7 * step + 5] = math.inf, -math.inf, math.nan
            optimizer.step()
    np.testing.assert_array_equal(mine[0].isnan(), theirs[0].isnan())
    np.testing.assert_array_equal(mine[0].isinf(), theirs[0].isinf())
    assert_near(mine[0].nan_to_num(0.0, 1.0, -1.0), theirs[0].nan_to_num(0.0, 1.0, -1.0), TORCH)
    for state in STATES[kind]:
        got, want = ours.state[mine[0]][state], others.state[theirs[0]][state]
        np.testing.assert_array_equal(got.isfinite(), want.isfinite())  # inf in a lerp is NaN a step later
        assert_near(got.nan_to_num(0.0, 0.0, 0.0), want.nan_to_num(0.0, 0.0, 0.0), TORCH)


# Half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS)
def test_half_precision_is_as_good_as_torchs(name, options, dtype):
    """The error against a float64 run with the same gradients is at most twice torch's, over several seeds."""
    errors = np.zeros(2)
    for seed in range(5):
        start = torch_cases.parameters([(300,), (7, 31)], dtype, seed)
        mine, theirs, exact = (
            [Parameter(p.detach().to(kind, copy=True)) for p in start] for kind in (dtype, dtype, torch.float64)
        )
        runs = [
            (mine, torch_cases.make(name, mine, **options)),
            (theirs, torch_cases.make(name, theirs, True, **options)),
            (exact, torch_cases.make(name, exact, True, **options)),
        ]
        for step in range(STEPS):
            grads = [torch_cases.gradient(p, 100 * step + i) for i, p in enumerate(start)]
            for params, optimizer in runs:
                for p, g in zip(params, grads, strict=True):
                    p.grad = g.to(p.dtype)
                optimizer.step()
        for i, params in enumerate((mine, theirs)):
            errors[i] += sum((p.double() - q).square().sum().item() for p, q in zip(params, exact, strict=True))
    assert math.isfinite(errors[0])
    assert math.isnan(errors[1]) or errors[0] <= HALF**2 * errors[1]  # NaN: bug 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "options"), KINDS.values(), ids=KINDS)
def test_half_precision_has_float32_state(name, options, dtype):
    """Parameters keep their dtype, sums of many small numbers need more; the counts are torch's."""
    params = torch_cases.parameters(dtype=dtype)
    optimizer = torch_cases.make(name, params, **options)
    train(optimizer, params, 3)
    assert {p.dtype for p in params} == {dtype}
    for p in params:
        for state, value in optimizer.state[p].items():
            assert value.dtype == (torch.float64 if state == "step" else torch.float32)


# Sparse gradients

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


@pytest.mark.parametrize("shape", [(8, 5), (8,), (8, 2, 3), (8, 0)], ids=str)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(("name", "options"), SPARSE)
def test_sparse_gradients(name, options, rows, shape):
    """Duplicates are summed before the update; coalesced or not is the same."""
    for dtype in (torch.float32, torch.float64):
        mine, theirs, ours, others = torch_cases.pair(name, dtype, [shape], **options)
        for step in range(4):
            mine[0].grad = sparse(rows, shape, step, coalesced=step % 2, dtype=dtype)
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
    """Without entries there is nothing to do, but the step counts, as in torch."""
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


# Schedulers


class EveryOther(lr_scheduler.LRScheduler):
    """A scheduler of a user's own, on torch's base class."""

    def get_lr(self):
        """Halve the rate at every other step."""
        return [base / (1 + self.last_epoch % 2) for base in self.base_lrs]


def momentum_cycles(optimizer):
    """Whether the optimizer has a momentum to be cycled, as Adam's first beta is."""
    group = optimizer.param_groups[0]
    return group.get("momentum", 0) > 0 or "betas" in group


SCHEDULERS = {
    "LRScheduler": EveryOther,
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 0.9**step),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda step: 0.95),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 4, 0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [3, 9], 0.3),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.2, 5),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 0.1, 0.8, 10),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.93),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.ConstantLR(opt, 0.1, 3), lr_scheduler.ExponentialLR(opt, 0.9)], [6]
    ),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 12, 0.001),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.1, 3), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=2),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, 5, cycle_momentum=momentum_cycles(opt)),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 4, 2),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.3, SCHEDULED + 1, cycle_momentum=momentum_cycles(opt)),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 12, 0.9),
    "SWALR": lambda opt: swa_utils.SWALR(opt, 0.01, anneal_epochs=7),
}


def advance(schedulers, metric):
    """Step schedulers; plateaus go by the metric."""
    for scheduler in schedulers:
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(metric)
        else:
            scheduler.step()


def assert_scheduled(name, options, makes):
    """Two groups, one with a rate of its own, follow the same schedulers; so do their momenta."""
    runs = []
    for plainest in (False, True):
        params = torch_cases.parameters(dtype=torch.float64)
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.02}]
        optimizer = torch_cases.make(name, groups, plainest, **options)
        schedulers = [make(optimizer) for make in makes]
        seen = []

        def after(step, seen=seen, schedulers=schedulers, optimizer=optimizer):
            advance(schedulers, max(5 - step, 1))
            seen.append([(float(g["lr"]), g.get("momentum"), g.get("betas")) for g in optimizer.param_groups])

        train(optimizer, params, SCHEDULED, given=now_and_then, scheduler=after)
        runs.append((params, optimizer, seen))
    (mine, ours, seen), (theirs, others, wanted) = runs
    assert seen == wanted
    assert_same(mine, theirs, ours, others, TORCH)


@pytest.mark.parametrize(("name", "options"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("scheduler", [*lr_scheduler.__all__, "SWALR"])
def test_every_scheduler_of_torch(scheduler, name, options):
    """The rates and momenta are torch's, and so is what they lead to; a new scheduler needs a case."""
    assert_scheduled(name, options, [SCHEDULERS[scheduler]])
    if name == "Adagrad":
        assert_scheduled(name, {**options, "lr": torch.tensor(0.1, dtype=torch.float64)}, [SCHEDULERS[scheduler]])


@pytest.mark.parametrize(
    ("name", "makes"),
    [(name, makes) for name in NAMES for makes in DB[name].scheduler_inputs],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} of them",  # functions have no names
)
def test_schedulers_that_torch_tests_together(name, makes):
    """Several schedulers on one optimizer."""
    assert_scheduled(name, {"lr": 0.1}, makes)


@pytest.mark.parametrize(("name", "options"), KINDS.values(), ids=KINDS)
def test_weight_averaging(name, options):
    """AveragedModel, SWALR and update_bn, over a model with batch normalisation.

    A bias ahead of that would have gradients of nothing but rounding errors, which Adam makes steps of.
    """
    batches = [torch_cases.gradient(torch.empty(16, 4), seed) for seed in range(6)]
    averages = []
    for plainest in (False, True):
        torch.manual_seed(5)
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 8, bias=False), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
        )
        optimizer = torch_cases.make(name, model.parameters(), plainest, **{**options, "lr": 0.01})
        average, scheduler = swa_utils.AveragedModel(model), swa_utils.SWALR(optimizer, 0.005, anneal_epochs=3)
        for batch in batches:
            optimizer.zero_grad()
            (model(batch) - 1).square().mean().backward()
            optimizer.step()
            average.update_parameters(model)
            scheduler.step()
        swa_utils.update_bn(batches, average)
        averages.append([*average.parameters(), *average.buffers()])
    for got, want in zip(*averages, strict=True):
        assert_near(got.float(), want.float(), TORCH)  # the counts of batches too


# Bad input

ONE = [Parameter(torch.ones(1, 1))]
REFUSED = {
    "SGD": [{"momentum": -1}, {"nesterov": True}, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}],
    "Adagrad": [{"eps": -1e-8}, {"initial_accumulator_value": -1.0}, {"lr_decay": -1}],
    "RMSprop": [{"eps": -1e-8}, {"alpha": -0.1}, {"momentum": -0.5}],
    "Adam": [{"eps": -1e-8}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}],
    "AdamW": [{"eps": -1e-8}, {"betas": (0.9, 1.0)}, {"decoupled_weight_decay": True}],
}


def has_tensors(options):
    """Whether options are tensors: of betas and rates ours say something else, which is tested below."""
    return any(isinstance(one, torch.Tensor) for value in options.values() for one in (value, *pair(value)))


def pair(value):
    """The two of a pair, or nothing."""
    return value if isinstance(value, tuple) else ()


ERRORS = [
    (name, entry.optimizer_error_input.params or ONE, entry.optimizer_error_input.kwargs)
    for name in NAMES
    for entry in DB[name].optim_error_inputs_func("cpu", torch.float32)
    if entry.error_type is not UserWarning and not has_tensors(entry.optimizer_error_input.kwargs)
] + [
    (name, params, options)
    for name in NAMES
    for params, options in [
        ([], {}),
        ([{"params": {ONE[0]}}], {}),
        ([1.0], {}),
        (["weight"], {}),
        ([ONE[0] * 2], {}),
        ([{"params": [ONE[0]]}, ONE[0]], {}),
        (ONE, {"lr": -1.0}),
        (ONE, {"weight_decay": -0.1}),
        *([(ONE, {"foreach": True, "fused": True})] if name in torch_cases.FUSED else []),
        (ONE, {"learning_rate": 0.9}),
        *((ONE, options) for options in REFUSED[name]),
    ]
]


@pytest.mark.parametrize("betas", [(0.9, torch.tensor(0.999)), (torch.tensor(0.9), 0.999), [torch.ones(2)] * 2])
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_betas_that_are_tensors_are_refused(name, betas):
    """By the constructor, in a group, and assigned, before anything changes; with what to write in their place."""
    with pytest.raises(TypeError, match=r"betas\[[01]\] is a tensor.*\.item\(\)"):
        getattr(subject, name)(ONE, betas=betas)
    with pytest.raises(TypeError, match=r"betas\[[01]\] is a tensor"):
        getattr(subject, name)([{"params": ONE, "betas": betas}])
    params = torch_cases.parameters()
    optimizer = getattr(subject, name)(params)
    train(optimizer, params, 2)
    torch_cases.give(params, 2)
    optimizer.param_groups[0]["betas"] = betas
    torch_cases.assert_refused(optimizer, optimizer.step, r"betas\[[01]\] is a tensor", TypeError)


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_that_is_a_tensor_goes_with_every_flag(name):
    """torch's Adam refuses it with foreach, which changes nothing here."""
    ends = []
    for lr in (0.1, torch.tensor(0.1, dtype=torch.float64)):
        params = torch_cases.parameters()
        train(getattr(subject, name)(params, lr=lr, foreach=True), params, 3)
        ends.append(bits(params))
    assert ends[0] == ends[1]


def error(act):
    """What an act raises: type and message."""
    with pytest.raises(torch_cases.REFUSAL) as caught:
        act()
    return caught.type, str(caught.value).replace("torch.optim.", "")


@pytest.mark.parametrize(("name", "params", "options"), ERRORS)
def test_constructors_refuse_as_torchs_do(name, params, options):
    """The same type and the same message, which may go on to say what to do."""
    type_of_theirs, wanted = error(lambda: getattr(torch.optim, name)(copy.copy(params), **options))
    type_of_ours, message = error(lambda: getattr(subject, name)(params, **options))
    assert type_of_ours is type_of_theirs
    assert message.startswith(wanted)


@pytest.mark.parametrize("name", NAMES)
def test_duplicate_parameters_in_a_group_are_refused(name):
    """torch warns that they will be an error; here they are, since elements are updated once in a step."""
    p = Parameter(torch.ones(1, 1))
    with (
        pytest.warns(UserWarning, match="a parameter group with duplicate parameters"),
        pytest.raises(ValueError, match="overlap"),
    ):
        getattr(subject, name)([p, p])


@pytest.mark.parametrize("option", ["differentiable", "capturable"])
@pytest.mark.parametrize("name", NAMES)
def test_options_that_are_not_had_are_refused(name, option):
    """No option is accepted and dropped, nor in a group: the error names it."""
    p, q = torch_cases.parameters([(2,), (3,)])
    with pytest.raises(ValueError, match=option):
        getattr(subject, name)([{"params": [p], option: True}])
    optimizer = getattr(subject, name)([p])
    torch_cases.assert_refused(
        optimizer, lambda: optimizer.add_param_group({"params": [q], option: True}), option, ValueError
    )


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, "differentiable") for name in NAMES] + [(name, "capturable") for name in ("RMSprop", "Adam", "AdamW")],
)
def test_flags_that_are_not_had_are_refused(name, option):
    """A step that autograd could follow is not had, nor one that must be told of graphs; False is what there is."""
    for options in ({option: True}, {option: True, "foreach": True}):
        with pytest.raises(ValueError, match=option):
            getattr(subject, name)(ONE, **options)
    getattr(subject, name)(ONE, **{option: False})


# A training run

TRAINED = {kind: KINDS[kind] for kind in ("momentum", "nesterov", "adagrad")}


def digits_losses(plainest, name, options):
    """Two epochs of a small convolutional network on scikit-learn's digits: the losses."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target)
    torch.manual_seed(11)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 10),
    )
    optimizer = torch_cases.make(name, model.parameters(), plainest, **{**options, "lr": 0.05})
    losses = []
    for epoch in range(2):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(64):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("name", "options"), TRAINED.values(), ids=TRAINED)
def test_a_training_run(name, options):
    """The loss curve is torch's, and falls."""
    losses = digits_losses(False, name, options)
    assert losses[-1] < 0.5 * losses[0]
    np.testing.assert_allclose(losses, digits_losses(True, name, options), rtol=TORCH_TRAINING, atol=TORCH_TRAINING)


# Bugs in torch.optim that fastopt must not have, each with torch's own behaviour beside ours


def test_bug_1_a_groups_initial_accumulator_value_counts():
    """torch's takes the constructor's for every group."""
    p = Parameter(torch.zeros(1))
    p.grad = torch.ones(1)
    optimizer = subject.Adagrad([{"params": [p], "initial_accumulator_value": 3.0}], lr=1.0, eps=0.0)
    assert optimizer.state[p]["sum"] == 3.0
    optimizer.step()
    assert p.item() == -0.5
    if BUGGY:
        theirs = torch.optim.Adagrad([{"params": [p], "initial_accumulator_value": 3.0}])
        assert theirs.state[p]["sum"] == 0.0


def skipped(optimizer, p):
    """The state after a first step that an overflow has skipped."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    p.grad = torch.full_like(p, math.inf)
    scaler.scale(torch.zeros(()))  # makes the scale
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    return torch_cases.states(optimizer, p)


def test_bug_2_a_skipped_first_step_leaves_no_state():
    """torch's fused SGD leaves a buffer uninitialised, and uses it next."""
    p = Parameter(torch.zeros(4))
    options = {"lr": 1.0, "momentum": 0.5, "dampening": 0.5, "fused": True}
    optimizer = subject.SGD([p], **options)
    assert "momentum_buffer" not in skipped(optimizer, p)
    p.grad = torch.ones(4)
    optimizer.step()
    assert (optimizer.state[p]["momentum_buffer"] == 1).all()
    if BUGGY:
        assert "momentum_buffer" in skipped(torch.optim.SGD([p], **options), p)


def test_bug_3_a_first_gradient_may_come_late():
    """torch's fused SGD raises TypeError."""

    def take(optimizer):
        p.grad, q.grad = torch.ones(2), None
        optimizer.step()
        q.grad = torch.ones(2)
        optimizer.step()

    p, q = (Parameter(torch.zeros(2)) for _ in range(2))
    take(subject.SGD([p, q], lr=1.0, momentum=0.5, fused=True))
    assert (p == -2.5).all()
    assert (q == -1).all()
    if BUGGY:
        with pytest.raises(TypeError, match="NoneType"):
            take(torch.optim.SGD([p, q], lr=1.0, momentum=0.5, fused=True))


@pytest.mark.parametrize("name", FUSED)
def test_bug_4_elements_pair_by_index_whatever_the_strides(name):
    """torch's fused CPU kernels pair them by storage order."""

    def update(make, turned):
        g = torch.arange(1.0, 36.0).reshape(5, 7)
        p = Parameter(torch.zeros(5, 7))
        p.grad = torch.empty(7, 5).t().copy_(g) if turned else g
        optimizer = make([p], lr=0.1, weight_decay=0.0, fused=True)
        optimizer.step()
        p.grad = g
        optimizer.step()
        return p.detach()

    assert bits(update(getattr(subject, name), True)) == bits(update(getattr(subject, name), False))
    if BUGGY:
        make = getattr(torch.optim, name)
        assert not torch.equal(update(make, True), update(make, False))


def test_bug_5_gradients_are_never_written():
    """torch's foreach Nesterov overwrites them where weight decay is 0."""

    def given(make):
        p = Parameter(torch.zeros(50))
        p.grad = g = torch.full((50,), 0.5)
        optimizer = make([p], lr=0.1, momentum=0.9, nesterov=True, foreach=True)
        for _ in range(3):
            optimizer.step()
        assert p.grad is g
        return g

    assert (given(subject.SGD) == 0.5).all()
    if BUGGY:
        assert not (given(torch.optim.SGD) == 0.5).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bug_6_no_element_of_half_precision_is_left_out(dtype):
    """torch's fused CPU SGD skips whole blocks of vectors (pytorch#191763)."""

    def update(make):
        p = Parameter(torch.zeros(1000, dtype=dtype))
        p.grad = torch.ones_like(p)
        make([p], lr=1.0, fused=True).step()
        return p.detach()

    assert (update(subject.SGD) == -1).all()
    if BUGGY and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert (update(torch.optim.SGD) == 0).any()


def ones_after_a_step(optim, name, gradient):
    """Ones of float16 after a step with gradients of this size."""
    p = Parameter(torch.ones(40, dtype=torch.float16))
    p.grad = torch.full_like(p, gradient)
    getattr(optim, name)([p], lr=2.0**-6, weight_decay=0.0, foreach=False).step()
    return p.detach()


@pytest.mark.parametrize("name", ["Adagrad", "RMSprop", "Adam", "AdamW"])
def test_bug_7_a_zero_gradient_of_float16_is_no_nan(name):
    """In torch's float16 accumulator eps is 0, and 0 / 0 follows."""
    assert (ones_after_a_step(subject, name, 0.0) == 1).all()
    if BUGGY:
        assert ones_after_a_step(torch.optim, name, 0.0).isnan().all()


@pytest.mark.parametrize(("name", "times"), [("RMSprop", 10), ("Adam", 1), ("AdamW", 1)])
def test_a_small_gradient_of_float16_is_no_infinity(name, times):
    """In torch's float16 its share in the average of the squares is 0, and eps is 0 as well: bug 7 again."""
    assert (ones_after_a_step(subject, name, 1e-3) == 1 - times * 2.0**-6).all()
    if BUGGY:
        assert ones_after_a_step(torch.optim, name, 1e-3).isinf().all()


def test_bug_8_loading_keeps_the_states_own_dtype():
    """torch's casts floating-point state to the parameter's dtype."""

    def loaded(make):
        p = Parameter(torch.ones(3, dtype=torch.bfloat16))
        p.grad = torch.ones_like(p)
        saved = subject.Adagrad([p]).state_dict()
        saved["state"][0]["sum"] = torch.full((3,), 1.0 + 2.0**-20)
        optimizer = make([p])
        optimizer.load_state_dict(saved)
        return optimizer.state[p]["sum"]

    assert bits(loaded(subject.Adagrad)) == bits(torch.full((3,), 1.0 + 2.0**-20))
    if BUGGY:
        assert loaded(torch.optim.Adagrad).dtype == torch.bfloat16


def far_on(optim, name, steps, dtype=torch.float32, **options):
    """A parameter that begins at 0, after steps beyond the 2**24 that torch has saved, and its state."""
    p = Parameter(torch.zeros(1, dtype=dtype))
    p.grad = torch.ones(1, dtype=dtype)
    theirs = getattr(torch.optim, name)([p], **{**options, "lr": 0.0})
    theirs.step()
    saved = theirs.state_dict()
    saved["param_groups"][0].update(options)
    saved["state"][0]["step"] = torch.tensor(2.0**24)
    optimizer = getattr(optim, name)([p])
    optimizer.load_state_dict(saved)
    for _ in range(steps):
        optimizer.step()
    return p.item(), optimizer.state[p]


@pytest.mark.parametrize("name", ["Adagrad", "RMSprop", "Adam", "AdamW"])
def test_bug_9_steps_count_past_the_integers_of_float32(name):
    """torch's float32 step stops at 2**24; one that was saved by torch goes on here."""
    assert far_on(subject, name, 3)[1]["step"] == 2**24 + 3
    if BUGGY:
        assert far_on(torch.optim, name, 3)[1]["step"] == 2**24


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_corrections_of_the_bias_go_on_with_the_count(name):
    """With betas so near to 1 that they are not over by 2**24; torch's stand still there, by bug 9."""
    betas, steps = (1 - 2.0**-25, 1 - 2.0**-26), 20
    m, v, want = mpf(1 - betas[0]), mpf(1 - betas[1]), mpf(0)  # after a step with a gradient of 1
    for step in range(2**24 + 1, 2**24 + 1 + steps):
        m, v = betas[0] * m + (1 - betas[0]), betas[1] * v + (1 - betas[1])
        want -= m / (1 - mpf(betas[0]) ** step) / sqrt(v / (1 - mpf(betas[1]) ** step))
    options = {"dtype": torch.float64, "lr": 1.0, "betas": betas, "eps": 0.0, "weight_decay": 0.0}
    assert_close(far_on(subject, name, steps, **options)[0], float(want), TRAJECTORY)
    if BUGGY:
        with pytest.raises(AssertionError):
            assert_close(far_on(torch.optim, name, steps, **options)[0], float(want), TRAJECTORY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_bug_10_a_gradient_that_stays_the_same_is_no_nan(momentum, dtype):
    """Its variance is 0, and where rounding makes it negative, torch's centered RMSprop takes the root all the same."""

    def train_on(optim):
        p = Parameter(torch.zeros(500, dtype=dtype))
        optimizer = optim.RMSprop([p], lr=0.01, eps=1.0, alpha=0.5, centered=True, momentum=momentum)
        p.grad = torch_cases.gradient(p, 1)
        for _ in range(100):
            optimizer.step()
        return p.detach()

    assert (train_on(subject).sign() == -torch_cases.gradient(torch.empty(500, dtype=dtype), 1).sign()).all()
    if BUGGY:
        assert train_on(torch.optim).isnan().any()


def test_bug_11_an_average_of_bfloat16_fades():
    """In torch's bfloat16, 0.999 times a number is that number."""

    def share(optim):
        p = Parameter(torch.zeros(5, dtype=torch.bfloat16))
        optimizer = optim.Adam([p], foreach=False)
        p.grad = torch.ones_like(p)
        optimizer.step()
        first = optimizer.state[p]["exp_avg_sq"].clone()
        p.grad = torch.zeros_like(p)
        for _ in range(1000):
            optimizer.step()
        return (optimizer.state[p]["exp_avg_sq"] / first).double()

    assert (share(subject) - 0.999**1000).abs().max() < 1e-3
    if BUGGY:
        assert (share(torch.optim) == 1).all()


@pytest.mark.parametrize(
    ("name", "option", "value", "state"),
    [
        ("RMSprop", "momentum", 0.9, "momentum_buffer"),
        ("RMSprop", "centered", True, "grad_avg"),
        ("Adam", "amsgrad", True, "max_exp_avg_sq"),
        ("AdamW", "amsgrad", True, "max_exp_avg_sq"),
    ],
)
def test_bug_12_what_needs_another_state_may_begin_later(name, option, value, state):
    """It begins with zeros; torch raises KeyError, and goes on where somebody puts them there."""
    mine, theirs, ours, others = torch_cases.pair(name, torch.float64)
    for params, optimizer in ((mine, ours), (theirs, others)):
        train(optimizer, params, 5)
        optimizer.param_groups[0][option] = value
    if BUGGY:
        with pytest.raises(KeyError, match=state):
            others.step()
    for q in theirs:
        others.state[q][state] = torch.zeros_like(q)
    for params, optimizer in ((mine, ours), (theirs, others)):
        train(optimizer, params, 5, start=5, given=now_and_then)
    assert_same(mine, theirs, ours, others, TORCH)
