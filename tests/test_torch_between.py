"""What happens between or during steps: other threads, reading the state, schedules that end and resume."""

import threading

import pytest
import torch
from torch.nn import Parameter
from torch_cases import KINDS, give, make, parameters

import fastopt.torch as subject
from fastopt.schedules import Constant, Linear


def test_a_schedule_may_ask_for_the_state():
    """A schedule may read the optimizer that it drives during a step; it cannot take another step."""
    asked = []

    def rate(step):
        if step:
            asked.append(optimizer.state_dict()["param_groups"][0]["lr"])
        return 0.1

    p = Parameter(torch.tensor(1.0))
    optimizer = subject.SGD([p], lr=rate, momentum=0.5)
    for _ in range(3):
        p.grad = torch.tensor(1.0)
        optimizer.step()
    assert p.item() == pytest.approx(1 - 0.1 * (1 + 1.5 + 1.75))
    assert asked


def test_a_step_inside_a_step_is_refused():
    """So is loading, and adding a group."""
    p = Parameter(torch.ones(3))
    optimizer = subject.SGD([p], lr=0.1)
    acts = [
        optimizer.step,
        lambda: optimizer.load_state_dict(optimizer.state_dict()),
        lambda: optimizer.add_param_group({"params": [Parameter(torch.ones(2))]}),
    ]
    for act in acts:
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.step()

        def rate(step, act=act):
            if optimizer._guard.stepping.locked():
                act()
            return 0.1

        optimizer.param_groups[0]["lr"] = rate
        p.grad = torch.ones(3)
        with pytest.raises(RuntimeError, match="inside a step"):
            optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_threads_of_one_optimizer_wait_for_each_other(kind):
    """Steps, and requests for the state, from several threads: as many steps as were asked for."""
    name, options = KINDS[kind]
    shared, alone = parameters(), parameters()
    mine, other = make(name, shared, **options), make(name, alone, **options)
    give(shared, 1)
    give(alone, 1)
    shared[0].grad = shared[0].grad.t().contiguous().t()

    def work():
        for _ in range(25):
            mine.step()
            mine.state_dict()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(75):
        other.step()
    for p, q in zip(shared, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [set, tuple, dict.fromkeys])
def test_a_groups_parameters_in_another_collection(kind):
    """torch only iterates over them, and so does the step."""
    p = Parameter(torch.ones(3))
    optimizer = subject.SGD([p], lr=0.5)
    optimizer.param_groups[0]["params"] = kind([p])
    for _ in range(3):
        p.grad = torch.ones(3)
        optimizer.step()
    assert p.tolist() == [-0.5] * 3


def test_a_rate_that_ends_at_zero_by_rounding():
    """LinearLR ends below 0 by some 1e-18, and training goes on."""
    p = Parameter(torch.ones(3))
    optimizer = subject.SGD([p], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 3, 0.0, total_iters=7)
    for _ in range(12):
        p.grad = torch.ones(3)
        optimizer.step()
        scheduler.step()
    optimizer.param_groups[0]["lr"] = -1e-3
    with pytest.raises(ValueError, match="learning rate"):
        optimizer.step()


def driven(**options):
    """An optimizer after two steps, and what takes another."""
    p = Parameter(torch.ones(3))
    optimizer = subject.SGD([p], lr=Linear(0.1, 0.0, 10), **options)

    def step():
        p.grad = torch.ones(3)
        optimizer.step()
        return optimizer.param_groups[0]["lr"]

    assert [step(), step()] == [0.1, pytest.approx(0.09)]
    return optimizer.param_groups[0], step


@pytest.mark.parametrize("option", ["momentum", "weight_decay"])
def test_the_end_of_one_schedule_leaves_the_others(option):
    """Another option that is set to 0 does not stop the rate."""
    group, step = driven(**{option: Constant(0.5)})
    group[option] = 0.0
    assert [step(), step()] == pytest.approx([0.08, 0.07])
    assert set(group["schedules"]) == {"lr"}


def test_a_number_ends_a_schedule_whatever_it_is():
    """The current one too; and one that was saved before another was assigned does not bring it back."""
    group, step = driven()
    group["lr"] = float(str(group["lr"]))
    assert [step(), step()] == [pytest.approx(0.09)] * 2
    group, step = driven()
    saved, group["lr"] = group["lr"], 0.5
    assert step() == 0.5
    group["lr"] = saved
    assert [step(), step()] == [saved, saved]
    assert group["schedules"] == {}


def test_a_rate_of_zero_for_one_step_does_not_end_a_schedule():
    """torch.distributed.checkpoint puts it there for a step that makes the states, and the old object back."""
    group, step = driven()
    saved, group["lr"] = group["lr"], 0.0
    assert step() == 0.0
    group["lr"] = saved
    assert step() == pytest.approx(0.08)


def test_schedules_edited_in_their_group():
    """What is deleted from the description ends."""
    group, step = driven()
    del group["schedules"]["lr"]
    assert step() == step() == pytest.approx(0.09)


def test_a_group_outlives_its_optimizer():
    """Its numbers are those of the last step, also where a schedule drives them and nobody has asked before."""
    rate = Linear(1.0, 0.0, 10)
    for read in (lambda group: group["lr"], lambda group: dict(group.items())["lr"]):
        p = Parameter(torch.ones(3))
        optimizer = subject.SGD([p], lr=rate)
        group = optimizer.param_groups[0]
        for _ in range(6):
            p.grad = torch.ones(3)
            optimizer.step()
        del optimizer
        assert read(group) == rate(5)
        assert group["step"] == 6


def test_what_is_assigned_to_a_group_that_outlives_its_optimizer_stays():
    """Though nobody has asked for the last steps before."""
    for name, value in {"lr": 0.5, "step": 100}.items():
        p = Parameter(torch.ones(3))
        optimizer = subject.SGD([p], lr=Linear(1.0, 0.0, 10))
        group = optimizer.param_groups[0]
        for _ in range(6):
            p.grad = torch.ones(3)
            optimizer.step()
        del optimizer
        group[name] = value
        assert {"step": group["step"], "lr": group["lr"]} == {"step": 6, "lr": Linear(1.0, 0.0, 10)(5), name: value}
