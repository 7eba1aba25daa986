"""Fixtures that run a test on every build of the native core that this CPU has; Hypothesis."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings
from support import DRAWS, cover

from fastrank import _native, _probes

# A shell that starts a job in the background has it ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run and in every selection of tests, however busy the machine is; of
# them `make test` runs a third (`--hypothesis-profile brief`).
for name, examples in (("fixed", 150), ("brief", 50)):
    settings.register_profile(
        name,
        derandomize=True,
        deadline=None,
        database=None,
        max_examples=max(20, int(examples * DRAWS)),
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


def _values(item: pytest.Item) -> tuple[tuple[int, ...], ...]:
    """The cell of its test's product: what each `parametrize`, and each fixture that has
    parameters, gives it. Values are the same objects in every cell."""
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return ()
    params = dict(item.callspec.params)
    factors = []
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs["argnames"]
        listed = names.replace(",", " ").split() if isinstance(names, str) else names
        factors.append(tuple(id(params.pop(name)) for name in listed))
    return (*factors, *((id(value),) for value in params.values()))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test's cells a cover runs; the rest is slow, and under sanitizers it does not run.

    With three parameters or more that is a pairwise cover: most faults need one value or two that
    meet, and every two that the whole product lets meet do so here. Of tests marked `sampled`,
    whose cells take long, each value runs somewhere, and with one parameter every third; sanitizers
    have their pairs, too. Where cells are marked slow already, the others have their own cover.
    """
    functions: dict[str, list[pytest.Item]] = {}
    for item in items:
        if DRAWS < 1.0 or item.get_closest_marker("slow") is None:
            functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left = []
    for cells in functions.values():
        values = [_values(cell) for cell in cells]
        if DRAWS < 1.0 or cells[0].get_closest_marker("sampled") is None:
            chosen = cover(values)
        else:
            chosen = cover(values, 1) if len(values[0]) > 1 else {*range(0, len(cells), 3)}
        left += [cell for at, cell in enumerate(cells) if at not in chosen]
    if DRAWS < 1.0:
        gone = {*left}
        items[:] = [item for item in items if item not in gone]
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
