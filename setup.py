"""Build of the native core: one C++ source per instruction set, each with flags of its own."""

from __future__ import annotations

import os
import platform
import shlex
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Who compiles for another machine names it so, as cibuildwheel does.
TARGET = os.environ.get("_PYTHON_HOST_PLATFORM", platform.machine()).lower()
X86_64 = TARGET.endswith(("x86_64", "amd64"))

# -ffp-contract=off: a multiply-add is fused where the source says so and nowhere
# else; without it AVX2 and AVX-512 would round differently.
COMMON_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-g0", "-pthread"]
# x86-64-v2 (SSE4.2, POPCNT) is the baseline; dispatch.cpp and the module itself are built for any
# x86-64, so that an older CPU gets an ImportError and not an illegal instruction.
BASELINE = ["-march=x86-64-v2"]
AVX512 = [
    *["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"],
    # g++ 12 takes the undefined halves in its own AVX-512 headers for mistakes of ours.
    *["-Wno-uninitialized", "-Wno-maybe-uninitialized"],
]
ISA_FLAGS = {
    **dict.fromkeys(
        [
            *("evaluate.cpp", "flat_tail.cpp", "inputs.cpp", "probes.cpp", "quantise.cpp"),
            *("rank.cpp", "table.cpp"),
        ],
        BASELINE,
    ),
    "scan_v2.cpp": BASELINE,
    "scan_v3.cpp": ["-mavx2", "-mfma"],
    "scan_v4.cpp": AVX512,
    "scan_v4_vnni.cpp": [*AVX512, "-mavx512vnni"],
}
# FASTRANK_CXXFLAGS adds flags to every source and the link: sanitizers, -Werror, -g.
EXTRA_FLAGS = shlex.split(os.environ.get("FASTRANK_CXXFLAGS", ""))
# What only tests use is built where FASTRANK_PROBES says so, and nowhere else: no wheel holds it.
PROBES = bool(os.environ.get("FASTRANK_PROBES"))


class BuildExt(build_ext):
    """build_ext with flags per source file and sources side by side, which setuptools lacks; what
    several modules are made of is compiled once."""

    def run(self) -> None:
        self.compiled: set[str] = set()
        super().run()

    def build_extension(self, ext: Extension) -> None:
        compiler = self.compiler

        def compile_side_by_side(
            sources: list[str],
            output_dir: str | None = None,
            macros: list[Any] | None = None,
            include_dirs: list[str] | None = None,
            debug: bool = False,
            extra_preargs: list[str] | None = None,
            extra_postargs: list[str] | None = None,
            depends: list[str] | None = None,
        ) -> list[str]:
            macros, objects, extra_postargs, pp_opts, build = compiler._setup_compile(
                output_dir, macros, include_dirs, sources, depends, extra_postargs
            )
            cc_args = compiler._get_cc_args(pp_opts, debug, extra_preargs)

            def compile_one(obj: str) -> None:
                source, suffix = build[obj]
                isa = ISA_FLAGS.get(os.path.basename(source), []) if X86_64 else []
                flags = [*extra_postargs, *isa]
                compiler._compile(obj, source, suffix, cc_args, flags, pp_opts)

            missing = [obj for obj in objects if obj in build and obj not in self.compiled]
            self.compiled.update(missing)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(compile_one, missing))
            return objects

        compiler.compile = compile_side_by_side
        try:
            super().build_extension(ext)
        finally:
            del compiler.compile


SOURCES = [
    "dispatch.cpp",
    "evaluate.cpp",
    "flat_tail.cpp",
    "inputs.cpp",
    "quantise.cpp",
    "rank.cpp",
    "scan_v2.cpp",
    "scan_v3.cpp",
    "scan_v4.cpp",
    "scan_v4_vnni.cpp",
    "table.cpp",
]
HEADERS = [
    "arena.h",
    "chunks.h",
    "codes-inl.h",
    "elementary.h",
    "error_law.h",
    "estimated.h",
    "functions-inl.h",
    "interrupt.h",
    "kernels.h",
    "kernels.pxd",
    "normaliser.h",
    "philox.h",
    "pool.h",
    "probes.h",
    "quantise.h",
    "sampling.h",
    "scan-inl.h",
    "table.h",
]


def module(name: str, *sources: str) -> Extension:
    return Extension(
        f"fastrank.{name}",
        sources=[f"ext/{source}" for source in (f"{name}.pyx", *sources, *SOURCES)],
        depends=[f"ext/{header}" for header in HEADERS],
        include_dirs=["ext"],
        language="c++",
        define_macros=[("Py_LIMITED_API", "0x030b0000")],
        py_limited_api=True,
        extra_compile_args=COMMON_FLAGS + EXTRA_FLAGS,
        extra_link_args=["-pthread", *EXTRA_FLAGS],
    )


MODULES = [module("_native"), *([module("_probes", "probes.cpp")] if PROBES else [])]
# Where the Makefile compiles beside an editable install, the install has nothing to compile.
if os.environ.get("FASTRANK_COMPILED"):
    MODULES = []

setup(
    ext_modules=cythonize(MODULES, include_path=["ext", "src"], language_level=3),
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
