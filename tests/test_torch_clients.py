"""What other people's programs do with an optimizer: the smallest failing example of each kind.

The programs themselves are in test_clients_*.py.
"""

import collections
import copy
import multiprocessing
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch_cases
from pairs import swept, usually
from tolerances import TORCH
from torch.nn import Parameter
from torch_cases import ALL, KINDS, NAMES, assert_refused, assert_same, bits, give, states, train, usual

import fastopt.torch as subject
from fastopt import schedules
from fastopt.rules import FAMILIES

COUNTED = [name for name in NAMES if name != "SGD"]


class Wrapper:
    """What Lightning and Fabric put around an optimizer: an instance of its class that was never constructed."""

    def __init__(self, optimizer):
        """Hold the optimizer, and become a subclass of its class."""
        self._optimizer = optimizer
        self.__class__ = type("Wrapped" + type(optimizer).__name__, (Wrapper, type(optimizer)), {})

    def __getattr__(self, name):
        """Pass on what is not here."""
        return getattr(self._optimizer, name)


def wrapped(name, theirs=False, **options):
    """Parameters, an optimizer over them, and its wrapper."""
    params = torch_cases.parameters()
    optimizer = torch_cases.make(name, params, theirs, **options)
    return params, optimizer, Wrapper(optimizer)


@ALL
def test_a_wrapper_trains_as_the_optimizer(name, options):
    """All that torch's class offers, called on the wrapper, reaches the optimizer: as with torch.optim."""
    ends = []
    for theirs in (False, True):
        params, optimizer, wrapper = wrapped(name, theirs, **options)
        scheduler = torch.optim.lr_scheduler.StepLR(wrapper, 2, 0.5)
        for step in range(4):
            give(params, step)
            wrapper.step()
            scheduler.step()
            wrapper.zero_grad()
            assert all(p.grad is None for p in params)
        assert wrapper.param_groups is optimizer.param_groups
        assert wrapper.state is optimizer.state
        assert repr(wrapper).startswith(f"Wrapped{name} (")
        assert bits(wrapper.state_dict()) == bits(optimizer.state_dict())
        assert not hasattr(wrapper, "_step_supports_amp_scaling")
        ends.append((params, optimizer))
    assert_same(ends[0][0], ends[1][0], ends[0][1], ends[1][1], TORCH)


@ALL
def test_a_wrapper_loads_and_adds(name, options):
    """Into the optimizer that it stands for: a step of either goes on from there."""
    params, optimizer, wrapper = wrapped(name, **options, fused=True)
    train(wrapper, params, 2)
    assert wrapper._step_supports_amp_scaling
    saved, kept = copy.deepcopy(wrapper.state_dict()), bits(params)
    train(wrapper, params, 2, start=2)
    with torch.no_grad():
        for p, q in zip(params, torch_cases.parameters(), strict=True):
            p.copy_(q)
    twins, twin, _ = wrapped(name, **options, fused=True)
    wrapper.load_state_dict(saved)
    twin.load_state_dict(saved)
    [more] = torch_cases.parameters([(3,)])
    wrapper.add_param_group({"params": [more]})
    assert optimizer.param_groups[1]["params"] == [more]
    train(wrapper, params, 2, start=2)
    train(twin, twins, 2, start=2)
    assert bits(params) == bits(twins) != kept


@ALL
def test_a_wrapper_under_a_scaler(name, options):
    """With fused=True the step unscales, and skips, though GradScaler leaves its numbers with the wrapper."""
    params, _, wrapper = wrapped(name, **options, fused=True)
    twins, twin, _ = wrapped(name, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    for step in range(4):
        give(params, step)
        give(twins, step)
        for p in params:
            p.grad *= scaler.get_scale() * (float("inf") if step == 1 else 1.0)
        scaler.step(wrapper)
        scaler.update()
        if step != 1:
            twin.step()
    assert bits(params) == bits(twins)


def test_a_wrapper_of_a_subclass():
    """A step that it overrides runs once for each that is taken; hooks see the wrapper, as in torch."""
    seen = []
    for library in (subject, torch.optim):

        class Counting(library.SGD):
            def step(self, closure=None):
                seen.append(type(self).__name__)
                return super().step(closure)

        [p] = torch_cases.parameters([(3,)])
        wrapper = Wrapper(Counting([p], lr=0.1))
        wrapper.register_step_pre_hook(lambda self, args, kwargs: seen.append(type(self).__name__))
        give([p], 0)
        wrapper.step()
        assert wrapper.step(lambda: 5.0) == 5.0
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


def test_a_wrapper_of_schedules():
    """Numbers and descriptions of the schedules are up to date, whoever is asked."""
    params, optimizer, wrapper = wrapped("AdamW", lr=schedules.Cosine(0.1, 10))
    train(optimizer, params, 3)
    assert wrapper.state_dict()["param_groups"][0]["step"] == 3
    assert wrapper.param_groups[0]["lr"] == schedules.Cosine(0.1, 10)(2)
    assert wrapper.param_groups[0]["initial_lr"] == 0.1
    other = copy.deepcopy(wrapper)
    assert bits(other.state_dict()) == bits(optimizer.state_dict())


def test_a_wrapper_without_an_optimizer():
    """An attribute that is nowhere is an AttributeError, as anywhere."""
    empty = subject.AdamW.__new__(subject.AdamW)
    for name in ("param_groups", "state", "nothing"):
        assert not hasattr(empty, name)


# GradScaler's contract


@pytest.mark.parametrize("name", NAMES)
def test_who_unscales(name):
    """The step, where fused=True was passed; nothing that is copied, pickled, loaded or in a group changes that."""
    [p] = torch_cases.parameters([(3,)])

    def handles(optimizer):
        return getattr(optimizer, "_step_supports_amp_scaling", False)

    fused, default = torch_cases.make(name, [p], fused=True), torch_cases.make(name, [p])
    grouped = torch_cases.make(name, [{"params": [p], "fused": True}])
    for optimizer, want in ((fused, True), (default, False), (grouped, False)):
        for other in (optimizer, copy.copy(optimizer), copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            assert handles(other) is want
    default.load_state_dict(fused.state_dict())
    fused.load_state_dict(torch_cases.make(name, [p], fused=False).state_dict())
    assert (handles(fused), handles(default)) == (True, False)
    assert default.param_groups[0]["fused"] is True


@ALL
def test_what_sees_unscaled_gradients(name, options):
    """A hook that clips, an overridden step, and code that reads gradients after the step: as with torch's default."""
    ends = []
    for theirs in (False, True):
        params = torch_cases.parameters([(40,), (3, 5)])
        optimizer = torch_cases.make(name, params, theirs, **options)
        seen, skipped = [], []

        def clip(self, args, kwargs, params=params, seen=seen):
            seen.append(float(torch.nn.utils.clip_grad_norm_(params, 1.0)))

        optimizer.register_step_pre_hook(clip)
        optimizer.register_step_post_hook(lambda self, args, kwargs, skipped=skipped: skipped.append(False))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(4):
            give(params, step)
            scaler.scale(torch.zeros(()))
            for p in params:
                p.grad *= scaler.get_scale() * (float("inf") if step == 2 else 1.0)
            scaler.step(optimizer)
            scaler.update()
            seen.append(bits([p.grad for p in params]) if theirs and step != 2 else None)
        ends.append((params, optimizer, [norm for norm in seen if isinstance(norm, float)], len(skipped)))
    (mine, ours, norms, steps), (others, other, wanted, other_steps) = ends
    assert steps == other_steps == 3  # hooks do not run in a skipped step
    assert norms == pytest.approx(wanted)
    assert_same(mine, others, ours, other, TORCH)


@pytest.mark.parametrize("name", usually(["SGD"], NAMES))
def test_what_needs_the_step_to_unscale_says_so(name, monkeypatch):
    """float16 parameters, and a step that is captured; following the advice helps. Others who ask hear nothing."""
    p = Parameter(torch.ones(3, dtype=torch.float16))
    for flags, advice in (({}, "fused=True"), ({"fused": True}, None)):
        optimizer = torch_cases.make(name, [p], lr=0.1, **flags)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(torch.zeros(()))
        p.grad = torch.full_like(p, 4.0)
        if advice is None:
            scaler.step(optimizer)
            assert (p < 1).all()
        else:
            assert not hasattr(optimizer, "_step_supports_amp_scaling")
            assert_refused(optimizer, lambda o=optimizer, s=scaler: s.step(o), advice, ValueError)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    [p] = torch_cases.parameters([(3,)])
    optimizer = torch_cases.make(name, [p], lr=0.1)
    give([p], 0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    with pytest.raises(RuntimeError, match="fused=True"):
        scaler.step(optimizer)


# Default device and dtype


@swept(1, kind=KINDS, device=["meta", "cpu"])
def test_another_default_device(kind, device):
    """Counts and states are made where they belong, by every way that makes some."""
    name, options = KINDS[kind]
    ends = []
    for default in (None, device):
        params = torch_cases.parameters()
        grads = [[torch_cases.gradient(p, 10 * step + i) for i, p in enumerate(params)] for step in range(4)]
        with torch.device(default or "cpu"):
            optimizer = torch_cases.make(name, params, **options)
            for step in range(4):
                held = optimizer.param_groups[0]["params"]
                for p, g in zip(held, grads[step], strict=True):
                    p.grad = g.clone()
                optimizer.step()
                optimizer = copy.deepcopy(optimizer)
                optimizer.load_state_dict(optimizer.state_dict())
        ends.append(bits([optimizer.param_groups[0]["params"], optimizer.state_dict()["state"]]))
    assert ends[0] == ends[1]


# Memory


@ALL
def test_nothing_lasting_is_done_to_tensors(name, options):
    """An optimizer leaves versions, flags and storages as they were, of frozen ones too; a step raises versions."""
    params = [*torch_cases.parameters(), Parameter(torch.ones(5), requires_grad=False)]
    before = [(p._version, p.requires_grad, p.is_leaf, p.data_ptr()) for p in params]
    optimizer = torch_cases.make(name, params, **options)
    assert before == [(p._version, p.requires_grad, p.is_leaf, p.data_ptr()) for p in params]
    give(params[:-1], 0)
    optimizer.step()
    optimizer.step()
    assert [p._version for p in params] == [version + 2 for version, *_ in before[:-1]] + [before[-1][0]]
    for tensor in (*params, *(p.grad for p in params[:-1])):
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        assert storage.resizable()
        storage.resize_(0)
        storage.resize_(size)
    optimizer = None
    params[0].untyped_storage().resize_(0)


@ALL
def test_memory_that_comes_and_goes(name, options):
    """As FSDP frees and fetches a parameter's: refused without it, before anything is written, then right again."""
    params, twins = torch_cases.parameters(), torch_cases.parameters()
    optimizer, twin = torch_cases.make(name, params, **options), torch_cases.make(name, twins, **options)
    for step in range(4):
        kept = [p.detach().clone() for p in params]
        sizes = [p.untyped_storage().nbytes() for p in params]
        for p in params:
            p.untyped_storage().resize_(0)
        give(twins, step)
        for p, q in zip(params, twins, strict=True):
            p.grad = q.grad.clone()
        with pytest.raises(ValueError, match="storage"):
            optimizer.step()
        for p, values, size in zip(params, kept, sizes, strict=True):
            p.untyped_storage().resize_(size)
            p.data.copy_(values)
        optimizer.step()
        twin.step()
        assert bits(params) == bits(twins)


# States and counts


@pytest.mark.parametrize("way", ["assigned", "loaded", "copied"])
@pytest.mark.parametrize("name", COUNTED)
def test_states_without_a_count_are_refused(name, way):
    """Counted from 0, the averages would be too large; with the count that the message asks for it goes on."""
    (p,), (q,) = (torch_cases.parameters([(3,)]) for _ in range(2))
    donor = torch_cases.make(name, [q], lr=0.1)
    train(donor, [q], 5)
    with torch.no_grad():
        p.copy_(q)
    moments = {key: value.clone() for key, value in states(donor, q).items() if key != "step"}
    optimizer = torch_cases.make(name, [p], lr=0.1)
    saved = optimizer.state_dict()
    saved["state"] = {0: moments}
    if way == "loaded":
        assert_refused(optimizer, lambda: optimizer.load_state_dict(saved), "parameter 0 .* no 'step'", ValueError)
        saved["state"][0]["step"] = torch.tensor(5.0)
        optimizer.load_state_dict(saved)
    else:
        optimizer.state[p] = moments
        if way == "copied":
            optimizer = copy.deepcopy(optimizer)
            [p] = optimizer.param_groups[0]["params"]
        give([p], 5)
        assert_refused(optimizer, optimizer.step, "parameter 0 .* no 'step'", ValueError)
        optimizer.state[p]["step"] = torch.tensor(5.0)
    give([p], 5)
    give([q], 5)
    optimizer.step()
    donor.step()
    assert bits([p, states(optimizer, p)]) == bits([q, states(donor, q)])


@pytest.mark.parametrize("name", COUNTED)
def test_a_count_without_its_states_is_refused(name):
    """The averages would be too small; without the count it begins anew."""
    [p] = torch_cases.parameters([(3,)])
    optimizer = torch_cases.make(name, [p], lr=0.1)
    optimizer.state[p].clear()
    optimizer.state[p]["step"] = torch.tensor(5.0)
    give([p], 0)
    assert_refused(optimizer, optimizer.step, "parameter 0 has 5 steps, but no", ValueError)
    del optimizer.state[p]["step"]
    optimizer.step()
    assert float(optimizer.state[p]["step"]) == 1


class SharedAdam(subject.Adam):
    """As A3C's workers share it: its states in memory of all processes, counts among them."""

    def __init__(self, params, lr):
        """Make the states at once."""
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {
                    "step": torch.zeros(1).share_memory_(),
                    "exp_avg": torch.zeros_like(p.data).share_memory_(),
                    "exp_avg_sq": torch.zeros_like(p.data).share_memory_(),
                }


def take_steps(optimizer, params, steps, start):
    """Work as a child process does."""
    train(optimizer, params, steps, start=start)


def test_counts_that_processes_share():
    """The very tensor is counted, by parent and child in turn: all see one count, and the steps are those of one."""
    params, twins = torch_cases.parameters(), torch_cases.parameters()
    for p in params:
        p.share_memory_()
    optimizer, twin = SharedAdam(params, 0.1), torch_cases.make("Adam", twins, lr=0.1)
    counts = [optimizer.state[p]["step"] for p in params]
    train(optimizer, params, 2)
    child = multiprocessing.get_context("fork").Process(target=take_steps, args=(optimizer, params, 3, 2))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert [count.item() for count in counts] == [5.0] * len(params)
    train(optimizer, params, 2, start=5)
    train(twin, twins, 7)
    assert all(optimizer.state[p]["step"] is count for p, count in zip(params, counts, strict=True))
    assert [count.item() for count in counts] == [7.0] * len(params)
    assert bits(params) == bits(twins)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_a_shared_count_of_any_dtype(dtype):
    """It is counted as torch does it, also where it is loaded back from the optimizer's own state dict."""
    (p,), (q,) = (torch_cases.parameters([(3,)]) for _ in range(2))
    optimizer, twin = subject.Adam([p], lr=0.1), subject.Adam([q], lr=0.1)
    count = torch.zeros((), dtype=dtype).share_memory_()
    optimizer.state[p] = {"step": count, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    train(optimizer, [p], 3)
    optimizer.load_state_dict(optimizer.state_dict())
    train(optimizer, [p], 2, start=3)
    train(twin, [q], 5)
    assert count == 5
    assert bits(p) == bits(q)


@swept(1, kind=KINDS, step=[5.0, torch.tensor(3.0), torch.tensor([1, 2]), None, "warm-up", -1])
def test_another_librarys_step_in_a_group(kind, step):
    """It is ignored and kept if no schedule uses it; a schedule begins with this optimizer's count."""
    name, options = KINDS[kind]
    params, twins = torch_cases.parameters(), torch_cases.parameters()
    optimizer, twin = torch_cases.make(name, params, **options), torch_cases.make(name, twins, **options)
    optimizer.param_groups[0]["step"] = step
    train(optimizer, params, 3)
    train(twin, twins, 3)
    assert bits(params) == bits(twins)
    assert optimizer.param_groups[0]["step"] is step
    other = copy.deepcopy(optimizer)
    other.load_state_dict(optimizer.state_dict())
    give(other.param_groups[0]["params"], 3)
    other.step()
    schedule = schedules.Linear(0.1, 0.0, 100)
    optimizer.param_groups[0]["lr"] = twin.param_groups[0]["lr"] = schedule
    train(optimizer, params, 1, start=3)
    train(twin, twins, 1, start=3)
    assert bits(params) == bits(twins)
    assert optimizer.param_groups[0]["step"] == 4


def halving(step):
    """A rate of one's own."""
    return 0.1 * 0.5**step


class Own:
    """A schedule of one's own class."""

    def __call__(self, step):
        """Return the rate."""
        return 0.1 / (1 + step)


def test_a_shallow_copy_shares_groups_and_states():
    """As torch's: the list of groups as well, and so what is added to it."""
    for library in (subject, torch.optim):
        params = torch_cases.parameters()
        optimizer = library.SGD(params[:2], lr=0.1, momentum=0.9)
        other = copy.copy(optimizer)
        assert other.param_groups is optimizer.param_groups
        assert other.state is optimizer.state
        optimizer.add_param_group({"params": params[2:]})
        give(params, 0)
        other.step()
        assert len(other.state) == len(params)


def test_functions_of_copies_go_with_their_groups():
    """Whatever is done to the groups of a copy before its first step."""
    params = torch_cases.parameters()
    rates = [lambda step: 0.1, lambda step: 0.7]
    optimizer = subject.SGD([{"params": [p], "lr": rate} for p, rate in zip(params, rates, strict=False)])
    other = copy.deepcopy(optimizer)
    other.add_param_group({"params": params[2:], "lr": 0.3})
    del other.param_groups[0]
    for _ in range(2):
        give(params[2:], 0)
        other.step()
    assert [group["lr"] for group in other.param_groups] == [0.7, 0.3]
    group = optimizer.param_groups[0]
    optimizer = subject.SGD(params, lr=0.1)  # without a schedule at first: a dict of torch's
    optimizer.param_groups[0]["lr"] = group["lr"] = lambda step: 0.4
    train(optimizer, params, 1)
    other = copy.deepcopy(optimizer)
    train(other, other.param_groups[0]["params"], 1)
    assert other.param_groups[0]["lr"] == 0.4


def test_copies_have_the_function_in_a_pair():
    """A function that drives one of the betas goes on as well."""
    [p] = torch_cases.parameters([(3,)])
    optimizer = subject.Adam([p], betas=(lambda step: 0.5 + 0.1 * step, 0.9))
    train(optimizer, [p], 2)
    other = copy.deepcopy(copy.deepcopy(optimizer))
    train(other, other.param_groups[0]["params"], 1, start=2)
    assert other.param_groups[0]["betas"] == (0.7, 0.9)


@pytest.mark.parametrize("schedule", [halving, Own()], ids=["function", "object"])
@pytest.mark.parametrize(
    "way", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "deepcopy", "pickle"]
)
@ALL
def test_copies_have_the_functions(name, options, way, schedule):
    """The schedule goes on in the copy, and in a copy of that; in every group its own."""
    params = torch_cases.parameters()
    optimizer = torch_cases.make(
        name, [{"params": params[:2]}, {"params": params[2:], "lr": 0.3}], **{**options, "lr": schedule}
    )
    train(optimizer, params, 2)
    other = way(way(optimizer))
    members = [p for group in other.param_groups for p in group["params"]]
    want = [schedule(0), schedule(1), schedule(2), schedule(3)]
    rates = [other.param_groups[0]["lr"]]
    for step in (2, 3):
        give(members, step)
        other.step()
        rates.append(other.param_groups[0]["lr"])
    assert rates == want[1:]
    assert other.param_groups[1]["lr"] == 0.3
    assert other.param_groups[0]["step"] == 4


# Gradients


class WithMainGrad(Parameter):
    """A parameter whose gradient is accumulated elsewhere, as Megatron's are."""

    @property
    def grad(self):
        """The gradient that counts."""
        return getattr(self, "main_grad", None)

    @grad.setter
    def grad(self, value):
        self.main_grad = value


@ALL
def test_a_gradient_that_is_a_property(name, options):
    """It is asked, of trained and of frozen parameters, at every step."""
    params = [WithMainGrad(p.detach().clone()) for p in torch_cases.parameters()]
    still, twins = (
        WithMainGrad(torch.ones(3), requires_grad=False),
        [*torch_cases.parameters(), Parameter(torch.ones(3))],
    )
    optimizer = torch_cases.make(name, [*params, still], **options)
    twin = torch_cases.make(name, twins, **options)
    for step in range(6):
        give(params, step)
        give(twins[:-1], step)
        if step == 4:
            still.main_grad, twins[-1].grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        twin.step()
    assert bits([p.data for p in (*params, still)]) == bits([p.data for p in twins])


@swept(1, ids=str, usual=usual, kind=KINDS, dtype=[torch.float32, torch.bfloat16, torch.complex64])
def test_gradients_that_are_zero_without_memory(kind, dtype):
    """Forward-mode AD makes ZeroTensors: they count as zeros do."""
    name, options = KINDS[kind]
    (p, q), (a, b) = (torch_cases.parameters([(4, 3), (5,)], dtype) for _ in range(2))
    optimizer, twin = torch_cases.make(name, [p, q], **options), torch_cases.make(name, [a, b], **options)
    for step in range(3):
        give([p, q], step)
        give([a, b], step)
        if step != 1:
            q.grad = torch._efficientzerotensor(5, dtype=dtype)
            b.grad = torch.zeros(5, dtype=dtype)
        optimizer.step()
        twin.step()
    assert bits([p, q, states(optimizer, q)]) == bits([a, b, states(twin, b)])


# Order of checks


@pytest.mark.parametrize("params", [None, 7, [], [3.0], [[1.0]], torch.ones(3)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_options_are_checked_before_parameters(name, params):
    """As in torch, whose tests give none; and parameters that are none are named after that."""
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        getattr(subject, name)(params, lr=-1)
    with pytest.raises((TypeError, ValueError)):
        getattr(subject, name)(params)


@pytest.mark.parametrize("betas", [[0.5, 0.9], (0.5, 0.9)], ids=str)
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_betas_of_other_types(name, betas):
    """A list, an array and somebody's sequence, as configurations have them, are pairs; groups do not share them."""
    [p] = torch_cases.parameters([(3,)])
    for given in (betas, np.array(betas), collections.UserList(betas)):
        optimizer = getattr(subject, name)([{"params": [p]}], betas=given)
        assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)
        optimizer.param_groups[0]["betas"] = np.array([0.25, 0.5])
        give([p], 0)
        optimizer.step()
        assert float(states(optimizer, p)["exp_avg"][0]) == pytest.approx(0.75 * float(p.grad[0]))


# The names of torch.optim


def test_the_names_of_torch_optim():
    """``import fastopt.torch as optim`` has what programs use beside the rules, and says what it has not."""
    assert subject.Optimizer is torch.optim.Optimizer
    assert subject.lr_scheduler is torch.optim.lr_scheduler
    assert subject.swa_utils is torch.optim.swa_utils
    with pytest.raises(
        AttributeError, match=rf"SGD, Adagrad, .* and {list(FAMILIES)[-1]}, but no LBFGS: use torch\.optim\.LBFGS"
    ):
        subject.LBFGS  # noqa: B018
    with pytest.raises(ImportError, match=r"but no Adamax: use torch\.optim\.Adamax"):
        from fastopt.torch import Adamax  # noqa: F401
    with pytest.raises(AttributeError, match="has no 'Nothing'"):
        subject.Nothing  # noqa: B018
    assert not hasattr(subject, "RAdam")
    assert getattr(subject, "Muon", None) is None
    types = [name for name in dir(torch.optim) if isinstance(getattr(torch.optim, name), type)]
    have = {*FAMILIES, "Optimizer", "SparseAdam"} & {*types}
    assert {name for name in types if hasattr(subject, name)} == have


def test_a_whole_program_by_one_line(monkeypatch):
    """``torch.optim.AdamW = fastopt.torch.AdamW``."""
    monkeypatch.setattr(torch.optim, "AdamW", subject.AdamW)
    [p] = torch_cases.parameters([(3,)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = torch.optim.AdamW([p], lr=0.1)
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
        train(optimizer, [p], 2)
    assert isinstance(optimizer, subject.AdamW)
