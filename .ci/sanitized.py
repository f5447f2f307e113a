"""Run the tests that need a GPU, as compute-sanitizer is to see them: a case of each, and memory that nobody pools."""

import sys
from pathlib import Path

import cupy
import pytest


class FirstCases:
    """Leave out all cases of a test but the first: the sanitizer makes each many times as long."""

    @pytest.hookimpl(trylast=True)  # after the selection by markers
    def pytest_collection_modifyitems(self, config, items):
        """Keep the first of those that differ only in what they are given."""
        first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        kept = [item for item in items if first[item.nodeid.partition("[")[0]] is item]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


# Memory that a pool holds looks allocated wherever it is touched.
cupy.cuda.set_allocator(None)
cupy.cuda.set_pinned_memory_allocator(None)
# torch, without its own pool, frees memory in the middle of a capture, which CUDA does not allow.
selection = ["-m", "gpu and not torch_graphs"]
# Under the sanitizer even an import takes long: those that have nothing for a GPU are not collected.
files = [str(path) for path in sorted(Path("tests").glob("test_*.py")) if "gpu" in path.read_text()]
once = ["-n0", "-p", "no:cacheprovider", "-q"]
sys.exit(pytest.main([*once, *selection, *(sys.argv[1:] or files)], plugins=[FirstCases()]))
