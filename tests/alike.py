"""Results that are the same up to rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastrank import ope

__all__ = ["assert_equal", "assert_same"]

_LOOSE = {"skewness": 1e-10}
_IN_ORDER = ("files_read", "places")  # of the report: they stand as parts came


def assert_same(found: Any, expected: Any, at: str = "") -> None:
    """Of dicts, lists and numbers: floats within 1e-12, skewness 1e-10; strata in any order."""
    name = at.rsplit(".", 1)[-1]
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys(), at
        for key, value in expected.items():
            if key not in _IN_ORDER:
                assert_same(found[key], value, f"{at}.{key}")
    elif name == "strata":
        own, others = ({_law(each): each for each in side} for side in (found, expected))
        assert own.keys() == others.keys()
        for key, value in others.items():
            assert_same(own[key], value, f"{at}[{key}]")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), at
        for j, value in enumerate(expected):
            assert_same(found[j], value, f"{at}[{j}]")
    elif isinstance(expected, float):
        assert isinstance(found, float), at
        limit = next((limit for key, limit in _LOOSE.items() if key in at), 1e-12)
        assert math.isclose(found, expected, rel_tol=limit, abs_tol=1e-13), (at, found, expected)
    else:
        assert found == expected, at


def _law(stratum: Mapping[str, Any]) -> str:
    law = {name: value for name, value in stratum["stratum"].items() if name != "policy_name"}
    return str(law)


def assert_equal(found: ope.Evaluation, expected: ope.Evaluation) -> None:
    assert_same(found.to_dict(), expected.to_dict())
