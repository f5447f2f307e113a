"""Adam's betas as schedules in fastopt.torch, beside torch's own schedulers that cycle them."""

import copy
import io
import pickle

import cuda_stand_in
import pytest
import torch
import torch_cases
from gpu_models import assert_equal, captured, give, model, scaled_step, warm_up
from pairs import usually
from test_torch_scaler import waits_of
from tolerances import TORCH
from torch.nn import Parameter
from torch.optim import lr_scheduler
from torch_cases import assert_refused, assert_same, bits, now_and_then, snapshot, train

import fastopt.torch as subject
from fastopt.schedules import Constant, Cyclic, Linear, OneCycle, Plateau

STEPS = 30
CYCLE = OneCycle(0.1, STEPS)
BETA1, BETA2 = CYCLE.momentum(), Linear(0.9, 0.999, 25)
KINDS = {
    "adam": ("Adam", {}),
    "adam_amsgrad": ("Adam", {"amsgrad": True, "weight_decay": 0.01}),
    "adamw": ("AdamW", {"weight_decay": 0.1}),
    "adamw_amsgrad": ("AdamW", {"weight_decay": 0.1, "amsgrad": True, "maximize": True}),
}
ALL = pytest.mark.parametrize(("name", "options"), KINDS.values(), ids=KINDS)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64]


def adam(steps=0, **options):
    """An optimizer that has taken steps, its parameters and its group."""
    params = torch_cases.parameters()
    optimizer = subject.Adam(params, **options)
    train(optimizer, params, steps)
    return optimizer, params, optimizer.param_groups[0]


CYCLES = {
    "OneCycleLR": (CYCLE, BETA1, lambda o: lr_scheduler.OneCycleLR(o, 0.1, STEPS, cycle_momentum=True)),
    "CyclicLR": (
        Cyclic(0.01, 0.1, 7),
        Cyclic(0.01, 0.1, 7).momentum(),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 7, cycle_momentum=True),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize(("lr", "beta1", "make"), CYCLES.values(), ids=CYCLES)
@ALL
def test_against_torchs_cycles(name, options, lr, beta1, make, dtype):
    """torch.optim under a scheduler that cycles the rate and the first beta; parameters miss gradients now and then."""
    mine, theirs = (torch_cases.parameters(dtype=dtype) for _ in range(2))
    ours = torch_cases.make(name, mine, lr=lr, betas=(beta1, 0.999), **options)
    others = torch_cases.make(name, theirs, plainest=True, betas=(0.9, 0.999), **options)
    scheduler = make(others)
    for step in range(STEPS - 1):
        used = others.param_groups[0]["betas"]
        train(ours, mine, 1, start=step, given=now_and_then)
        train(others, theirs, 1, start=step, given=now_and_then)
        assert ours.param_groups[0]["betas"] == pytest.approx(used, rel=1e-12)
        scheduler.step()
    assert_same(mine, theirs, ours, others, TORCH)


@pytest.mark.parametrize("dtype", usually([torch.float32], DTYPES), ids=str)
@ALL
def test_as_if_written_by_hand(name, options, dtype):
    """To the bit, as fastai and others write both betas before each step, in every dtype."""
    pairs = [(BETA1, 0.99), (0.8, BETA2), (BETA1, lambda step: 0.9 + 0.001 * step)]
    runs = []
    for by_hand in (False, True):
        params = torch_cases.parameters(torch_cases.SHAPES[:3], dtype)
        groups = [
            {"params": [p], "betas": (0.5, 0.5) if by_hand else pair} for p, pair in zip(params, pairs, strict=True)
        ]
        optimizer = torch_cases.make(name, groups, lr=0.01, **options)
        seen = []
        for step in range(12):
            for group, pair in zip(optimizer.param_groups if by_hand else [], pairs, strict=False):
                group["betas"] = tuple(beta(step) if callable(beta) else beta for beta in pair)
            train(optimizer, params, 1, start=step)
            seen.append([group["betas"] for group in optimizer.param_groups])
        runs.append(bits([params, [optimizer.state[p] for p in params], seen]))
    assert runs[0] == runs[1]


def test_a_group_describes_the_schedules_of_its_betas():
    """The pair is one of numbers, before the first step too; the description is plain."""
    for given in ((BETA1, 0.999), [BETA1, 0.999]):
        optimizer, params, group = adam(betas=given)
        assert group["betas"] == (BETA1(0), 0.999)
        assert group["schedules"] == {"betas": [BETA1.to_dict(), 0.999]}
        train(optimizer, params, 3)
        assert (group["betas"], group["step"]) == ((BETA1(2), 0.999), 3)
        assert repr(group["betas"]) in repr(optimizer)


def test_schedules_begin_and_end():
    """Another pair of numbers ends both, an equal one as well; the same object put back ends nothing."""
    optimizer, params, group = adam(4, betas=(BETA1, BETA2))
    own = group["betas"]
    group["betas"] = (0.5, 0.5)
    group["betas"] = own
    train(optimizer, params, 1)
    assert group["betas"] == (BETA1(4), BETA2(4))
    group["betas"] = (*group["betas"],)
    train(optimizer, params, 1)
    assert (group["betas"], group["schedules"]) == ((BETA1(4), BETA2(4)), {})
    group["betas"] = [0.5, BETA2]
    train(optimizer, params, 1)
    assert (group["betas"], group["schedules"]) == ((0.5, BETA2(6)), {"betas": [0.5, BETA2.to_dict()]})
    group.update(betas=(BETA1, 0.75), step=11)
    train(optimizer, params, 1)
    assert group["betas"] == (BETA1(11), 0.75)
    group["schedules"] = {}
    train(optimizer, params, 1)
    assert (group["betas"], group["schedules"]) == ((BETA1(11), 0.75), {})


def test_betas_assigned_to_a_group_of_numbers():
    """Which was made without any schedule."""
    optimizer, params, group = adam(2)
    group["betas"] = (0.5, BETA2)
    train(optimizer, params, 2)
    assert (group["betas"], group["step"]) == ((0.5, BETA2(3)), 4)


def test_a_step_at_a_rate_of_0():
    """As some of torch's engines take one to have states: schedules of betas go on with that of the rate."""
    optimizer, params, group = adam(3, lr=CYCLE, betas=(BETA1, 0.999))
    own, group["lr"] = group["lr"], 0.0
    train(optimizer, params, 1)
    group["lr"] = own
    train(optimizer, params, 1)
    assert (group["lr"], group["betas"], group["step"]) == (CYCLE(3), (BETA1(3), 0.999), 4)


@pytest.mark.filterwarnings("ignore")  # of a schedule that ends so
def test_torchs_cycles_take_over():
    """A scheduler that writes betas ends their schedule; from then on all is as torch has it."""
    mine, theirs = torch_cases.parameters(), torch_cases.parameters()
    ours = subject.Adam(mine, betas=(BETA1, Constant(0.999)))
    others = torch.optim.Adam(theirs, foreach=False)
    schedulers = [lr_scheduler.OneCycleLR(optimizer, 0.1, STEPS) for optimizer in (ours, others)]
    for step in range(10):
        train(ours, mine, 1, start=step)
        train(others, theirs, 1, start=step)
        for scheduler in schedulers:
            scheduler.step()
        assert ours.param_groups[0]["betas"] == others.param_groups[0]["betas"]
    assert ours.param_groups[0]["schedules"] == {}
    assert_same(mine, theirs, ours, others, TORCH)


def test_groups_of_their_own():
    """Given with the group, as the optimizer's default, and added later, with a count of its own."""
    p, q, r = torch_cases.parameters([(2,), (3,), (4,)])
    optimizer = subject.AdamW([{"params": [p], "betas": (0.5, BETA2)}, {"params": [q]}], betas=(BETA1, 0.999))
    train(optimizer, [p, q], 2)
    optimizer.add_param_group({"params": [r]})
    train(optimizer, [p, q, r], 1)
    betas = [group["betas"] for group in optimizer.param_groups]
    assert betas == [(0.5, BETA2(2)), (BETA1(2), 0.999), (BETA1(0), 0.999)]
    for wrong in ((Plateau(0.9), 0.999), (Linear(1.0, 0.5, 9), 0.9), (0.9, BETA2, BETA2)):
        group = {"params": torch_cases.parameters([(2,)]), "betas": wrong}
        assert_refused(optimizer, lambda group=group: optimizer.add_param_group(group), "betas")
        assert len(optimizer.param_groups) == 3


# Copies and state dicts


def by_file(optimizer, params):
    """Into a new optimizer over copies, by the default torch.load."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    copies = [Parameter(p.detach().clone()) for p in params]
    again = subject.Adam(copies)
    again.load_state_dict(torch.load(file))
    return again, copies


def by_copy(optimizer, params):
    """With its parameters."""
    again = copy.deepcopy(optimizer)
    return again, again.param_groups[0]["params"]


def by_pickle(optimizer, params):
    """Likewise."""
    again = pickle.loads(pickle.dumps(optimizer))
    return again, again.param_groups[0]["params"]


@pytest.mark.parametrize("how", [by_file, by_copy, by_pickle])
def test_copies_go_on(how):
    """To the bit."""
    optimizer, params, _ = adam(7, lr=CYCLE, betas=(BETA1, BETA2))
    again, copies = how(optimizer, params)
    assert again.param_groups[0]["betas"] == (BETA1(6), BETA2(6))
    train(optimizer, params, 5, start=7)
    train(again, copies, 5, start=7)
    assert again.param_groups[0]["betas"] == (BETA1(11), BETA2(11))
    assert snapshot(again) == snapshot(optimizer)


def test_functions_are_not_saved():
    """The loading optimizer keeps its own function for that beta, and says what to do if it has none."""
    theirs = lambda step: 0.25  # noqa: E731
    saved = adam(4, betas=(lambda step: 0.5, BETA2))[0].state_dict()
    optimizer, params, _ = adam(betas=(theirs, 0.5))
    optimizer.load_state_dict(saved)
    train(optimizer, params, 1)
    assert optimizer.param_groups[0]["betas"] == (0.25, BETA2(4))
    optimizer, _, _ = adam(1, betas=(0.9, BETA2))
    assert_refused(optimizer, lambda: optimizer.load_state_dict(saved), r"betas\[0\] of group 0 .* delete 'betas'")
    del saved["param_groups"][0]["schedules"]["betas"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["betas"] == (0.5, BETA2(3))


LINE = BETA2.to_dict()
DESCRIPTIONS = {
    "for both": (LINE, "schedules of betas of group 0 must be a list"),
    "numbers alone": ([0.9, 0.999], "schedules of betas of group 0 must be a list"),
    "three": ([LINE, LINE, 0.5], "betas must be a pair"),
    "out of range": ([LINE, 1.0], r"betas\[1\] must be below 1"),
    "a plateau": ([Plateau(0.9).to_dict(), 0.999], r"betas\[0\] is a Plateau"),
}


@pytest.mark.parametrize(("plain", "match"), DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_descriptions_that_do_not_fit(plain, match):
    """Are refused with the whole state dict."""
    optimizer, _, _ = adam(2, betas=(BETA1, 0.999))
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["schedules"]["betas"] = plain
    assert_refused(optimizer, lambda: optimizer.load_state_dict(saved), match)


def test_a_state_dict_of_torchs_ends_the_schedules():
    """It has numbers."""
    params = torch_cases.parameters()
    theirs = torch.optim.Adam(params, betas=(0.8, 0.9))
    train(theirs, params, 2)
    optimizer, params, _ = adam(2, betas=(BETA1, BETA2))
    optimizer.load_state_dict(theirs.state_dict())
    train(optimizer, params, 1)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert not optimizer.param_groups[0].get("schedules")


# What is refused


@pytest.mark.parametrize("value", [1.0, 2.0, -0.5, float("nan"), float("inf"), None, torch.tensor(0.5)], ids=str)
@pytest.mark.parametrize("index", [0, 1])
def test_values_out_of_range(value, index):
    """Raise before the step, and change nothing; the next step asks again."""

    def beta(step):
        return value if wrong and step == 2 else 0.5

    wrong = []
    optimizer, params, _ = adam(2, betas=(beta, 0.9) if index == 0 else (0.9, beta))
    wrong.append(True)
    assert_refused(optimizer, optimizer.step, rf"betas\[{index}\] must be")
    wrong.clear()
    train(optimizer, params, 1)
    assert optimizer.param_groups[0]["step"] == 3


REFUSED = {
    "a schedule for both": (BETA1, "betas must be a pair"),
    "one": ((BETA1,), "betas must be a pair"),
    "a plateau": ((0.9, Plateau(0.9)), r"betas\[1\] is a Plateau"),
    "a tensor": ((BETA1, torch.tensor(0.999)), r"betas\[1\] is a tensor"),
    "1": ((Constant(1.0), 0.999), r"betas\[0\] must be below 1"),
}


@pytest.mark.parametrize(("given", "match"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_pair_of_schedules(given, match):
    """At construction, and at the first step after it is assigned."""
    with pytest.raises((TypeError, ValueError), match=match):
        adam(betas=given)
    optimizer, _, group = adam(1, betas=(BETA1, 0.999))
    group["betas"] = given
    with pytest.raises((TypeError, ValueError), match=match):
        optimizer.step()
    group["betas"] = (BETA1, 0.999)
    optimizer.step()
    assert group["betas"] == (BETA1(1), 0.999)


# Updates during backward


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_step_in_backward(name):
    """By the count of passes, as an ordinary optimizer."""
    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    twin = copy.deepcopy(layers)
    options = {"lr": CYCLE, "betas": (BETA1, BETA2)}
    handle = subject.step_in_backward(layers, getattr(subject, name), **options)
    ordinary = getattr(subject, name)(twin.parameters(), **options)
    for step in range(9):
        x = torch_cases.noise((5, 4), torch.float32, step)
        layers(x).square().mean().backward()
        ordinary.zero_grad()
        twin(x).square().mean().backward()
        ordinary.step()
        assert handle.param_groups[0]["betas"] == ordinary.param_groups[0]["betas"] == (BETA1(step), BETA2(step))
    assert bits(list(layers.parameters())) == bits(list(twin.parameters()))


# On a GPU, which evaluates schedules itself


@pytest.mark.parametrize("dtype", usually([torch.float32], [torch.float32, torch.bfloat16]), ids=str)
@pytest.mark.parametrize("betas", [(BETA1, 0.999), (BETA1, BETA2)], ids=["first", "both"])
@pytest.mark.usefixtures("pretended")
def test_capture(betas, dtype):
    """Replays are the steps of an optimizer on the host."""
    there, here, ours, others = model("adamw_amsgrad", dtype, lr=CYCLE, betas=betas)
    stream = cuda_stand_in.Stream()
    warm_up(there, here, ours, others, stream)
    graph = captured(ours, stream)
    for _ in range(8):
        graph.launch()
        others.step()
    assert ours.param_groups[0]["betas"] == others.param_groups[0]["betas"] != (BETA1(0), 0.999)
    assert_equal(there, here, ours, others)


@pytest.mark.usefixtures("pretended")
def test_steps_that_a_scaler_skips():
    """Count for no schedule."""
    there, here, ours, others = model("adamw_amsgrad", lr=CYCLE, betas=(BETA1, BETA2))
    for step in range(9):
        give(there, here, step, scale=8.0)
        scaled_step(ours, "skipped" if step in (0, 3, 4) else "taken")
        if step not in (0, 3, 4):
            others.step()
    assert ours.param_groups[0]["betas"] == others.param_groups[0]["betas"] == (BETA1(5), BETA2(5))
    assert_equal(there, here, ours, others)


@pytest.mark.usefixtures("pretended")
def test_an_iteration_waits_for_nothing():
    """After the second, as with schedules of the rate."""
    there, _, ours, _ = model("adamw_amsgrad", lr=CYCLE, betas=(BETA1, BETA2))
    assert waits_of(ours, there)[2:] == [0] * 7


@pytest.mark.parametrize("skipped", [[], [1, 3]])
@pytest.mark.usefixtures("pretended")
def test_a_value_out_of_range_while_the_gpu_counts(skipped):
    """Raises before the step that it would be for, and not for one that comes earlier since others were skipped."""
    there, here, ours, others = model("adamw_amsgrad", betas=(0.9, Linear(0.9, 1.0, 4)))
    step = 0
    while others.param_groups[0].get("step", 0) < 4:
        give(there, here, step, scale=8.0)
        scaled_step(ours, "skipped" if step in skipped else "taken")
        if step not in skipped:
            others.step()
        step += 1
    give(there, here, step, scale=8.0)
    with pytest.raises(ValueError, match=r"betas\[1\] must be below 1"):
        scaled_step(ours, "taken")
    assert_equal(there, here, ours, others)
    assert ours.param_groups[0]["step"] == 4
