"""What to install for a module that is missing, as the package's own metadata have it.

On no index is there a fastrank-sampling yet, and PyPI's `fastrank` is another project. So what is
named is what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["EXTRA_OF", "missing_extra", "named_if_missing", "requirements"]

# The extra that brings each module; where there are several, the one with the least besides.
EXTRA_OF = {
    **dict.fromkeys(("click", "rich", "scipy"), "cli"),
    **dict.fromkeys(("pyarrow", "msgspec"), "data"),
    "jinja2": "ope",
    "matplotlib": "plot",
    "pandas": "pandas",
    **dict.fromkeys(
        ("starlette", "uvicorn", "uvloop", "httptools", "prometheus_client"), "serving"
    ),
    **dict.fromkeys(("airspeed", "yaml"), "gateway"),
    "locust": "loadtest",
    "botocore": "sagemaker",
    **dict.fromkeys(("fsspec", "s3fs"), "s3"),
    "faiss": "faiss",
    "numba": "numba",
    "jax": "jax",
    **dict.fromkeys(("ray", "aiohttp"), "ray"),
    "pyspark": "spark",
}
_OWN = re.compile(r"fastrank[-_]sampling\[([^\]]*)\]")
_REQUIREMENT = re.compile(r"\s*([^;]+?)\s*;.*\bextra\s*==\s*(['\"])([^'\"]+)\2\s*")


def requirements(extra: str) -> list[str]:
    """The libraries that an extra brings, as pip takes them; empty if this is no installed package.

    An extra made of others has theirs.

    Examples
    --------
    >>> requirements("data")  # doctest: +SKIP
    ['pyarrow<27,>=14']
    """
    from importlib import metadata  # takes 10 ms, which only those who miss something should pay

    try:
        lines = metadata.requires("fastrank-sampling") or []
    except metadata.PackageNotFoundError:
        return []
    found = [_REQUIREMENT.fullmatch(line) for line in lines]
    wanted: dict[str, None] = {}  # as a set that keeps its order
    for each in (match[1].replace(" ", "") for match in found if match and match[3] == extra):
        own = _OWN.fullmatch(each)
        parts = [requirements(part) for part in own[1].split(",")] if own else [[each]]
        wanted |= dict.fromkeys(each for part in parts for each in part)
    return list(wanted)


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """What to install for a module that an extra would have brought; None for any other.

    Examples
    --------
    >>> missing_extra(ModuleNotFoundError(name="pyarrow"))  # doctest: +SKIP
    'pyarrow is not installed (fastrank-sampling\\'s extra "data"): pip install "pyarrow<27,>=14"'
    """
    module = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(module)
    return None if extra is None else f"{module} is not installed{_remedy(extra)}"


@contextmanager
def named_if_missing() -> Iterator[None]:
    """Around an import: what is missing is named with what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        hint = missing_extra(error)
        if hint is None:
            raise
        raise ModuleNotFoundError(hint, name=error.name) from None


def _remedy(extra: str) -> str:
    wanted = requirements(extra)
    if not wanted:
        return f', which is in fastrank-sampling\'s extra "{extra}"'
    words = " ".join(f'"{each}"' for each in wanted)
    return f' (fastrank-sampling\'s extra "{extra}"): pip install {words}'
