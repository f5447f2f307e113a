"""The benchmark on a GPU: fastopt beside torch, and beside what CuPy users write; checked first, then measured."""
