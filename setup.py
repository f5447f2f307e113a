"""The pool's extension; everything else is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["kernels/build_pool.py:ffi"])
