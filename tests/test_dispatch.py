"""The choice of a build for this CPU, and FASTRANK_ISA, which overrides it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastrank import _native, _probes

ALL = ("v2", "v3", "v4", "v4_vnni")


def import_with(isa: str | None) -> subprocess.CompletedProcess[str]:
    """Import fastrank in a fresh interpreter and print the build in use."""
    environment = {key: value for key, value in os.environ.items() if key != "FASTRANK_ISA"}
    if isa is not None:
        environment["FASTRANK_ISA"] = isa
    code = "import fastrank; from fastrank import _native; print(_native.set_isa('v2'))"
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_builds_are_named_and_the_baseline_always_runs() -> None:
    names = _probes.isa_names()
    assert isinstance(names, tuple)
    assert "v2" in names
    assert set(names) <= set(ALL)


def test_the_best_build_is_the_default() -> None:
    assert import_with(None).stdout.strip() == max(_probes.isa_names())


@pytest.mark.sampled
@pytest.mark.parametrize("name", _probes.isa_names())
def test_a_build_can_be_forced(name: str) -> None:
    assert import_with(name).stdout.strip() == name


@pytest.mark.parametrize("name", ["v9", "avx512", "V3"])
def test_an_unknown_build_is_an_import_error_that_names_it(name: str) -> None:
    result = import_with(name)
    assert result.returncode != 0
    assert "ImportError" in result.stderr
    assert name in result.stderr.strip().splitlines()[-1]


@pytest.mark.skipif(set(_probes.isa_names()) == set(ALL), reason="this CPU runs every build")
def test_an_unsupported_build_is_an_import_error_that_names_it() -> None:
    missing = next(name for name in ALL if name not in _probes.isa_names())
    result = import_with(missing)
    assert result.returncode != 0
    assert "ImportError" in result.stderr
    assert missing in result.stderr.strip().splitlines()[-1]


def test_set_isa_returns_the_previous_name_and_refuses_unknown_ones() -> None:
    before = _native.set_isa("v2")
    assert _native.set_isa(before) == "v2"
    with pytest.raises(ValueError, match="v9"):
        _native.set_isa("v9")
