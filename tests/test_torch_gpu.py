"""fastopt.torch on a GPU: on a stand-in that runs the same kernels on the host, and on a real one if there is one."""

import copy
import gc
import io
import sys

import cuda_stand_in
import cuda_tensors
import pytest
import torch
import torch_cases
from cuda_tensors import on_gpu, on_host
from fastopt.kernels import cuda
from gpu_models import DEVICE, KINDS, SHAPES, assert_equal, captured, give, model, scaled_step, train, warm_up
from pairs import swept, usually
from tolerances import ONE_STEP, TORCH_TRAINING, TRAJECTORY
from torch.nn import Parameter
from torch_cases import usual

import fastopt.torch as subject
from fastopt.schedules import Cosine

pytestmark = pytest.mark.usefixtures("pretended")
ALL = pytest.mark.parametrize("kind", KINDS)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]


@swept(1, ids=str, usual=usual, kind=KINDS, dtype=DTYPES)
def test_trajectories(kind, dtype):
    """Twelve steps, with gradients that are missing now and then."""
    there, here, ours, others = model(kind, dtype)
    train(there, here, ours, others, range(12), given=torch_cases.now_and_then)
    assert_equal(there, here, ours, others)


@ALL
def test_against_torch(kind):
    """torch.optim itself, on the host."""
    there, here, ours, _ = model(kind)
    name, options = KINDS[kind]
    theirs = torch_cases.make(name, here, plainest=True, **options)
    train(there, here, ours, theirs, range(20))
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


@pytest.mark.parametrize("dtype", usually([torch.float32], [torch.float32, torch.bfloat16]), ids=str)
@ALL
def test_capture(kind, dtype):
    """Replays with a moving rate, gradients written in place, reads of groups and states, and a step beside them."""
    options = {"weight_decay": 0.01}
    there, here, ours, others = model(kind, dtype, lr=Cosine(0.1, 20), **options)
    stream = cuda_stand_in.Stream()
    warm_up(there, here, ours, others, stream)
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


def forget():
    """Hold nothing of what was on the GPU, but what the test itself holds; others have use for the memory."""
    cuda_tensors.KEPT.clear()
    gc.collect()
    model("adamw_amsgrad")[2].step()


@swept(1, kind=KINDS, scaled=[False, True])
def test_a_graph_goes_on_without_its_optimizer(kind, scaled):
    """States included, and what a scaler has said; the memory comes back with the graph."""
    there, here, ours, others = model(kind, lr=Cosine(0.1, 20))
    stream = cuda_stand_in.Stream()
    give(there, here, 0)
    with stream:
        for _ in range(3):
            ours.step()
            others.step()
    if scaled:
        ours.grad_scale, ours.found_inf = on_gpu(torch.tensor(1.0)), on_gpu(torch.tensor(0.0))
    graph = captured(ours, stream)
    states = [dict(ours.state[p]) for p in there]
    used = [*there, *(of[name] for of in states for name in torch_cases.STATES[kind])]
    addresses = [tensor.data_ptr() for tensor in used if tensor.numel()]
    del ours
    forget()
    for _ in range(4):
        graph.launch()
        others.step()
    for p, q, state in zip(there, here, states, strict=True):
        torch_cases.assert_near(on_host(p), q.detach(), ONE_STEP)
        for name in torch_cases.STATES[kind]:
            torch_cases.assert_near(on_host(state[name]), others.state[q][name], ONE_STEP)
    del there, states, used, p, state
    forget()
    given_back = cuda_stand_in.WORLD.freed.has
    assert not any(map(given_back, addresses))
    del graph
    forget()
    cuda_stand_in.synchronize_all()
    assert all(map(given_back, addresses))


def test_a_graph_goes_on_without_anything():
    """Parameters and states that nobody else holds are not given to others."""
    there, here, ours, _ = model("adamw_amsgrad")
    stream = cuda_stand_in.Stream()
    give(there, here, 0)
    with stream:
        for _ in range(3):
            ours.step()
    gradients, graph = [p.grad for p in there], captured(ours, stream)
    del ours, there
    forget()
    others = [on_gpu(torch.full(shape, 0.5)) for shape in SHAPES]
    for _ in range(3):
        graph.launch()
    assert all((on_host(other) == 0.5).all() for other in others)
    assert len(gradients) == len(SHAPES)


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
    train(there, here, ours, others, range(3))
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


@pytest.mark.parametrize("scale", [1.0, 2.0**127])
def test_parameters_on_both(scale):
    """One optimizer, a GPU and the CPU; the step then waits for a scaler's found_inf."""
    there, here, _, others = model("momentum", shapes=[(40,), (3, 2)])
    mixed = [there[0], Parameter(here[1].detach().clone())]
    ours = subject.SGD(mixed, **KINDS["momentum"][1])
    for step, flag in enumerate(["taken", "skipped", "taken"]):
        cuda_stand_in.synchronize_all()
        for i, (p, q) in enumerate(zip(mixed, here, strict=True)):
            q.grad = 2.0**-6 * torch_cases.gradient(q, 100 * step + i)
            p.grad = on_gpu(scale * q.grad) if p.is_cuda else scale * q.grad
        scaled_step(ours, flag, scale=scale)
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
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdam"])
def test_sparse_gradients_on_a_gpu(real, name):
    """Of an embedding, as torch.optim takes them there; then a wrong index."""
    tables = [torch.nn.Embedding(1000, 16, sparse=True, device="cuda") for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    makers = [getattr(library, name) for library in (subject, torch.optim)]
    optimizers = [make(table.parameters(), lr=0.1) for make, table in zip(makers, tables, strict=True)]
    for step in range(10):
        words = torch.randint(0, 50 + 50 * step, (8, 40), generator=torch.Generator().manual_seed(step)).cuda()
        for table, optimizer in zip(tables, optimizers, strict=True):
            optimizer.zero_grad()
            table(words).square().sum().backward()
            optimizer.step()
    table, other = (table.weight.detach().cpu() for table in tables)
    torch.testing.assert_close(table, other, rtol=TORCH_TRAINING, atol=TORCH_TRAINING)
    weight = tables[0].weight
    values = torch.ones(2, 16, device="cuda")
    weight.grad = torch.sparse_coo_tensor([[3, 1000]], values, (1000, 16), check_invariants=False)
    optimizers[0].step()
    with pytest.raises(ValueError, match="an index 1000, and the table has 1000 rows"):
        optimizers[0].state_dict()
    assert torch.equal(weight.detach().cpu(), table)


OVERFLOWING = (0, 1, 9)  # steps whose loss is infinite


@pytest.mark.gpu
@pytest.mark.parametrize(("scale", "fused"), [(2.0**10, True), (2.0**127, True), (2.0**10, False)])
@ALL
def test_scaler_on_a_gpu(real, kind, scale, fused):
    """The same steps are skipped as torch.optim skips, whatever the scale, which is halved there and doubled again."""
    name, options = KINDS[kind]
    results = []
    for library, flags in ((subject, {"fused": fused}), (torch.optim, {})):
        model = network("cuda")
        optimizer = getattr(library, name)(model.parameters(), **options, **flags)
        scaler = torch.amp.GradScaler("cuda", init_scale=scale, growth_interval=4)
        scales = []
        for step in range(20):
            x, y = batch(step, "cuda")
            optimizer.zero_grad()
            loss = 2.0**-12 * (model(x) - y).square().mean()  # so that it overflows where it is to, at any scale
            scaler.scale(loss * float("inf") if step in OVERFLOWING else loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        results.append(([p.detach().cpu() for p in model.parameters()], scales))
    (got, scales), (want, other_scales) = results
    assert scales == other_scales
    assert [after < before for before, after in zip([scale, *scales], scales, strict=False)] == [
        step in OVERFLOWING for step in range(20)
    ]
    for p, q, start in zip(got, want, network("cpu").parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=TORCH_TRAINING, atol=TORCH_TRAINING)
        assert not torch.equal(p, start)


def iteration(model, optimizer, x, y):
    """An iteration of a training."""
    optimizer.zero_grad(set_to_none=True)
    (model(x) - y).square().mean().backward()
    optimizer.step()


def recorded(step, *arguments):
    """Take a step three times on another stream, as torch's page on graphs has it, and return a graph of the fourth."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*arguments)
    return graph


@pytest.mark.gpu
@pytest.mark.torch_graphs
@ALL
def test_graph_on_a_gpu(real, kind):
    """A whole iteration captured by torch.cuda.graph, against the same iterations one by one."""
    name, options = KINDS[kind]
    model, eager = network("cuda"), network("cuda")
    schedule = Cosine(options["lr"], 40)
    ours, others = (getattr(subject, name)(m.parameters(), **{**options, "lr": schedule}) for m in (model, eager))
    x, y = (tensor.clone() for tensor in batch(0, "cuda"))

    graph = recorded(iteration, model, ours, x, y)
    for _ in range(3):
        iteration(eager, others, x, y)
    for step in range(20):
        for static, fresh in zip((x, y), batch(step, "cuda"), strict=True):
            static.copy_(fresh)
        graph.replay()
        iteration(eager, others, x, y)
    assert ours.param_groups[0]["lr"] == others.param_groups[0]["lr"]
    assert ours.param_groups[0]["step"] == 23
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=TORCH_TRAINING, atol=TORCH_TRAINING)


@pytest.mark.gpu
@pytest.mark.torch_graphs
@ALL
def test_a_graph_without_its_optimizer_on_a_gpu(real, kind):
    """Nor any other owner: replays go on, and what others allocate meanwhile stays as it is."""
    name, options = KINDS[kind]
    model = network("cuda")
    optimizer = getattr(subject, name)(model.parameters(), **options)
    x, y = batch(0, "cuda")

    graph = recorded(iteration, model, optimizer, x, y)
    before = [p.detach().cpu() for p in model.parameters()]
    del optimizer
    gc.collect()
    torch.cuda.empty_cache()
    others = [torch.full((size,), 0.5, device="cuda") for size in range(1, 400)]
    others += [subject.Adam([Parameter(torch.ones(7, device="cuda"))])]
    for _ in range(5):
        graph.replay()
    torch.cuda.synchronize()
    assert all((other == 0.5).all() for other in others[:-1])
    for p, old in zip(model.parameters(), before, strict=True):
        assert p.isfinite().all()
        assert not torch.equal(p.detach().cpu(), old)


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


def taken(optimizer):
    """How many steps the extension has taken."""
    repetition = optimizer._stepper.clock.repetition
    return 0 if repetition is None else repetition.taken


FULL = [(4, 3), (700,), (2, 3, 5)]  # gradients without axes or elements are read in Python, and the step is taken there


@ALL
def test_the_extension_launches(kind):
    """With new gradients, on torch's current stream; from the third step on, since the second one finds new states."""
    there, here, ours, others = model(kind, shapes=FULL)
    train(there, here, ours, others, range(8))
    assert taken(ours) >= 5
    assert_equal(there, here, ours, others)


@ALL
def test_a_step_that_may_be_skipped_is_no_repetition(kind):
    """GradScaler's found_inf is looked at, in the midst of steps that the extension takes."""
    there, here, ours, others = model(kind, shapes=FULL)
    train(there, here, ours, others, range(4))
    assert taken(ours) > 0
    before = [on_host(p) for p in there]
    give(there, here, 4)
    scaled_step(ours, "skipped", scale=None)
    assert all(torch.equal(on_host(p), old) for p, old in zip(there, before, strict=True))
    scaled_step(ours, "taken", scale=None)
    others.step()
    train(there, here, ours, others, range(5, 9))
    assert_equal(there, here, ours, others)


@pytest.mark.parametrize(("kind", "kernels"), [("momentum", []), ("adamw_amsgrad", ["advance"])])
def test_a_captured_step_uploads_nothing(kind, kernels):
    """After the steps that torch's documentation takes before a capture."""
    there, here, ours, others = model(kind, shapes=FULL)
    stream = cuda_tensors.Stream()
    with cuda_tensors.in_force(stream):
        warm_up(there, here, ours, others, stream.stream)
        DEVICE.log()
        captured(ours, stream.stream)
    assert DEVICE.log() == [*kernels, cuda.Kind(kind, "float32").name]
