"""Say what to install for a missing module, from the package's own metadata.

fastrank-sampling is not on any index yet, and PyPI's `fastrank` is another project. So messages
name the missing libraries, not an extra to install.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["EXTRA_OF", "missing_extra", "named_if_missing", "requirements"]

# The extra that installs each module; if there are several, the one with the fewest others.
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
    """List the libraries of an extra, as for pip; empty if the package is not installed.

    An extra of other extras has all of their libraries.

    Examples
    --------
    >>> requirements("data")  # doctest: +SKIP
    ['pyarrow<27,>=14']
    """
    from importlib import metadata  # late, since it takes 10 ms that only errors need

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
    """Say what to install for a module that belongs to an extra; None for any other module.

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
    """Wrap imports, so that errors of missing modules say what to install."""
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
