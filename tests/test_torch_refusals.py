"""What is refused before anything is changed: by constructors, in groups, at a step."""

import copy
import math

import pytest
import torch
import torch_cases
from pairs import swept
from tolerances import ONE_STEP, TORCH
from torch.nn import Parameter
from torch_cases import (
    KINDS,
    NAMES,
    ONE_STATE_EACH,
    all_with,
    assert_near,
    assert_refused,
    assert_same,
    bits,
    give,
    states,
    train,
    victim,
    with_gradient,
)

import fastopt.torch as subject
from fastopt.options import HYPERPARAMETERS

MOMENTUM = {"lr": 0.1, "momentum": 0.9}
ONE = [Parameter(torch.ones(1, 1))]
DB = torch_cases.optim_db()

# By a constructor

REFUSED = {
    "SGD": [{"momentum": -1}, {"nesterov": True}, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}],
    "Adagrad": [{"eps": -1e-8}, {"initial_accumulator_value": -1.0}, {"lr_decay": -1}],
    "RMSprop": [{"eps": -1e-8}, {"alpha": -0.1}, {"momentum": -0.5}],
    "Adam": [{"eps": -1e-8}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}],
    "AdamW": [{"eps": -1e-8}, {"betas": (0.9, 1.0)}, {"decoupled_weight_decay": True}],
    "NAdam": [{"eps": -1e-8}, {"betas": (0.9, 1.0)}, {"momentum_decay": -0.1}],
}


def has_tensors(options):
    """Whether options are tensors: our messages for betas and rates differ, and are tested below."""
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
    """By the constructor, in a group, and assigned, before anything changes; with what to write instead."""
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
    [(name, "differentiable") for name in NAMES]
    + [(name, "capturable") for name in ("RMSprop", "Adam", "AdamW", "NAdam")],
)
def test_flags_that_are_not_had_are_refused(name, option):
    """Differentiable steps and the capturable flag are refused; only False is accepted."""
    for options in ({option: True}, {option: True, "foreach": True}):
        with pytest.raises(ValueError, match=option):
            getattr(subject, name)(ONE, **options)
    getattr(subject, name)(ONE, **{option: False})


# By a step


BAD_GRADIENTS = {
    "dtype": lambda p: torch.ones(p.shape, dtype=torch.float64),
    "integers": lambda p: torch.ones(p.shape, dtype=torch.int64),
    "complex": lambda p: torch.ones(p.shape, dtype=torch.complex64),
    "shape": lambda p: torch.ones(17, 1),
    "fewer": lambda p: torch.ones(16),
    "scalar": lambda p: torch.ones(()),
    "the parameter itself": lambda p: p.detach(),
    "a part of the parameter": lambda p: p.detach()[:1].expand(17),
}


@swept(bad=BAD_GRADIENTS, kind=KINDS, steps=[0, 2])
def test_gradients_that_do_not_fit(bad, kind, steps):
    """Refused before anything is changed, with the parameter's index; those before it have not moved."""
    params, optimizer = victim(kind, steps)
    give(params, 5)
    with_gradient(params[2], BAD_GRADIENTS[bad](params[2]))
    assert_refused(optimizer, optimizer.step, r"\b2\b")
    twins, twin = victim(kind, steps)
    train(optimizer, params, 2, start=6)
    train(twin, twins, 2, start=6)
    assert bits(params) == bits(twins)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_another_device(kind):
    """They have no memory that could be updated: an error says so, at the latest at the step."""
    name, options = KINDS[kind]
    params, optimizer = victim(kind)
    bad = Parameter(torch.ones(3, device="meta"))
    assert_refused(optimizer, lambda: optimizer.add_param_group({"params": [bad]}), "meta|device")
    bad.grad = torch.ones(3, device="meta")
    with pytest.raises(torch_cases.REFUSAL, match=r"meta|device"):
        torch_cases.make(name, [bad], **options).step()
    train(optimizer, params, 1, start=2)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_memory_that_is_written(kind):
    """Another parameter's, or a state's, in whatever order they come: refused. Two may share one gradient."""
    params, optimizer = victim(kind)
    written = [params[3], *(s for s in states(optimizer, params[3]).values() if s.dim())]
    for bad in written:
        give(params, 5)
        with_gradient(params[2], bad.detach().reshape(-1)[:17])
        assert_refused(optimizer, optimizer.step, r"\b2\b")
    twins = [Parameter(torch.ones(3)) for _ in range(2)]
    twins[0].grad = twins[1].grad = torch.full((3,), 0.5)
    torch_cases.make(KINDS[kind][0], twins, lr=0.1).step()
    assert bits(twins[0]) == bits(twins[1])


def test_a_parameter_that_has_a_name_is_named():
    """In errors, where the optimizer was given names."""
    params = torch_cases.parameters([(3,), (4,)])
    optimizer = subject.SGD(zip(["first.weight", "second.bias"], params, strict=True), **MOMENTUM)
    give(params, 0)
    with_gradient(params[1], params[1].detach())
    assert_refused(optimizer, optimizer.step, "second.bias")


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_share_memory(kind):
    """Each element is updated once or not at all: parts that overlap are refused, disjoint ones are not."""
    name, options = KINDS[kind]
    for parts in [(slice(0, 6), slice(4, 10)), (slice(0, 10), slice(3, 4)), (slice(0, 10, 2), slice(4, 6))]:
        whole = torch_cases.gradient(torch.empty(10), 1)
        before = bits(whole)

        def act(whole=whole, parts=parts):
            params = [Parameter(whole[part]) for part in parts]
            optimizer = torch_cases.make(name, params, **options)
            give(params, 0)
            optimizer.step()

        with pytest.raises(ValueError, match=r"overlap|shar|memory"):
            act()
        assert bits(whole) == before
    for parts in [(slice(0, 5), slice(5, 10)), (slice(0, 10, 2), slice(1, 10, 2))]:
        runs = []
        for plainest in (False, True):
            whole = torch_cases.gradient(torch.empty(10), 1)
            params = [Parameter(whole[part]) for part in parts]
            optimizer = torch_cases.make(name, params, plainest, **options)
            train(optimizer, params, 3)
            runs.append((params, optimizer))
        assert_same(runs[0][0], runs[1][0], runs[0][1], runs[1][1], TORCH)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_cannot_be_had(kind, dtype):
    """Integers have no gradients, and eight bits no kernel: an error says so, at the latest at the step."""
    name, options = KINDS[kind]
    p = torch.zeros(4).to(dtype)

    def act():
        optimizer = torch_cases.make(name, [p], **options)
        p.grad = torch.zeros(4).to(dtype)
        optimizer.step()

    with pytest.raises(torch_cases.REFUSAL):
        act()


@all_with(torch.float64, torch.bfloat16, torch.float16)
def test_models_that_change_their_dtype(name, options, dtype):
    """model.double() or .half() in the middle of a training: the states follow, and go on from what they were."""
    model = torch.nn.Linear(3, 2)
    params = list(model.parameters())
    optimizer = torch_cases.make(name, params, **options)
    train(optimizer, params, 2)
    model.to(dtype)
    others = [Parameter(p.detach().double().clone()) for p in params]
    reference = torch_cases.make(name, others, True, **options)
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    give(params, 2)
    for p, q in zip(params, others, strict=True):
        q.grad = p.grad.double()
    optimizer.step()
    reference.step()
    for p, q in zip(params, others, strict=True):
        assert p.dtype == dtype
        assert_near(p.detach(), q.detach().to(dtype), ONE_STEP)
        for state in {"momentum_buffer", "sum"} & states(optimizer, p).keys():
            kept = optimizer.state[p][state]
            assert kept.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert_near(kept.float(), reference.state[q][state].float(), ONE_STEP)


def test_models_that_change_their_dtype_before_the_first_step():
    """Without any state there is nothing to fit."""
    model = torch.nn.Linear(3, 2)
    optimizer = subject.SGD(model.parameters(), **MOMENTUM)
    model.double()
    train(optimizer, list(model.parameters()), 2)
    assert optimizer.state[model.weight]["momentum_buffer"].dtype == torch.float64


BAD_STATES = {
    "shape": lambda s: s.new_zeros(s.shape[0] + 1),
    "dtype": lambda s: s.to(torch.int32),
    "device": lambda s: torch.ones(s.shape, device="meta"),
    "a list": lambda s: s.tolist(),
}


@pytest.mark.parametrize("bad", BAD_STATES)
@pytest.mark.parametrize(("kind", "state"), ONE_STATE_EACH)
def test_states_that_do_not_fit(kind, state, bad):
    """States that users assign are checked before anything is changed."""
    params, optimizer = victim(kind)
    give(params, 2)
    optimizer.state[params[2]][state] = BAD_STATES[bad](optimizer.state[params[2]][state])
    assert_refused(optimizer, optimizer.step, r"\b2\b")


@pytest.mark.parametrize("layout", ["expanded", "strided", "reversed axes", "float64"])
@pytest.mark.parametrize(("kind", "state"), ONE_STATE_EACH)
def test_states_in_another_form(kind, state, layout):
    """Another layout or precision is taken up by value."""
    forms = {
        "expanded": lambda s: torch.full((), 0.25).expand(s.shape),
        "strided": lambda s: torch.full((*s.shape, 2), 0.25)[..., 0],
        "reversed axes": lambda s: torch.full(s.shape[::-1], 0.25).permute(tuple(reversed(range(s.dim())))),
        "float64": lambda s: torch.full(s.shape, 0.25, dtype=torch.float64),
    }
    runs = []
    for form in (forms[layout], lambda s: torch.full(s.shape, 0.25)):
        params, optimizer = victim(kind)
        for p in params:
            optimizer.state[p][state] = form(optimizer.state[p][state])
        train(optimizer, params, 3, start=2)
        runs.append(bits(params))
    assert runs[0] == runs[1]


def test_states_that_share_memory():
    """With a parameter, with a gradient, or with each other: refused."""
    params, optimizer = victim("momentum")
    give(params, 2)
    good = optimizer.state[params[2]]["momentum_buffer"]
    for bad in (params[2].detach(), params[2].grad, optimizer.state[params[3]]["momentum_buffer"].reshape(-1)[:17]):
        optimizer.state[params[2]]["momentum_buffer"] = bad
        assert_refused(optimizer, optimizer.step, r"\b[23]\b")
    optimizer.state[params[2]]["momentum_buffer"] = good
    optimizer.step()


BAD_OPTIONS = [
    ("momentum", {"lr": -0.1}, "lr"),
    ("momentum", {"lr": math.nan}, "lr"),
    ("momentum", {"lr": "fast"}, "lr"),
    ("momentum", {"momentum": -1.0}, "momentum"),
    ("momentum", {"weight_decay": -1.0}, "weight_decay"),
    ("nesterov", {"dampening": 0.5}, "dampening|Nesterov"),
    ("nesterov", {"momentum": 0.0}, "momentum|Nesterov"),
    ("momentum", {"differentiable": True}, "differentiable"),
    ("momentum", {"capturable": True}, "capturable"),
    ("adagrad", {"eps": -1.0}, "eps"),
    ("adagrad", {"lr_decay": math.inf}, "lr_decay"),
    ("rmsprop_centered_momentum", {"alpha": 1.5}, "alpha"),
    ("rmsprop_centered_momentum", {"centered": "yes"}, "centered"),
    ("adamw_amsgrad", {"betas": (0.9, 1.0)}, "beta parameter at index 1"),
    ("adamw_amsgrad", {"betas": (0.9,)}, "betas must be a pair"),
    ("adamw_amsgrad", {"amsgrad": 2}, "amsgrad"),
    ("adamw_amsgrad", {"capturable": True}, "capturable"),
]


@pytest.mark.parametrize(("kind", "options", "words"), BAD_OPTIONS)
def test_options_out_of_range_in_a_group(kind, options, words):
    """torch goes on with what is assigned to a group; here it is refused, at the latest at the next step."""
    params, optimizer = victim(kind)
    give(params, 2)
    before = bits([params, [states(optimizer, p) for p in params]])

    def act():
        optimizer.param_groups[0].update(options)
        optimizer.step()

    with pytest.raises(torch_cases.REFUSAL, match=f"(?i){words}"):
        act()
    assert bits([params, [states(optimizer, p) for p in params]]) == before


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name in NAMES for option in HYPERPARAMETERS if option in getattr(subject, name)(ONE).defaults],
)
def test_options_that_are_none(name, option):
    """Refused by their name when the optimizer is made, and in a group later; never taken for a NaN."""
    with pytest.raises(TypeError, match=option):
        getattr(subject, name)(torch_cases.parameters(), **{option: None})
    params = torch_cases.parameters()
    optimizer = getattr(subject, name)(params)
    train(optimizer, params, 2)
    optimizer.param_groups[0][option] = None
    assert_refused(optimizer, optimizer.step, option, TypeError)
