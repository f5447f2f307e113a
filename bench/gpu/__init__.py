"""The benchmark on a GPU: checks, then timings of fastopt, of torch, and of what CuPy users write."""
