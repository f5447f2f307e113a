"""Lion against Algorithm 2 of Chen et al. 2023, arXiv:2302.06675, whose numbers are worked out here step by step."""

import numpy as np
import pytest
import torch
import torch_cases
from fastopt.bench.oracle import Trainer
from pairs import swept, usually
from tolerances import TRAJECTORY, assert_close

import fastopt
import fastopt.torch
from fastopt import schedules

DTYPES = ["float32", "float64"]


def of_the_paper(theta, gradients, eta, beta1, beta2, lamda):
    """Algorithm 2, line by line, an element after the other."""
    m = 0.0
    for g in gradients:
        c = beta1 * m + (1 - beta1) * g
        sign = int(c > 0) - int(c < 0)
        theta = theta - eta * (sign + lamda * theta)
        m = beta2 * m + (1 - beta2) * g
    return theta, m


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_worked_example(dtype):
    """Two steps, the second of which goes by the average and against its gradient."""
    w = np.array([1.0, 2.0], dtype)
    opt = fastopt.Lion(w, lr=0.5, betas=(0.5, 0.5), weight_decay=0.25)
    opt.step(np.array([4.0, 0.0], dtype))
    assert w.tolist() == [0.375, 1.75]  # 1 - 0.5 * (1 + 0.25 * 1), 2 - 0.5 * (0 + 0.25 * 2)
    assert opt.state[0]["exp_avg"].tolist() == [2.0, 0.0]
    opt.step(np.array([-1.0, -8.0], dtype))  # 0.5 * 2 - 0.5 * 1 is above 0
    assert w.tolist() == [-0.171875, 2.03125]
    assert opt.state[0]["exp_avg"].tolist() == [0.5, -4.0]


@swept(
    together=1, dtype=DTYPES, betas=[(0.9, 0.99), (0.95, 0.98), (0.0, 0.5)], decay=[0.0, 0.5], maximize=[False, True]
)
def test_trajectories(dtype, betas, decay, maximize):
    """Forty steps, by NumPy's optimizer and by torch's."""
    rng = np.random.default_rng(1)
    start, gradients = rng.standard_normal(50).astype(dtype), rng.standard_normal((40, 50)).astype(dtype)
    options = {"lr": 0.01, "betas": betas, "weight_decay": decay, "maximize": maximize}
    sign = -1.0 if maximize else 1.0
    columns = sign * gradients.T.astype(np.float64)
    want = [of_the_paper(p, column, 0.01, *betas, decay) for p, column in zip(start.tolist(), columns, strict=True)]
    w, p = start.copy(), torch.nn.Parameter(torch.from_numpy(start.copy()))
    ours, torchs = fastopt.Lion(w, **options), fastopt.torch.Lion([p], **options)
    for g in gradients:
        ours.step(g)
        p.grad = torch.from_numpy(g.copy())
        torchs.step()
    assert_close(w, np.array(want)[:, 0], TRAJECTORY)
    assert_close(ours.state[0]["exp_avg"], np.array(want)[:, 1], TRAJECTORY)
    assert p.detach().numpy().tobytes() == w.tobytes()
    assert torchs.state[p]["exp_avg"].numpy().tobytes() == ours.state[0]["exp_avg"].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 8, 33])
def test_the_sign(dtype, size):
    """That of 0 is 0, either zero; NaN stays NaN; infinity moves as far as anything else."""
    values = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, np.finfo(dtype).tiny, -1e30, 3.0], dtype)
    g = np.resize(values, size)
    w = np.ones(size, dtype)
    fastopt.Lion(w, lr=0.25, betas=(0.0, 0.5)).step(g)
    np.testing.assert_array_equal(w, np.resize([1.0, 1.0, np.nan, 0.75, 1.25, 0.75, 1.25, 0.75], size))


def test_defaults_are_the_papers():
    group = fastopt.Lion([np.ones(1)]).param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.9, 0.99), 0.0)


def test_schedules_of_the_rate_and_of_a_beta():
    """Against the oracle, with numbers of each step."""
    cycle = schedules.OneCycle(0.1, 30)
    w = np.linspace(-1, 1, 20)
    trainer, opt = Trainer([w]), fastopt.Lion(w, lr=cycle, betas=(cycle.momentum(), 0.99), weight_decay=0.1)
    rng = np.random.default_rng(3)
    for step in range(30):
        g = rng.standard_normal(20)
        numbers = {"lr": cycle(step), "betas": (cycle.momentum()(step), 0.99), "weight_decay": 0.1}
        trainer.step("lion", [g], numbers)
        opt.step(g)
    assert_close(w, trainer.params[0], TRAJECTORY)


@pytest.mark.parametrize("dtype", usually([torch.complex64], [torch.float16, torch.bfloat16, torch.complex64]), ids=str)
def test_other_formats_of_torch(dtype):
    """States of half precision are float32; complex numbers are pairs of reals."""
    p, twin = torch_cases.parameters([(30,)], dtype)[0], torch_cases.parameters([(30,)], dtype)[0]
    real = torch.nn.Parameter(torch.view_as_real(twin.detach()) if dtype.is_complex else twin.detach().float())
    ours, others = (fastopt.torch.Lion([q], lr=2**-4, weight_decay=0.5) for q in (p, real))
    g = torch_cases.gradient(p, 5)
    p.grad, real.grad = g, torch.view_as_real(g) if dtype.is_complex else g.float()
    ours.step()
    others.step()
    got = torch.view_as_real(p.detach()) if dtype.is_complex else p.detach()
    assert torch.equal(got, real.detach().to(got.dtype))
    assert ours.state[p]["exp_avg"].dtype is (dtype if dtype.is_complex else torch.float32)


def test_state_dicts_of_torch():
    """They hold the average alone, and go on where they were."""
    params, others = torch_cases.parameters(), torch_cases.parameters()
    ours, second = fastopt.torch.Lion(params, lr=0.01), fastopt.torch.Lion(others, lr=0.5)
    torch_cases.train(ours, params, 3)
    saved = ours.state_dict()
    assert all(list(state) == ["exp_avg"] for state in saved["state"].values())
    second.load_state_dict(saved)
    with torch.no_grad():
        for p, q in zip(others, params, strict=True):
            p.copy_(q)
    for optimizer, own in ((ours, params), (second, others)):
        torch_cases.train(optimizer, own, 3, start=3)
    assert torch_cases.bits(params) == torch_cases.bits(others)
