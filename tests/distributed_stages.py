"""What two ranks check of the stages of a step: clipping, averages and skipped steps."""

import math
import re
import unittest.mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_workers import (
    FORMS,
    MESHES,
    STEPS,
    assert_equal,
    assert_ranks_agree,
    assert_same,
    batch,
    check,
    full,
    load,
    model,
    optimizer,
    results,
    save,
    sharded,
    sharded_of_old,
    two,
    zero,
)
from tolerances import NORM, TORCH, assert_close
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

import fastopt.torch
from fastopt.step.plan import Plan

KINDS = ["momentum", "adamw_amsgrad"]
STAGES = {
    "norm": {"max_grad_norm": 0.1},
    "value": {"clip_grad_value": 0.02},
    "average": {"ema_decay": 0.75},
    "skip": {"skip_nonfinite": True},
    "together": {"max_grad_norm": 0.1, "clip_grad_value": 0.02, "ema_decay": 0.75, "skip_nonfinite": True},
}
ELEMENTWISE = {name: STAGES[name] for name in ("value", "average")}
SPOILT = 2, 5  # steps in which a gradient is not finite on one rank, where such steps are skipped


class ByHand:
    """An optimizer of torch, with the stages as a program of torch's has them, one after the other."""

    def __init__(self, params, opt, max_grad_norm=None, clip_grad_value=None, ema_decay=None, skip_nonfinite=False):
        self.params, self.opt = list(params), opt
        self.max_norm, self.limit, self.decay, self.skips = max_grad_norm, clip_grad_value, ema_decay, skip_nonfinite
        self.averages = {}

    def zero_grad(self):
        """Clear the gradients."""
        self.opt.zero_grad()

    @torch.no_grad()
    def step(self):
        """Take a step."""
        gradients = [p.grad for p in self.params if p.grad is not None]
        norm = full(nn.utils.get_total_norm(gradients))
        if self.skips and not norm.isfinite():
            return
        if self.limit is not None:
            nn.utils.clip_grad_value_(self.params, self.limit)
        if self.max_norm is not None:
            for g in gradients:
                g.mul_(torch.clamp(self.max_norm / (norm + 1e-6), max=1.0))
        if self.decay is not None:
            started = {p: p.detach().clone() for p in self.params if p.grad is not None}
            self.averages = started | self.averages
        self.opt.step()
        for p, average in self.averages.items():
            average.mul_(self.decay).add_(p, alpha=1 - self.decay)


def made(library, kind, net, stages):
    """An optimizer of fastopt with these stages, or one of torch with the same by hand."""
    if library is fastopt.torch:
        return optimizer(library, kind, net.parameters(), **stages)
    return ByHand(net.parameters(), optimizer(library, kind, net.parameters()), **stages)


def spoil(net):
    """Make one element of a gradient NaN, on the second rank alone if the ranks have parts of it."""
    g = next(net.parameters()).grad
    here = g._local_tensor if isinstance(g, DTensor) else g
    if dist.get_rank() == 1 or here.shape == g.shape:
        here.view(-1)[-1] = math.nan


def train(net, opt, stages, steps=STEPS):
    """Train, with gradients that are not finite in some steps where these are skipped."""
    for step in steps:
        opt.zero_grad()
        x, y = batch(step)
        mse_loss(net(x), y).backward()
        if stages.get("skip_nonfinite") and step in SPOILT:
            spoil(net)
        opt.step()


def outcome(net, opt):
    """Parameters, states and averages."""
    if not isinstance(opt, ByHand):
        return results(net, opt)
    found = results(net, opt.opt)
    names = {p: name for name, p in net.named_parameters()}
    return found | {f"{names[p]}: ema": full(average) for p, average in opt.averages.items()}


def compare(make, kind, stages, assert_more=lambda net: None):
    """Assert that a model trains as with torch.optim and the stages by hand."""

    def run(library):
        net = make()
        opt = made(library, kind, net, stages)
        train(net, opt, stages)
        if library is fastopt.torch:
            assert opt.skipped_steps == (len(SPOILT) if stages.get("skip_nonfinite") else 0)
        assert_more(net)
        return outcome(net, opt)

    assert_same(run(fastopt.torch), run(torch.optim))


@check(KINDS, MESHES, STAGES, usual=["momentum", "rows", "columns", "norm", "together"])
def fsdp_stages(kind, placement, stages):
    """FSDP2: the norm is that of the whole, and both ranks skip where one of them has a NaN."""

    def make():
        mesh, options = MESHES[placement]()
        return sharded(mesh, **options)

    compare(make, kind, STAGES[stages])


@check(KINDS, ["own", "views"], STAGES, usual=["momentum", "own", "together"])
def ddp_stages(kind, gradients, stages):
    """Each rank has the same gradients, and nothing is to be done."""

    def make():
        return DistributedDataParallel(model(), gradient_as_bucket_view=gradients == "views")

    compare(make, kind, STAGES[stages], assert_ranks_agree)


def refused(act, words):
    """Assert that something is refused with these words."""
    try:
        act()
    except ValueError as error:
        assert re.search(words, str(error)), error  # noqa: PT017
    else:
        raise AssertionError("not refused")


# The norm of the whole

PLACES = {
    "rows": lambda mesh, both: (mesh, [Shard(0)]),
    "columns": lambda mesh, both: (mesh, [Shard(1)]),
    "replicas": lambda mesh, both: (mesh, [Replicate()]),
    "rows_of_two": lambda mesh, both: (both, [Shard(0), Shard(1)]),
    "replicas_of_two": lambda mesh, both: (both, [Replicate(), Shard(0)]),
    "mesh_of_its_own": lambda mesh, both: (two("other"), [Shard(0)]),
    "plain": lambda mesh, both: None,
}
MAGNITUDES = {"usual": (torch.float32, 1.0), "huge": (torch.float64, 1e200), "tiny": (torch.float64, 1e-200)}


def spread(tensor, place):
    """A tensor distributed as a place says."""
    return tensor.clone() if place is None else distribute_tensor(tensor, *place)


def mixed(dtype, scale):
    """Parameters in all places, with gradients; the norm of these as a whole."""
    mesh, both = two(), init_device_mesh("cpu", (2, 1), mesh_dim_names=("first", "second"))
    generator, params, squares = torch.Generator().manual_seed(1), [], []
    for name, place in PLACES.items():
        for kind in (dtype, torch.float64):  # of several launches
            there = place(mesh, both)
            p = nn.Parameter(spread(torch.ones(5, 3, dtype=kind), there))
            g = torch.randn(5, 3, generator=generator, dtype=torch.float64).to(kind) * scale
            p.grad = spread(g, there)
            params.append(p)
            squares.append((g.double() / scale).square().sum())
            if name == "columns":
                params.append(nn.Parameter(spread(torch.ones(4, 3, dtype=kind), there)))  # without a gradient
    return params, scale * float(torch.stack(squares).sum().sqrt())


def assert_alike(number):
    """Assert that a number has the same bits on all ranks."""
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, number.hex())
    assert len(set(everyone)) == 1


@check(MAGNITUDES)
def norm_of_the_whole(magnitude):
    """Each part counts once, whatever is sharded, replicated or plain; nothing overflows or is lost."""
    params, norm = mixed(*MAGNITUDES[magnitude])
    opt = fastopt.torch.SGD([{"params": params[:3]}, {"params": params[3:], "lr": 0.5}], lr=0.25)
    for _ in range(3):  # which the extension repeats, until there is a norm to add up
        opt.step()
    opt.max_grad_norm = math.inf
    for _ in range(3):
        opt.step()
        assert_alike(float(opt.grad_norm))
        assert math.isclose(float(opt.grad_norm), norm, rel_tol=NORM)
    for other in (opt, fastopt.torch.SGD(params, lr=0.5)):
        found = float(other.clip_grad_norm_(norm / 2))
        assert_alike(found)
        assert math.isclose(found, norm, rel_tol=NORM)
        before = full(params[0])
        gradient = full(params[0].grad)
        other.step()
        rate = other.param_groups[0]["lr"]
        assert_close(full(params[0]).numpy(), (before - rate / 2 * gradient).numpy(), TORCH)


@check()
def norm_with_gradients_of_one_rank():
    """A gradient that one rank lacks, of a parameter that it has: the others are added up all the same."""
    params = [nn.Parameter(distribute_tensor(torch.zeros(4), two(), [Shard(0)])) for _ in range(2)]
    opt = fastopt.torch.SGD(params, lr=1.0, max_grad_norm=5.0)
    for _ in range(2):
        params[0].grad = distribute_tensor(torch.full((4,), 3.0), two(), [Shard(0)])
        if dist.get_rank() == 0:
            params[1].grad = DTensor.from_local(torch.full((2,), math.sqrt(32.0)), two(), [Shard(0)])
        for norm in (opt.clip_grad_norm_(math.inf), (opt.step(), opt.grad_norm)[1]):
            assert math.isclose(float(norm), 10.0, rel_tol=1e-6)  # 4 * 9 and 2 * 32


@check()
def norm_with_sparse_gradients():
    """A plain parameter's sparse gradient, not coalesced, counts once beside a distributed one."""
    sharded_one = nn.Parameter(distribute_tensor(torch.zeros(4), two(), [Shard(0)]))
    params = [sharded_one, nn.Parameter(torch.zeros(3, 2))]
    opt = fastopt.torch.SGD(params, lr=1.0, max_grad_norm=5.0)
    for _ in range(2):
        params[0].grad = distribute_tensor(torch.full((4,), 3.0), two(), [Shard(0)])
        twice = torch.sparse_coo_tensor([[1, 1]], torch.full((2, 2), math.sqrt(8.0)), (3, 2))
        params[1].grad = twice
        for norm in (opt.clip_grad_norm_(math.inf), (opt.step(), opt.grad_norm)[1]):
            assert math.isclose(float(norm), 10.0, rel_tol=1e-6)  # 4 * 9 and 2 * 32


@check(["elements", "rows"], ["whole", "clipped"])
def tables_of_embeddings(accumulators, norm):
    """The sparse gradients of all ranks, as DDP brings them together, are that of the whole batch."""
    nets = [nn.Embedding(50, 8, sparse=True) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[0] = DistributedDataParallel(nets[0])  # which takes the first rank's numbers
    dist.broadcast(nets[1].weight.data, 0)
    options = {"lr": 0.1, "max_grad_norm": 0.5 if norm == "clipped" else None, "rowwise": accumulators == "rows"}
    ours, whole = (fastopt.torch.Adagrad(net.parameters(), **options) for net in nets)
    for step in range(3):
        words = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(step))
        for net, opt, given in ((nets[0], ours, words[dist.get_rank()]), (nets[1], whole, words)):
            opt.zero_grad()
            (net(given).square().sum() / (1 if net is nets[0] else 2)).backward()
            opt.step()
    assert nets[0].module.weight.grad.is_sparse
    assert_close(nets[0].module.weight.detach().numpy(), nets[1].weight.detach().double().numpy(), TORCH)


@check()
def norm_of_gradients_placed_otherwise():
    """Refused, as by the step."""
    p = nn.Parameter(distribute_tensor(torch.zeros(4), two(), [Shard(0)]))
    opt = fastopt.torch.SGD([p], lr=1.0)
    p.grad = distribute_tensor(torch.ones(4), two(), [Replicate()])
    for act in (lambda: opt.clip_grad_norm_(1.0), opt.step):
        refused(act, "the gradient of parameter 0 is not distributed as its parameter is")
    p.grad = distribute_tensor(torch.ones(4), two(), [Shard(0)])
    assert float(opt.clip_grad_norm_(1.0)) == 2.0


@check()
def norm_over_gpus():
    """A step refuses it, and goes on without."""
    p = nn.Parameter(distribute_tensor(torch.zeros(4), two(), [Shard(0)]))
    opt = fastopt.torch.SGD([p], lr=1.0, max_grad_norm=1.0)
    p.grad = distribute_tensor(torch.ones(4), two(), [Shard(0)])
    with unittest.mock.patch.object(Plan, "uses_gpus", True):
        refused(opt.step, "several GPUs")
    assert torch.equal(full(p), torch.zeros(4))
    opt.step()
    assert_close(full(p).numpy(), torch.full((4,), -0.5).numpy(), TORCH)


@check()
def first_step_skipped():
    """Where only one rank has a NaN: nothing is changed, made or counted on either."""
    net = sharded(two())
    opt = optimizer(fastopt.torch, "adamw_amsgrad", net.parameters(), skip_nonfinite=True, ema_decay=0.5)
    before = results(net, opt)
    x, y = batch(0)
    mse_loss(net(x), y).backward()
    spoil(net)
    opt.step()
    assert opt.skipped_steps == 1
    assert math.isnan(opt.grad_norm)
    assert_equal(results(net, opt), before)


# Shards that look like ordinary tensors


def assert_norm_refused(net, make, inner, words):
    """Assert that an optimizer refuses every way of asking for the norm, changes nothing then, and goes on without."""
    for name, value, without in (("max_grad_norm", 1.0, None), ("skip_nonfinite", True, False)):
        refused(lambda given={name: value}: make(**given), words)
        opt = make()
        for _ in range(2):
            train(net, opt, {}, STEPS[:3])
            before = results(net, inner(opt))
            opt.param_groups[0][name] = value
            for act in (opt.step, lambda opt=opt: inner(opt).clip_grad_norm_(1.0)):
                refused(act, words)
            assert_equal(results(net, inner(opt)), before)
            opt.param_groups[0][name] = without


@check(["flat", "original"], KINDS, usual=["flat", "momentum"])
def fsdp_of_old_norm(form, kind):
    """Refused, with what to call instead."""
    net = sharded_of_old(form)
    words = r"FSDP1.*model.clip_grad_norm_\(max_norm\) before the step"

    def make(**stages):
        return optimizer(fastopt.torch, kind, net.parameters(), **stages)

    assert_norm_refused(net, make, lambda opt: opt, words)


@check(["flat", "original"], KINDS, ELEMENTWISE, usual=["flat", "momentum", "average"])
def fsdp_of_old_stages(form, kind, stages):
    """What concerns each element for itself is as with torch."""
    compare(lambda: sharded_of_old(form), kind, STAGES[stages])


@check(["own", "views"], KINDS, usual=["own", "momentum"])
def zero_redundancy_norm(params, kind):
    """Refused, with what to call instead, which is right."""
    net = DistributedDataParallel(model())
    words = r"ZeroRedundancyOptimizer.*torch.nn.utils.clip_grad_norm_\(model.parameters\(\), max_norm\) before the step"

    def make(**stages):
        return zero(fastopt.torch, kind, net.parameters(), params, **stages)

    assert_norm_refused(net, make, lambda opt: opt.optim, words)
    opt = make()
    other = optimizer(fastopt.torch, kind, net.parameters(), max_grad_norm=1.0)  # not made by it
    x, y = batch(0)
    mse_loss(net(x), y).backward()
    other.step()
    opt.step()


@check(["own", "views"], KINDS, ELEMENTWISE, usual=["own", "momentum", "average"])
def zero_redundancy_stages(params, kind, stages):
    """What concerns each element for itself is as in one optimizer for all."""

    def run(partly):
        net = DistributedDataParallel(model())
        if partly:
            opt = zero(fastopt.torch, kind, net.parameters(), params, **STAGES[stages])
        else:
            opt = optimizer(fastopt.torch, kind, net.parameters(), **STAGES[stages])
        train(net, opt, STAGES[stages])
        assert_ranks_agree(net)
        return results(net, opt.optim if partly else opt)

    mine, whole = run(True), run(False)
    assert_same(mine, {name: whole[name] for name in mine})


# Averages


@check(KINDS, FORMS, usual=["momentum", "nested"])
def checkpoint_of_stages(kind, form):
    """Options and averages go through a checkpoint, and the training goes on just the same."""
    stages = STAGES["together"]
    net = sharded(two())
    opt = optimizer(fastopt.torch, kind, net.parameters(), **stages)
    train(net, opt, stages, STEPS[:4])
    path = f"stages-{kind}-{form}"
    save(path, net, opt, FORMS[form])
    train(net, opt, stages, STEPS[4:])

    other = sharded(two(), seed=4)
    second = optimizer(fastopt.torch, kind, other.parameters(), **{**stages, "max_grad_norm": 7.0, "ema_decay": 0.5})
    load(path, other, second, FORMS[form])
    assert {name: getattr(second, name) for name in stages} == stages
    train(other, second, stages, STEPS[4:])
    assert_equal(results(other, second), results(net, opt))


@check(KINDS, usual=["momentum"])
def state_dict_of_stages(kind):
    """They go through torch's functions for state dicts too, into an optimizer without any."""
    stages = STAGES["together"]
    net = sharded(two())
    opt = optimizer(fastopt.torch, kind, net.parameters(), **stages)
    train(net, opt, stages, STEPS[:4])
    saved = get_optimizer_state_dict(net, opt)
    second = optimizer(fastopt.torch, kind, net.parameters())
    set_optimizer_state_dict(net, second, saved)
    assert {name: getattr(second, name) for name in stages} == stages
    assert_equal(results(net, second), results(net, opt))


@check(KINDS, usual=["momentum"])
def swapped_averages(kind):
    """They stand in the parameters' place for a while; a state dict of the model has them."""
    net = sharded(two())
    opt = optimizer(fastopt.torch, kind, net.parameters(), ema_decay=0.75)
    train(net, opt, {})
    before = {name: full(p) for name, p in net.named_parameters()}
    averages = {name: full(opt.state[p]["ema"]) for name, p in net.named_parameters()}
    exported = opt.ema_state_dict(net)
    assert all(isinstance(value, DTensor) for value in exported.values())
    assert_equal({name: full(value) for name, value in exported.items()}, averages)
    with opt.swap_ema_weights():
        assert_equal({name: full(p) for name, p in net.named_parameters()}, averages)
        net(batch(0)[0])
    assert_equal({name: full(p) for name, p in net.named_parameters()}, before)
    train(net, opt, {}, STEPS[:2])
    dcp.save({"model": exported}, checkpoint_id=f"averages-{kind}")
