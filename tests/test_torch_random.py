"""Whatever users do between two steps, in any order: the trajectory stays torch.optim's."""

import copy
import io

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pairs import usually
from tolerances import TORCH
from torch_cases import KINDS, assert_near, exact, make, noise, parameters, states

SHAPES = [(3, 4), (), (5,), (2, 3, 2), (0,), (1,), (70,)]
LATER = 2  # of these parameters join in a group of their own


class Run:
    """One of two optimizers with their parameters, which get the same operations."""

    def __init__(self, name, options, plainest):
        self.params = parameters(SHAPES, torch.float64)
        self.params[0].data = self.params[0].data.t().contiguous().t()
        self.count = len(SHAPES) - LATER
        split = self.params[:2], self.params[2 : self.count]
        groups = [{"params": split[0]}, {"params": split[1], "lr": 0.05}]
        self.optimizer = make(name, groups, plainest, **options)
        self.scheduler = None

    def rate(self):
        """Assign a rate."""
        self.optimizer.param_groups[0]["lr"] = 0.03

    def tensor_rate(self):
        """Assign a tensor, and later write into it."""
        group = self.optimizer.param_groups[0]
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].mul_(0.5)
        else:
            group["lr"] = torch.tensor(0.04, dtype=torch.float64)

    def decay(self):
        """Assign a weight decay."""
        group = self.optimizer.param_groups[-1]
        group["weight_decay"] = 0.0 if group["weight_decay"] else 0.02

    def momentum(self):
        """Assign a momentum to SGD, 0 too; torch's RMSprop cannot begin with one later."""
        group = self.optimizer.param_groups[0]
        if "dampening" in group and not group["nesterov"]:
            group["momentum"] = 0.0 if group["momentum"] else 0.5

    def betas(self):
        """Assign betas, where there are any: a pair, or a list."""
        group = self.optimizer.param_groups[0]
        if "betas" in group:
            group["betas"] = (0.9, 0.999) if group["betas"][0] == 0.8 else [0.8, 0.99]

    def schedule(self):
        """Put a scheduler of torch over it."""
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)

    def add(self):
        """Add a group."""
        if self.count < len(SHAPES) and self.scheduler is None:
            self.optimizer.add_param_group({"params": [self.params[self.count]]})
            self.count += 1

    def reload(self):
        """Through a file, as the default torch.load opens it."""
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        self.optimizer.load_state_dict(torch.load(file))

    def swap(self):
        """Give a parameter other memory."""
        self.params[0].data = self.params[0].data.clone()

    def write(self):
        """Write into parameters."""
        with torch.no_grad():
            for p in self.params:
                p.mul_(0.9)

    def exchange_states(self):
        """Assign other states."""
        for state in self.optimizer.state.values():
            state.update({name: 0.75 * value for name, value in state.items() if name != "step" and value is not None})

    def clear(self):
        """Forget the states, where torch begins anew then."""
        if "lr_decay" not in self.optimizer.param_groups[0]:
            self.optimizer.state.clear()

    def copy(self):
        """Go on with a copy of all."""
        self.params, self.optimizer = copy.deepcopy((self.params, self.optimizer))
        if type(self.optimizer).__module__.startswith("torch."):
            exact(self.optimizer)  # copies have no hooks
        self.scheduler = None

    def step(self, number, kind):
        """Take a step with gradients of a kind."""
        for i, p in enumerate(self.params[: self.count]):
            p.grad = gradient(p, 10 * number + i, kind)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()


def gradient(p, seed, kind):
    """A gradient that is sometimes missing, in another layout, broadcast along an axis, or ordinary."""
    g = noise(p.shape, p.dtype, seed)
    if kind == "some" and seed % 3 == 0:
        return None
    if kind == "otherwise" and p.ndim > 1:
        return g.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == "stretched" and p.ndim > 1:
        return g[:1].expand(p.shape)
    return g.clone()


ACTS = [name for name in vars(Run) if not name.startswith("_") and name != "step"]
GRADIENTS = ["all", "some", "otherwise", "stretched"]
plans = st.lists(st.tuples(st.sampled_from([None, None, *ACTS]), st.sampled_from(["all", *GRADIENTS])), max_size=12)


def assert_parity(kind, plan):
    """Parameters and states agree after every step."""
    name, options = KINDS[kind]
    mine, theirs = Run(name, options, plainest=False), Run(name, options, plainest=True)
    for number, (act, gradients) in enumerate(plan):
        for run in (mine, theirs):
            if act is not None:
                getattr(run, act)()
            run.step(number, gradients)
        for p, q in zip(mine.params, theirs.params, strict=True):
            assert_near(p, q, TORCH)
            for state, value in states(theirs.optimizer, q).items():
                if state != "step" and value is not None:
                    assert_near(states(mine.optimizer, p)[state], value, TORCH)


def in_any_order(count):
    """A test of so many plans for each kind."""

    @pytest.mark.parametrize("kind", usually(["momentum", "adamw_amsgrad"], KINDS))
    @settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(plan=plans)
    def test(kind, plan):
        assert_parity(kind, plan)

    return test


test_any_order = in_any_order(10)
test_any_order_of_many = pytest.mark.exhaustive(in_any_order(200))
