"""Builds colbert_fast._C and the text of the package index; everything else is in pyproject.toml."""

import os
import re
import sys
import zlib
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext, has_flag
from setuptools import setup

REPOSITORY = "https://github.com/colbert-fast/colbert-fast"


def readme() -> str:
    """README.md with the links that work outside of the repository: a package index shows the text alone."""

    def absolute(link: "re.Match[str]") -> str:
        kind = "raw" if link[1].startswith("!") else "blob"
        return f"{link[1]}({REPOSITORY}/{kind}/HEAD/{link[2]})"

    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    return re.sub(r"(!?\[[^\]]*\])\((?![a-z]+:|#)([^)\s]+)\)", absolute, text)


# What the extension is called with. It keeps the checksum, by which colbert_fast/_extension.py knows an old one.
STUB = Path("colbert_fast", "_C.pyi")
checksum = zlib.crc32(STUB.read_bytes().replace(b"\r\n", b"\n"))

# optional: where no compiler works the package still installs, and backends() says why the CPU tiers are missing.
extension = Pybind11Extension(
    "colbert_fast._C",
    sorted(glob("csrc/*/*.cpp")),
    cxx_std=17,
    include_dirs=["csrc"],
    define_macros=[("COLBERT_FAST_STUB", f"{checksum}u")],
    depends=[*sorted(glob("csrc/**/*.h", recursive=True)), str(STUB)],
    # What has to be fast says itself what is inlined and unrolled. -O3 is no faster, and larger.
    extra_compile_args=[] if os.name == "nt" else ["-O2", "-fno-unroll-loops", "-Wall", "-Wextra"],
    # Stripped: symbols are a tenth of the file. The linkers of macOS and Windows have no such flag.
    extra_link_args=["-s"] if sys.platform == "linux" else [],
    optional=True,
)


class Build(build_ext):
    """Compiles anew each time, and with a flag that not all compilers know."""

    def build_extensions(self) -> None:
        # GCC makes vectors at -O2 only of loops that need no check of what overlaps, without this flag.
        vectors = "-fvect-cost-model=dynamic"
        if os.name != "nt" and has_flag(self.compiler, vectors):
            extension.extra_compile_args.append(vectors)
        super().build_extensions()

    def build_extension(self, ext: Pybind11Extension) -> None:
        # Anew, for the compiler or its flags may be others. Where it fails, nothing is left of an earlier build, which
        # would be taken for this one.
        self.force = True
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        super().build_extension(ext)


ParallelCompile(default=0).install()
setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    ext_modules=[] if os.environ.get("COLBERT_FAST_NO_EXTENSION") == "1" else [extension],
    cmdclass={"build_ext": Build},
)
