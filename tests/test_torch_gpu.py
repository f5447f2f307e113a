"""fastopt.torch on a GPU: through a stand-in that runs the same kernels on the host, and on a real one where it is."""

import copy
import io
import sys

import cuda_stand_in
import cuda_tensors
import cupy_stand_in
import pytest
import torch
import torch_cases
from cuda_tensors import on_gpu, on_host
from devices import StandIn
from tolerances import BFLOAT16, ONE_STEP, TORCH_TRAINING, TRAJECTORY
from torch.nn import Parameter

import fastopt.torch as subject
from fastopt.gpu import Gpu
from fastopt.schedules import Cosine, Linear, Piecewise
from fastopt.torch import updater

KINDS = torch_cases.KINDS
ALL = pytest.mark.parametrize("kind", KINDS)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]
SHAPES = [(4, 3), (), (700,), (0,), (2, 3, 5)]
DEVICE = StandIn()
FLAGS = {"skipped": 1.0, "taken": 0.0}


@pytest.fixture(autouse=True)
def pretended(monkeypatch):
    """A GPU that torch believes in."""
    monkeypatch.setitem(sys.modules, "cupy", cupy_stand_in)
    cuda_tensors.pretend(monkeypatch)
    yield
    cuda_stand_in.synchronize_all()
    cuda_tensors.KEPT.clear()


def give(there, here, step, dtype=None, given=torch_cases.always, scale=1.0):
    """Give both models the gradients of a step, the one on the GPU multiplied by a scale.

    The old ones are not given back before the GPU has read them, which torch's allocator sees to on a real one.
    """
    cuda_stand_in.synchronize_all()
    for i, (p, q) in enumerate(zip(there, here, strict=True)):
        q.grad = torch_cases.gradient(q, 100 * step + i) if given(step, i) else None
        p.grad = None if q.grad is None else on_gpu(q.grad * scale)


def assert_equal(there, here, ours, others):
    """Assert that both models, their states and counts are the same: the kernels' arithmetic is the same here."""
    for p, q in zip(there, here, strict=True):
        torch_cases.assert_near(on_host(p), q.detach(), ONE_STEP if q.dtype != torch.bfloat16 else BFLOAT16)
        got, want = ours.state.get(p, {}), others.state.get(q, {})
        assert got.keys() == want.keys()
        for name in got:
            if name == "step":
                assert got[name] == want[name]
            else:
                torch_cases.assert_near(on_host(got[name]), want[name], ONE_STEP)


def model(kind, dtype=torch.float32, shapes=SHAPES, **more):
    """A model on the GPU and on the host, with optimizers."""
    name, options = KINDS[kind]
    tensors = [p.detach() for p in torch_cases.parameters(shapes, dtype)]
    return cuda_tensors.pair(name, tensors, **{**options, **more})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@ALL
def test_trajectories(kind, dtype):
    """Twelve steps, with gradients that are missing now and then."""
    there, here, ours, others = model(kind, dtype)
    for step in range(12):
        give(there, here, step, given=torch_cases.now_and_then)
        ours.step()
        others.step()
    assert_equal(there, here, ours, others)


@ALL
def test_against_torch(kind):
    """torch.optim itself, on the host."""
    there, here, ours, _ = model(kind)
    name, options = KINDS[kind]
    theirs = torch_cases.make(name, here, plainest=True, **options)
    for step in range(20):
        give(there, here, step)
        ours.step()
        theirs.step()
    for p, q in zip(there, here, strict=True):
        torch_cases.assert_near(on_host(p), q.detach(), 2 * TRAJECTORY)


@ALL
def test_layouts(kind):
    """channels_last, transposed parameters with plain gradients, and one with gaps, which keeps what is between."""
    tensors = [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(6, 7).T,
        torch.randn(5, 8)[:, ::2],
    ]
    name, options = KINDS[kind]
    whole = torch.arange(40.0).reshape(5, 8)
    gaps = whole.clone().as_subclass(cuda_tensors.CudaTensor)
    there, here, _, _ = cuda_tensors.pair(name, tensors, **options)
    there[2] = Parameter(gaps[:, ::2])
    here[2] = Parameter(whole.clone()[:, ::2])
    ours, others = (getattr(subject, name)(params, **options) for params in (there, here))
    for step in range(4):
        give(there, here, step)
        there[1].grad = on_gpu(here[1].grad.contiguous())
        ours.step()
        others.step()
        cuda_stand_in.synchronize_all()  # what torch copies here, it copies at once
    assert_equal(there[:2], here[:2], ours, others)
    assert torch.equal(on_host(gaps)[:, 1::2], whole[:, 1::2])


def scaled_step(optimizer, flag, scale=8.0, gpu=True):
    """Take a step as GradScaler asks for one."""
    wrap = on_gpu if gpu else torch.clone
    optimizer.grad_scale = None if scale is None else wrap(torch.tensor(scale))
    optimizer.found_inf = wrap(torch.tensor(FLAGS[flag]))
    optimizer.step()
    cuda_stand_in.synchronize_all()  # before the two are given back, as above
    del optimizer.grad_scale, optimizer.found_inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "flags", [["taken", "skipped", "taken"], ["skipped", "skipped", "taken", "taken"], ["skipped"], ["taken"] * 3]
)
@ALL
def test_a_scalers_verdict_stays_on_the_gpu(kind, flags, dtype):
    """A skipped step changes and counts nothing, also where it would have been the first one; nobody waits."""
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
    """Dampening spares the first gradient, also where others take part in the step that is taken."""
    there, here, ours, others = model(kind)
    give(there, here, 0)
    scaled_step(ours, "skipped")
    for step, given in ((1, torch_cases.late), (4, torch_cases.always)):
        give(there, here, step, given=given)
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


def both(ours, others, there, here, flags, after=lambda step: None):
    """Take steps on both sides by a scaler's flags, with something after each."""
    for step, flag in enumerate(flags):
        give(there, here, step, scale=8.0)
        scaled_step(ours, flag)
        if flag == "taken":
            others.step()
        after(step)


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
    """Into a dict that was fetched before, while the GPU counted on."""
    there, here, ours, others = model("momentum", lr=Cosine(0.1, 20))
    groups = [optimizer.param_groups[0] for optimizer in (ours, others)]

    def assign(step):
        for group in groups if step == 1 else []:
            group["lr"] = 0.05

    both(ours, others, there, here, flags, assign)
    assert_equal(there, here, ours, others)
    assert ours.param_groups[0]["lr"] == 0.05


def test_a_count_that_is_written_while_the_gpu_counts():
    """As a user may who goes on from elsewhere."""
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


@pytest.mark.parametrize("lr", [0.1, Cosine(0.1, 20)], ids=["number", "schedule"])
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
@pytest.mark.parametrize("pattern", ["ss", "dd", "ds", "ddsd", "dddss"])
def test_sparse_gradients_under_a_scaler(pattern, name, lr, monkeypatch):
    """Rows are the host's affair; the dense ones beside them are divided as before."""
    monkeypatch.setattr(updater, "coalesced", lambda what, gradient, parameter: gradient.detach().coalesce())
    update = Gpu.update

    def at_once(*arguments):  # the rows are torch's own operations, which do not wait here
        cuda_stand_in.synchronize_all()
        update(*arguments)
        cuda_stand_in.synchronize_all()

    monkeypatch.setattr(Gpu, "update", at_once)
    there, here, ours, others = cuda_tensors.pair(name, [torch.zeros(4), torch.zeros(6, 2)], lr=lr)
    for kind in pattern:
        cuda_stand_in.synchronize_all()
        here[0].grad, there[0].grad = torch.ones(4), on_gpu(torch.full((4,), 8.0))
        here[1].grad = there[1].grad = None
        if kind == "s":
            for params, value in ((here, 1.0), (there, 8.0)):
                rows = torch.tensor([[1, 3]]), torch.full((2, 2), value)
                params[1].grad = torch.sparse_coo_tensor(*rows, (6, 2))
        scaled_step(ours, "taken")
        others.step()
    assert_equal(there, here, ours, others)


@pytest.mark.parametrize("kind", ["momentum", "adagrad"])
def test_nobody_waits_for_the_gpu(kind):
    """Neither a scaler's step nor what torch does around it; whoever asks for a count does."""
    there, here, ours, _ = model(kind)
    give(there, here, 0, scale=8.0)
    for flag in ("taken", "taken", "skipped"):
        scaled_step(ours, flag)
    waits = cuda_stand_in.WORLD.waits
    for flag in ("taken", "skipped", "taken"):
        scaled_step(ours, flag)
        assert len(ours.param_groups[0]["params"]) == len(SHAPES)  # which zero_grad and GradScaler walk along
    assert cuda_stand_in.WORLD.waits == waits
    assert ours.state_dict()["state"][0].get("step", 4) == 4
    assert cuda_stand_in.WORLD.waits > waits


def test_zero_grad_inside_a_second_capture():
    """Where groups cannot be brought up to date."""
    there, here, ours, _ = model("momentum", lr=Cosine(0.1, 20))
    stream = cuda_stand_in.Stream()
    give(there, here, 0)
    with stream:
        for _ in range(3):
            ours.step()
    graphs = []
    for _ in range(2):
        with DEVICE.capture(stream) as graph:
            ours.zero_grad(set_to_none=False)
            ours.step()
        graphs.append(graph)
    for graph in graphs:
        graph.launch()
    assert ours.param_groups[0]["step"] == 5


def captured(optimizer, stream):
    """Capture a step."""
    with DEVICE.capture(stream) as graph:
        optimizer.step()
    return graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@ALL
def test_capture(kind, dtype):
    """Replays with a moving rate, gradients written in place, a look at groups and states, and a step beside them."""
    options = {"weight_decay": 0.01}
    there, here, ours, others = model(kind, dtype, lr=Cosine(0.1, 20), **options)
    stream = cuda_stand_in.Stream()
    give(there, here, 0)
    with stream:
        for _ in range(3):
            ours.step()
            others.step()
    graph = captured(ours, stream)
    for step in range(1, 9):
        cuda_stand_in.synchronize_all()
        for i, (p, q) in enumerate(zip(there, here, strict=True)):
            q.grad = torch_cases.gradient(q, 100 * step + i)
            torch.Tensor.copy_(p.grad, q.grad)
        others.step()
        if step == 5:
            with stream:
                ours.step()
        else:
            graph.launch()
        if step % 3 == 0:
            for name in ("lr", "step"):
                assert ours.param_groups[0][name] == others.param_groups[0][name]
            assert_equal(there, here, ours, others)
    saved, wanted = ours.state_dict(), others.state_dict()
    assert saved["param_groups"] == wanted["param_groups"]
    assert_equal(there, here, ours, others)


def test_a_captured_step_is_not_loaded_over():
    """Its graph would go on with what was there before."""
    there, here, ours, _ = model("momentum")
    stream = cuda_stand_in.Stream()
    give(there, here, 0)
    with stream:
        for _ in range(2):
            ours.step()
    saved = ours.state_dict()
    graph = captured(ours, stream)
    for act in (
        lambda: ours.load_state_dict(saved),
        lambda: ours.add_param_group({"params": [Parameter(on_gpu(torch.ones(2)))]}),
    ):
        with pytest.raises(RuntimeError, match="captured"):
            act()
    before = [on_host(p) for p in there]
    graph.launch()
    assert all(not torch.equal(on_host(p), old) for p, old in zip(there, before, strict=True) if old.numel())
    assert ours.state_dict()["state"][0].keys() == {"momentum_buffer"}


@pytest.mark.parametrize("what", ["first", "tensor", "schedule", "assigned"])
def test_what_cannot_be_captured(what):
    """A clear error, and nothing recorded."""
    lr = {"tensor": on_gpu(torch.tensor(0.1)), "schedule": lambda step: 0.1}.get(what, 0.1)
    there = [Parameter(on_gpu(torch.ones(4, 2)))]
    optimizer = subject.SGD(there, lr=lr)
    there[0].grad = on_gpu(torch.ones(4, 2))
    stream = cuda_stand_in.Stream()
    with stream:
        for _ in range(0 if what == "first" else 2):
            optimizer.step()
    if what == "assigned":
        optimizer.param_groups[0]["lr"] = 0.2
    log = len(cuda_stand_in.WORLD.log)
    with pytest.raises(RuntimeError, match=r"warm up|schedules"), DEVICE.capture(stream):
        optimizer.step()
    assert len(cuda_stand_in.WORLD.log) == log


@ALL
def test_state_dicts_travel(kind):
    """From the GPU to the host by way of a file, and back; and a copy of the optimizer goes on."""
    there, here, ours, others = model(kind, lr=Cosine(0.1, 20))
    for step in range(3):
        give(there, here, step)
        ours.step()
        others.step()
    cuda_stand_in.synchronize_all()
    file = io.BytesIO()
    plain = ours.state_dict()
    for state in plain["state"].values():
        for name, value in state.items():
            state[name] = value.detach().as_subclass(torch.Tensor) if isinstance(value, torch.Tensor) else value
    torch.save(plain, file)
    file.seek(0)
    others.load_state_dict(torch.load(file))
    ours.load_state_dict(copy.deepcopy(others.state_dict()))
    give(there, here, 9)
    ours.step()
    others.step()
    assert_equal(there, here, ours, others)


def test_parameters_on_both():
    """One optimizer, a GPU and the CPU; a scaler's verdict then has to be waited for."""
    there, here, _, others = model("momentum", shapes=[(40,), (3, 2)])
    mixed = [there[0], Parameter(here[1].detach().clone())]
    ours = subject.SGD(mixed, **KINDS["momentum"][1])
    for step, flag in enumerate(["taken", "skipped", "taken"]):
        cuda_stand_in.synchronize_all()
        for i, (p, q) in enumerate(zip(mixed, here, strict=True)):
            q.grad = torch_cases.gradient(q, 100 * step + i)
            p.grad = on_gpu(q.grad) if p.is_cuda else q.grad.clone()
        scaled_step(ours, flag, scale=1.0)
        if flag == "taken":
            others.step()
    assert_equal(mixed[:1], here[:1], ours, others)
    assert torch.equal(mixed[1], here[1])


def test_a_gradient_elsewhere():
    """torch would not let it be assigned; a hook can leave it there all the same."""
    there, here, ours, _ = model("sgd", shapes=[(3,)])
    give(there, here, 0)
    there[0].grad = torch.ones(3)
    before = on_host(there[0])
    with pytest.raises(ValueError, match="is on cpu, its parameter on cuda:0"):
        ours.step()
    assert torch.equal(on_host(there[0]), before)


def test_without_cupy(monkeypatch):
    """The error names the extra for torch's own CUDA."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    for version, extra in (("12.8", "cuda12"), ("13.0", "cuda13")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(ImportError, match=rf"fastopt\[{extra}\]"):
            subject.SGD([Parameter(on_gpu(torch.ones(3)))], lr=0.1)


def test_other_gpus_are_refused(monkeypatch):
    """torch says "cuda" for those of AMD as well."""
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match="without CUDA"):
        subject.SGD([Parameter(on_gpu(torch.ones(3)))], lr=0.1)


# On a real GPU


@pytest.fixture
def real(monkeypatch):
    """torch and CuPy as they are."""
    monkeypatch.undo()


def batch(step, device):
    """A batch of a regression, the same on every device."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(32, 6, generator=generator)
    return x.to(device), x.sin().sum(1, keepdim=True).to(device)


def network(device):
    """A small network, the same on every device."""
    generator = torch.Generator().manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(6, 33), torch.nn.Tanh(), torch.nn.Linear(33, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return model.to(device)


def trained(model, optimizer, steps):
    """Train, and return the parameters on the host."""
    device = next(model.parameters()).device
    for step in range(steps):
        x, y = batch(step, device)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    return [p.detach().cpu() for p in model.parameters()]


@pytest.mark.gpu
@ALL
def test_training_on_a_gpu(real, kind):
    """As torch.optim does on the CPU."""
    name, options = KINDS[kind]
    model, plain = network("cuda"), network("cpu")
    got = trained(model, getattr(subject, name)(model.parameters(), **options), 30)
    want = trained(plain, torch_cases.make(name, list(plain.parameters()), plainest=True, **options), 30)
    for p, q in zip(got, want, strict=True):
        torch.testing.assert_close(p, q, rtol=TORCH_TRAINING, atol=TORCH_TRAINING)


@pytest.mark.gpu
@ALL
def test_scaler_on_a_gpu(real, kind):
    """A scale that overflows at first, and is halved: the same steps are skipped as torch.optim skips."""
    name, options = KINDS[kind]
    results = []
    for library in (subject, torch.optim):
        model = network("cuda")
        optimizer = getattr(library, name)(model.parameters(), **options)
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**127, growth_interval=4)
        for step in range(20):
            x, y = batch(step, "cuda")
            optimizer.zero_grad()
            scaler.scale((model(x) - y).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(([p.detach().cpu() for p in model.parameters()], scaler.get_scale()))
    (got, scale), (want, other_scale) = results
    assert scale == other_scale < 2.0**127
    for p, q in zip(got, want, strict=True):
        torch.testing.assert_close(p, q, rtol=TORCH_TRAINING, atol=TORCH_TRAINING)


@pytest.mark.gpu
@ALL
def test_graph_on_a_gpu(real, kind):
    """A whole iteration captured by torch.cuda.graph, against the same iterations one by one."""
    name, options = KINDS[kind]
    model, eager = network("cuda"), network("cuda")
    schedule = Cosine(options["lr"], 40)
    ours, others = (getattr(subject, name)(m.parameters(), **{**options, "lr": schedule}) for m in (model, eager))
    x, y = (tensor.clone() for tensor in batch(0, "cuda"))

    def iteration(m, optimizer):
        optimizer.zero_grad(set_to_none=True)
        (m(x) - y).square().mean().backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            iteration(model, ours)
    torch.cuda.current_stream().wait_stream(side)
    for _ in range(3):
        iteration(eager, others)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        iteration(model, ours)
    for step in range(20):
        for static, fresh in zip((x, y), batch(step, "cuda"), strict=True):
            static.copy_(fresh)
        graph.replay()
        iteration(eager, others)
    assert ours.param_groups[0]["lr"] == others.param_groups[0]["lr"]
    assert ours.param_groups[0]["step"] == 23
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=TORCH_TRAINING, atol=TORCH_TRAINING)


@pytest.mark.gpu
def test_step_in_backward_on_a_gpu(real):
    """Each parameter as soon as its gradient is ready, on the stream of backward; not inside a capture."""
    model, plain = network("cuda"), network("cuda")
    handle = subject.step_in_backward(model, subject.SGD, lr=0.1, momentum=0.9)
    optimizer = subject.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    want = trained(plain, optimizer, 10)
    for step in range(10):
        x, y = batch(step, "cuda")
        (model(x) - y).square().mean().backward()
    for p, q in zip(model.parameters(), want, strict=True):
        torch.testing.assert_close(p.detach().cpu(), q, rtol=0.0, atol=0.0)
    assert handle.param_groups[0]["lr"] == 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_every_time(real, dtype):
    """Nothing depends on the order in which blocks run."""
    results = []
    for _ in range(2):
        params = [Parameter(p.detach().cuda()) for p in torch_cases.parameters([(70_001,), (3, 5)], dtype)]
        optimizer = subject.SGD(params, lr=0.1, momentum=0.9)
        for step in range(5):
            for i, p in enumerate(params):
                p.grad = torch_cases.noise(p.shape, dtype, 10 * step + i).cuda()
            optimizer.step()
        results.append([p.detach().cpu() for p in params])
    assert torch_cases.bits(results[0]) == torch_cases.bits(results[1])
