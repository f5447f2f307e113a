"""fastopt.torch under GradScaler on a stand-in for a GPU: what is skipped, what is counted, and what waits."""

import cuda_stand_in
import cuda_tensors
import pytest
import torch
import torch_cases
from cuda_tensors import on_gpu, on_host, sparse_on_gpu
from gpu_models import KINDS, SHAPES, assert_equal, at_once, both, captured, give, model, scaled_step, uncollected
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pairs import swept
from torch_cases import usual

from fastopt.schedules import Cosine, Linear, OneCycle, Piecewise, Plateau, Warmup

pytestmark = pytest.mark.usefixtures("pretended")
ALL = pytest.mark.parametrize("kind", KINDS)


@swept(
    ids=str,
    usual=usual,
    kind=KINDS,
    flags=[["taken", "skipped", "taken"], ["skipped", "skipped", "taken", "taken"], ["skipped"], ["taken"] * 3],
    dtype=[torch.float32, torch.float16],
)
def test_a_scalers_verdict_stays_on_the_gpu(kind, flags, dtype):
    """A skipped step changes and counts nothing, even if it would have been the first; the host does not wait."""
    there, here, ours, others = model(kind, dtype)
    for step, flag in enumerate(flags):
        give(there, here, step, scale=8.0)
        log = len(cuda_stand_in.WORLD.log)
        scaled_step(ours, flag)
        assert len(cuda_stand_in.WORLD.log) > log
        if flag == "taken":
            others.step()
    give(there, here, 50)
    ours.step()
    others.step()
    assert_equal(there, here, ours, others)


@ALL
def test_states_of_a_step_that_was_skipped_are_given_up(kind):
    """The first gradient is not dampened, even if other parameters take part in that step."""
    there, here, ours, others = model(kind)
    give(there, here, 0)
    scaled_step(ours, "skipped")
    for step, which in ((1, torch_cases.late), (4, torch_cases.always)):
        give(there, here, step, given=which)
        ours.step()
        others.step()
    assert_equal(there, here, ours, others)


def test_without_a_scale_gradients_are_as_they_are():
    """After scaler.unscale_, which clipping needs."""
    there, here, ours, others = model("momentum")
    for step in range(3):
        give(there, here, step)
        scaled_step(ours, "taken", scale=None)
        others.step()
    assert_equal(there, here, ours, others)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**16, 2.0**126, 1.5 * 2.0**126, 2.0**127], ids=str)
@pytest.mark.parametrize("kind", ["sgd", "momentum", "adamw_amsgrad"])
def test_any_normal_scale(kind, scale):
    """Including one whose reciprocal is a float32 subnormal, which kernels flush to zero."""
    there, here, ours, others = model(kind)
    for step in range(3):
        give(there, here, step)
        for p, q in zip(there, here, strict=True):
            q.grad *= 2.0**-6
            p.grad = on_gpu(q.grad * scale)
        before = [on_host(p) for p in there]
        scaled_step(ours, "taken", scale=scale)
        others.step()
        assert any(not torch.equal(on_host(p), old) for p, old in zip(there, before, strict=True))
    assert_equal(there, here, ours, others)


def test_options_assigned_while_the_gpu_counts():
    """torch's schedulers do so at each step."""
    there, here, ours, others = model("momentum")
    for step in range(6):
        give(there, here, step, scale=8.0)
        scaled_step(ours, "skipped" if step == 2 else "taken")
        if step != 2:
            others.step()
        for optimizer in (ours, others):
            optimizer.param_groups[0]["lr"] *= 0.5
    assert_equal(there, here, ours, others)


def test_a_momentum_that_is_scheduled_through_zero():
    """Another rule then, with a buffer that begins, while the GPU counts; a graph could not change it."""
    for schedule in (Linear(0.0, 0.9, 5), Piecewise([0.9, 0.0, 0.5], [3, 6])):
        there, here, ours, others = model("momentum", momentum=schedule)
        both(ours, others, there, here, ["taken", "skipped"] + ["taken"] * 8)
        assert_equal(there, here, ours, others)
    there, here, ours, _ = model("momentum", momentum=Piecewise([0.0, 0.9], [9]))
    stream = cuda_stand_in.Stream()
    give(there, here, 0)
    with stream:
        for _ in range(2):
            ours.step()
    with pytest.raises(RuntimeError, match="momentum of group 0 is 0"):
        captured(ours, stream)


@pytest.mark.parametrize("flags", [["taken"] * 3, ["taken", "skipped", "taken"]])
def test_what_is_assigned_in_a_schedules_place_stays(flags):
    """Into a dict that was read before, while the GPU went on counting."""
    there, here, ours, others = model("momentum", lr=Cosine(0.1, 20))
    groups = [optimizer.param_groups[0] for optimizer in (ours, others)]

    def assign(step):
        for group in groups if step == 1 else []:
            group["lr"] = 0.05

    both(ours, others, there, here, flags, assign)
    assert_equal(there, here, ours, others)
    assert ours.param_groups[0]["lr"] == 0.05


def test_a_count_that_is_written_while_the_gpu_counts():
    """As a user may who resumes another training."""
    there, here, ours, others = model("adagrad")

    def write(step):
        if step == 1:
            for optimizer, params in ((ours, there), (others, here)):
                optimizer.state[params[0]]["step"].fill_(10)

    both(ours, others, there, here, ["taken"] * 4, write)
    assert ours.state[there[0]]["step"] == 12
    assert_equal(there, here, ours, others)


def test_a_state_dict_after_skipped_steps_has_no_states():
    """Or dampening would meet the first gradient after loading."""
    there, here, ours, others = model("momentum")
    both(ours, others, there, here, ["skipped", "skipped"])
    assert ours.state_dict()["state"] == {}
    both(ours, others, there, here, ["taken", "skipped", "taken"])
    assert_equal(there, here, ours, others)


@pytest.mark.parametrize("options", [{"lr": 0.1}, {"lr": Cosine(0.1, 20), "ema_decay": 0.5}], ids=["there", "copied"])
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
@pytest.mark.parametrize("pattern", ["ss", "dd", "ds", "ddsd", "dddss"])
def test_sparse_gradients_under_a_scaler(pattern, name, options, monkeypatch):
    """Of rows that are copied, the host has to know the scale; dense gradients beside them are divided as before."""
    at_once(monkeypatch)
    there, here, ours, others = cuda_tensors.pair(name, [torch.zeros(4), torch.zeros(6, 2)], **options)
    for kind in pattern:
        cuda_stand_in.synchronize_all()
        here[0].grad, there[0].grad = torch.ones(4), on_gpu(torch.full((4,), 8.0))
        here[1].grad = there[1].grad = None
        if kind == "s":
            here[1].grad = torch.sparse_coo_tensor([[1, 3]], torch.ones(2, 2), (6, 2), check_invariants=True)
            there[1].grad = sparse_on_gpu(8.0 * here[1].grad)
        before = cuda_stand_in.WORLD.waits
        scaled_step(ours, "taken")
        assert kind == "d" or "ema_decay" not in options or cuda_stand_in.WORLD.waits > before
        others.step()
    assert_equal(there, here, ours, others)


def test_sparse_rows_have_the_rate_of_their_step(monkeypatch):
    """Also where other dense gradients come in the same step, before which the host adds up the GPU's counts."""
    at_once(monkeypatch)
    shapes = [torch.zeros(4), torch.zeros(3), torch.zeros(6, 2)]
    there, here, ours, others = cuda_tensors.pair("SGD", shapes, lr=Linear(1.0, 0.0, 4), ema_decay=0.5)
    for step in range(3):
        cuda_stand_in.synchronize_all()
        for p, q in zip(there, here, strict=True):
            p.grad = q.grad = None
        for i in range(2) if step < 2 else range(1):
            here[i].grad, there[i].grad = torch.ones(here[i].shape), on_gpu(torch.full(here[i].shape, 8.0))
        if step == 2:
            here[2].grad = torch.sparse_coo_tensor([[1, 3]], torch.ones(2, 2), (6, 2), check_invariants=True)
            there[2].grad = sparse_on_gpu(8.0 * here[2].grad)
        scaled_step(ours, "taken")
        others.step()
    assert_equal(there, here, ours, others)


@pytest.mark.parametrize("kind", ["momentum", "adagrad", "nadamw"])
def test_a_scale_that_the_host_knows_after_steps_of_a_scaler(kind):
    """The steps that the GPU has counted until then are in the counts, of parameters too."""
    there, here, ours, others = model(kind)
    both(ours, others, there, here, ["taken", "skipped", "taken"])
    give(there, here, 3, scale=8.0)
    ours.grad_scale = torch.tensor(8.0)
    ours.step()
    del ours.grad_scale
    others.step()
    assert_equal(there, here, ours, others)
    both(ours, others, there, here, ["taken"])
    assert_equal(there, here, ours, others)


@pytest.mark.parametrize("kind", ["momentum", "adagrad"])
def test_nobody_waits_for_the_gpu(kind):
    """Neither a scaler's step nor what torch does around it waits; reading a count does."""
    there, here, ours, _ = model(kind)
    give(there, here, 0, scale=8.0)
    for flag in ("taken", "taken", "skipped"):
        scaled_step(ours, flag)
    with uncollected():
        waits = cuda_stand_in.WORLD.waits
        for flag in ("taken", "skipped", "taken"):
            scaled_step(ours, flag)
            assert len(ours.param_groups[0]["params"]) == len(SHAPES)  # which zero_grad and GradScaler walk along
        assert cuda_stand_in.WORLD.waits == waits
    assert ours.state_dict()["state"][0].get("step", 4) == 4
    assert cuda_stand_in.WORLD.waits > waits


def iteration(optimizer, there, step, flag):
    """The end of a training iteration with a scaler: zero_grad, gradients, the check for infinities, and the step."""
    optimizer.zero_grad()
    for i, p in enumerate(there):
        p.grad = on_gpu(8.0 * torch_cases.gradient(p, 100 * step + i))
    assert all(p.grad is not None for group in optimizer.param_groups for p in group["params"])
    scaled_step(optimizer, flag)


FLAG = {3: "skipped", 6: "skipped"}  # by iteration; the others are taken


def waits_of(optimizer, there, flags=FLAG, between=lambda step: None):
    """How often fastopt waits in each of nine iterations."""
    found = []
    with uncollected():
        for step in range(9):
            before = cuda_stand_in.WORLD.waits
            iteration(optimizer, there, step, flags.get(step, "taken"))
            between(step)
            found.append(cuda_stand_in.WORLD.waits - before)
    return found


SCHEDULES = {
    "number": {},
    "schedule": {"lr": Cosine(0.1, 20)},
    "schedules": {"lr": Warmup(Cosine(0.1, 20), steps=3), "weight_decay": Linear(0.1, 0.0, 9)},
}


@swept(1, kind=KINDS, schedules=SCHEDULES)
def test_an_iteration_waits_for_nothing(kind, schedules):
    """After the second, whether numbers or schedules of fastopt's are in force."""
    options = SCHEDULES[schedules]
    there, here, ours, others = model(kind, **options)
    assert waits_of(ours, there)[2:] == [0] * 7
    for step in range(9):
        if step not in FLAG:
            for i, q in enumerate(here):
                q.grad = torch_cases.gradient(q, 100 * step + i)
            others.step()
    with uncollected():
        before = cuda_stand_in.WORLD.waits
        assert len(ours.param_groups[0]["params"]) == len(SHAPES)
        assert cuda_stand_in.WORLD.waits == before
    assert {k: v for k, v in ours.param_groups[0].items() if k != "params"} == {
        k: v for k, v in others.param_groups[0].items() if k != "params"
    }
    assert (cuda_stand_in.WORLD.waits > before) == bool(options)  # a schedule's number can be read
    assert_equal(there, here, ours, others)


def test_steps_that_are_skipped_at_first_wait():
    """Their states are freed; two iterations after the first taken step, the host does not wait."""
    there, _, ours, _ = model("adamw_amsgrad", lr=Cosine(0.1, 20))
    assert waits_of(ours, there, dict.fromkeys((0, 1, 2, 5), "skipped"))[5:] == [0] * 4


MOMENTA = {
    "above 0": (OneCycle(0.1, 20).momentum(0.5, 0.9), []),
    "from 0": (Linear(0.0, 0.9, 5), [2]),
    "to 0 and back": (Piecewise([0.9, 0.0, 0.5], [3, 5]), [3, 4, 6, 7]),
}


@pytest.mark.parametrize(("momentum", "waiting"), MOMENTA.values(), ids=MOMENTA)
def test_a_scheduled_momentum_waits_only_around_0(momentum, waiting):
    """Where there is another rule."""
    there, here, ours, others = model("momentum", dampening=0.0, lr=OneCycle(0.1, 20), momentum=momentum)
    found = waits_of(ours, there)
    assert [step for step in range(2, 9) if found[step]] == waiting
    for step in range(9):
        if step not in FLAG:
            for i, q in enumerate(here):
                q.grad = torch_cases.gradient(q, 100 * step + i)
            others.step()
    assert_equal(there, here, ours, others)


@pytest.mark.parametrize("kind", ["momentum", "adamw_amsgrad"])
def test_schedulers_of_torch_wait_for_nothing(kind):
    """They read and assign numbers at each step."""
    there, here, ours, others = model(kind)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for optimizer in (ours, others)]
    assert waits_of(ours, there, between=lambda step: schedulers[0].step())[2:] == [0] * 7
    for step in range(9):
        if step not in FLAG:
            for i, q in enumerate(here):
                q.grad = torch_cases.gradient(q, 100 * step + i)
            others.step()
        schedulers[1].step()
    assert_equal(there, here, ours, others)


VALUES = [("lr", 0.05), ("lr", Cosine(0.1, 12)), ("weight_decay", 0.1), ("weight_decay", Linear(0.1, 0.0, 10))]
MOMENTUM_VALUES = [("momentum", 0.5), ("momentum", 0.0), ("momentum", Piecewise([0.9, 0.0, 0.5], [3, 5]))]
ACTIONS = st.one_of(
    st.tuples(st.just("scaled"), st.sampled_from(["taken", "taken", "skipped"]), st.integers(1, 7)),
    st.tuples(st.just("again"), st.sampled_from(["taken", "skipped"])),
    st.tuples(st.just("plain"), st.integers(1, 7)),
    st.tuples(st.just("assign"), st.integers(0, 6)),
    st.tuples(st.just("describe")),
    st.tuples(st.just("look")),
    st.tuples(st.just("load")),
)


class Sides:
    """An optimizer on the GPU under a scaler, and one on the host that takes the steps which are not skipped."""

    def __init__(self, kind, options):
        self.there, self.here, self.ours, self.others = model(kind, shapes=SHAPES[:3], dampening=0.0, **options)
        self.step, self.mask, self.assigned = 0, 7, False
        self.scaled("taken", 7)

    def give(self):
        """The gradients of a step; some are missing."""
        self.step += 1
        give(self.there, self.here, self.step, given=lambda step, i: self.mask >> i & 1, scale=8.0)

    def scaled(self, flag, mask):
        """A step of the scaler's."""
        self.mask = mask
        self.give()
        scaled_step(self.ours, flag)
        if flag == "taken":
            self.others.step()
            self.assigned = False
        else:
            self.others.state_dict()  # which reads the options, as a skipped step does

    def again(self, flag):
        """Another, with gradients for the same parameters."""
        self.scaled(flag, self.mask)

    def plain(self, mask):
        """A step without the scaler."""
        self.mask = mask
        self.step += 1
        give(self.there, self.here, self.step, given=lambda step, i: self.mask >> i & 1)
        self.ours.step()
        self.others.step()
        self.assigned = False

    def assign(self, number):
        """Another number, or a schedule, which shows in the groups from the next step that is taken on."""
        self.assigned = True
        for optimizer in (self.ours, self.others):
            name, value = [*VALUES, *MOMENTUM_VALUES][number]
            optimizer.param_groups[0][name] = value

    def idle(self):
        """A step at a rate of 0, which some engines take to change nothing, and the old object back."""
        groups = [optimizer.param_groups[0] for optimizer in (self.ours, self.others)]
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = 0.0
        self.again("taken")
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        self.again("taken")

    def describe(self):
        """A schedule by its description, and its count, and the step that sees it first."""
        for optimizer in (self.ours, self.others):
            optimizer.param_groups[0].update(schedules={"lr": Cosine(0.1, 30).to_dict()}, step=5)
        self.again("taken")

    def look(self):
        """Compare everything."""
        groups = [dict(optimizer.param_groups[0]) for optimizer in (self.ours, self.others)]
        assert all(group.pop("params") for group in groups)
        if not any(group.get("schedules") for group in groups):  # the count that is shown stands still then
            groups = [{name: value for name, value in group.items() if name != "step"} for group in groups]
        assert self.assigned or groups[0] == groups[1]
        assert_equal(self.there, self.here, self.ours, self.others)

    def load(self):
        """Go on from a state dict."""
        for optimizer in (self.ours, self.others):
            cuda_stand_in.synchronize_all()
            optimizer.load_state_dict(optimizer.state_dict())


def in_any_order(count):
    """A test of random sequences: steps that are skipped and taken, assignments, comparisons and state dicts."""

    @settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        schedules=st.sampled_from([{}, {"lr": Cosine(0.1, 12)}, {"momentum": OneCycle(0.1, 9).momentum(0.5, 0.9)}]),
        actions=st.lists(ACTIONS, min_size=3, max_size=14),
    )
    def test(schedules, actions):
        sides = Sides("momentum", schedules)
        for name, *arguments in [*actions, ("again", "taken"), ("look",)]:
            getattr(sides, name)(*arguments)

    return test


test_a_scaler_in_any_order = in_any_order(25)
test_a_scaler_in_many_orders = pytest.mark.exhaustive(in_any_order(200))


@pytest.mark.parametrize("action", ["idle", "describe"])
@pytest.mark.parametrize("schedules", [{"lr": Cosine(0.1, 20)}, {}], ids=["schedule", "number"])
def test_a_count_that_is_set_while_the_gpu_counts(schedules, action):
    """Steps counted until then come before it, whether the count was read or not."""
    for look in ([], ["look"]):
        sides = Sides("momentum", schedules)
        for name in ["plain", *look, "scaled", action, *look, "scaled", action, "again", "look"]:
            arguments = {"plain": (7,), "scaled": ("taken", 7), "again": ("taken",)}.get(name, ())
            getattr(sides, name)(*arguments)


def test_what_waits_in_every_iteration():
    """As docs/gpu.md has it: what only Python can call, a tensor on the GPU, and a schedule that was assigned later."""
    for lr in (lambda step: 0.1 / (1 + step), Plateau(0.1), on_gpu(torch.tensor(0.1))):
        there, _, ours, _ = model("momentum", lr=lr)
        assert min(waits_of(ours, there)) > 0
    there, _, ours, _ = model("momentum")
    ours.param_groups[0]["lr"] = Cosine(0.1, 20)
    assert min(waits_of(ours, there)) > 0
