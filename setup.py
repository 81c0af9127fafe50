"""Builds colbert_fast._C; everything else is in pyproject.toml."""

import os
from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

# optional: where no compiler works the package still installs, and backends() says why the CPU tiers are missing.
extension = Pybind11Extension(
    "colbert_fast._C",
    sorted(glob("csrc/*.cpp")),
    cxx_std=17,
    depends=sorted(glob("csrc/*.h")),
    extra_compile_args=[] if os.name == "nt" else ["-O3", "-Wall", "-Wextra"],
    optional=True,
)

ParallelCompile(default=0).install()
setup(
    ext_modules=[] if os.environ.get("COLBERT_FAST_NO_EXTENSION") == "1" else [extension],
    cmdclass={"build_ext": build_ext},
)
