"""What NAdam carries from step to step, ``mu_product``: whoever counts, and wherever it is shown or loaded."""

from dataclasses import replace

import cuda_stand_in
import numpy as np
import pytest
import torch
import torch_cases
from fastopt.bench.oracle import Trainer, nadam_momentum
from fastopt.kernels.tables import CARRIED as CARRIED_THAT_TRAVEL
from gpu_models import assert_equal, both, captured, give, model, train, warm_up
from gpu_steps import arrays, assert_trained, plain, warmed_up
from refusals import assert_refused
from rule_cases import numbers
from tolerances import CARRIED, TORCH, TRAJECTORY, assert_close

import fastopt
import fastopt.torch
from fastopt.rules import NADAM, never
from fastopt.schedules import OneCycle, Piecewise
from fastopt.step.clock import Clock

CYCLE = OneCycle(0.1, 40)
OPTIONS = {
    "constant": {"lr": 0.05, "betas": (0.8, 0.99)},
    "moving betas": {"lr": CYCLE, "betas": (CYCLE.momentum(), Piecewise([0.999, 0.9], [12]))},
    "decoupled": {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True, "momentum_decay": 0.3},
}
every = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
SHAPES = [(3, 4), (5,), (17,)]


def rule_of(options):
    """The rule that options ask for."""
    return "nadamw" if options.get("decoupled_weight_decay") else "nadam"


@every
def test_against_the_oracle(options):
    """Parameters of one group whose gradients are missing now and then, so that counts and products are their own."""
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(shape) for shape in SHAPES]
    trainer, opt = Trainer(params), fastopt.NAdam(params, **options)
    for step in range(30):
        grads = [
            rng.standard_normal(shape) if (step + 2 * i) % 5 or step < 1 else None for i, shape in enumerate(SHAPES)
        ]
        opt.step(grads)
        trainer.step(rule_of(options), grads, numbers(options, step))
        for i, product in enumerate(trainer.carried):
            assert opt.state[i]["mu_product"] == pytest.approx(product, rel=CARRIED)
    assert len({*trainer.steps}) > 1
    for p, want in zip(params, trainer.params, strict=True):
        assert_close(p, want, TRAJECTORY)


def trained(make, options, steps, repeats, monkeypatch):
    """All that comes out of steps, some of which the extension repeats, or all of which Python computes."""
    with monkeypatch.context() as patch:
        if not repeats:
            patch.setattr(Clock, "start_repeating", lambda self: None)
        repeated, results = make(options, steps)
    assert (repeated > 0) == repeats
    return results


def taken(opt):
    """How many of an optimizer's latest steps were repetitions."""
    repetition = opt._stepper.clock.repetition
    return 0 if repetition is None else repetition.taken


def of_numpy(options, steps):
    params = [np.linspace(-1, 1, 7), np.ones((2, 3), np.float32)]
    opt = fastopt.NAdam(params, **options)
    products = []
    for step in range(steps):
        opt.step([np.full(7, 0.1 * step), np.full((2, 3), 0.2 - 0.1 * step, np.float32)])
        if step % 3 == 2:
            products.append(opt.state[0]["mu_product"])
    return taken(opt), (products, [p.tobytes() for p in params], opt.state[0]["mu_product"])


def of_torch(options, steps):
    params = torch_cases.parameters(SHAPES)
    opt = fastopt.torch.NAdam(params, **options)
    products = []
    for step in range(steps):
        torch_cases.train(opt, params, 1, start=step)
        products.append([float(opt.state[p]["mu_product"]) for p in params])
    repeated = taken(opt)  # before a state dict ends them
    return repeated, (products, torch_cases.bits(params), torch_cases.bits(opt.state_dict()["state"]))


@pytest.mark.parametrize("make", [of_numpy, of_torch])
@pytest.mark.parametrize("options", [OPTIONS["constant"], OPTIONS["decoupled"]], ids=["constant", "decoupled"])
def test_repeated_steps_are_pythons_to_the_bit(make, options, monkeypatch):
    assert trained(make, options, 20, True, monkeypatch) == trained(make, options, 20, False, monkeypatch)


def test_a_state_that_is_held_is_current():
    """After each step, without asking the optimizer; first the count and the product, as in torch."""
    params = torch_cases.parameters(SHAPES)
    opt = fastopt.torch.NAdam(params, betas=(0.8, 0.9))
    torch_cases.train(opt, params, 1)
    state, product = opt.state[params[0]], nadam_momentum(1, {"betas": (0.8, 0.9)})
    assert list(state) == ["step", "mu_product", "exp_avg", "exp_avg_sq"]
    assert float(state["mu_product"]) == product
    for step in range(2, 9):
        torch_cases.train(opt, params, 1, start=step)
        product *= nadam_momentum(step, {"betas": (0.8, 0.9)})
        assert (float(state["step"]), float(state["mu_product"])) == (step, product)


@pytest.mark.parametrize("steps", [1, 6])
def test_what_somebody_writes_there_counts(steps):
    """In place, or as another tensor; as in torch."""
    mine, theirs, ours, others = torch_cases.pair("NAdam", torch.float64, SHAPES)
    for own, opt in ((mine, ours), (theirs, others)):
        torch_cases.train(opt, own, steps)
        opt.state[own[0]]["mu_product"].fill_(0.25)
        opt.state[own[1]]["mu_product"] = torch.tensor(0.5)
        torch_cases.train(opt, own, 5, start=steps)
    torch_cases.assert_same(mine, theirs, ours, others, TORCH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_loading_in_the_middle(dtype):
    """Of torch's state dict here, and of ours there; each goes on as the other does."""
    mine, theirs, ours, others = torch_cases.pair("NAdam", dtype, SHAPES, betas=(0.8, 0.99))
    torch_cases.train(ours, mine, 4)
    torch_cases.train(others, theirs, 4)
    saved, of_torch = ours.state_dict(), others.state_dict()
    ours.load_state_dict(of_torch)
    others.load_state_dict(saved)
    assert [float(ours.state[p]["mu_product"]) for p in mine] == [
        float(state["mu_product"]) for state in of_torch["state"].values()
    ]
    torch_cases.train(ours, mine, 6, start=4)
    torch_cases.train(others, theirs, 6, start=4)
    torch_cases.assert_same(mine, theirs, ours, others, TORCH)


BAD = [(1.5, ValueError), (-0.1, ValueError), (float("nan"), ValueError), ("x", TypeError)]


@pytest.mark.parametrize(("value", "error"), BAD)
def test_values_that_are_no_product(value, error):
    """In a state dict of NumPy's or torch's."""
    w = np.ones(3)
    opt = fastopt.NAdam(w)
    opt.step(w.copy())
    saved = opt.state_dict()
    saved["state"][0]["mu_product"] = value
    assert_refused(error, ["the mu_product of parameter 0"], lambda: opt.load_state_dict(saved))
    params = torch_cases.parameters(SHAPES)
    ours = fastopt.torch.NAdam(params)
    torch_cases.train(ours, params, 2)
    given = ours.state_dict()
    given["state"][1] = {**given["state"][1], "mu_product": value}
    torch_cases.assert_refused(ours, lambda: ours.load_state_dict(given), "the mu_product of parameter 1", error)


def test_steps_without_a_product():
    """They could not go on; before the first step it is 1."""
    w = np.ones(3)
    opt = fastopt.NAdam(w)
    opt.step(w.copy())
    saved = opt.state_dict()
    del saved["state"][0]["mu_product"]
    assert_refused(ValueError, ["has 1 steps but no mu_product"], lambda: opt.load_state_dict(saved))
    params = torch_cases.parameters(SHAPES)
    ours = fastopt.torch.NAdam(params)
    torch_cases.train(ours, params, 2)
    given = ours.state_dict()
    given["state"][1] = {name: value for name, value in given["state"][1].items() if name != "mu_product"}
    torch_cases.assert_refused(ours, lambda: ours.load_state_dict(given), "no mu_product", ValueError)


def test_state_dicts_of_numpy():
    """They go on where they were, to the bit."""
    results = []
    for loads in (False, True):
        w = np.linspace(-1, 1, 9)
        opt = fastopt.NAdam(w, lr=0.05)
        for step in range(8):
            if loads and step == 4:
                saved = opt.state_dict()
                opt = fastopt.NAdam(w, lr=0.5)
                opt.load_state_dict(saved)
            opt.step(np.full(9, 0.1 * step - 0.3))
        results.append((w.tobytes(), opt.state[0]["mu_product"]))
    assert results[0] == results[1]


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(
    "options", [{}, {"lr": CYCLE, "betas": (CYCLE.momentum(), 0.99)}], ids=["numbers", "schedules"]
)
def test_a_skipped_step_leaves_the_product_as_it_was(options):
    """GradScaler has the GPU skip steps; between two of them, an option is assigned."""
    there, here, ours, others = model("nadamw", **options)
    flags = ["taken", "skipped", "taken", "taken", "skipped", "taken", "skipped", "taken"]

    def after(step):
        if step == 4:
            ours.param_groups[0]["weight_decay"] = others.param_groups[0]["weight_decay"] = 0.2

    both(ours, others, there, here, flags, after)
    assert_equal(there, here, ours, others)
    give(there, here, 20)
    ours.step()
    others.step()
    assert_equal(there, here, ours, others)


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("assigned", [0, 1, 2])
def test_a_scaler_after_steps_without_one(assigned):
    """The GPU goes on from the host's product, after skipped steps and an assigned option too."""
    there, here, ours, others = model("nadamw")
    train(there, here, ours, others, range(5))

    def after(step):
        if step == assigned:
            ours.param_groups[0]["betas"] = others.param_groups[0]["betas"] = (0.7, 0.9)

    both(ours, others, there, here, ["skipped", "taken", "skipped", "taken"], after)
    assert_equal(there, here, ours, others)


@pytest.mark.parametrize("groups", [CARRIED_THAT_TRAVEL, CARRIED_THAT_TRAVEL + 1])
def test_products_of_many_groups(stand_in, groups):
    """As many as travel with the kernel that computes rows, and one more, with which a graph sends all of them."""
    params, grads = (arrays(stand_in, [(3,)] * groups, np.float64, seed=seed) for seed in (0, 1))
    trainer = Trainer(plain(stand_in, params))
    opt = fastopt.NAdam([{"params": [p], "lr": 0.01 + 0.001 * i} for i, p in enumerate(params)])
    opt.bind([[g] for g in grads])
    graph = warmed_up(stand_in, opt)
    stand_in.log()
    graph.launch()
    assert ("send" in stand_in.log()) == (groups > CARRIED_THAT_TRAVEL)
    graph.launch()
    for _ in range(4):
        trainer.step("nadam", plain(stand_in, grads), opt.param_groups)
    assert_trained(stand_in, opt, params, trainer)


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(
    "options", [{}, {"lr": CYCLE, "betas": (CYCLE.momentum(), 0.99)}], ids=["numbers", "schedules"]
)
def test_captured_steps(options):
    """Replays, a step beside them, and other options in the middle, each of which goes on from the same product."""
    there, here, ours, others = model("nadamw", **options)
    stream = cuda_stand_in.Stream()
    warm_up(there, here, ours, others, stream)
    graph = captured(ours, stream)
    for step in range(12):
        if step == 5:
            ours.param_groups[0]["weight_decay"] = others.param_groups[0]["weight_decay"] = 0.2
        if step in (3, 5, 8):
            with stream:
                ours.step()
        else:
            graph.launch()
        others.step()
        if step % 4 == 1:
            assert_equal(there, here, ours, others)
    assert_equal(there, here, ours, others)


@pytest.mark.parametrize(
    "half",
    [{"options": (*NADAM.options[:-1], "lr")}, {"carry": None}, {"moves": never}],
    ids=["options", "carry", "moves"],
)
def test_a_rule_that_says_half_of_it(half):
    """It is refused where it is written, since C++ looks for the number at one place."""
    with pytest.raises(ValueError, match="carries mu_product: let that be the last of its options"):
        replace(NADAM, **half)
