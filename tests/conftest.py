"""Fixtures that run a test on every build of the native core that this CPU has; Hypothesis."""

from __future__ import annotations

import gc
import signal
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import settings
from support import DRAWS

from fastrank import _native, _probes

# A shell that starts a job in the background has it ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run and in every selection of tests, however busy the machine is.
settings.register_profile(
    "fixed", derandomize=True, deadline=None, database=None, max_examples=max(20, int(150 * DRAWS))
)
settings.load_profile("fixed")


# The baseline and the newest build always; those between are slow.
BUILDS = _probes.isa_names()
ENDS = (BUILDS[0], BUILDS[-1])


@pytest.fixture(
    params=[pytest.param(name, marks=() if name in ENDS else pytest.mark.slow) for name in BUILDS]
)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set in use, by name."""
    name: str = request.param
    previous = _native.set_isa(name)
    yield name
    _native.set_isa(previous)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each cell of a product with builds runs on every other build; on the rest it is slow, and
    under sanitizers it does not run.

    All builds are of one source, in which registers have a width: every width meets every value of
    each other parameter, and every cell runs on some build.
    """
    kept, left = [], []
    met: set[tuple[str, ...]] = set()
    for item in items:
        function, _, cell = item.nodeid.partition("[")
        values = cell.removesuffix("]").split("-")
        build = next((name for name in values if name in BUILDS), None)
        if build is not None and (DRAWS < 1.0 or build in ENDS):
            values.remove(build)
            pairs = {(function, build, str(at), value) for at, value in enumerate(values)}
            mine = zlib.crc32(f"{function} {values}".encode()) + BUILDS.index(build)
            if mine % 2 and pairs and pairs <= met:
                left.append(item)
                continue
            met |= pairs
        kept.append(item)
    if DRAWS < 1.0:
        items[:] = kept
        config.hook.pytest_deselected(items=left)
    for item in left:
        item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Thousands of tests stay to the end: no collection of garbage looks through them again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """So does what a file's tests have imported, which servers look through whenever they start."""
    if nextitem is not None and nextitem.path != item.path:
        gc.collect(1)
        gc.freeze()


@pytest.fixture(params=[0, 1], ids=["chunks by law", "a chunk per panel"])
def chunk_panels(request: pytest.FixtureRequest) -> Iterator[int]:
    """Panels in a chunk: as for any catalog (0), or one, for laws over many small chunks."""
    count: int = request.param
    previous = _probes.set_chunk_panels(count)
    yield count
    _probes.set_chunk_panels(previous)
