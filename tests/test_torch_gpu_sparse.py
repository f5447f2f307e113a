"""Sparse gradients of torch on a GPU, a stand-in: rows are found and checked there, and nobody waits for them."""

import cuda_stand_in
import cuda_tensors
import pytest
import torch
import torch_cases
from cuda_tensors import on_gpu, on_host, sparse_on_gpu
from gpu_models import assert_equal, at_once, scaled_step, uncollected
from tolerances import ONE_STEP
from torch.nn import Parameter

import fastopt.torch as subject
from fastopt.schedules import Cosine

pytestmark = pytest.mark.usefixtures("pretended")
SHAPES = [(50, 6), (4,), (9, 3)]  # a table, a vector and another table
OPTIMIZERS = {
    "sgd": ("SGD", {"lr": 0.1}),
    "adagrad": ("Adagrad", {"lr": 0.1, "lr_decay": 0.1}),
    "rowwise": ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "rowwise": True}),
    "sparse adam": ("SparseAdam", {"lr": 0.1}),
    "lazy adam": ("Adam", {"lr": 0.1, "lazy_update": True}),
}
ALL = pytest.mark.parametrize("kind", OPTIMIZERS)


def sparse(shape, seed, n=7, axes=1, dtype=torch.float32, last=0):
    """A sparse gradient, in which indices come more than once; the last one may be given."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(shape[:axes])[:, None]
    indices = (lengths * torch.rand((axes, n), generator=generator, dtype=torch.float64) ** 2).long()
    if last:
        indices[-1, -1] = last
    values = torch.randn((n, *shape[axes:]), generator=generator).to(dtype)
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)


class Sides:
    """A model on the pretended GPU and on the host, each with an optimizer."""

    def __init__(self, kind, shapes=SHAPES, dtype=torch.float32, **more):
        name, options = OPTIMIZERS[kind]
        if kind == "sparse adam":
            shapes = [shape for shape in shapes if len(shape) > 1]
        tensors = [torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape).to(dtype) for shape in shapes]
        self.there, self.here, self.ours, self.others = cuda_tensors.pair(name, tensors, **{**options, **more})

    def give(self, step, kinds="sds", scale=1.0, **options):
        """Give both gradients: sparse or dense ones, or none; the vector has dense ones."""
        kinds = kinds if len(self.here) == len(SHAPES) else kinds[::2]
        cuda_stand_in.synchronize_all()  # before the last ones are given back
        for i, (p, q) in enumerate(zip(self.there, self.here, strict=True)):
            if kinds[i] == ".":
                p.grad = q.grad = None
            elif kinds[i] == "d":
                q.grad = torch_cases.gradient(q, 100 * step + i)
                p.grad = on_gpu(scale * q.grad)
            else:
                q.grad = sparse(q.shape, 100 * step + i, dtype=q.dtype, **options)
                p.grad = sparse_on_gpu(scale * q.grad)

    def step(self, step, kinds="sds", **options):
        """Take a step on both sides."""
        self.give(step, kinds, **options)
        self.ours.step()
        self.others.step()

    def assert_equal(self):
        """Assert that both have come to the same parameters, states and counts."""
        cuda_stand_in.synchronize_all()
        assert_equal(self.there, self.here, self.ours, self.others)


@ALL
def test_as_on_the_host(kind):
    """Sparse, dense and no gradients in turn, as far as the optimizer takes these."""
    sides = Sides(kind)
    for step, kinds in enumerate(["sds", ".ds", "s.s"] if kind == "sparse adam" else ["sds", "ddd", ".ds", "s.d"]):
        sides.step(step, kinds)
    sides.assert_equal()


@pytest.mark.parametrize(("kind", "dtype"), [("adagrad", torch.float64), ("sgd", torch.float16)], ids=str)
def test_dtypes(kind, dtype):
    """Values of 16 bits are added up in float32; no step adopts the parameters anew."""
    sides = Sides(kind, dtype=dtype)
    sides.step(0)
    stepper = sides.ours._stepper
    for step in range(1, 4):
        sides.step(step)
    assert sides.ours._stepper is stepper
    sides.assert_equal()


def test_rows_along_several_axes():
    """As `torch.sparse_coo_tensor` makes them; a row is what these number."""
    sides = Sides("adagrad", [(5, 4, 3), (6, 2)])
    for step in range(3):
        sides.step(step, "ssd", axes=2)
    sides.assert_equal()


@pytest.mark.parametrize("n", [0, 1, 300])
def test_numbers_of_rows(n):
    """None, one, and more than the table has."""
    sides = Sides("adagrad")
    for step in range(2):
        sides.step(step, n=n)
    sides.assert_equal()


@pytest.mark.parametrize("lr", [0.1, Cosine(0.1, 20)], ids=["number", "schedule"])
@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise"])
@pytest.mark.parametrize("flags", [["taken", "taken", "skipped", "taken"], ["skipped", "taken"]], ids=" ".join)
def test_under_a_scaler(flags, kind, lr):
    """Rows are divided by the scale, and skipped with the whole step."""
    sides = Sides(kind, lr=lr)
    for step, flag in enumerate(flags):
        sides.give(step, "sds" if step % 2 == 0 else "ddd", scale=8.0)
        scaled_step(sides.ours, flag)
        if flag == "taken":
            sides.others.step()
    sides.assert_equal()


@pytest.mark.parametrize("scaled", [False, True])
def test_nobody_waits(scaled):
    """For rows, their check, the norm or a scaler; nor for what torch does around a step."""
    sides = Sides("adagrad", max_grad_norm=1.0)
    for step in range(3):
        sides.step(step)
    sides.give(3, scale=8.0 if scaled else 1.0)
    if scaled:
        sides.ours.grad_scale, sides.ours.found_inf = on_gpu(torch.tensor(8.0)), on_gpu(torch.tensor(0.0))
    with uncollected():
        before = cuda_stand_in.WORLD.waits
        sides.ours.step()
        sides.ours.param_groups[0]["lr"] = 0.05
        assert cuda_stand_in.WORLD.waits == before
    sides.others.step()
    sides.others.param_groups[0]["lr"] = 0.05
    cuda_stand_in.synchronize_all()
    sides.ours.grad_scale = sides.ours.found_inf = None
    sides.step(4)
    sides.assert_equal()


@pytest.mark.parametrize("stages", [{"clip_grad_value": 0.3}, {"max_grad_norm": 0.5}])
def test_stages(stages):
    """The norm is that of rows once, after their values were added up."""
    sides = Sides("adagrad", **stages)
    for step in range(3):
        sides.step(step)
    sides.assert_equal()


@pytest.mark.parametrize("options", [{}, {"skip_nonfinite": True}, {"clip_grad_value": 0.3}], ids=str)
@pytest.mark.parametrize("kinds", ["sds", "ddd"])
def test_a_scale_that_the_host_knows(kinds, options):
    """The GPU, which may skip the step, is told."""
    sides = Sides("sgd", **options)
    for step in range(3):
        sides.give(step, kinds, scale=8.0)
        sides.ours.grad_scale = torch.tensor(8.0)
        sides.ours.step()
        sides.others.step()
    sides.assert_equal()


@pytest.mark.parametrize("kind", ["adagrad", "rowwise"])
def test_no_rows_at_all_have_a_norm(kind):
    """It is 0."""
    sides = Sides(kind, [(50, 6)], max_grad_norm=1.0)
    for step, n in enumerate((0, 0, 7, 30)):
        sides.step(step, "s", n=n)
    sides.assert_equal()


def test_sparse_gradients_after_a_capture():
    """Are refused, and dense ones are taken afterwards."""
    sides, stream = Sides("adagrad", [(50, 6)]), torch.cuda.Stream()
    for step in range(3):
        sides.step(step, "d")
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
        sides.ours.step()
    sides.give(3, "s")
    with pytest.raises(RuntimeError, match="was captured with gradients"):
        sides.ours.step()
    sides.step(4, "d")
    sides.assert_equal()


# Indices that are no rows


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("wrong", [50, -1])
def test_a_wrong_index_changes_nothing(wrong, scaled):
    """The error comes with a later step; then training goes on, and no step more is counted."""
    sides = Sides("adagrad")
    sides.step(0)
    cuda_stand_in.synchronize_all()
    before = [on_host(p) for p in sides.there]
    sides.there[0].grad = sparse_on_gpu(sparse(SHAPES[0], 1, last=wrong))
    if scaled:
        scaled_step(sides.ours, "taken")
    else:
        sides.ours.step()
    cuda_stand_in.synchronize_all()
    assert all(torch.equal(on_host(p), old) for p, old in zip(sides.there, before, strict=True))
    with pytest.raises(ValueError, match=rf"gradient of parameter 0 .*had an index {wrong}, and the table has 50"):
        sides.ours.step()
    sides.step(2)
    sides.assert_equal()


@pytest.mark.parametrize("ask", [lambda opt: opt.state_dict(), lambda opt: opt.state], ids=["state dict", "state"])
def test_whoever_asks_is_told_of_a_wrong_index(ask):
    """Once."""
    sides = Sides("adagrad")
    sides.give(0)
    sides.there[0].grad = sparse_on_gpu(sparse(SHAPES[0], 1, last=99))
    sides.ours.step()
    with pytest.raises(ValueError, match="an index 99"):
        ask(sides.ours)
    sides.step(1)
    sides.assert_equal()


# What the host handles


@pytest.mark.parametrize("why", ["average", "transposed"])
def test_rows_that_are_copied(why, monkeypatch):
    """All of a step, where those of one parameter have to be; the scaler's flag is waited for then."""
    at_once(monkeypatch)
    sides = Sides("adagrad", **({"ema_decay": 0.5} if why == "average" else {}))
    if why == "transposed":
        first, tensors = torch.ones(6, 50), [torch.ones(shape) for shape in SHAPES[1:]]
        sides.there, sides.here = (
            [Parameter(wrap(first).t()), *(Parameter(wrap(tensor)) for tensor in tensors)]
            for wrap in (on_gpu, torch.clone)
        )
        sides.ours, sides.others = (subject.Adagrad(side, lr=0.1) for side in (sides.there, sides.here))
    for step in range(3):
        sides.give(step, scale=8.0)
        before = cuda_stand_in.WORLD.waits
        scaled_step(sides.ours, "taken")
        assert cuda_stand_in.WORLD.waits > before
        sides.others.step()
    sides.assert_equal()
    sides.give(3)
    sides.there[2].grad = sparse_on_gpu(sparse(SHAPES[2], 0, last=9))
    with pytest.raises(IndexError):  # torch's, before anything is written
        sides.ours.step()
    sides.step(4)
    sides.assert_equal()


class Touched(torch.autograd.Function):
    """A number that has a gradient as it was given."""

    @staticmethod
    def forward(ctx, table, gradient):
        """Return it."""
        ctx.gradient = gradient
        return torch.zeros(
            ()
        )  # of the host: from a pretended tensor on, hooks would take tensors for those of the host

    @staticmethod
    def backward(ctx, _):
        """Return the gradient that was given."""
        return ctx.gradient, None


def test_updates_during_backward(monkeypatch):
    """Each table has a step of its own, of whose wrong indices nobody would hear."""
    at_once(monkeypatch)
    tables = []
    for wrap in (on_gpu, torch.clone):
        table = torch.nn.ParameterList([Parameter(wrap(torch.linspace(0, 1, 12).reshape(6, 2)))])
        handle = subject.step_in_backward(table, subject.Adagrad, lr=0.1)
        for step in range(2):
            Touched.apply(table[0], sparse((6, 2), step)).backward()
            assert table[0].grad is None
        handle.remove()
        tables.append(table[0])
    torch_cases.assert_near(on_host(tables[0]), tables[1].detach(), ONE_STEP)


def test_dense_gradients_of_rows_with_one_number(monkeypatch):
    """All rows are there, and the host counts: beside rows that are copied, under a scaler, and during backward."""
    at_once(monkeypatch)
    sides = Sides("rowwise")
    for step in range(2):
        sides.step(step, "ddd")
    assert not sides.ours._stepper.clock.on_devices
    sides.give(2, "ddd", scale=8.0)
    scaled_step(sides.ours, "skipped")
    sides.assert_equal()
    tables = []
    for wrap in (on_gpu, torch.clone):
        table = torch.nn.ParameterList([Parameter(wrap(torch.linspace(0, 1, 12).reshape(6, 2)))])
        handle = subject.step_in_backward(table, subject.Adagrad, lr=0.1, rowwise=True)
        for _ in range(2):
            Touched.apply(table[0], torch.ones(6, 2)).backward()
        tables.append(table[0])
        if wrap is on_gpu:
            with pytest.raises(ValueError, match=r"with rowwise=True on a GPU.*make it dense"):
                Touched.apply(table[0], sparse((6, 2), 0)).backward()
        handle.remove()
    torch_cases.assert_near(on_host(tables[0]), tables[1].detach(), ONE_STEP)


# Refusals


def test_what_is_refused():
    """Nothing changes."""
    for kind, options, error, words in (
        ("sgd", {"momentum": 0.9}, ValueError, r"pass lazy_update=True to leave these as they are, or pass \.to_dense"),
        ("adagrad", {"state_dtype": "int8", "min_quantized_size": 0}, ValueError, 'state_dtype="float32"'),
    ):
        sides = Sides(kind, **options)
        sides.give(0)
        before = [on_host(p) for p in sides.there]
        with pytest.raises(error, match=words):
            sides.ours.step()
        cuda_stand_in.synchronize_all()
        assert all(torch.equal(on_host(p), old) for p, old in zip(sides.there, before, strict=True))
    sides = Sides("sparse adam")
    sides.give(0, "s.d")
    with pytest.raises(RuntimeError, match=r"the gradient of parameter 1 .*is dense, and SparseAdam"):
        sides.ours.step()


def test_a_capture():
    """Is refused, since each step has other rows."""
    sides = Sides("adagrad")
    for step in range(2):
        sides.step(step)
    stream = torch.cuda.Stream()
    words = "sparse: a step with it cannot be captured"
    with pytest.raises(RuntimeError, match=words), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
        sides.ours.step()
