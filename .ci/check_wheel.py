"""Check the files of a wheel: the extension, kernels and bench inside the package, and nothing else at top level."""

import sys
import zipfile


def problems(names: list[str]) -> list[str]:
    """List what is wrong with a wheel's files."""
    wanted = ["py.typed", "bench/command.py", "bench/loops.cpp", "lab/digits.py", "lab/play/plane.npz"]
    wanted += [f"lab/play/assets/page.{suffix}" for suffix in ("html", "css")] + ["lab/play/assets/play.js"]
    wanted += ["kernels/vectors.h", "kernels/fastopt-config.cmake", "kernels/fastopt-config-version.cmake"]
    wanted += [f"kernels/{name}" for name in ("cpu.py", "schedules.py", "rules.h", "schedules.h", "fastopt.h")]
    wanted += [f"kernels/{name}" for name in ("cuda.py", "fused.cu", "advance.cu", "codes.h", "tables.h", "graphs.py")]
    found = [f"fastopt/{name} is missing" for name in wanted if f"fastopt/{name}" not in names]
    if not any(name.startswith("fastopt/kernels/_pool.") for name in names):
        found.append("the extension was not built: fastopt/kernels/_pool.* is missing")
    tops = {name.split("/")[0] for name in names}
    if strays := {top for top in tops if top != "fastopt" and not top.endswith(".dist-info")}:
        found.append(f"installs at top level: {', '.join(sorted(strays))}")
    return found


if __name__ == "__main__":
    for path in sys.argv[1:]:
        wrong = problems(zipfile.ZipFile(path).namelist())
        print(path, *(wrong or ["holds what it must"]), sep="\n  ")
        if wrong:
            sys.exit(1)
