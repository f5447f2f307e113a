"""Run the tests that need a GPU for compute-sanitizer: one case of each test, and no memory pools."""

import sys
from pathlib import Path

import cupy
import pytest


class FirstCases:
    """Run only the first case of each test: under the sanitizer each takes many times as long."""

    @pytest.hookimpl(trylast=True)  # after the selection by markers
    def pytest_collection_modifyitems(self, config, items):
        """Keep the first of the items that differ only in their parameters."""
        first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        kept = [item for item in items if first[item.nodeid.partition("[")[0]] is item]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


# The sanitizer takes all of a pool's memory for allocated, and misses errors in it.
cupy.cuda.set_allocator(None)
cupy.cuda.set_pinned_memory_allocator(None)
# torch, without its own pool, frees memory in the middle of a capture, which CUDA does not allow.
selection = ["-m", "gpu and not torch_graphs"]
# Under the sanitizer even an import takes long: files without GPU tests are not collected.
files = [str(path) for path in sorted(Path("tests").glob("test_*.py")) if "gpu" in path.read_text()]
once = ["-n0", "-p", "no:cacheprovider", "-q"]
sys.exit(pytest.main([*once, *selection, *(sys.argv[1:] or files)], plugins=[FirstCases()]))
