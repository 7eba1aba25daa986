"""What counts as ids in every entrance, and look-up: every way of it against a dict."""

from __future__ import annotations

import re
import tracemalloc
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

import fastrank as fr
from fastrank import _native
from fastrank.ids import MAX_LENGTH, IdIndex, as_ids, text_array
from fastrank.scorer import eligible_of
from fastrank.simulate import Cascade, World, q_columns

IdArray: TypeAlias = npt.NDArray[Any]

N = 3_000
LOW, HIGH = np.iinfo(np.int64).min, np.iinfo(np.int64).max


def gapless(rng: np.random.Generator) -> IdArray:
    return rng.permutation(N).astype(np.int64) - 70


def lowest(rng: np.random.Generator) -> IdArray:
    return rng.permutation(N).astype(np.int64) + LOW


def highest(rng: np.random.Generator) -> IdArray:
    return HIGH - rng.permutation(N).astype(np.int64)


def sparse(rng: np.random.Generator) -> IdArray:
    ids = rng.choice(np.arange(LOW, HIGH, 2**40), N, replace=False)
    ids[:2] = LOW, HIGH
    return ids


def words(rng: np.random.Generator) -> IdArray:
    return np.array([f"ü{i}" if i % 3 else f"{i}" for i in rng.permutation(N)])


MAKERS: list[Callable[[np.random.Generator], IdArray]] = [gapless, lowest, highest, sparse, words]


@pytest.mark.parametrize("count", [1, 10, 31, 32, 500, 2 * N])
@pytest.mark.parametrize("make", MAKERS)
def test_every_look_up_finds_what_a_dict_finds(
    make: Callable[[np.random.Generator], IdArray], count: int
) -> None:
    rng = np.random.default_rng(count)
    ids = make(rng)
    if ids.dtype.kind == "U":
        # Cut to the width of the catalog's ids, the longer ones would be others.
        unknown = np.array(["", "x", *[f"{i}!longer than any" for i in ids[:20]]])
    else:
        unknown = np.array([LOW, HIGH, -1, 0, N, *ids[:20] + 1], np.int64)
    wanted = rng.choice(np.concatenate([ids, unknown]), count)  # with repeats
    wanted[-1] = unknown[count % len(unknown)]
    where = {item: row for row, item in enumerate(ids.tolist())}
    expected = [where.get(item, -1) for item in wanted.tolist()]
    found = IdIndex("item_ids", ids).find("exclude", wanted)
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_shapes_that_do_not_fit_are_refused() -> None:
    rows, other = np.zeros((3, 8), np.uint8), np.zeros((2, 4), np.uint8)
    with pytest.raises(ValueError, match="wanted: shape does not fit"):
        _native.find_rows(rows, other, 1)
    with pytest.raises(ValueError, match="wanted: shape does not fit"):
        _native.find_rows(rows, rows[:0], 1)


@pytest.mark.parametrize("make", MAKERS)
def test_what_a_prefix_finds_is_what_a_pass_finds(
    make: Callable[[np.random.Generator], IdArray],
) -> None:
    rng = np.random.default_rng(5)
    ids = make(rng)
    index = IdIndex("user_ids", ids)
    ordered = sorted(ids.tolist())
    some = [str(item) for item in rng.choice(ids, 60).tolist()]
    prefixes = {text[: 1 + j % len(text)] for j, text in enumerate(some)} | {*some[:20]}
    prefixes |= {"", "-", "-0", "0", "00", "+1", " 1", "1_0", "\u0661", "\0", "1\0", "\U0010ffff"}
    prefixes |= {"9" * 19, "9" * 20, "-" + "9" * 19, str(LOW), str(HIGH), "x" * 1000, "é", "ü"}
    for prefix in sorted(prefixes):
        expected = [item for item in ordered if str(item).startswith(prefix)]
        if ids.dtype.kind != "U" and prefix not in ("", "-"):
            expected.sort(key=lambda item: (len(str(item)), item))  # short ones first
        for limit in (1, 7, 2 * N):
            found = index.starting_with(prefix, limit)
            assert found.dtype == np.int64
            assert ids[found].tolist() == expected[:limit], (prefix, limit)


# What counts as ids


PAGE = (Path(__file__).resolve().parents[1] / "docs" / "reference" / "ids.md").read_text()
LIBRARIES = {"pa": "pyarrow", "pd": "pandas", "pl": "polars", "torch": "torch"}


def cells() -> list[tuple[str, str, str]]:
    """(code, what filters say, what ordered entrances say) of the page's table."""
    table = PAGE.split("<!-- ids: tests/test_ids.py -->")[1].split("<!-- end -->")[0]
    found = []
    for line in table.strip().splitlines()[2:]:
        given, filters, in_order = (cell.strip() for cell in line.strip("|").split("|"))
        found += [(code, filters, in_order) for code in re.findall("`(.*?)`", given)]
    return found


def heirs() -> dict[str, Any]:
    """The page's enums."""
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], names)
    return names


def names_of(code: str) -> dict[str, Any]:
    """What a cell of the page may name; skips where a library of it is not installed."""
    names: dict[str, Any] = {"np": np, "deque": deque, "array": array}
    names["StringDType"] = np.dtypes.StringDType
    for short, name in LIBRARIES.items():
        if re.search(rf"\b{short}\.", code):
            names[short] = pytest.importorskip(name)
    return names | heirs()


VECTORS = [[3.0], [2.0], [1.0]]
NUMBERS, TEXTS = fr.Catalog([1, 2, 9], VECTORS), fr.Catalog(["a", "b", "z"], VECTORS)
BEST, EVEN = fr.Deterministic(), fr.Uniform()
WORLD = {1: World.from_rates([[0.1, 0.2, 0.3]], Cascade(), item_ids=[1, 2, 9])}
WORLD[0] = World.from_rates([[0.1, 0.2, 0.3]], Cascade(), item_ids=["a", "b", "z"])


def logged(catalog: fr.Catalog, given: Any, role: str, directory: Path) -> list[Any]:
    """A filter on its way through a log, short (in the row) and long (in a file of its own)."""
    eventlog = pytest.importorskip("fastrank.eventlog")
    found = []
    for inline in (64, 0):
        folder = directory / str(inline)
        with eventlog.LogWriter(folder, inline_ids=inline) as log:
            ranking = catalog.rank([1.0], 1, policy=EVEN)
            log.append(ranking, k=1, query=[1.0], **{role: given})
        (batch,) = eventlog.LogReader(folder)
        found.append(sorted(getattr(batch, role)(0).tolist()))
    assert found[0] == found[1]
    return found[0]


def filtered(catalog: fr.Catalog, directory: Path) -> dict[str, Callable[[Any], list[Any]]]:
    """Entrances of filters; each gives the two ids that it was handed."""
    ids = catalog.item_ids.tolist()

    def rest(shown: Any) -> list[Any]:
        return sorted(set(ids) - set(shown.tolist()))

    def filter_id(given: Any) -> list[Any]:
        hashed = pytest.importorskip("fastrank.eventlog").filter_id
        return ids[:2] if hashed(given) == hashed(ids[:2]) else []

    return {
        "exclude": lambda v: rest(catalog.rank([1.0], 3, policy=BEST, exclude=v).item_ids),
        "allow": lambda v: sorted(catalog.rank([1.0], 3, policy=BEST, allow=v).item_ids.tolist()),
        "exclude of a batch": lambda v: rest(
            catalog.rank_batch([[1.0]], 3, policy=BEST, exclude=[v])[0].item_ids
        ),
        "allow of log_propensities": lambda v: ids[
            : np.isfinite(catalog.log_propensities([1.0], ids, policy=EVEN, allow=v)).sum()
        ],
        "exclude of rank_scores": lambda v: rest(
            fr.rank_scores(ids, [0.0] * 3, 3, policy=BEST, exclude=v).item_ids
        ),
        "LogWriter": lambda v: logged(catalog, v, "exclude", directory),
        "filter_id": filter_id,
        "allow of a plan": lambda v: sorted(eligible_of(catalog, None, v).item_ids.tolist()),
    }


def ordered(catalog: fr.Catalog) -> dict[str, Callable[[Any], list[Any]]]:
    """Entrances of ids in order; each gives the two ids that it was handed."""
    ids: list[Any] = catalog.item_ids.tolist()
    lp = catalog.log_propensities([1.0], ids[:2], policy=fr.PlackettLuce())
    world = WORLD[isinstance(ids[0], int)]
    titled = fr.Model(catalog, [0], [[1.0]], item_titles=["0", "1", "2"])

    def known(found: Any) -> list[Any]:
        return ids[:2] if found.tobytes() == lp.tobytes() else []

    def evaluated(v: Any) -> list[Any]:
        return known(catalog.log_propensities([1.0], v, policy=fr.PlackettLuce()))

    def of_scores(v: Any) -> list[Any]:
        scores = catalog.scores([1.0])
        return known(fr.log_propensities_of_scores(ids, scores, v, policy=fr.PlackettLuce()))

    def together(v: Any) -> list[Any]:
        policies = [fr.PlackettLuce()]
        return known(catalog.log_propensities_batch([[1.0]], [v], policies=policies)[0, 0])

    def values(v: Any) -> list[Any]:
        found = q_columns(world, catalog, BEST, [0], [v], queries=[[1.0]])  # type: ignore[arg-type]
        expected = q_columns(world, catalog, BEST, [0], np.array([ids[:2]]), queries=[[1.0]])
        np.testing.assert_array_equal(found, expected)
        return ids[:2]

    return {
        "Catalog": lambda v: fr.Catalog(v, VECTORS[:2]).item_ids.tolist(),
        "ItemIds": lambda v: np.asarray(fr.ItemIds(v)).tolist(),
        "rank_scores": lambda v: fr.rank_scores(v, [2.0, 1.0], policy=BEST).item_ids.tolist(),
        "log_propensities_of_scores": of_scores,
        "Model": lambda v: fr.Model(catalog, v, VECTORS[:2]).user_ids.tolist(),
        "World": lambda v: World.from_rates([[0.1, 0.2]], Cascade(), item_ids=v).item_ids.tolist(),
        "log_propensities": evaluated,
        "log_propensities_batch": together,
        "titles": lambda v: [ids[int(title)] for title in titled.titles(v)],
        "item_rows": lambda v: [ids[row] for row in world.item_rows(v)],
        "q_columns": values,
    }


@pytest.mark.parametrize(("code", "filters", "in_order"), cells())
def test_the_page_says_what_every_entrance_takes(
    code: str, filters: str, in_order: str, tmp_path: Path
) -> None:
    names = names_of(code)
    is_text = '"a"' in code or "Sku" in code
    catalog, expected = (TEXTS, ["a", "b"]) if is_text else (NUMBERS, [1, 2])
    entrances = [(name, f, filters) for name, f in filtered(catalog, tmp_path).items()]
    entrances += [(name, f, in_order) for name, f in ordered(catalog).items()]
    if in_order == "taken":
        users = fr.Model(catalog, catalog.item_ids, VECTORS).find_users
        entrances.append(("find_users", lambda v: catalog.item_ids[users(v)].tolist(), in_order))
    for name, entrance, says in entrances:
        given = eval(code, names)  # a fresh one: what can be read once is used up
        if says == "taken":
            assert list(entrance(given)) == expected, name
        else:
            with pytest.raises(ValueError, match=re.escape(says.removeprefix("refused: "))) as said:
                entrance(given)
            assert "pass" in str(said.value) or "leave out" in str(said.value), name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {1, 2},
            r"in order, which a set does not have: got \{1, 2\}; pass a list in the intended",
        ),
        ("ab", "got 'ab', a single str; pass a list of one"),
        (5, "got 5, a single int; pass a list of one"),
        ([1.0, 2.0], "row 0: expected int64 or str ids, got 1.0, a float; pass an integer, or"),
        ([b"a", b"b"], "row 0: .* got b'a', a bytes; pass text, by .decode"),
        ([1, None], "row 1: .* got None, a NoneType; leave out rows without an id"),
        ([1, {2}], r"row 1: .* got \{2\}, a set; pass one id"),
        (np.array([1.0, 2.0]), r'dtype float64; pass integers, by .astype\("int64"\), or texts'),
        (np.array([b"a"]), r"dtype \|S1; pass texts, by np.strings.decode"),
        ([1, "2"], "the ids above are int64, got '2'; pass all of them as integers, or all"),
        (NUMBERS, "expected an array of ids, got a Catalog; pass its item_ids"),
        (NUMBERS.rank([1.0], 2, policy=BEST, seed=1), "got a Ranking; pass its item_ids"),
        (fr.Model(NUMBERS, [1], [[1.0]]), "got a Model; pass its user_ids"),
    ],
    ids=repr,
)
def test_a_refusal_names_the_kind_and_what_to_hand_in(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"item_ids: .*{said}"):
        fr.Catalog(given, VECTORS[:2])
    if not isinstance(given, set):
        with pytest.raises(ValueError, match=f"exclude: .*{said}"):
            NUMBERS.rank([1.0], 2, policy=EVEN, exclude=given)


def test_a_filter_of_the_other_kind_says_which_kind_it_takes() -> None:
    with pytest.raises(ValueError, match="exclude: the ids here are int64, got '1'; pass int"):
        NUMBERS.rank([1.0], 2, policy=EVEN, exclude=["1"])
    with pytest.raises(ValueError, match="exclude: the ids here are str, got 1; pass texts"):
        TEXTS.rank([1.0], 2, policy=EVEN, exclude=[1])
    with pytest.raises(ValueError, match=r"user_id: .* got \{1\}, a set; pass one id"):
        fr.Model(NUMBERS, [1], [[1.0]]).recommend({1}, policy=EVEN)


def test_the_page_has_rows() -> None:
    assert len(cells()) > 60


# Stand-ins for libraries that need not be installed.


class Column:
    """As pandas' and polars' columns: no Sequence, but an array can be made of it."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        return np.array(self.values, dtype)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __getitem__(self, label: Any) -> Any:
        raise AssertionError("by label, which may be another row")


class TextColumn(Column):
    """As polars' of text, whose array is as wide as the longest and drops a NUL at the end."""

    dtype = "String"

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        raise AssertionError("as wide as the longest")

    def null_count(self) -> int:
        return sum(each is None for each in self.values)

    def to_list(self) -> list[Any]:
        return list(self.values)


class NullableColumn(TextColumn):
    """As polars' of integers: floats where some are missing."""

    dtype = "Int64"

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        return np.array([np.nan if each is None else each for each in self.values])


class Table(Column):
    columns = ("item_id", "score")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


class Tensor(Column):
    """As torch's: with a gradient, elsewhere, or of a dtype that NumPy has not."""

    def __init__(self, values: Any, state: str = "attached") -> None:
        super().__init__(values)
        self.state = state

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        if self.state == "attached":
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.\nDetach it.")
        if self.state != "plain":
            raise TypeError(f"Got unsupported {self.state}")
        return np.array(self.values, dtype)

    def detach(self) -> Tensor:
        return Tensor(self.values, "plain" if self.state == "attached" else self.state)

    def cpu(self) -> Tensor:
        return self

    def float(self) -> Tensor:
        return Tensor(self.values, "sparse" if self.state == "sparse" else "plain")


def test_columns_of_text_are_taken_by_value() -> None:
    catalog = fr.Catalog(TextColumn(["a", "b"]), np.eye(2))
    assert catalog.item_ids.tolist() == ["a", "b"]
    call: dict[str, Any] = {"policy": fr.Deterministic()}
    for unknown in ("a\0", "y" * 1_000_000):
        ranking = catalog.rank([1.0, 0.0], 2, exclude=TextColumn([unknown] * 3), **call)
        assert ranking.item_ids.tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="item_ids: row 0: must not end in NUL"):
        fr.Catalog(TextColumn(["a\0", "b"]), np.eye(2))
    with pytest.raises(ValueError, match="exclude: row 1: expected int64 or str ids, got None"):
        catalog.rank([1.0, 0.0], 2, exclude=TextColumn(["a", None]), **call)


def test_missing_users_are_nobody_in_columns_too() -> None:
    model = fr.Model(fr.Catalog([1, 2], np.eye(2)), [1, 2], np.eye(2))
    assert model.find_users(NullableColumn([1, None, 2])).tolist() == [0, -1, 1]
    with pytest.raises(ValueError, match="item_ids: row 1: expected int64 or str ids, got None"):
        fr.Catalog(NullableColumn([1, None]), np.eye(2))


@pytest.mark.parametrize("make", [list, np.array])
def test_half_a_surrogate_pair_is_no_id(make: Callable[[Any], Any]) -> None:
    """No log and no answer could hold it."""
    with pytest.raises(ValueError, match="item_ids: row 1: must be text that UTF-8 can hold"):
        fr.Catalog(make(["a", "b\ud800", "c"]), np.eye(3))
    assert fr.Catalog(make(["a", "\U0001f600", "\ue000"]), np.eye(3)).item_ids[1] == "\U0001f600"


def test_integers_that_python_does_not_write_are_named() -> None:
    huge = 10**5_000
    catalog = fr.Catalog([1, 2], np.eye(2))
    call: dict[str, Any] = {"policy": fr.Deterministic()}
    calls: dict[str, Callable[[], Any]] = {
        "exclude": lambda: catalog.rank([1.0, 0.0], 2, exclude=[huge], **call),
        "item_ids": lambda: fr.Catalog([huge, 1], np.eye(2)),
        "seed": lambda: catalog.rank([1.0, 0.0], 2, seed=huge, **call),
        "k": lambda: catalog.rank([1.0, 0.0], -huge, **call),
        "temperature": lambda: fr.PlackettLuce(huge),
    }
    for name, attempt in calls.items():
        with pytest.raises(ValueError, match=f"{name}: .*an integer of 16610 bits"):
            attempt()


@pytest.mark.parametrize("make", [Column, Tensor, lambda v: Tensor(v, "plain")])
def test_columns_give_their_values(make: Callable[[Any], Any]) -> None:
    for entrance in (*filtered(NUMBERS, Path()).items(), *ordered(NUMBERS).items()):
        if entrance[0] != "LogWriter":
            assert entrance[1](make([1, 2])) == [1, 2], entrance[0]


def test_tables_are_refused_by_name() -> None:
    for entrance in (*filtered(NUMBERS, Path()).values(), *ordered(NUMBERS).values()):
        with pytest.raises(ValueError, match="not a table: got a Table of columns item_id, score"):
            entrance(Table([[1, 2], [3, 4]]))


@pytest.mark.parametrize("state", ["attached", "plain", "BFloat16"])
def test_tensors_are_read_whatever_became_of_them(state: str) -> None:
    given: Any = Tensor(VECTORS, state)
    catalog = fr.Catalog([1, 2, 9], given)
    assert catalog.version == NUMBERS.version
    query: Any = Tensor([1.0], state)
    expected = NUMBERS.rank([1.0], 3, policy=EVEN, seed=5)
    assert catalog.rank(query, 3, policy=EVEN, seed=5) == expected
    with pytest.raises(ValueError, match="vectors: not an array: Got unsupported sparse"):
        fr.Catalog([1, 2, 9], given.__class__(VECTORS, "sparse"))


# Single ids


@pytest.mark.parametrize("text", [False, True])
def test_users_are_looked_up_by_one_rule(text: bool) -> None:
    names = heirs()
    ids = ["a", "b"] if text else [1, 2]
    model = fr.Model(NUMBERS, ids, [[1.0], [2.0]], user_temperatures=[0.5, 2.0])
    given = [names["Sku"].A, names["Sku"].B, np.str_("a"), "b"]
    given = given if text else [names["Number"].ONE, np.int8(2), np.uint64(1), 2]
    assert model.find_users(given).tolist() == [0, 1, 0, 1]
    for row, user in zip([0, 1, 0, 1], given, strict=True):
        assert user in model
        assert model.user_vector(user).tolist() == [1.0 + row]
        assert model.user_temperature(user) == [0.5, 2.0][row]
        assert model.recommend(user, 1, policy=BEST).policy == BEST
    unknown = [2**63, -(2**70), 3, "c", "c" * 10_000, "a\0", names["Sku"].B if not text else 7]
    for user in unknown:
        assert user not in model
        assert model.find_users([user]).tolist() == [-1]
        with pytest.raises(ValueError, match="user_id: "):
            model.recommend(user, 1, policy=BEST)
    for user in (None, float("nan"), 1.0, True, b"a", [1], names["Plain"].A, np.array(1)):
        assert user not in model
        with pytest.raises(ValueError, match="user_id: expected int64 or str ids, got"):
            model.user_vector(user)
    for missing in (None, float("nan"), np.float64("nan")):
        assert model.find_users([missing, ids[1]]).tolist() == [-1, 1]
    with pytest.raises(ValueError, match=r"user_ids: row 1: expected int64 or str ids, got 1.0"):
        model.find_users([ids[0], 1.0])
    with pytest.raises(ValueError, match="not a table"):
        model.find_users(Table([[1, 2]]))


def test_integers_as_logs_have_them() -> None:
    model = fr.Model(NUMBERS, [7, -3, 0], VECTORS)
    texts = ["7", "-3", "0", "007", " 7", "7 ", "+7", "-0", "7_0", "\u0667", "7.0", "", "9" * 19]
    assert model.find_users(texts).tolist() == [0, 1, 2] + [-1] * 10
    assert model.find_users(np.array(["7", "x"])).tolist() == [0, -1]
    assert model.find_users(Column([0, 7])).tolist() == [2, 0]


def test_a_prefix_is_text() -> None:
    model = fr.Model(NUMBERS, ["ab", "b"], [[1.0], [2.0]])
    assert model.users_starting_with(heirs()["Sku"].A) == ["ab"]
    with pytest.raises(ValueError, match="prefix: expected a str, got 1"):
        model.users_starting_with(1)  # type: ignore[arg-type]
    assert model.users_starting_with("", 0) == []
    limits: list[Any] = [None, 1.5, -1]
    for limit in limits:
        with pytest.raises(ValueError, match=f"limit: .*, got {limit}"):
            model.users_starting_with("", limit)


# Entries for each user


def test_columns_and_arrays_have_an_entry_a_user() -> None:
    queries = [[1.0], [2.0]]
    filters: Any
    for filters in ([[1], [2]], ([1], (2,)), np.array([[1], [2]]), Column([[1], [2]])):
        batch = NUMBERS.rank_batch(queries, 3, policy=BEST, exclude=filters)
        assert [one.item_ids.tolist() for one in batch] == [[2, 9], [1, 9]]
        policies: Any = Column([BEST, EVEN])
        batch = NUMBERS.rank_batch(queries, 1, policy=policies, allow=filters, seeds=Column([4, 5]))  # type: ignore[arg-type]
        assert batch.item_ids[:, 0].tolist() == [1, 2]
        assert batch.seeds.tolist() == [4, 5]
        assert batch.policies == (BEST, EVEN)
        rankings = NUMBERS.log_propensities_batch(queries, filters, policies=(BEST,))
        assert np.isfinite(rankings[0, :, 0]).tolist() == [True, False]


@pytest.mark.parametrize(
    "entries", [{0: [1], 1: [2]}, Table([[1], [2]]), iter([[1], [2]]), "ab", 5]
)
def test_what_has_no_entries_in_order_is_refused(entries: Any) -> None:
    queries = [[1.0], [2.0]]
    calls: dict[str, Callable[[Any], Any]] = {
        "exclude": lambda v: NUMBERS.rank_batch(queries, policy=BEST, exclude=v),
        "seeds": lambda v: NUMBERS.rank_batch(queries, policy=BEST, seeds=v),
        "item_ids": lambda v: NUMBERS.log_propensities_batch(queries, v, policies=[BEST]),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name}: expected one entry for each of 2 users"):
            call(entries)


@pytest.mark.parametrize("policies", [BEST, {BEST, EVEN}, iter([BEST]), {1: BEST}, "uniform", None])
def test_policies_are_a_sequence(policies: Any) -> None:
    with pytest.raises(ValueError, match="policies: expected a sequence of policies"):
        NUMBERS.log_propensities_batch([[1.0]], [[1]], policies=policies)
    if policies is not BEST:
        with pytest.raises(ValueError, match="policy: expected one"):
            NUMBERS.rank_batch([[1.0]], policy=policies)


def test_rankings_are_read_one_by_one_where_arrays_would_mix() -> None:
    """Joined, 1 would be the text "1", and numbers beside an empty list floats."""
    texts = fr.Catalog(["1", "2", "9"], VECTORS)
    rankings: list[Any] = [np.array(["1"]), np.array([1])]
    with pytest.raises(ValueError, match=r"item_ids\[1\]: the ids here are str, got 1"):
        texts.log_propensities_batch([[1.0]] * 2, rankings, policies=[BEST])
    rankings = [np.array([1]), np.empty(0), np.array([2], np.uint64)]
    found = NUMBERS.log_propensities_batch([[1.0]] * 3, rankings, policies=[BEST])
    assert found[0, :, 0].tolist() == [0.0, pytest.approx(np.nan, nan_ok=True), -np.inf]
    rankings = [np.array([1]), np.ma.array([2], mask=[True])]
    with pytest.raises(ValueError, match=r"item_ids\[1\]: expected no masked"):
        NUMBERS.log_propensities_batch([[1.0]] * 2, rankings, policies=[BEST])
    rankings = [np.array([1.0]), np.array([2.0])]
    with pytest.raises(ValueError, match=r"item_ids\[0\]: expected int64 or str"):
        NUMBERS.log_propensities_batch([[1.0]] * 2, rankings, policies=[BEST])


def test_titles_are_in_order_too() -> None:
    for titles in ({"x", "y", "z"}, Table([["x"], ["y"], ["z"]]), iter("xyz"), {"x": 1}):
        with pytest.raises(ValueError, match="item_titles: expected 3 titles"):
            fr.Model(NUMBERS, [1], [[1.0]], item_titles=titles)  # type: ignore[arg-type]
    titled = fr.Model(NUMBERS, [1], [[1.0]], item_titles=Column(["x", "y", "z"]))  # type: ignore[arg-type]
    assert titled.titles([9, 1]) == ["z", "x"]


# Long ids


def peak_of(work: Callable[[], Any]) -> int:
    """Bytes that were allocated at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LONG = "x" * 100_000


def test_a_look_up_costs_what_is_handed_in() -> None:
    """As an array, 2,000 ids of which one has 100,000 letters take 800 MB."""
    ids = [f"item{i}" for i in range(3_000)]
    texts = fr.Catalog(ids, np.zeros((3_000, 1)))
    given = [*ids[:2_000], LONG]
    work: list[Callable[[], Any]] = [
        lambda: texts.rank([1.0], 5, policy=EVEN, exclude=given),
        lambda: texts.rank_batch([[1.0]], 5, policy=EVEN, allow=[given]),
        lambda: texts.log_propensities([1.0], given, policy=EVEN),
        lambda: texts.log_propensities_batch([[1.0]], [given], policies=[EVEN]),
        lambda: fr.Model(texts, ids, np.zeros((3_000, 1))).find_users(given),
    ]
    for one in work:
        assert peak_of(one) < 4 << 20
    ranking = texts.rank([1.0], 3_000, policy=EVEN, exclude=given)
    assert set(ranking.item_ids.tolist()) == set(ids[2_000:])
    found = texts.log_propensities([1.0], [ids[0], LONG, ids[1]], policy=EVEN)
    assert np.isfinite(found).tolist() == [True, False, True]

    def refused() -> None:
        with pytest.raises(
            ValueError, match=r"exclude: the ids here are int64, got 'item0'; pass integers$"
        ):
            NUMBERS.rank([1.0], policy=EVEN, exclude=given)
        with pytest.raises(ValueError, match=r"the ids here are int64, got 'xx.{,140}$"):
            NUMBERS.rank([1.0], policy=EVEN, exclude=given[::-1])

    assert peak_of(refused) < 1 << 20


def test_a_text_among_numbers_is_refused_at_its_own_cost() -> None:
    """As an array, 2,000 of them and a text of 100,000 letters take 800 MB."""

    def refused() -> None:
        values: Any
        for values, place in (
            ([*[0.5] * 2_000, LONG], "index 2000"),
            ([[0.5]] * 9 + [[LONG]], "row 9"),
        ):
            with pytest.raises(
                ValueError, match=rf"query: expected real numbers, got 'xx.* at {place}"
            ):
                NUMBERS.rank(values, policy=EVEN)

    assert peak_of(refused) < 1 << 20


def test_text_that_numpy_would_cut_is_unknown() -> None:
    """In a fixed width a NUL at the end is no character, and what is longer is cut."""
    for unknown in ("a\0", "aa", "", "\0"):
        assert TEXTS.rank([1.0], 3, policy=BEST, exclude=[unknown]).n_eligible == 3
        assert TEXTS.log_propensities([1.0], [unknown], policy=EVEN).tolist() == [-np.inf]
        assert TEXTS.rank([1.0], 3, policy=BEST, exclude=[unknown, "b"]).n_eligible == 2


@pytest.mark.parametrize("make", [list, np.array, lambda v: np.array(v, object)])
def test_ids_that_are_kept_have_a_limit(make: Callable[[list[str]], Any]) -> None:
    ids = [f"item{i}" for i in range(20_000)]
    ids[7] = "x" * MAX_LENGTH
    assert as_ids("item_ids", make(ids[:1_000]))[7] == ids[7]
    with pytest.raises(
        ValueError, match=r"item_ids: row 7: its 1024 characters make all 20000 ids"
    ):
        as_ids("item_ids", make(ids))
    equal = ["x" * 1_000 + str(10_000 + i) for i in range(20_000)]
    assert as_ids("item_ids", make(equal)).tolist() == equal  # 80 MB are no more than they hold
    with pytest.raises(
        ValueError,
        match=r"user_ids: row 1: expected at most 1024 characters, got 1025: 'x{,60}\.\.\.",
    ):
        fr.Model(NUMBERS, make(["a", "x" * 1_025]), [[1.0], [2.0]])


def test_texts_that_are_read_cost_what_they_hold() -> None:
    texts = ["a", "b\0", "c"]
    assert text_array(texts).tolist() == texts
    assert text_array(["a", "bb"]).dtype.kind == "U"
    assert text_array([]).tolist() == []
    many = [*("a" for _ in range(1_000)), LONG]
    assert peak_of(lambda: text_array(many)) < 1 << 20
    assert text_array(many).tolist() == many
