"""The fast path: what a step checks and repeats, what it holds, what it reads in one call, and what it frees."""

import copy
import gc
import inspect
import os
import subprocess
import sys
import textwrap
import tracemalloc
import weakref
from pathlib import Path

import pytest
import torch
import torch_cases
from compilation import Recorder
from fastopt.kernels import cpu
from fastopt.kernels.tensors import ASSIGNED, OUT_OF_DATE, REPEATED
from numba.core import event
from pairs import swept, usually
from tolerances import TORCH
from torch.nn import Parameter
from torch_cases import KINDS, STATES, bits, give, states, usual

import fastopt
import fastopt.torch as subject
from fastopt.backends.torch import stepper as steppers
from fastopt.step.plan import Plan

ALL = pytest.mark.parametrize("kind", KINDS)
DEADLOCK = 60
STATE = {kind: states[-1] for kind, states in STATES.items() if states}
STATEFUL = pytest.mark.parametrize("kind", ["momentum", "adagrad", "adamw_amsgrad"])
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]


@pytest.fixture(params=["in one call", "one by one"])
def _readers(request, monkeypatch):
    """With torch's table of functions, and without it."""
    if request.param == "one by one":
        monkeypatch.setattr(steppers, "TABLE", 0)


both_readers = pytest.mark.usefixtures("_readers")


def victim(kind="momentum", steps=3, shapes=torch_cases.SHAPES, dtype=torch.float32):
    """Parameters and an optimizer that has taken steps, and whose next step has gradients."""
    name, options = KINDS[kind]
    params = torch_cases.parameters(shapes, dtype)
    optimizer = torch_cases.make(name, params, **options)
    torch_cases.train(optimizer, params, steps)
    give(params, steps)
    return params, optimizer


# Without the table of functions, and without the extension


def train_beside_torch(name, options, dtype):
    """Late gradients, other memory and states, state dicts: as torch.optim; and refusals as ever."""
    mine, theirs, ours, others = torch_cases.pair(name, dtype, **options)
    both = [(mine, ours), (theirs, others)]
    names = fastopt.rules.FAMILIES[name].states
    state = names[len(names) // 2]

    def go_on(steps, start, given=torch_cases.always):
        for params, optimizer in both:
            torch_cases.train(optimizer, params, steps, start=start, given=given)
        torch_cases.assert_same(mine, theirs, ours, others, TORCH)

    go_on(8, 0, torch_cases.late)
    go_on(4, 8, torch_cases.now_and_then)
    go_on(3, 12)
    for params, _ in both:
        params[0].data = torch.full_like(params[0], 0.5)
    go_on(2, 15)
    for params, optimizer in both:
        if optimizer.state[params[2]].get(state) is not None:
            optimizer.state[params[2]][state] = torch.full_like(params[2], 0.25).detach()
        optimizer.param_groups[0]["lr"] = 0.01
    go_on(2, 17)
    for params, optimizer in both:
        taken = optimizer.param_groups[0]["params"].pop(1)
        torch_cases.give(params, 19)
        optimizer.step()
        optimizer.param_groups[0]["params"].insert(1, taken)
    go_on(2, 20)
    ours.load_state_dict(others.state_dict())
    others.load_state_dict(copy.deepcopy(ours.state_dict()))  # torch shares them
    go_on(2, 22)

    torch_cases.give(mine, 24)
    mine[2].grad.data = mine[2].detach()
    torch_cases.assert_refused(ours, ours.step, "gradient of parameter 2 overlaps")
    go_on(2, 25)


def train_in_backward():
    """The same as by steps."""
    model = torch.nn.Linear(3, 2)
    twin = copy.deepcopy(model)
    subject.step_in_backward(model, subject.Adagrad, lr=0.1)
    ordinary = subject.Adagrad(twin.parameters(), lr=0.1)
    for _ in range(3):
        for each in (model, twin):
            each(torch.ones(2, 3)).square().sum().backward()
        ordinary.step()
        ordinary.zero_grad()
    assert torch.equal(model.weight, twin.weight)
    assert model.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@ALL
def test_training_without_the_table(kind, dtype, monkeypatch):
    """A torch that does not publish it: tensors are read one by one."""
    assert steppers.TABLE
    monkeypatch.setattr(steppers, "TABLE", 0)
    train_beside_torch(*KINDS[kind], dtype)
    train_in_backward()


WITHOUT_EXTENSION = """
    import sys
    sys.modules["fastopt.kernels._pool"] = None
    import copy, torch, torch_cases, fastopt, fastopt.torch as subject
    from fastopt.kernels import extension
    from fastopt.backends.torch import stepper, threads
    from tolerances import TORCH
    assert extension.lib is None and stepper.TABLE == 0 and threads.THREADS.parallel == 0

    FUNCTIONS

    for name, options in torch_cases.KINDS.values():
        train_beside_torch(name, options, torch.float32)
    train_in_backward()
    print("passed")
"""


@pytest.mark.exhaustive  # a process that compiles without the extension
def test_training_without_the_extension(tmp_path):
    """Where it was not built there is no table, no pool and no team."""
    functions = "\n".join(map(inspect.getsource, (train_beside_torch, train_in_backward)))
    command = [sys.executable, "-c", textwrap.dedent(WITHOUT_EXTENSION).replace("FUNCTIONS", functions)]
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        command, cwd=tmp_path, env=where, capture_output=True, text=True, timeout=DEADLOCK, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "passed\n", "")


# What is noticed


def assign(values):
    """A change of a parameter: other data, made from what it is."""

    def act(params, optimizer):
        params[0].data = values(params[0].detach())

    return act


def on_group(act):
    """A change of the group."""
    return lambda params, optimizer: act(optimizer.param_groups[0])


def put_group(make):
    """Another group that replaces the group."""
    return lambda params, optimizer: optimizer.param_groups.__setitem__(0, make(optimizer.param_groups[0]))


NOTICED = {
    "one out": on_group(lambda group: group["params"].pop()),
    "one in": on_group(lambda group: group["params"].append(Parameter(torch.ones(1)))),
    "other order": on_group(lambda group: group["params"].reverse()),
    "another parameter": on_group(lambda group: group["params"].__setitem__(0, Parameter(torch.ones(4, 3)))),
    "an equal list": on_group(lambda group: group.update(params=list(group["params"]))),
    "a tuple": on_group(lambda group: group.update(params=tuple(group["params"]))),
    "an equal group": put_group(dict),
    "a group's alias": lambda params, optimizer: optimizer.param_groups.append({"params": []}),
    "data": assign(torch.clone),
    "strides": assign(lambda p: p.as_strided((4, 3), (1, 4))),
    "axes": assign(lambda p: p.reshape(3, 4)),
    "length": assign(lambda p: p[:3]),
    "number of axes": assign(lambda p: p.reshape(2, 2, 3)),
    "a scalar": assign(lambda p: p[0, 0]),
    "type of half the size": assign(lambda p: p.view(torch.bfloat16)[:, :3]),
    "complex": assign(lambda p: p.reshape(12).view(torch.complex64)),
    "shared": lambda params, optimizer: params[0].share_memory_(),
}


@both_readers
@pytest.mark.parametrize("change", NOTICED)
@pytest.mark.parametrize("kind", ["sgd", "adagrad"])
def test_changes_of_parameters_are_noticed(kind, change):
    """The lists, the objects in them, and where and how these lie."""
    params, optimizer = victim(kind)
    stepper = optimizer._stepper
    assert stepper.read() >= 0
    NOTICED[change](params, optimizer)
    assert stepper.read() == OUT_OF_DATE


@both_readers
def test_other_groups_and_states_altogether():
    """Equal objects that replace them are other ones."""
    for name, make in (("param_groups", list), ("state", copy.copy)):
        _, optimizer = victim()
        before = optimizer._stepper
        setattr(optimizer, name, make(getattr(optimizer, name)))
        optimizer.step()
        assert optimizer._stepper is not before


def with_state(act):
    """A change of one parameter's state and its tensor's name."""
    return lambda params, optimizer, name: act(optimizer.state[params[2]], name)


def equal_state(params, optimizer, name):
    """Another dict for one parameter, with the same in it."""
    optimizer.state[params[2]] = dict(optimizer.state[params[2]])


NOTICED_STATES = {
    "replaced": with_state(lambda state, name: state.update({name: state[name].clone()})),
    "an equal view": with_state(lambda state, name: state.update({name: state[name].view(17)})),
    "removed": with_state(lambda state, name: state.pop(name)),
    "None": with_state(lambda state, name: state.update({name: None})),
    "added": with_state(lambda state, name: state.update(more=torch.ones(17))),
    "renamed": with_state(lambda state, name: state.update({f"other {name}": state.pop(name)})),
    "other order": with_state(lambda state, name: state.update({"first": 1, name: state.pop(name)})),
    "data": with_state(lambda state, name: setattr(state[name], "data", state[name].clone())),
    "strides": with_state(lambda state, name: setattr(state[name], "data", torch.ones(34)[::2])),
    "shared": with_state(lambda state, name: state[name].share_memory_()),
    "an equal dict": equal_state,
    "a parameter's removed": lambda params, optimizer, name: optimizer.state.pop(params[2]),
    "a parameter's added": lambda params, optimizer, name: optimizer.state.update({Parameter(torch.ones(1)): {}}),
    "cleared": lambda params, optimizer, name: optimizer.state.clear(),
}
NOTICED_COUNTS = {
    "replaced": with_state(lambda state, name: state.update(step=state["step"].clone())),
    "a number": with_state(lambda state, name: state.update(step=3)),
    "data": with_state(lambda state, name: setattr(state["step"], "data", state["step"].clone())),
    "another count": with_state(lambda state, name: state["step"].add_(1)),
    "shared": with_state(lambda state, name: state["step"].share_memory_()),
}
CHANGES = [(kind, change) for kind in ("momentum", "adagrad", "adamw_amsgrad") for change in NOTICED_STATES.values()]
CHANGES += [(kind, change) for kind in ("adagrad", "adamw_amsgrad") for change in NOTICED_COUNTS.values()]


@both_readers
@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_changes_of_states_are_noticed(kind, change):
    """The dicts, the objects in them, where and how these lie, and the counts' values."""
    params, optimizer = victim(kind)
    stepper = optimizer._stepper
    assert stepper.read() >= 0
    change(params, optimizer, STATE[kind])
    assert stepper.read() == OUT_OF_DATE


@both_readers
@swept(1, ids=str, kind=KINDS, change=[{"lr": 0.2}, {"foreach": True}, {"of yours": 3}])
def test_assigned_options_are_noticed_as_such(kind, change):
    """They are checked, and the stepper stays."""
    _, optimizer = victim(kind)
    stepper = optimizer._stepper
    optimizer.param_groups[0].update(change)
    assert stepper.read() == ASSIGNED
    optimizer.step()
    assert optimizer._stepper is stepper
    assert stepper.read() >= 0


# Unchanged objects are not checked again


def strided_parameter(shape, dtype):
    """Every second column of a larger memory."""
    return torch.ones(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2]


FORMS = {
    "contiguous": lambda dtype: torch.ones(4, 3, 2, 5, dtype=dtype),
    "channels last": lambda dtype: torch.ones(4, 3, 2, 5, dtype=dtype).contiguous(memory_format=torch.channels_last),
    "transposed": lambda dtype: torch.ones(5, 4, dtype=dtype).T,
    "many elements": lambda dtype: torch.ones(9_000, dtype=dtype),
    "axes of one": lambda dtype: torch.ones(1, 3, 1, 2, 1, dtype=dtype),
    "one element": lambda dtype: torch.ones(1, dtype=dtype),
    "no axes": lambda dtype: torch.ones((), dtype=dtype),
    "empty": lambda dtype: torch.ones(0, dtype=dtype),
    "empty matrix": lambda dtype: torch.ones(3, 0, dtype=dtype),
    "gaps": lambda dtype: strided_parameter((4, 3), dtype),
    "part of a row": lambda dtype: torch.ones(9, dtype=dtype)[2:7],
}


@both_readers
@swept(1, ids=str, usual=usual, kind=KINDS, dtype=DTYPES)
def test_the_same_stepper_over_many_steps(kind, dtype):
    """Whatever the parameters, and however often gradients are new, from backward or not, or missing."""
    name, options = KINDS[kind]
    params = [Parameter(form(dtype)) for form in FORMS.values()]
    optimizer = torch_cases.make(name, params, **options)
    kept = set()
    for step in range(12):
        for i, p in enumerate(params):
            if step % 3 == 0:
                p.grad = torch.full_like(p, 0.5)
            elif step % 3 == 1:
                p.grad = None
                (p * p).sum().abs().backward()
            elif step == 8 and i % 2:
                p.grad = None
        optimizer.step()
        if step >= 2:
            kept.add(optimizer._stepper)
        if step == 6:
            optimizer.state_dict()
            optimizer.zero_grad(set_to_none=False)
        if step == 7:
            optimizer.param_groups[0]["lr"] = 0.05
    assert len(kept) == 1


@swept(
    1,
    ids=str,
    usual=usual,
    kind=KINDS,
    dtype=DTYPES[:4],
    form=["contiguous", "channels last", "transposed", "many elements", "part of a row"],
)
def test_gradients_of_backward_are_read_in_one_call(kind, dtype, form, monkeypatch):
    """Those in their parameters' layout are not left to Python, and a step with only these repeats the last one."""
    name, options = KINDS[kind]
    params = [Parameter(FORMS[form](dtype)) for _ in range(3)]
    optimizer = torch_cases.make(name, params, **{**options, **({"lr_decay": 0.0} if name == "Adagrad" else {})})
    taken = []
    take = steppers.TorchStepper.take
    monkeypatch.setattr(steppers.TorchStepper, "take", lambda *arguments: (taken.append(1), take(*arguments)))
    for i in range(8):
        sum((p * p).sum() for p in params).backward()
        if i >= 3:
            assert optimizer._stepper.watch.read() == 0
            optimizer._stepper.watch.release()
            taken.clear()
        optimizer.step()
        assert i < 3 or not taken
        optimizer.zero_grad()


# Gradients that Python must check


class Marked(torch.Tensor):
    """A subclass that does nothing of its own."""


class Wrapper(torch.Tensor):
    """A tensor whose memory is that of another one."""

    @staticmethod
    def __new__(cls, inner):
        """Look like the inner tensor."""
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, strides=inner.stride())

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        """Do nothing that a step may ask for."""
        raise AssertionError(f"{function} was called")


def negated(shape):
    """A view that says it is to be negated, whose memory holds the opposite."""
    view = torch.complex(torch.zeros(shape), torch.full(shape, 3.0)).conj().imag
    assert view.is_neg()
    return view


LAZY = {
    "negated, no axes": lambda: negated(()),
    "negated, one element": lambda: negated((1,)),
    "negated, one element of several axes": lambda: negated((1, 1)),
    "negated": lambda: negated((5,)),
    "conjugate": lambda: (torch.ones(5) + 2j * torch.ones(5)).conj(),
    "conjugate of one": lambda: torch.tensor([1 + 2j]).conj(),
    "conjugate without axes": lambda: torch.tensor(1 + 2j).conj(),
    "conjugate, negated": lambda: torch.view_as_complex(torch.ones(5, 2)).conj()._neg_view(),
    "a parameter": lambda: Parameter(torch.full((5,), 2.0)),
    "a subclass": lambda: torch.full((5,), 2.0).as_subclass(Marked),
    "expanded": lambda: torch.full((1,), 2.0).expand(5),
}


@both_readers
@swept(1, kind=KINDS, lazy=LAZY)
def test_gradients_that_are_not_what_lies_in_memory(kind, lazy):
    """At the first step, and after steps that would repeat: their values count, and they stay as they are."""
    name, options = KINDS[kind]
    runs = []
    for resolved in (False, True):
        g = LAZY[lazy]()
        p = Parameter(torch.ones(g.shape, dtype=g.dtype))
        optimizer = torch_cases.make(name, [p], **options)
        for step in range(8):
            plain = g.detach().resolve_conj().resolve_neg().clone().as_subclass(torch.Tensor)
            p.grad = plain if resolved or 1 < step < 5 else g
            optimizer.step()
            assert p.grad is (plain if resolved or 1 < step < 5 else g)
        runs.append([p.detach(), *(s for s in states(optimizer, p).values())])
    assert bits(runs[0]) == bits(runs[1])


REFUSED = {
    "a wrapper": (lambda p: Wrapper(torch.ones(p.shape)), TypeError),
    "the parameter": (lambda p: p.detach(), ValueError),
    "a state": (lambda p: None, ValueError),
    "dtype": (lambda p: torch.ones(p.shape, dtype=torch.float64), TypeError),
    "integers": (lambda p: torch.ones(p.shape, dtype=torch.int32), TypeError),
    "shape": (lambda p: torch.ones(p.numel() + 1), ValueError),
    "axes": (lambda p: torch.ones(p.numel(), 1), ValueError),
    "memory that was given back": (lambda p: given_back(torch.ones(p.shape)), (RuntimeError, ValueError)),
}


def given_back(tensor):
    """A tensor whose storage has no memory any more."""
    tensor.untyped_storage().resize_(0)
    return tensor


@both_readers
@pytest.mark.parametrize("bad", REFUSED)
@STATEFUL
def test_gradients_that_are_refused_in_the_place_of_one_that_was_read(kind, bad):
    """After steps that repeat, too: an error, and nothing is changed; the step after it is as if it had not been."""
    (params, optimizer), (twins, twin) = victim(kind, steps=5), victim(kind, steps=5)
    make, error = REFUSED[bad]
    g = make(params[2]) if bad != "a state" else optimizer.state[params[2]][STATE[kind]].detach()
    kept = params[2].grad
    if bad == "a wrapper":
        params[2].grad = g
    else:
        params[2].grad = torch.zeros(17)
        params[2].grad.data = g
    before = [bits(params[:2]), bits(params[2].detach()), bits([states(optimizer, p) for p in params])]
    with pytest.raises(error):
        optimizer.step()
    assert [bits(params[:2]), bits(params[2].detach()), bits([states(optimizer, p) for p in params])] == before
    params[2].grad = kept
    for each in (optimizer, twin):
        each.step()
        each.step()
    assert bits(params) == bits(twins)


@pytest.mark.parametrize("what", ["parameter", "state"])
def test_memory_that_was_given_back_is_refused(what):
    """Where a storage was emptied there is nothing to update: an error says so, as it does in torch."""
    p = Parameter(torch.ones(5))
    p.grad = torch.ones(5)
    if what == "parameter":
        given_back(p.data)
        states_before = {}
    else:
        states_before = {p: {"momentum_buffer": given_back(torch.ones(5))}}

    def act():
        optimizer = subject.SGD([p], lr=0.1, momentum=0.9)
        optimizer.state.update(states_before)
        optimizer.step()

    with pytest.raises((RuntimeError, ValueError)):
        act()


@both_readers
def test_asking_for_a_gradient_may_fail():
    """What a parameter's class raises comes out of the step, and nothing is changed."""

    class Reluctant(Parameter):
        willing = True

        @property
        def grad(self):
            """Refuse, or be a parameter's."""
            if not self.willing:
                raise LookupError("not now")
            return super().grad

        @grad.setter
        def grad(self, value):
            """Be a parameter's."""
            steppers.GRAD.__set__(self, value)

    p, q = Reluctant(torch.ones(3)), Parameter(torch.ones(3))
    optimizer = subject.SGD([q, p], lr=0.5)
    for _ in range(3):
        p.grad, q.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
    assert bits(p.detach()) == bits(q.detach()) == bits(torch.full((3,), -0.5))


# Lifetimes


@both_readers
@swept(1, ids=str, usual=usual, kind=KINDS, dtype=[torch.float32, torch.bfloat16, torch.complex64])
def test_gradients_are_let_go_after_the_step(kind, dtype):
    """Whoever drops one frees its memory, after the first step, after a repeated one, after one that failed."""
    params, optimizer = victim(kind, steps=0, dtype=dtype)
    for step in range(6):
        give(params, step)
        params[0].grad = params[0].grad.T.contiguous().T  # which is gathered, at first
        held = [weakref.ref(p.grad) for p in params]
        if step == 4:
            optimizer.param_groups[0]["lr"] = -1.0
            with pytest.raises(ValueError, match="lr"):
                optimizer.step()
            optimizer.param_groups[0]["lr"] = 0.1
        else:
            optimizer.step()
        optimizer.zero_grad()
        assert [gradient() for gradient in held] == [None] * len(params)


def test_sparse_gradients_are_let_go_after_the_step():
    """They, and their memory, which what was made of them shares."""
    table = torch.nn.Embedding(9, 4, sparse=True)
    optimizer = subject.SGD(table.parameters(), lr=0.1)
    for _ in range(3):
        values = torch.ones(2, 4)
        gradient = torch.sparse_coo_tensor([[1, 3]], values, (9, 4), check_invariants=True, is_coalesced=True)
        held = [weakref.ref(gradient), weakref.ref(values.untyped_storage())]
        table.weight.grad = gradient
        del gradient, values
        optimizer.step()
        optimizer.zero_grad()
        assert [thing() for thing in held] == [None, None]


@both_readers
@ALL
def test_dropping_the_optimizer_frees_what_it_held(kind):
    """States and tables at once, without a collection; parameters live as long as anybody else has them."""
    gc.disable()
    try:
        params, optimizer = victim(kind, steps=5)
        tensors = [s for p in params for s in states(optimizer, p).values()]
        held = [weakref.ref(thing) for thing in (optimizer, optimizer._stepper, optimizer._stepper.plan, *tensors)]
        mine = [weakref.ref(p) for p in params]
        del tensors, optimizer
        assert [thing() for thing in held] == [None] * len(held)
        assert all(p() is not None for p in mine)
        del params
        assert [p() for p in mine] == [None] * len(mine)
    finally:
        gc.enable()


@both_readers
@STATEFUL
def test_replaced_memory_is_freed(kind):
    """Old states, and the tables that had them, live until the next step, at the most."""
    params, optimizer = victim(kind, steps=4)
    held = [weakref.ref(optimizer.state[params[0]][STATE[kind]]), weakref.ref(optimizer._stepper)]
    optimizer.state[params[0]][STATE[kind]] = torch.ones(4, 3)
    params[1].data = torch.ones(())
    optimizer.step()
    assert [thing() for thing in held] == [None, None]


# Repeated steps


@both_readers
@swept(1, ids=str, usual=usual, kind=KINDS, dtype=[torch.float32, torch.bfloat16])
def test_later_steps_compile_nothing_and_make_no_launch(kind, dtype, monkeypatch):
    """Whatever values, layouts and rates are then; the tables of the first steps are those of all."""
    monkeypatch.setattr(cpu, "_kernels", {})
    params, optimizer = victim(kind, steps=0, dtype=dtype)
    made, recorder = [], Recorder()
    monkeypatch.setattr(Plan, "_launch", lambda *a, old=Plan._launch: (made.append(1), old(*a))[1])
    with event.install_listener("numba:compile", recorder), event.install_listener("numba:compiler_lock", recorder):
        torch_cases.train(optimizer, params, 1)
        assert recorder.events  # the test can see what it tests for
        torch_cases.train(optimizer, params, 1, start=1)
        assert made
        made.clear()
        recorder.events.clear()
        tables_before = [launch.table for launch in optimizer._stepper.plan.launches]
        torch_cases.train(optimizer, params, 4, start=2)
        torch_cases.train(optimizer, params, 4, start=6, given=torch_cases.now_and_then)
        optimizer.param_groups[0]["lr"] = 0.01
        params[0].grad = torch.ones(3, 4, dtype=dtype).T
        optimizer.step()
        torch_cases.train(optimizer, params, 3, start=11)
        optimizer.state_dict()
        torch_cases.train(optimizer, params, 2, start=14)
    assert made == []
    assert recorder.events == []
    for launch, table in zip(optimizer._stepper.plan.launches, tables_before, strict=True):
        assert launch.table is table


MOVING = {
    "adagrad": ("Adagrad", {"lr_decay": 0.1}),
    "rmsprop": ("RMSprop", {"momentum": 0.9}),
    "adam": ("Adam", {"weight_decay": 0.1}),
    "adamw_amsgrad": ("AdamW", {"amsgrad": True}),
    "adam, betas near 1": ("Adam", {"betas": (1 - 2.0**-30, 1 - 2.0**-31)}),
}
CHANGED = {
    10: ("lr", 0.03),
    22: ("weight_decay", 0.02),
    28: ("betas", (0.5, 0.75)),
    34: ("eps", 1e-3),
    46: ("lr", 0.04),
}


def take_fifty_steps(name, options, dtype):
    """Two groups, a late gradient, scales, a skipped step, options that change, states and counts that are read."""
    params = torch_cases.parameters([(4, 3), (17,), (2, 3, 5), (1, 1), (9,)], dtype)
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.02, "weight_decay": 0.01}]
    optimizer = torch_cases.make(name, groups, **options)
    seen = []
    for step in range(50):
        give(params, step, given=lambda step, i: i < 4 or step >= 4)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0 ** (step // 20)), torch.tensor(float(step == 33))
        option, value = CHANGED.get(step, (None, None))
        if option in optimizer.defaults:
            optimizer.param_groups[1][option] = value
        if step % 9 == 0:
            seen.append(bits([states(optimizer, p) for p in params]))
        optimizer.step()
    optimizer.state_dict()
    assert [states(optimizer, p)["step"].item() for p in params] == [49, 49, 49, 49, 45]
    return seen, bits([params, [states(optimizer, p) for p in params]])


@pytest.mark.parametrize(
    "dtype", usually([torch.float32, torch.float64], [torch.float32, torch.float64, torch.bfloat16]), ids=str
)
@pytest.mark.parametrize(("name", "options"), MOVING.values(), ids=MOVING)
def test_repetitions_are_the_steps_they_repeat(name, options, dtype, monkeypatch):
    """To the bit, where Python computes no row."""
    results = []
    take = steppers.Watch.take
    monkeypatch.setattr(steppers.Watch, "take", lambda *given: (results.append(take(*given)), results[-1])[1])
    repeated = take_fifty_steps(name, options, dtype)
    assert results.count(REPEATED) > 25
    monkeypatch.setattr(steppers.TorchStepper, "can_repeat", lambda stepper: False)
    results.clear()
    assert take_fifty_steps(name, options, dtype) == repeated
    assert results == []


@pytest.mark.parametrize("kind", ["adagrad", "rmsprop_centered_momentum", "adamw_amsgrad"])
def test_what_a_repetition_points_to_is_held(kind):
    """The repetition computes rows from its own inputs, whatever the clock's are by then."""
    _, optimizer = victim(kind, steps=5)
    clock = optimizer._stepper.clock
    repetition = clock.repetition
    assert repetition is not None
    clock.end()
    clock.hypers, clock.carried, clock.next = clock.hypers.copy(), clock.carried.copy(), clock.next.copy()
    gc.collect()
    (hypers, carried, upcoming), (inputs, _) = repetition.rows, repetition.held
    pointed_to = repetition.step
    assert pointed_to["hypers"] == hypers.ctypes.data
    assert pointed_to["carried"] == carried.ctypes.data
    assert pointed_to["next"] == upcoming.ctypes.data
    if kind == "rmsprop_centered_momentum":  # whose rows stay as they are
        assert inputs is None
        assert pointed_to["inputs"] == 0
    else:
        assert pointed_to["inputs"] == inputs.ctypes.data
        assert len(inputs) == 1
    assert pointed_to["rows"] == len(hypers) == len(carried) == len(upcoming) == 1


@swept(1, ids=str, kind=KINDS, many=[(1, 500_000), (6, 1000), (300, 8)])
def test_repeated_steps_allocate_no_array(kind, many):
    """Whatever the number of tensors and elements, a few small Python objects at the most."""
    count, size = many
    name, options = KINDS[kind]
    params = [Parameter(torch.ones(size)) for _ in range(count)]
    optimizer = torch_cases.make(name, params, **options)
    give(params, 0)
    for _ in range(4):
        optimizer.step()
    tracemalloc.start()
    try:
        optimizer.step()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        optimizer.step()
        assert tracemalloc.get_traced_memory()[1] - before < 2500 + 60 * count
    finally:
        tracemalloc.stop()
