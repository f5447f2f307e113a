"""What two ranks check of fastopt.torch: each check under fastopt and under torch.optim, in the same processes."""

import copy
import functools
import itertools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch_cases
from fastopt.bench.cases import case
from pairs import pairs
from tolerances import BFLOAT16, TORCH, assert_close
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

import fastopt.torch
from fastopt.rules import RULES
from fastopt.schedules import Cosine, Warmup

OF_KIND = {"sgd": {}, "momentum": {}, "adagrad": {"lr_decay": 0.2}, "rmsprop_centered_momentum": {"lr": 0.01}}
KINDS = {kind: case(kind, **{"lr": 0.05, **OF_KIND.get(kind, {"weight_decay": 0.1})}) for kind in torch_cases.KINDS}
FEW = ["adamw_amsgrad"]  # which has several states, and a count
STEPS = range(8)
CHECKS = {}


@dataclass(frozen=True)
class Check:
    """A function with its arguments, the ranks that run it, the check whose file it reads; whether it is exhaustive."""

    run: Callable[[], None]
    ranks: int
    after: str
    exhaustive: bool


def check(*columns, usual=(), exhaustive=False, ranks=2, after=""):
    """Register a check for all combinations of its arguments, to be run by all ranks or by the first alone.

    Those in which no argument is new are exhaustive, and those with other arguments than the usual in a column that has
    some of these. `after` is the check whose file is read, which has the first three of these arguments.
    """
    columns = [list(column) for column in columns]
    by_default = [[value for value in column if value in usual] or column for column in columns]

    def register(function):
        covered = [] if exhaustive else pairs(1, **{str(i): column for i, column in enumerate(by_default)})
        for row in itertools.product(*columns):
            before = "-".join([after, *row[:3]]) if after else ""
            CHECKS["-".join([function.__name__, *row])] = Check(
                functools.partial(function, *row), ranks, before, row not in covered
            )
        return function

    return register


def with_what_they_need(names):
    """Names of checks in their order, with those that they come after."""
    wanted = set(names) | {CHECKS[name].after for name in names}
    return [name for name in CHECKS if name in wanted]


# Models, data, training


def model(dtype=torch.float32, seed=3):
    """Layers whose first dimensions are even, odd and 1: of two ranks, the second's shard is smaller, or empty."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)


def sharded(mesh, dtype=torch.float32, seed=3, **options):
    """The model, each layer sharded over the mesh."""
    net = model(dtype, seed)
    for layer in (*net[::2], net):
        fully_shard(layer, mesh=mesh, **options)
    return net


def two(name=None):
    """A mesh of both ranks."""
    return init_device_mesh("cpu", (2,), mesh_dim_names=name and (name,))


def optimizer(library, kind, params, **changed):
    """An optimizer of fastopt or torch."""
    name, options = KINDS[kind]
    return getattr(library, name)(params, **{**options, **changed})


def batch(step):
    """Each rank's own share of a batch; a single rank has all of it."""
    x, y = torch.randn(8, 8, generator=torch.Generator().manual_seed(step)).split([7, 1], dim=1)
    share = slice(dist.get_rank(), None, dist.get_world_size())
    return x[share], y[share]


def train(net, opt, steps, before_step=lambda: None):
    """Train on the batches; gradients are reset to None, or to zero in place."""
    for step in steps:
        opt.zero_grad(set_to_none=step % 3 != 1)
        x, y = batch(step)
        mse_loss(net(x), y).backward()
        before_step()
        opt.step()


def drive(net, opt, steps):
    """Give each parameter random gradients, which do not depend on the order of a sum over ranks."""
    for step in steps:
        for seed, p in enumerate(net.parameters()):
            g = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + seed)).to(torch.bfloat16)
            g = g.to(p.dtype)
            p.grad = distribute_tensor(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g
        opt.step()


TRAINING = {"float32": (torch.float32, train), "bfloat16": (torch.bfloat16, drive)}


# Results


def full(tensor):
    """All of a tensor that may be sharded, as a copy."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def results(net, opt):
    """Every parameter and state by name, in full."""
    found = {}
    for name, p in net.named_parameters():
        found[name] = full(p)
        for state, value in opt.state.get(p, {}).items():
            found[f"{name}: {state}"] = torch.tensor(float(value)) if state == "step" else full(value)
    return found


def assert_same(mine, theirs, dtype=torch.float32):
    """Assert that all results are there, and within the tolerance for parameters of this type."""
    count = {torch.float32: TORCH, torch.bfloat16: BFLOAT16 * 2**16}[dtype]  # 2**16: its epsilon by that of float32
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert_close(tensor.float().numpy(), theirs[name].float().numpy(), count)


def assert_equal(mine, theirs):
    """Assert that all results are there, of the same types, and the same bit by bit."""
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def assert_ranks_agree(net):
    """Assert that the ranks' replicas are the same: nothing would bring them together again."""
    for p in net.parameters():
        everyone = [torch.empty_like(p) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, p.detach().contiguous())
        assert torch.equal(everyone[0], everyone[1])


def compare(run):
    """Assert that what runs with a library ends the same with fastopt as with torch."""
    assert_same(run(fastopt.torch), run(torch.optim))


# DistributedDataParallel


@check(KINDS, ["own", "views"], usual=FEW)
def ddp(kind, gradients):
    """Ranks with different data; the gradients are tensors of their own, or views of a bucket."""

    def run(library):
        net = DistributedDataParallel(model(), gradient_as_bucket_view=gradients == "views")
        opt = optimizer(library, kind, net.parameters())
        train(net, opt, STEPS)
        storages = {p.grad.untyped_storage().data_ptr() for p in net.parameters()}
        assert len(storages) == (1 if gradients == "views" else 6)
        assert_ranks_agree(net)
        return results(net, opt)

    compare(run)


class Branches(nn.Module):
    """Parameters that a step uses on one rank, on both, or on none; one that is never used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.left, self.right, self.never = nn.Linear(7, 3), nn.Linear(7, 3), nn.Linear(7, 3)
        self.steps = 0

    def forward(self, x):
        """Go left or right by step and rank: both ranks left, one, none."""
        right = [(0, 0), (0, 1), (1, 1)][self.steps % 3][dist.get_rank()]
        self.steps += 1
        return (self.right if right else self.left)(x).sum(dim=1, keepdim=True)


@check(KINDS, ["own", "views"], usual=[*FEW, "own"])
def ddp_unused(kind, gradients):
    """A gradient comes late, is missing now and then, or never comes."""

    def run(library):
        net = DistributedDataParallel(
            Branches(), find_unused_parameters=True, gradient_as_bucket_view=gradients == "views"
        )
        opt = optimizer(library, kind, net.parameters())
        train(net, opt, STEPS)
        assert_ranks_agree(net)
        return results(net, opt)

    compare(run)


# ZeroRedundancyOptimizer


def zero(library, kind, params, views, **changed):
    """Each rank has the states of its part of the parameters."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # only in a rank: loading it gives many warnings

    name, options = KINDS[kind]
    return ZeroRedundancyOptimizer(
        params,
        optimizer_class=getattr(library, name),
        parameters_as_bucket_view=views == "views",
        **{**options, **changed},
    )


def through_a_file(opt, path):
    """Gather the state of all ranks, and return it on each as it comes out of a file."""
    opt.consolidate_state_dict(to=0)
    if dist.get_rank() == 0:
        torch.save(opt.state_dict(), path)
    dist.barrier()
    return torch.load(path)


@check(KINDS, ["own", "views"], usual=[*FEW, "own"])
def zero_redundancy(kind, params):
    """The parameters keep their own memory, or become views of a bucket after they were handed over."""

    def run(library):
        net = DistributedDataParallel(model())
        opt = zero(library, kind, net.parameters(), params)
        train(net, opt, STEPS)
        assert_ranks_agree(net)
        return results(net, opt.optim)

    compare(run)


@check(KINDS, ["own", "views"], usual=[*FEW, "own"])
def zero_redundancy_idle_rank(kind, params):
    """A rank without parameters has an empty group."""

    def run(library):
        torch.manual_seed(3)
        net = DistributedDataParallel(nn.Linear(7, 1, bias=False))
        opt = zero(library, kind, net.parameters(), params)
        train(net, opt, STEPS)
        assert_ranks_agree(net)
        return results(net, opt.optim)

    compare(run)


@check(KINDS, ["own", "views"], usual=[*FEW, "own"])
def zero_redundancy_group_added(kind, params):
    """A later group has a rate of its own, which changes from outside."""

    def run(library):
        net = DistributedDataParallel(model())
        early, late = list(net.parameters())[:3], list(net.parameters())[3:]
        opt = zero(library, kind, early, params)
        train(net, opt, STEPS[:3])
        opt.add_param_group({"params": late, "lr": 0.02})
        train(net, opt, STEPS[3:6])
        opt.param_groups[1]["lr"] = 0.01
        train(net, opt, STEPS[6:])
        assert_ranks_agree(net)
        return results(net, opt.optim)

    compare(run)


@check(KINDS, ["own", "views"], usual=[*FEW, "own"])
def zero_redundancy_checkpoint(kind, params):
    """The gathered state goes on where it was, in an optimizer that has made other steps before.

    The states are put into the rank's optimizer one by one, without its `load_state_dict`.
    """
    net = DistributedDataParallel(model())
    opt = zero(fastopt.torch, kind, net.parameters(), params)
    train(net, opt, STEPS[:4])
    opt.param_groups[0]["lr"] = 0.03
    saved = through_a_file(opt, f"zero-{kind}-{params}.pt")

    other = DistributedDataParallel(model(seed=4))
    second = zero(fastopt.torch, kind, other.parameters(), params)
    train(other, second, STEPS[:2])
    other.load_state_dict(net.state_dict())
    second.load_state_dict(saved)
    train(net, opt, STEPS[4:])
    train(other, second, STEPS[4:])
    assert second.optim.param_groups[0]["lr"] == 0.03
    assert_equal(results(other, second.optim), results(net, opt.optim))


# FSDP1


def sharded_of_old(form, seed=3):
    """The model in FSDP1, whose parameters are flat ones, or views of these."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that FSDP2 is there
        device = torch.device("cpu")
        return FullyShardedDataParallel(model(seed=seed), device_id=device, use_orig_params=form == "original")


@check(KINDS, ["flat", "original"], usual=[*FEW, "flat"])
def fsdp_of_old(kind, form):
    """It resizes the storage of its flat parameter to nothing and back around every forward pass."""

    def run(library):
        net = sharded_of_old(form)
        opt = optimizer(library, kind, net.parameters())
        train(net, opt, STEPS)
        return results(net, opt)

    compare(run)


@check(KINDS, ["flat", "original"], usual=[*FEW, "flat"])
def fsdp_of_old_checkpoint(kind, form):
    """Its own state dicts, in the middle of a training that clips, for another model."""

    def run(library):
        net, other = sharded_of_old(form), sharded_of_old(form, seed=4)
        opt, another = (optimizer(library, kind, each.parameters()) for each in (net, other))
        train(net, opt, STEPS[:4], lambda: net.clip_grad_norm_(0.1))
        saved = FullyShardedDataParallel.optim_state_dict(net, opt)
        other.load_state_dict(net.state_dict())
        another.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(other, another, saved))
        train(other, another, STEPS[4:], lambda: other.clip_grad_norm_(0.1))
        return {name: full(tensor) for name, tensor in other.state_dict().items()}

    compare(run)


# FSDP2


def assert_states_are_sharded(net, opt, kind):
    """Assert that states are DTensors just as their parameter, in `state` and in the state dict, and in float32."""
    saved = opt.state_dict()["state"]
    for i, p in enumerate(net.parameters()):
        assert isinstance(p, DTensor)
        for state in RULES[kind].states:
            for buffer in (opt.state[p][state], saved[i][state]):
                assert isinstance(buffer, DTensor)
                assert buffer.device_mesh == p.device_mesh
                assert buffer.placements == p.placements
                assert buffer.shape == p.shape
                assert buffer.to_local().shape == p.to_local().shape
                assert buffer.dtype == torch.float32


MESHES = {
    "rows": lambda: (two(), {}),
    "columns": lambda: (two(), {"shard_placement_fn": lambda p: Shard(1) if p.shape == (5, 6) else None}),
    "replicas": lambda: (init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicas", "shards")), {}),
    "kept": lambda: (two(), {"reshard_after_forward": False}),
    "offloaded": lambda: (two(), {"offload_policy": CPUOffloadPolicy(pin_memory=False)}),
}


@check(KINDS, MESHES, usual=[*FEW, "rows", "columns"])
def fsdp(kind, placement):
    """Sharded by rows, unevenly; by columns, whose shards are no blocks of the whole; not at all, but replicated.

    What is offloaded to the CPU has been there before, without a GPU: but it takes the path of torch that offloads.
    """

    def run(library):
        mesh, options = MESHES[placement]()
        net = sharded(mesh, **options)
        opt = optimizer(library, kind, net.parameters())
        train(net, opt, STEPS)
        assert_states_are_sharded(net, opt, kind)
        return results(net, opt)

    compare(run)


@check(KINDS, usual=FEW)
def fsdp_shards(kind):
    """That the shards above are what they are meant to be: uneven, empty; each rank updates its own."""
    net = sharded(two())
    opt = optimizer(fastopt.torch, kind, net.parameters())
    train(net, opt, STEPS)
    rows = [p.to_local().shape[0] for p in net.parameters()]
    assert rows == [[3, 3, 3, 3, 1, 1], [3, 3, 2, 2, 0, 0]][dist.get_rank()]


@check(KINDS, usual=FEW)
def fsdp_partly(kind):
    """One group of sharded and of ordinary parameters."""

    def run(library):
        net = model()
        fully_shard(net[2], mesh=two())
        opt = optimizer(library, kind, net.parameters())
        train(net, opt, STEPS)
        return results(net, opt)

    compare(run)


@check(KINDS, usual=FEW)
def fsdp_clipped(kind):
    """`clip_grad_norm_` scales the gradients in place, before the step."""

    def run(library):
        net = sharded(two())
        opt = optimizer(library, kind, net.parameters())
        norms = []

        def clip():
            norms.append(full(nn.utils.clip_grad_norm_(net.parameters(), 0.1)))

        train(net, opt, STEPS, clip)
        assert max(norms) > 0.1
        return results(net, opt) | {"norms": torch.stack(norms)}

    compare(run)


@check(KINDS, usual=FEW)
def fsdp_state_dict(kind):
    """An optimizer's own state dict, into another one for the same parameters."""
    net = sharded(two())
    opt = optimizer(fastopt.torch, kind, net.parameters())
    train(net, opt, STEPS)
    want = results(net, opt)

    net = sharded(two())
    opt = optimizer(fastopt.torch, kind, net.parameters())
    train(net, opt, STEPS[:4])
    second = optimizer(fastopt.torch, kind, net.parameters())
    second.load_state_dict(opt.state_dict())
    train(net, second, STEPS[4:])
    assert_states_are_sharded(net, second, kind)
    assert_equal(results(net, second), want)


@check(sorted(KINDS.keys() - {"sgd"}), usual=["momentum"])
def fsdp_states_of_16_bits(kind):
    """The whole parameter's size decides, so that all ranks store alike; the bits are those of one process."""
    options = {"state_dtype": "bfloat16", "stochastic_rounding": False, "min_quantized_size": 20}
    found = []
    for net in (model(), sharded(two())):
        opt = optimizer(fastopt.torch, kind, net.parameters(), **options)
        drive(net, opt, STEPS[:4])
        second = optimizer(fastopt.torch, kind, net.parameters(), **options)
        second.load_state_dict(opt.state_dict())
        drive(net, second, STEPS[4:])
        found.append(results(net, second))
    assert {value.dtype for value in found[0].values()} >= {torch.bfloat16, torch.float32}
    assert_equal(*found)


@check(("32", "24"), exhaustive=True)
def fsdp_masters(bits):
    """Remainders are DTensors as their parameters are, and masters have the bits of one process."""
    found, masters = [], []
    for net in (model(torch.bfloat16), sharded(two(), torch.bfloat16)):
        options = {"lr": 0.01, "master_weights": int(bits)}
        opt = fastopt.torch.AdamW(net.named_parameters(), **options)
        drive(net, opt, STEPS[:4])
        second = fastopt.torch.AdamW(net.named_parameters(), **options)
        second.load_state_dict(opt.state_dict())
        drive(net, second, STEPS[4:])
        masters.append({name: full(master) for name, master in second.master_state_dict().items()})
        found.append({name: value.int() for name, value in states_here(net, second, "master").items()})
    assert {value.dtype for value in masters[0].values()} == {torch.float32}
    assert_equal(*masters)
    assert any(value.any() for value in found[1].values())


def states_here(net, opt, name):
    """The local parts of a state, by the names of parameters."""
    states = {key: opt.state[p][name] for key, p in net.named_parameters()}
    return {key: state.to_local() if isinstance(state, DTensor) else state for key, state in states.items()}


@check(KINDS, usual=FEW)
def fsdp_bfloat16(kind):
    """States are float32 DTensors; as torch.optim in float32, whose parameters are rounded after each step."""
    net = sharded(two(), torch.bfloat16)
    opt = optimizer(fastopt.torch, kind, net.parameters())
    drive(net, opt, STEPS)
    assert_states_are_sharded(net, opt, kind)

    reference = model(torch.bfloat16).float()
    theirs = optimizer(torch.optim, kind, reference.parameters())
    for step in STEPS:
        drive(reference, theirs, [step])
        with torch.no_grad():
            for p in reference.parameters():
                p.copy_(p.bfloat16())
    assert_same(results(net, opt), results(reference, theirs), torch.bfloat16)


# Checkpoints

FORMS = {"nested": StateDictOptions(), "flat": StateDictOptions(flatten_optimizer_state_dict=True)}


def save(path, net, opt, options=None):
    """Save a model and its optimizer."""
    states = dict(zip(("model", "optimizer"), get_state_dict(net, opt, options=options), strict=True))
    dcp.save(states, checkpoint_id=path)


def load(path, net, opt, options=None, planner=None):
    """Load a model and its optimizer, resharded where need be."""
    states = dict(zip(("model", "optimizer"), get_state_dict(net, opt, options=options), strict=True))
    dcp.load(states, checkpoint_id=path, planner=planner)
    set_state_dict(net, opt, model_state_dict=states["model"], optim_state_dict=states["optimizer"], options=options)


@check(KINDS, TRAINING, FORMS, usual=FEW)
def checkpoint(kind, precision, form):
    """Saved on the way, and loaded into a model and an optimizer that were elsewhere: it goes on just the same."""
    dtype, advance = TRAINING[precision]
    net = sharded(two(), dtype)
    opt = optimizer(fastopt.torch, kind, net.parameters())
    advance(net, opt, STEPS[:4])
    opt.param_groups[0]["lr"] = 0.03
    path = f"{kind}-{precision}-{form}"
    save(path, net, opt, FORMS[form])
    advance(net, opt, STEPS[4:])
    want = results(net, opt)
    if dist.get_rank() == 0:
        torch.save(want, f"{path}.pt")

    net = sharded(two(), dtype, seed=4)
    opt = optimizer(fastopt.torch, kind, net.parameters())
    advance(net, opt, STEPS[:2])
    load(path, net, opt, FORMS[form])
    assert_states_are_sharded(net, opt, kind)
    assert opt.param_groups[0]["lr"] == 0.03
    advance(net, opt, STEPS[4:])
    assert_states_are_sharded(net, opt, kind)
    assert_equal(results(net, opt), want)


@check(KINDS, TRAINING, FORMS, ["ordinary", "mesh"], usual=FEW, ranks=1, after="checkpoint")
def resharded(kind, precision, form, single):
    """What two ranks saved above, one goes on with: in an ordinary model, or in one sharded over a mesh of one."""
    dtype, advance = TRAINING[precision]
    net = model(dtype, seed=4) if single == "ordinary" else sharded(init_device_mesh("cpu", (1,)), dtype, seed=4)
    opt = optimizer(fastopt.torch, kind, net.parameters())
    path = f"{kind}-{precision}-{form}"
    load(path, net, opt, FORMS[form])
    advance(net, opt, STEPS[4:])
    assert {opt.state[p][state].dtype for p in net.parameters() for state in RULES[kind].states} <= {torch.float32}
    assert_same(results(net, opt), torch.load(f"{path}.pt"), dtype)


# torch's functions fail for an optimizer that has no states
@check(sorted(KINDS.keys() - {"sgd"}), TRAINING, usual=FEW)
def broadcast(kind, precision):
    """The whole state on the first rank alone, and from there to all."""
    dtype, advance = TRAINING[precision]
    net = sharded(two(), dtype)
    opt = optimizer(fastopt.torch, kind, net.parameters())
    advance(net, opt, STEPS[:4])
    gather = StateDictOptions(full_state_dict=True, cpu_offload=True)
    saved = copy.deepcopy(get_state_dict(net, opt, options=gather))
    assert all(bool(states) == (dist.get_rank() == 0) for states in saved)
    advance(net, opt, STEPS[4:])

    other = sharded(two(), dtype, seed=4)
    second = optimizer(fastopt.torch, kind, other.parameters())
    scatter = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(other, saved[0], options=scatter)
    set_optimizer_state_dict(other, second, saved[1], options=scatter)
    assert_states_are_sharded(other, second, kind)
    advance(other, second, STEPS[4:])
    assert_equal(results(other, second), results(net, opt))


# Schedules, whose records stand in the groups, which the engines copy, write into and save

SCHEDULE = Warmup(Cosine(0.05, 8), 3)


def scheduled(library):
    """Return the schedule as an option of fastopt's optimizers; and for torch's, what sets the rate."""
    if library is fastopt.torch:
        return {"lr": SCHEDULE}, lambda opt, step: None
    return {}, lambda opt, step: opt.param_groups[0].update(lr=SCHEDULE(step))


def train_by_schedule(net, opt, steps, set_rate):
    """Train, and assert that the groups have the schedule's rate after each step."""
    for step in steps:
        set_rate(opt, step)
        train(net, opt, [step])
        rate = opt.param_groups[0]["lr"]
        assert rate == SCHEDULE(step), f"{rate} at step {step}, for which the schedule has {SCHEDULE(step)}"


@check(KINDS, ["own", "views"], usual=[*FEW, "own"])
def zero_redundancy_scheduled(kind, params):
    """The groups of ZeRO and those of the rank's optimizer are brought into line before and after each step."""

    def run(library):
        net = DistributedDataParallel(model())
        option, set_rate = scheduled(library)
        opt = zero(library, kind, net.parameters(), params, **option)
        train_by_schedule(net, opt, STEPS, set_rate)
        return results(net, opt.optim)

    compare(run)


@check(KINDS, usual=FEW)
def zero_redundancy_checkpoint_scheduled(kind):
    """The rate, the schedule's record and the count of steps are all assigned in the rank's group; it goes on."""
    net = DistributedDataParallel(model())
    opt = zero(fastopt.torch, kind, net.parameters(), "own", lr=SCHEDULE)
    train(net, opt, STEPS[:4])
    second = zero(fastopt.torch, kind, net.parameters(), "own", lr=SCHEDULE)
    second.load_state_dict(through_a_file(opt, f"zero-{kind}-scheduled.pt"))
    train_by_schedule(net, second, STEPS[4:], lambda opt, step: None)


@check(KINDS, usual=FEW)
def zero_redundancy_schedule_ended(kind):
    """A schedule that an assigned rate has ended does not come back: from ZeRO's groups, whose entries stay, or a file.

    A checkpoint of ZeRO is that of an ordinary optimizer as well.
    """
    net = DistributedDataParallel(model())
    opt = zero(fastopt.torch, kind, net.parameters(), "own", lr=SCHEDULE)
    train(net, opt, STEPS[:2])
    opt.param_groups[0]["lr"] = 0.01
    for step in STEPS[2:4]:
        train(net, opt, [step])
        assert opt.optim.param_groups[0]["lr"] == opt.param_groups[0]["lr"] == 0.01
    path = f"zero-{kind}-ended.pt"
    second = zero(fastopt.torch, kind, net.parameters(), "own", lr=SCHEDULE)
    second.load_state_dict(through_a_file(opt, path))
    ordinary = optimizer(fastopt.torch, kind, net.parameters(), lr=SCHEDULE)
    ordinary.load_state_dict(torch.load(path))
    for step in STEPS[4:]:
        train(net, second, [step])
        train(net, ordinary, [step])
        assert second.optim.param_groups[0]["lr"] == second.param_groups[0]["lr"] == 0.01
        assert ordinary.param_groups[0]["lr"] == 0.01


@check(KINDS, FORMS, usual=[*FEW, "nested"])
def checkpoint_scheduled(kind, form):
    """Neither saving ends a schedule, nor loading into an optimizer that has not yet made a step.

    For both, torch has an optimizer without states make a step with gradients of zero, and a rate of 0.0 in the place
    of the group's, which it puts back.
    """

    def run(library):
        option, set_rate = scheduled(library)
        net = sharded(two())
        opt = optimizer(library, kind, net.parameters(), **option)
        train_by_schedule(net, opt, STEPS[:4], set_rate)
        opt.zero_grad()
        path = f"{kind}-scheduled-{form}-{library.__name__}"
        save(path, net, opt, FORMS[form])
        train_by_schedule(net, opt, STEPS[4:], set_rate)

        other = sharded(two(), seed=4)
        second = optimizer(library, kind, other.parameters(), **option)
        load(path, other, second, FORMS[form])
        train_by_schedule(other, second, STEPS[4:], set_rate)
        assert_equal(results(other, second), results(net, opt))
        return results(net, opt)

    compare(run)


# Gradients that are placed otherwise than their parameter

PLACED = {
    "replicated": (Shard(0), lambda g, mesh: distribute_tensor(g, mesh, [Replicate()])),
    "partial": (Shard(0), lambda g, mesh: DTensor.from_local(g / 2, mesh, [Partial()])),
    "other_dimension": (Shard(0), lambda g, mesh: distribute_tensor(g, mesh, [Shard(1)])),
    "partial_of_replicated": (Replicate(), lambda g, mesh: DTensor.from_local(g / 2, mesh, [Partial()])),
    "sharded_of_replicated": (Replicate(), lambda g, mesh: distribute_tensor(g, mesh, [Shard(0)])),
    "ordinary": (Replicate(), lambda g, mesh: g),
    "of_ordinary": (None, lambda g, mesh: distribute_tensor(g, mesh, [Shard(0)])),
    "other_mesh": (Shard(0), lambda g, mesh: distribute_tensor(g, two("other"), [Shard(0)])),
}


def placed(tensor, mesh, placement):
    """A tensor distributed over a mesh, or as it is."""
    return tensor.clone() if placement is None else distribute_tensor(tensor.clone(), mesh, [placement])


def followed(refusal, parameter):
    """The gradient that a refusal advises to assign: the end of the message, as code."""
    code = re.search("assign (its )?(.*)$", refusal)
    names = {"gradient": parameter.grad, "parameter": parameter, "distribute_tensor": distribute_tensor}
    return eval(("gradient" if code[1] else "") + code[2], names)


@check(KINDS, PLACED)
def placement(kind, case):
    """It is refused by name, before anything has changed, and what the refusal advises works; or the step is right."""
    mesh = two()
    torch.manual_seed(5)
    values, grads = [torch.randn(3, 2), torch.randn(4, 2)], [torch.randn(3, 2), torch.randn(4, 2)]
    own, place = PLACED[case]
    net = nn.ParameterList(placed(value, mesh, own) for value in values)
    opt = optimizer(fastopt.torch, kind, net)
    before = results(net, opt)
    net[0].grad = placed(grads[0], mesh, own)
    net[1].grad = place(grads[1], mesh)
    refusal = None
    try:
        opt.step()
    except (TypeError, ValueError) as error:
        refusal = str(error)
    if refusal is not None:
        assert re.search("parameter 1 .*(distributed|placement)", refusal)
        assert_equal(results(net, opt), before)
        net[1].grad = followed(refusal, net[1])
        opt.step()
    reference = nn.ParameterList(values)
    theirs = optimizer(torch.optim, kind, reference)
    for p, g in zip(reference, grads, strict=True):
        p.grad = g
    theirs.step()
    assert_same(results(net, opt), results(reference, theirs))


@check()
def partial_parameter():
    """It is refused, and made anew as the message says, sharded or replicated."""
    mesh = two()
    given = DTensor.from_local(torch.ones(4, 2), mesh, [Partial()])
    try:
        fastopt.torch.SGD([nn.Parameter(given)], lr=0.5)
    except ValueError as error:
        assert "make it with .redistribute(placements=...), sharded or replicated" in str(error)  # noqa: PT017
    else:
        raise AssertionError("not refused")
    for placement in (Shard(0), Replicate()):
        p = nn.Parameter(given.redistribute(placements=[placement]))
        p.grad = distribute_tensor(torch.ones(4, 2), mesh, [placement])
        fastopt.torch.SGD([p], lr=0.5).step()
        assert torch.equal(full(p), torch.full((4, 2), 1.5))
