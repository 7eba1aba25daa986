"""Score functions: what they compute, what is refused, what a hash is of, and code that is kept."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import math
import os
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrank as fr
from fastrank import compiled
from fastrank.scoring import exp, log, sigmoid

pytest.importorskip("numba")

RNG = np.random.default_rng(4)
N = 1003


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where compiled code is kept: not among the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("code")
        patch.setenv("FASTRANK_CACHE_DIR", str(folder))
        yield folder


COLUMNS: dict[str, Any] = {
    "age": RNG.exponential(40.0, N).astype(np.float32),
    "price": RNG.uniform(1.0, 60.0, N).astype(np.float32),
    "new": RNG.random(N) < 0.3,
}
VECTORS = RNG.integers(-8, 9, (N, 5)) / 4.0
QUERY = np.array([1.0, -0.5, 0.25, 0.0, 2.0])
CATALOG = fr.Catalog(np.arange(N) * 2, VECTORS, features=COLUMNS)
DOTS = CATALOG.scores(QUERY)


def module_of(folder: Path, source: str, name: str) -> types.ModuleType:
    """A module whose source is in a file, as inspect wants it."""
    file = folder / f"{name}.py"
    head = "from __future__ import annotations\nimport math\nimport numpy as np\n"
    file.write_text(head + textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Not by the loader, which may take what was compiled of another source a moment ago.
    exec(compile(file.read_text(), file, "exec"), module.__dict__)
    return module


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], fr.ScoreFunction]:
    """A score function `f` of the source of a module."""
    count = 0

    def make(source: str) -> fr.ScoreFunction:
        nonlocal count
        count += 1
        return fr.score_function(module_of(tmp_path, source, f"made_{count}").f)

    return make


# ---- Values ------------------------------------------------------------------------------------

SCALE = 0.25
STEPS = 4


def damped(x: float, by: float) -> float:
    return SCALE * x / (1.0 + abs(by))


def twice(x: float) -> float:
    return damped(x, 1.0) + damped(x, 3.0)


@fr.score_function
def shared(dot: float, w: float = 2.0) -> float:
    return w * dot


def decayed(dot: float, age: float, half_life: float = 30.0) -> float:
    return dot + 0.3 * exp(-age / half_life)


def logarithms(dot: float, price: float) -> Any:
    return math.log(1.0 + price) * 0.5 + math.log1p(abs(dot))


def logistic(dot: float, w: float = 0.7) -> Any:
    return 1.0 / (1.0 + math.exp(-w * dot))


def branches(dot: float, age: float, new: bool, limit: float = 20.0) -> float:
    if new and dot > 0.0:
        return dot + 1.0
    if age < limit:
        return 2.0 * dot
    return -dot if dot < -2.0 else 0.5


def loops(dot: float, price: float) -> float:
    total = 0.0
    for i in range(STEPS):
        if i == 2:
            continue
        total += dot / (1.0 + i)
    while price > 10.0:
        price *= 0.5
    return total + price


def helpers(dot: float, age: float) -> Any:
    return twice(dot) + damped(age, dot) + shared(dot, 3.0)


def integers(dot: float, age: float) -> float:
    n = int(age)
    bits = (n & 5) << 1
    n //= 3
    return bits + n % 7 + (10 // (1 + int(abs(dot)))) + divmod(n, 4)[1]


def libraries(dot: float, age: float) -> Any:
    return math.sin(dot) + np.sqrt(age) + math.hypot(dot, 2.0) + np.maximum(dot, 1.0) + round(age)


def powers(dot: float, age: float) -> Any:
    n = int(dot)
    return dot**2 + (1.0 + age) ** 0.5 + (1.0 + age) ** -1 + 1.5 ** abs(n)


def ends(dot: float, age: float, flag: bool = True) -> bool:
    return dot > age * 0.01 and flag


def caught(dot: float, age: float) -> float:
    try:
        if age < 20.0:
            raise ValueError
        return dot
    except Exception:  # a float32 is no Python object: bare ones are all that Numba has
        return -1.0


def constant() -> int:
    return 3


FUNCTIONS = [
    *(decayed, logarithms, logistic, branches, loops, helpers, integers, libraries, powers),
    *(ends, caught, constant),
]


def plain(function: Callable[..., Any], dots: Any, **params: Any) -> list[float]:
    """By Python, item by item."""
    names = fr.score_function(function).arguments
    rows = []
    for i, dot in enumerate(dots.tolist()):
        item = {"dot": dot, **{name: COLUMNS[name][i].item() for name in COLUMNS}, **params}
        rows.append(float(function(**{name: item[name] for name in names if name in item})))
    return rows


@pytest.mark.sampled
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: str(f.__name__))
def test_a_function_computes_what_python_computes(function: Callable[..., Any]) -> None:
    score = fr.score_function(function)
    made = CATALOG.scores(QUERY, score=score)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, plain(function, DOTS), rtol=3e-6, atol=3e-6)


def test_params_are_of_a_call() -> None:
    score = fr.score_function(decayed)
    values: list[Any] = [1, 30.0, np.float32(7.5)]
    for value in values:
        made = CATALOG.scores(QUERY, score=score, params={"half_life": value})
        right = plain(decayed, DOTS, half_life=float(value))
        np.testing.assert_allclose(made, right, rtol=3e-6, atol=3e-6)
    flagged = fr.score_function(ends)
    assert CATALOG.scores(QUERY, score=flagged).any()
    none: list[Any] = [False, 0, 0.0, np.bool_(False)]
    for off in none:
        assert not CATALOG.scores(QUERY, score=flagged, params={"flag": off}).any()


def only_exp(dot: float) -> float:
    return exp(min(dot, 80.0))


def only_log(dot: float) -> float:
    return log(abs(dot) + 1e-30)


def only_sigmoid(dot: float) -> float:
    return sigmoid(max(dot, -80.0))


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("function", "right"),
    [
        (only_exp, lambda x: np.exp(np.minimum(x, 80.0))),
        (only_log, lambda x: np.log(np.abs(x) + 1e-30)),
        (only_sigmoid, lambda x: 1.0 / (1.0 + np.exp(-np.maximum(x, -80.0)))),
    ],
)
def test_functions_of_ours_are_right_to_some_ulp(
    function: Callable[..., Any], right: Callable[..., Any]
) -> None:
    x = np.concatenate([np.linspace(-80, 80, 4001), np.geomspace(1e-38, 1e34, 999)])
    x = x.astype(np.float32)
    catalog = fr.Catalog(np.arange(len(x)), x[:, None])
    made = catalog.scores([1.0], score=fr.score_function(function)).astype(np.float64)
    expected = right(x.astype(np.float64))
    ulp = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    assert (np.abs(made - expected) <= 4 * ulp).all()


@pytest.mark.parametrize("function", [decayed, branches, loops], ids=lambda f: str(f.__name__))
def test_of_every_storage_thread_and_batch_scores_are_the_same(
    function: Callable[..., Any],
) -> None:
    n = 20_011
    columns = {
        "age": RNG.exponential(40.0, n),
        "price": RNG.uniform(1, 60, n),
        "new": RNG.random(n) < 0.3,
    }
    vectors = RNG.standard_normal((n, 6), dtype=np.float32)
    score = fr.score_function(function)
    queries = RNG.standard_normal((3, 6))
    catalogs = [
        fr.Catalog(np.arange(n), vectors, features=columns, storage=storage)
        for storage in ("float32", "int8")
    ]
    assert [each.storage for each in catalogs] == ["float32", "int8"]
    right = catalogs[0].scores(queries[0], score=score)
    for catalog in catalogs:
        assert np.array_equal(catalog.scores(queries[0], score=score), right)
        for policy in (fr.Deterministic(), fr.PlackettLuce(0.7), fr.EpsilonGreedy(0.2)):
            given = fr.rank_scores(np.arange(n), right, 8, policy=policy, seed=3)
            for threads in (1, 3):
                own = catalog.rank(
                    queries[0], 8, policy=policy, seed=3, score=score, threads=threads
                )
                assert own.item_ids.tolist() == given.item_ids.tolist()
                assert own.scores.tolist() == given.scores.tolist()
                batch = catalog.rank_batch(
                    queries, 8, policy=policy, seeds=[3, 4, 5], score=score, threads=threads
                )
                assert batch[0] == own


def test_many_threads_bind_and_rank_at_once() -> None:
    score = fr.score_function(decayed)
    values = [float(i) for i in range(1, 17)]
    right = [CATALOG.scores(QUERY, score=score, params={"half_life": v}) for v in values]
    wrong: list[float] = []

    def work(first: int) -> None:
        for i in range(32):
            j = (first + 5 * i) % len(values)
            own = CATALOG.scores(QUERY, score=score, params={"half_life": values[j]})
            if not np.array_equal(own, right[j]):
                wrong.append(values[j])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


# ---- Faults ------------------------------------------------------------------------------------


def over(x: int) -> int:
    return x // x


def faulty(dot: float, age: float, how: float) -> Any:
    n, m = int(dot), int(age - 3.0)
    if how == 0.0 and age == 3.0:
        raise ValueError("no")
    if how == 1.0:
        assert age != 3.0
    if how == 2.0:
        return dot / (age - 3.0)
    if how == 3.0:
        return n // m
    if how == 4.0:
        return n % m
    if how == 5.0:
        n //= m
    if how == 6.0:
        n %= m
    if how == 7.0:
        return divmod(n, m)[1]
    if how == 8.0:
        return over(m)
    if how == 9.0:
        return (dot, age)[n // m % 2]
    if how == 10.0:
        return n / m
    if how == 11.0:
        return math.log(age - 3.5)
    return dot + n


@pytest.mark.parametrize("how", range(12))
def test_a_fault_names_the_item(how: int) -> None:
    """An exception, and what machine code would make another number of: integers over 0."""
    columns = {"age": [4.0, 5.0, 3.0, 6.0]}
    catalog = fr.Catalog(["a", "b", "c", "d"], [[1.0], [2.0], [3.0], [4.0]], features=columns)
    score, params = fr.score_function(faulty), {"how": how}
    for call in (
        lambda: catalog.scores([1.0], score=score, params=params),
        lambda: catalog.rank([1.0], 2, policy=fr.PlackettLuce(), score=score, params=params),
    ):
        with pytest.raises(ValueError, match=r"score: 'faulty' gives the item 'c' (nan|more)"):
            call()
    left = catalog.rank(
        [1.0], 4, policy=fr.Deterministic(), exclude=["c"], score=score, params=params
    )
    assert sorted(left.item_ids.tolist()) == ["a", "b", "d"]


# ---- What is refused ---------------------------------------------------------------------------

REFUSED = [
    ("return", "returns nothing; expected a number"),
    ("return 'a'", "returns a text; expected a number"),
    ("return (dot, 1.0)", "returns several values; expected a number"),
    ("return dot * 1j", "returns complex"),
    ("if dot > 0.0: return dot", "returns a number or nothing"),
    ("print(dot); return dot", "must not draw random numbers, keep lists or print"),
    ("x = [dot, 1.0]; return x[0]", "must not draw random numbers, keep lists or print"),
    ("x = np.zeros(3); return x[0]", "must not draw random numbers, keep lists or print"),
    ("return dot + np.random.random()", "must not draw random numbers, keep lists or print"),
    ("a, *b = (dot, 1.0, 2.0); return a", "Numba cannot compile it: Use of unsupported opcode"),
    (
        "try: return dot / dot\n    except ZeroDivisionError: return 0.0",
        "Numba cannot compile it: it catches a single kind of exception; `except Exception` works",
    ),
    ("return float(f'{dot}')", "Numba cannot compile it: "),
    ("return eval('1')", "Numba cannot compile it: Untyped global name 'eval'"),
    (
        "return np.linalg.nothing(dot)",
        "Numba cannot compile it: module 'numpy.linalg' has no attribute",
    ),
]


@pytest.mark.sampled
@pytest.mark.parametrize(("body", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_compiled_is_refused(
    made: Callable[[str], fr.ScoreFunction], body: str, reason: str
) -> None:
    score = made(f"def f(dot):\n    {body}\n")
    with pytest.raises(ValueError, match=r"^score: f: ") as refused:
        CATALOG.scores(QUERY, score=score)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


REFUSED_EARLY = [
    ("def f(dot):\n  return lost(dot)", "f: 'lost' is not defined"),
    ("def f(dot):\n  return (lambda x: x)(dot)", "f, line 2: it holds a lambda"),
    ("def f(dot):\n  def g(x): return x\n  return g(dot)", "f: it defines 'g' within"),
    ("def f(dot):\n  global W\n  return dot", "f, line 2: it changes a global"),
    ("def f(dot):\n  import os\n  return dot", "f, line 2: it imports"),
    ("def f(dot):\n  yield dot", "f, line 2: it yields"),
    ("async def f(dot): return dot", "expected a function that `def` defines"),
    ("f = lambda dot: dot", "expected a function that `def` defines"),
    ("def f(dot, *rest): return dot", "the argument 'rest' has no place and name"),
    ("def f(dot, *, age): return dot", "the argument 'age' has no place and name"),
    ("def f(dot, /): return dot", "the argument 'dot' has no place and name"),
    ("def f(dot=1.0): return dot", "`dot` has a default"),
    ("def f(dot, w=[1]): return dot", "the default of 'w' is [1]"),
    ("def f(dot, w=math.nan): return dot", "the default of 'w' is nan"),
    ("def f(dot, w='a'): return dot", "the default of 'w' is 'a'"),
    ("A = np.ones(3)\ndef f(dot): return dot * A[0]", "'A' is array([1., 1., 1.])"),
    ("A = (1.0, 2.0)\ndef f(dot): return dot * A[0]", "'A' is (1.0, 2.0)"),
    ("A = 'text'\ndef f(dot): return A", "'A' is 'text'"),
    ("A = 1e39\ndef f(dot): return A", "'A' is beyond the float32 range"),
    ("def f(dot): return dot * 1e39", "f, line 1: a number is beyond the float32 range"),
    (f"def f(dot): return dot < 1{'0' * 400}", "f, line 1: a number is beyond the float32 range"),
    ("import json\ndef f(dot): return dot * json.W", "'json' is the module json"),
    ("class A: pass\ndef f(dot): return A", "'A' is <class"),
    ("def g(x): return g(x - 1)\ndef f(dot): return g(dot)", "g: it calls itself"),
    ("def f(dot): return f(dot - 1)", "f: it calls itself"),
    (
        "def g(x): return h(x)\ndef h(x): return g(x)\ndef f(dot): return g(dot)",
        "h: 'g' calls itself",
    ),
    ("def g(x): return lost(x)\ndef f(dot): return g(dot)", "g: 'lost' is not defined"),
]


@pytest.mark.parametrize(("source", "reason"), REFUSED_EARLY, ids=range(len(REFUSED_EARLY)))
def test_what_is_no_score_function_is_refused_at_once(
    made: Callable[[str], fr.ScoreFunction], source: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=r"^score_function: ") as refused:
        made(source)
    assert reason in str(refused.value)


def other(function: Any) -> Any:
    @functools.wraps(function)
    def instead(dot: float) -> float:
        return 100.0 * float(function(dot))

    return instead


@other
def decorated(dot: float) -> float:
    return dot


def test_what_another_decorator_made_is_refused() -> None:
    """Its source is that of the function within, which gives another score."""
    assert decorated(1.0) == 100.0
    with pytest.raises(ValueError, match="decorated: another decorator stands in its place"):
        fr.score_function(decorated)


@pytest.mark.parametrize("given", ["dot", 5, abs, len, type, functools.partial(damped, 1.0)])
def test_what_is_no_function_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="expected a Python function"):
        fr.score_function(given)


def test_a_function_without_source_is_refused() -> None:
    space: dict[str, Any] = {}
    exec("def f(dot): return dot", space)
    with pytest.raises(ValueError, match="its source cannot be read"):
        fr.score_function(space["f"])


_address = ctypes.CDLL(None).labs


def by_address(dot: float) -> Any:
    return _address(dot)


def test_code_at_an_address_is_refused() -> None:
    """It would be kept for the next process, where something else is there."""
    with pytest.raises(ValueError, match="'_address' is <_FuncPtr"):
        fr.score_function(by_address)


@pytest.mark.parametrize(
    ("columns", "params", "reason"),
    [
        ({"x": [1.0]}, None, "'age' is neither a column (there are x) nor among the params"),
        ({"age": ["a"]}, None, "the column 'age' holds texts"),
        ({"age": [["a"]]}, None, "the column 'age' holds texts"),
        ({"age": [1.0]}, {"age": 2.0}, "params: 'age' is a column of the score function decayed"),
        ({"age": [1.0]}, {"dot": 2.0}, "params: 'dot' is no argument of the score function"),
        ({"age": [1.0]}, {"w": 2.0}, "params: 'w' is no argument of the score function"),
        ({"age": [1.0]}, {"half_life": "a"}, "takes numbers and booleans, got 'a'"),
        ({"age": [1.0]}, {"half_life": 1e39}, "beyond the float32 range"),
        ({"age": [1.0]}, {"half_life": math.nan}, "must be finite"),
        ({"age": [1.0], "half_life": ["a"]}, None, "the column 'half_life' holds texts"),
    ],
)
def test_arguments_that_do_not_fit(columns: Any, params: Any, reason: str) -> None:
    catalog = fr.Catalog([1], [[1.0]], features=columns)
    with pytest.raises(ValueError, match=r"^(score|params)") as refused:
        catalog.scores([1.0], score=fr.score_function(decayed), params=params)
    assert reason in str(refused.value)


def test_a_function_whose_column_is_gone() -> None:
    score = fr.score_function(decayed)
    catalog = CATALOG.with_score(score)
    assert CATALOG.with_features({"age": np.zeros(N)}).scores(QUERY, score=score)[0] == (
        pytest.approx(DOTS[0] + 0.3)
    )
    for features in (None, {"x": np.zeros(N)}):
        with pytest.raises(ValueError, match="'age' is neither a column"):
            catalog.with_features(features)
        with pytest.raises(ValueError, match="'age' is neither a column"):
            CATALOG.with_features(features).rank(QUERY, 1, policy=fr.Uniform(), score=score)


# ---- Names and numbers of one's own ------------------------------------------------------------


def test_names_that_are_ours_within_do_not_clash(made: Callable[[str], fr.ScoreFunction]) -> None:
    source = "def f(dot, _float32_0=7.0, _float32_1=8.0):\n    return dot * 0.5 + _float32_1 * 0.25"
    score = made(source)
    np.testing.assert_array_equal(CATALOG.scores(QUERY, score=score), DOTS * 0.5 + 2.0)


def test_annotations_are_nobodys(made: Callable[[str], fr.ScoreFunction]) -> None:
    source = """
        def f(dot: Lost, w: Lost | None = 2.0) -> Lost:
            x: Lost = dot * w
            return x
    """
    score = made(source)
    assert score.hash == made("def f(dot, w=2.0):\n    x: int = dot * w\n    return x").hash
    np.testing.assert_array_equal(CATALOG.scores(QUERY, score=score), DOTS * 2.0)


def test_a_function_keeps_what_it_referred_to(tmp_path: Path) -> None:
    """A global that is another one later makes another function of the same source."""
    module = module_of(tmp_path, "W = 2.0\ndef f(dot): return dot * W", "later")
    first = fr.score_function(module.f)
    vars(module)["W"] = 5.0
    second = fr.score_function(module.f)
    np.testing.assert_array_equal(CATALOG.scores(QUERY, score=first), DOTS * 2.0)
    np.testing.assert_array_equal(CATALOG.scores(QUERY, score=second), DOTS * 5.0)
    assert first.hash != second.hash


def test_a_helper_that_numba_compiled_is_read_anew(tmp_path: Path) -> None:
    """Its own code has the globals of when it was first called."""
    source = "import numba\nW = 2.0\n@numba.njit\ndef g(x): return x * W\ndef f(dot): return g(dot)"
    module = module_of(tmp_path, source, "jitted")
    first = fr.score_function(module.f)
    np.testing.assert_array_equal(CATALOG.scores(QUERY, score=first), DOTS * 2.0)
    vars(module)["W"] = 5.0
    second = fr.score_function(module.f)
    assert first.hash != second.hash
    np.testing.assert_array_equal(CATALOG.scores(QUERY, score=second), DOTS * 5.0)


def test_helpers_of_helpers_are_read_once(made: Callable[[str], fr.ScoreFunction]) -> None:
    """Two helpers that both call two others, thirty times over: 2^30 would never end."""
    lines = ["def a0(x): return x", "def b0(x): return 0.5 * x"]
    for i in range(30):
        lines += [f"def {c}{i + 1}(x): return 0.5 * (a{i}(x) + b{i}(x))" for c in "ab"]
    lines.append("def f(dot): return a30(dot) + b30(dot)")
    assert made("\n".join(lines)).hash


# ---- Hashes ------------------------------------------------------------------------------------

BASE = """
W = 2.0
def g(x): return x + 1.0
def f(dot, age, half=3.0):
    return dot * W + g(age) / half
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("dot * W", "dot + W"),
        ("W = 2.0", "W = 3.0"),
        ("W = 2.0", "W = 2"),
        ("x + 1.0", "x + 2.0"),
        ("x + 1.0", "x + 1"),
        ("x + 1.0", "x + W"),
        ("half=3.0", "half=4.0"),
        ("half=3.0", "half=True"),
        ("half=3.0", "half"),
        ("dot, age,", "age, dot,"),
        ("g(age)", "math.exp(age)"),
    ],
)
def test_another_function_has_another_hash(
    made: Callable[[str], fr.ScoreFunction], old: str, new: str
) -> None:
    assert old in BASE
    assert made(BASE).hash != made(BASE.replace(old, new)).hash


def test_what_does_not_matter_is_not_in_the_hash(
    made: Callable[[str], fr.ScoreFunction],
) -> None:
    first = made(BASE).hash
    for same in (
        BASE.replace("    return", "    # a comment\n\n    return"),
        BASE.replace("dot * W + g(age) / half", "((dot*W) +\n        g( age )/half)  # so"),
        BASE.replace("W = 2.0", "OTHER = 7\nW = 4.0 / 2"),
        BASE.replace("age, half=3.0", "age: float, half: float = 3.0"),
    ):
        assert made(same).hash == first


# ---- Code that is kept -------------------------------------------------------------------------

SCRIPT = """
import sys
import fastrank as fr
import shop
catalog = fr.Catalog([1, 2], [[1.0], [2.0]], features={"age": [0.0, 15.0]})
print(catalog.scores([1.0], score=fr.score_function(shop.f)).tolist())
print(bool(sys.modules.get("numba")))
"""
SHOP = """
W = 10.0
def g(x): return 1.0 if x > 1.0 else W
def f(dot, age, half=30.0): return dot * (1.0 - age / half) + g(age)
"""
RIGHT = [11.0, 2.0]


def in_a_fresh_process(folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    (folder / "shop.py").write_text(SHOP)
    return subprocess.run(
        [sys.executable, "-B", "-c", SCRIPT],
        env={**os.environ, "FASTRANK_CACHE_DIR": str(cache), "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def scored(run: subprocess.CompletedProcess[str]) -> tuple[list[float], bool]:
    """What a process printed: scores, and whether it has loaded Numba."""
    assert run.returncode == 0, run.stderr
    scores, with_numba = run.stdout.splitlines()
    return [float(x) for x in scores.strip("[]").split(",")], with_numba == "True"


@pytest.mark.slow
def test_the_next_process_needs_no_numba(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, with_numba = scored(in_a_fresh_process(tmp_path, cache))
    assert with_numba
    assert first == RIGHT
    assert cache.stat().st_mode & 0o077 == 0
    assert len(list(cache.iterdir())) == 1

    assert scored(in_a_fresh_process(tmp_path, cache)) == (first, False)


def test_without_numba_there_is_an_error_in_our_words(
    made: Callable[[str], fr.ScoreFunction], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    score = made("def f(dot): return dot * 0.123")
    monkeypatch.setenv("FASTRANK_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ModuleNotFoundError, match="score functions need Numba") as error:
        CATALOG.scores(QUERY, score=score)
    assert error.value.name == "numba"
    monkeypatch.undo()
    np.testing.assert_allclose(CATALOG.scores(QUERY, score=score), DOTS * 0.123, rtol=1e-6)


Kept = tuple[fr.ScoreFunction, Path, bytes]


def halved(dot: float) -> float:
    return dot * 0.5 + 3.0


@pytest.fixture(scope="module")
def code_of_halved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """The name and the content of the file of a function's code."""
    cache = tmp_path_factory.mktemp("halved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRANK_CACHE_DIR", str(cache))
        patch.setattr(compiled, "_addresses", {})
        fr.Catalog([1], [[1.0]]).scores([1.0], score=fr.score_function(halved))
    (file,) = cache.iterdir()
    return file.name, file.read_bytes()


@pytest.fixture
def kept(
    code_of_halved: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Kept:
    """A function, whose code is in a file and not in this process; and what the file holds."""
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    monkeypatch.setenv("FASTRANK_CACHE_DIR", str(cache))
    monkeypatch.setattr(compiled, "_addresses", {})
    file, content = cache / code_of_halved[0], code_of_halved[1]
    file.touch(0o600)
    file.write_bytes(content)
    return fr.score_function(halved), file, content


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda code: code[:-100],
    "cut in its label": lambda code: code[:50],
    "empty": lambda code: b"",
    "longer": lambda code: code + b"x",
    "a flipped bit": lambda code: code[:-50] + bytes([code[-50] ^ 1]) + code[-49:],
    "another label": lambda code: code.replace(b"fastrank code 1", b"fastrank code 2", 1),
}


@pytest.mark.sampled
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_code_is_made_again(
    kept: Kept,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    score, file, content = kept
    file.write_bytes(DAMAGES[damage](content))
    with caplog.at_level(logging.WARNING, "fastrank.compiled"):
        assert fr.Catalog([1], [[2.0]]).scores([1.0], score=score).tolist() == [4.0]
    assert "is damaged and will be rebuilt" in caplog.text
    assert file.read_bytes() != DAMAGES[damage](content)
    caplog.clear()
    assert compiled._loaded(score, (("dot", "number"),))
    assert not caplog.text


def test_code_that_others_could_write_is_neither_run_nor_kept(
    kept: Kept,
    caplog: pytest.LogCaptureFixture,
) -> None:
    score, file, _ = kept
    label = compiled._label(score, (("dot", "number"),))
    assert label is not None
    assert compiled._loaded(score, (("dot", "number"),))
    file.chmod(0o620)
    assert compiled._loaded(score, (("dot", "number"),)) is None
    file.chmod(0o600)
    file.parent.chmod(0o770)
    with caplog.at_level(logging.WARNING, "fastrank.compiled"):
        assert compiled._loaded(score, (("dot", "number"),)) is None
        assert compiled.cache_directory() is None
    assert "others may write to" in caplog.text
    file.unlink()
    compiled._addresses.clear()
    assert fr.Catalog([1], [[2.0]]).scores([1.0], score=score).tolist() == [4.0]
    assert not list(file.parent.iterdir())
    file.parent.chmod(0o700)


def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(
    made: Callable[[str], fr.ScoreFunction], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTRANK_CACHE_DIR", str(tmp_path / "file" / "cache"))
    score = made("def f(dot): return dot * 0.375")
    np.testing.assert_array_equal(CATALOG.scores(QUERY, score=score), DOTS * 0.375)


# ---- Kept with a catalog -----------------------------------------------------------------------

own_decayed = fr.score_function(decayed)
own_logistic = fr.score_function(logistic)


def test_a_saved_function_is_handed_in_again(tmp_path: Path) -> None:
    catalog = CATALOG.with_score(own_decayed, {"half_life": 7.0})
    catalog.save(tmp_path / "c")
    opened = fr.Catalog.open(tmp_path / "c", functions=[own_logistic, own_decayed], verify=True)
    assert opened.score == catalog.score
    assert opened.score is not None
    assert opened.score.params == {"half_life": 7.0}
    np.testing.assert_array_equal(opened.scores(QUERY), catalog.scores(QUERY))
    np.testing.assert_array_equal(
        opened.scores(QUERY, score="logistic"), CATALOG.scores(QUERY, score=own_logistic)
    )
    with pytest.raises(ValueError, match=r"its score is the function '.*:decayed': pass it"):
        fr.Catalog.open(tmp_path / "c")
    with pytest.raises(ValueError, match=r"its score is the function '.*:decayed': pass it"):
        fr.Catalog.open(tmp_path / "c", functions=[own_logistic])
    with pytest.raises(ValueError, match=r"functions\[0\]: expected a ScoreFunction"):
        fr.Catalog.open(tmp_path / "c", functions=[decayed])  # type: ignore[list-item]
    others: list[Any] = [own_decayed, None, 5, {"decayed": own_decayed}]
    for functions in others:
        with pytest.raises(ValueError, match=r"^functions: expected a list of ScoreFunctions"):
            fr.Catalog.open(tmp_path / "c", functions=functions)


def test_another_function_of_the_same_name_is_refused(tmp_path: Path) -> None:
    source = "W = 2.0\ndef f(dot): return dot * W"
    first = fr.score_function(module_of(tmp_path, source, "same").f)
    other = fr.score_function(module_of(tmp_path, source.replace("2.0", "3.0"), "same").f)
    assert first.path == other.path
    CATALOG.with_score(first).save(tmp_path / "c")
    with pytest.raises(
        ValueError, match=r"its score is 'same:f' with the hash .*given has another"
    ):
        fr.Catalog.open(tmp_path / "c", functions=[other])


def test_functions_are_called_by_name() -> None:
    named = CATALOG.with_functions(own_decayed, own_logistic)
    for score in (own_decayed, own_logistic):
        right = CATALOG.scores(QUERY, score=score)
        np.testing.assert_array_equal(named.scores(QUERY, score=score.text), right)
        ranking = named.rank(QUERY, 2, policy=fr.Uniform(), seed=1, score=score.text)
        assert ranking.score is not None
        assert (ranking.score.name, ranking.score.hash) == (score.text, score.hash)
    np.testing.assert_array_equal(named.scores(QUERY, score="dot + age"), DOTS + COLUMNS["age"])
    with pytest.raises(ValueError, match="'decayed' is neither a column"):
        CATALOG.scores(QUERY, score="decayed")
    with pytest.raises(ValueError, match="'decayed' is neither a column"):
        named.with_functions().scores(QUERY, score="decayed")
    with pytest.raises(ValueError, match=r"functions.1.: the name 'decayed' already means"):
        CATALOG.with_functions(own_decayed, own_decayed)
    with pytest.raises(ValueError, match=r"functions\[0\]: expected a ScoreFunction"):
        CATALOG.with_functions(decayed)  # type: ignore[arg-type]


def test_a_renamed_function_is_what_its_source_says(tmp_path: Path) -> None:
    module = module_of(tmp_path, "def f(dot): return dot * 4.0", "renamed")
    module.f.__name__ = "other"
    score = fr.score_function(module.f)
    assert score.text == "other"
    np.testing.assert_array_equal(CATALOG.scores(QUERY, score=score), DOTS * 4.0)


# ---- Names that may have no value ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("if age > 2:\n    x = 1.0\nreturn dot + x", "x"),
        ("for i in range(3):\n    x = dot\nreturn x", "x"),
        ("while age > 2:\n    x = 1.0\n    age = 0.0\nreturn x + dot", "x"),
        ("x += 1.0\nreturn x", "x"),
        ("y = x\nx = 1.0\nreturn y", "x"),
        ("if age > 2:\n    x = 1.0\nelif age > 1:\n    pass\nelse:\n    x = 2.0\nreturn x", "x"),
        ("try:\n    x = 1.0 / age\nexcept Exception:\n    pass\nreturn x", "x"),
        ("for i in range(3):\n    pass\nreturn i + dot", "i"),
    ],
)
def test_a_name_that_may_have_no_value_is_refused(
    made: Callable[[str], fr.ScoreFunction], body: str, name: str
) -> None:
    """Numba would take it for 0, where Python raises."""
    source = "def f(dot, age):\n" + textwrap.indent(body, "    ")
    with pytest.raises(ValueError, match=rf"line \d+: '{name}' may have no value here"):
        made(source)


@pytest.mark.parametrize(
    "body",
    [
        "if age > 2:\n    x = 1.0\nelse:\n    x = 2.0\nreturn dot + x",
        "if age > 2:\n    return dot\nelse:\n    x = 2.0\nreturn dot + x",
        "x = 0.0\nfor i in range(3):\n    x += i * dot\nreturn x",
        "if age > 2:\n    x: float = 1.0\nelif age > 1:\n    raise ValueError\nelse:\n    x = 0.5\n"
        "return x",
        "a = b = age\na, b = b, a + dot\nreturn a * b",
        "while True:\n    age = age / 2.0\n    if age < 1.0:\n        break\nreturn age",
        "for i in range(3):\n    x = i + dot\n    age = x\nreturn age",
        "return (y := dot + 1.0) * y",
    ],
)
def test_names_that_have_values_are_taken(
    made: Callable[[str], fr.ScoreFunction], body: str
) -> None:
    assert made("def f(dot, age):\n" + textwrap.indent(body, "    ")).names == {"age"}


def test_a_name_is_not_of_a_function_and_of_a_column() -> None:
    named = CATALOG.with_functions(shared)
    assert named.scores(QUERY, score="shared") is not None
    with pytest.raises(ValueError, match="'shared' is the name of both a function and a column"):
        named.with_features({**COLUMNS, "shared": COLUMNS["age"]}).scores(QUERY, score="shared")
