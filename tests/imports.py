"""Who imports whom in the package, read from its sources; no tests here."""

import ast
import itertools
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAPPED = {"fastopt.kernels": "kernels", "fastopt.bench": "bench"}  # packages that lie elsewhere than their names say
NO_MODULES = ("conftest", "build_pool")  # the latter is run by setup.py, as a script, and imported by nobody


def modules():
    """Name every module of the package, with its file; tests in bench/ are none, nor is what installing alone runs."""
    found = {}
    for name, folder in {"fastopt": "fastopt", **MAPPED}.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [name, *path.relative_to(ROOT / folder).with_suffix("").parts]
            if not parts[-1].startswith("test_") and parts[-1] not in NO_MODULES:
                found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(name, path, known):
    """Return the modules of ours that one imports, wherever in its source: lazily, for types, in a function."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    wanted = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            wanted |= {
                f"{origin}.{alias.name}" if f"{origin}.{alias.name}" in known else origin for alias in node.names
            }
    # Importing a module runs the packages around it, other than those that are around the one who imports, too.
    around = {module: {".".join(module.split(".")[:i]) for i in range(1, module.count(".") + 1)} for module in wanted}
    entered = set().union(*(around[module] - ancestors(name) for module in wanted)) if wanted else set()
    return ((wanted | entered) & set(known)) - {name}


def ancestors(name):
    """Name the packages around a module, itself included where it is one."""
    return {".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 2)}


def graph():
    """Return for each module those that it imports."""
    known = modules()
    return {name: imports(name, path, known) for name, path in known.items()}


def circles(edges):
    """Return the sets of modules that all lead to each other: strongly connected components, by Tarjan."""
    numbers, lowest, stack, found, counter = {}, {}, [], [], itertools.count()

    def visit(node):
        numbers[node] = lowest[node] = next(counter)
        stack.append(node)
        for other in edges[node]:
            if other not in numbers:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], numbers[other])
        if lowest[node] == numbers[node]:
            circle = set()
            while node not in circle:
                circle.add(stack.pop())
            if len(circle) > 1 or node in edges[node]:
                found.append(sorted(circle))

    for node in edges:
        if node not in numbers:
            visit(node)
    return found
