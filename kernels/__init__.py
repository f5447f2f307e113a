"""The compiled code: Numba for the CPU, C++ for the pool of threads, one header for whoever wants in."""
