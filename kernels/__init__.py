"""The compiled code: the rules in Numba and CUDA C++, the thread pool in C++, and the headers for embedding."""
