"""Models on a GPU for the tests, and captured steps: through CuPy, or through what stands in for it; no tests here."""

import numpy as np
import oracle

import fastopt

SHAPES = ((3, 5), (700,), ())


def host(cupy, array):
    """A copy on the host, after all work is done."""
    cupy.cuda.Device(0).synchronize()
    return array.get()


def model(cupy, shapes=SHAPES, dtype=np.float32, seed=0):
    """Parameters and gradients on the device."""
    rng = np.random.default_rng(seed)
    return [[cupy.asarray(rng.standard_normal(shape).astype(dtype)) for shape in shapes] for _ in range(2)]


def captured(opt, stream):
    """A graph of one step."""
    with stream:
        stream.begin_capture()
        try:
            opt.step()
        finally:
            graph = stream.end_capture()
    return graph


def numbers(options, t):
    """Options as numbers at a step."""
    options = {"lr": 0.1, "momentum": 0.9, **options}
    return {name: value(t) if callable(value) else value for name, value in options.items()}


def warm(cupy, **options):
    """An optimizer that can be captured, its stream, and the oracle's trainer at the same point."""
    params, grads = model(cupy)
    trainer = oracle.Trainer([host(cupy, p) for p in params])
    opt = fastopt.SGD(params, **{"lr": 0.1, "momentum": 0.9, **options})
    opt.bind(grads)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for _ in range(2):
            opt.step()
    for t in range(2):
        trainer.step("momentum", [host(cupy, g) for g in grads], numbers(options, t))
    return opt, params, grads, stream, trainer
