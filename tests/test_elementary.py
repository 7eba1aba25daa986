"""exp, log and log1p of the core: within 2 ulp, so that no bit depends on a libm.

The truth is NumPy's longdouble (64-bit mantissa), 11 bits finer than what is tested.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastrank import _probes

Array = npt.NDArray[np.float64]
EXT = Path(__file__).resolve().parents[1] / "ext"

pytestmark = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="longdouble is no finer than float64 here"
)

TRUTH: dict[str, Callable[[Any], Any]] = {
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
}


def arguments(name: str) -> Array:
    """Where a ranking takes these functions: all magnitudes, the ends, and near the roots."""
    rng = np.random.default_rng(1)
    sizes = 10.0 ** rng.uniform(-300, 2.84, 20_000)
    near_one = 1.0 + rng.standard_normal(20_000) * 10.0 ** rng.uniform(-15, -1, 20_000)
    if name == "exp":
        both = np.concatenate([sizes, -sizes, rng.uniform(-745, 709, 20_000), [0.0, 709.78]])
        return both[both < 709.78]
    if name == "log":
        any_size = 10.0 ** rng.uniform(-307, 308, 20_000)
        return np.concatenate([any_size, near_one, np.arange(1.0, 2_000.0), [2.0**-1022, 5e-324]])
    small = 10.0 ** rng.uniform(-300, 0, 20_000)
    return np.concatenate([small, -small * 0.999, near_one, 10.0 ** rng.uniform(0, 308, 20_000)])


@pytest.mark.parametrize("name", TRUTH)
def test_within_two_ulp(name: str) -> None:
    x = arguments(name)
    truth = TRUTH[name](x.astype(np.longdouble))
    got = _probes.elementary(name, x)
    assert got.dtype == np.float64
    # The spacing at the result; among subnormal results that is the smallest number.
    ulp = np.spacing(np.abs(truth.astype(np.float64)))
    error = np.abs((got.astype(np.longdouble) - truth) / ulp).astype(np.float64)
    worst = int(error.argmax())
    assert error[worst] <= 2.0, f"{name}({x[worst]!r}) is off by {error[worst]:.2f} ulp"


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("exp", 0.0, 1.0),
        ("exp", -1e4, 0.0),
        ("exp", -np.inf, 0.0),
        ("exp", 1e4, np.inf),
        ("exp", np.inf, np.inf),
        ("log", 1.0, 0.0),
        ("log", 0.0, -np.inf),
        ("log", np.inf, np.inf),
        ("log1p", 0.0, 0.0),
        ("log1p", -1.0, -np.inf),
        ("log1p", np.inf, np.inf),
    ],
)
def test_ends(name: str, x: float, expected: float) -> None:
    assert _probes.elementary(name, np.array([x])).tolist() == [expected]


@pytest.mark.parametrize("name", TRUTH)
def test_nan_stays_nan(name: str) -> None:
    assert np.isnan(_probes.elementary(name, np.array([np.nan]))).all()


def test_no_source_asks_the_libraries_for_what_they_may_round_or_order_otherwise() -> None:
    """IEEE prescribes sqrt, floor and the like to the bit; of a partition only sets are sure."""
    sources = [*EXT.glob("*.cpp"), *EXT.glob("*.h")]
    assert len(sources) > 10
    for source in sources:
        if source.name in ("_native.cpp", "_probes.cpp"):  # Cython's
            continue
        found = re.findall(
            r"std::(?:exp|exp2|expm1|log|log2|log10|log1p|pow|cbrt|hypot|tanh|sin|cos|partition)\b",
            source.read_text(),
        )
        assert not found, f"{source.name}: {found}"
