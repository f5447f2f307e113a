"""What two ranks check of FSDP2's CPUOffloadPolicy, whose parameters, gradients and states are on the CPU.

Without a GPU the policy copies nothing, and takes no pinned memory; the mesh of GPUs that it has otherwise is imitated.
"""

import contextlib
import math
import unittest.mock

import torch
import torch.distributed as dist
from distributed_stages import ByHand
from distributed_workers import (
    FEW,
    KINDS,
    MESHES,
    STEPS,
    check,
    compare,
    drive,
    full,
    load,
    optimizer,
    results,
    save,
    sharded,
    train,
    two,
)
from tolerances import NORM, TIPPED, TIPPED_TIMES_RATE, TORCH, assert_close
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

import fastopt.torch
from fastopt.rules import RULES

MAX_NORM = 0.1
OF_16_BITS = {"state_dtype": "bfloat16", "stochastic_rounding": False, "min_quantized_size": 20}


def offloaded(seed=3):
    """The model, each layer sharded and offloaded."""
    mesh, options = MESHES["offloaded"]()
    return sharded(mesh, seed=seed, **options)


@check(KINDS, ["option", "method", "torch"], usual=FEW)
def offloaded_clipped(kind, by):
    """By an option, the optimizer's method or torch's function: as torch's optimizer after torch's function."""

    def run(library):
        net, norms = offloaded(), []
        within = by == "option" and library is fastopt.torch
        opt = optimizer(library, kind, net.parameters(), **({"max_grad_norm": MAX_NORM} if within else {}))

        def clip():
            if by == "method" and library is fastopt.torch:
                norms.append(opt.clip_grad_norm_(MAX_NORM))
            elif not within:
                norms.append(full(nn.utils.clip_grad_norm_(net.parameters(), MAX_NORM)))

        for step in STEPS:
            train(net, opt, [step], clip)
            if within:
                norms.append(opt.grad_norm)
        assert max(norms) > MAX_NORM
        return results(net, opt) | {"norms": torch.stack(norms)}

    compare(run)


class Rounding(ByHand):
    """An optimizer of torch that clips by the norm, and whose states of large parameters are rounded at each step."""

    @torch.no_grad()
    def step(self):
        """Take a step, and round."""
        super().step()
        for p, states in self.opt.state.items():
            for name, state in states.items():
                if name != "step" and p.numel() >= OF_16_BITS["min_quantized_size"]:
                    state.copy_(state.bfloat16())


@check(sorted(KINDS.keys() - {"sgd"}), usual=["momentum"])
def offloaded_states_of_16_bits(kind):
    """They are DTensors on the CPU, clipped gradients meet them, and a checkpoint in the middle changes nothing."""
    net, reference = offloaded(), offloaded()
    options = {**OF_16_BITS, "max_grad_norm": MAX_NORM}
    opt = optimizer(fastopt.torch, kind, net.parameters(), **options)
    theirs = Rounding(reference.parameters(), optimizer(torch.optim, kind, reference.parameters()), MAX_NORM)
    drive(net, opt, STEPS[:4])
    path = f"offloaded-{kind}"
    save(path, net, opt)
    net = offloaded(seed=4)
    opt = optimizer(fastopt.torch, kind, net.parameters(), **options)
    load(path, net, opt)
    drive(net, opt, STEPS[4:])
    drive(reference, theirs, STEPS)

    for p in net.parameters():
        for name in RULES[kind].states:
            state = opt.state[p][name]
            assert isinstance(state, DTensor)
            assert state.to_local().is_cpu
            assert state.dtype == (torch.bfloat16 if p.numel() >= OF_16_BITS["min_quantized_size"] else torch.float32)
    mine, want = results(net, opt), results(reference, theirs.opt)
    assert mine.keys() == want.keys()
    for name, value in mine.items():
        is_state = ": " in name
        assert_close(value.float().numpy(), want[name].numpy(), TIPPED if is_state else TIPPED_TIMES_RATE)


# The mesh is one of GPUs


def mesh_of_gpus(group, name):
    """A mesh of both ranks; of its own name, since torch takes equal meshes for the same, even one that is gone."""
    return DeviceMesh.from_group(group, "cuda", mesh_dim_names=(name,))


def on_cpu_of(mesh, values):
    """A tensor of four elements, sharded over a mesh of whatever devices, with its parts on the CPU."""
    spec = DTensorSpec(mesh, (Shard(0),), TensorMeta(torch.Size([4]), (1,), torch.float32))
    return DTensor(values, spec, requires_grad=False)


@contextlib.contextmanager
def imitated_gpus(group, moved):
    """Have tensors stay where they are, and a group that is for GPUs add up what should have gone there."""
    all_reduce, expected = dist.all_reduce, group

    def to(tensor, device):
        moved.append(device)
        return tensor.clone()

    def added_there(tensor, group):
        assert group is expected
        all_reduce(tensor)

    with (
        unittest.mock.patch.object(torch.Tensor, "to", to),
        unittest.mock.patch.object(dist, "all_reduce", added_there),
    ):
        yield


ADDED_ON = {"cpu:gloo,cuda:gloo": "cpu", "cuda:gloo": "cuda"}


@check(ADDED_ON)
def norm_over_a_mesh_of_gpus(backends):
    """It is added up on the CPU if the group can, and else on the GPUs, as where NCCL is all there is."""
    group = dist.new_group(backend=backends)
    mesh = mesh_of_gpus(group, ADDED_ON[backends])
    p = nn.Parameter(on_cpu_of(mesh, torch.zeros(2)))
    opt = fastopt.torch.SGD([p], lr=1.0, max_grad_norm=5.0)
    for _ in range(3):
        p.grad = on_cpu_of(mesh, torch.full((2,), 3.0 + 2.0 * dist.get_rank()))  # 9 + 9 + 25 + 25
        moved = []
        with imitated_gpus(group, moved):
            found = opt.clip_grad_norm_(math.inf)
            opt.step()
        assert moved == [ADDED_ON[backends]] * 2
        for norm in (found, opt.grad_norm):
            assert math.isclose(float(norm), math.sqrt(68.0), rel_tol=NORM)
    moves = 3 * 5.0 / math.sqrt(68.0) * (3.0 + 2.0 * dist.get_rank())
    assert_close(p._local_tensor.detach().numpy(), torch.full((2,), -moves).numpy(), TORCH)


@check(sorted(KINDS.keys() - {"sgd"}), usual=["momentum"])
def states_over_a_mesh_of_gpus(kind):
    """They are on the CPU as their parameter, also out of a state dict, and as those over a mesh of CPUs to the bit."""
    options = {**OF_16_BITS, "min_quantized_size": 0, "max_grad_norm": MAX_NORM}
    found = []
    for mesh in (two(), mesh_of_gpus(dist.group.WORLD, "world")):
        p = nn.Parameter(on_cpu_of(mesh, torch.ones(2)))
        opt = optimizer(fastopt.torch, kind, [p], **options)
        for steps in (STEPS[:2], STEPS[2:4]):
            saved = opt.state_dict()
            opt = optimizer(fastopt.torch, kind, [p], **options)
            opt.load_state_dict(saved)
            for step in steps:
                p.grad = on_cpu_of(mesh, torch.tensor([0.5, -0.25]) * (step + 1 + dist.get_rank()))
                opt.step()
        states = [opt.state[p][name] for name in RULES[kind].states]
        assert all(state.device_mesh == mesh and state._local_tensor.dtype == torch.bfloat16 for state in states)
        found.append([p._local_tensor.detach(), *(state._local_tensor for state in states)])
    torch.testing.assert_close(*found, rtol=0, atol=0)
