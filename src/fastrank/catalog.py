"""Catalog: items and their vectors, packed for the native pass, and the rankings drawn from them.

Python decides here what is asked for; `fastrank._native` computes it with the GIL released.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from fastrank import _native, store
from fastrank.ids import IdArray, IdIndex, Ids, Positions, as_ids
from fastrank.inputs import (
    Float32Array,
    as_count,
    as_finite,
    as_float32,
    as_real,
    as_seed,
    draw_seed,
    draw_seeds,
)
from fastrank.policies import Deterministic, EpsilonGreedy, PlackettLuce, Policy, Uniform
from fastrank.ranking import FloatArray, Ranking, RankingBatch, new_ranking

__all__ = ["RNG_VERSION", "Catalog"]

# Same seed, same inputs, same RNG_VERSION: same ranking (ext/kernels.h says what it pins).
RNG_VERSION = 1

_POSITIONS = ("item_order", "rows", "panel_rows")
_PACK_ROWS = 16 * 4096
_ENTRY_BYTES = 2048


class Catalog:
    """Items with their vectors, ready to be ranked.

    Parameters
    ----------
    item_ids : array_like of int or str, shape (n,)
        Unique. Kept as int64 or str; rankings carry them.
    vectors : array_like of real numbers, shape (n, d)
        One row an item; cast to float32, finite. n, d >= 1.
    bias : array_like of real numbers, shape (n,), optional
        Added to each item's dot product.
    storage : {"float32"}
        How vectors are kept.
    cache_bytes : int
        Room for the trees of ``PlackettLuce(sampler="cached")``, least recently used out first.
    prior : array_like of real numbers, shape (n,), optional
        How likely an item is to rank high for users at large: its popularity, or its mean score.
        Likely items are then scanned first, which saves work where k is large beside n. A row is
        a row of the arguments all the same, also where ties go to the earlier one; but a seed
        draws another ranking of the same law than without a prior.

    Raises
    ------
    ValueError
        Naming the argument, the row and the value.

    Notes
    -----
    A score is ``dot(query, vector) + bias`` in float32. Scores of all items are never stored: a
    ranking takes one pass over the vectors, O(n d + k log k), and O(k) memory. Any number of
    threads may rank at once; the GIL is released meanwhile.

    Examples
    --------
    >>> import fastrank as fr
    >>> catalog = fr.Catalog(["a", "b", "c"], [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    >>> ranking = catalog.rank([1.0, 0.2], k=2, policy=fr.PlackettLuce(temperature=0.5), seed=7)
    >>> len(ranking), ranking.n_eligible
    (2, 3)
    >>> catalog.rank([1.0, 0.2], k=2, policy=fr.Deterministic()).item_ids.tolist()
    ['a', 'c']
    """

    def __init__(
        self,
        item_ids: Ids,
        vectors: npt.ArrayLike,
        bias: npt.ArrayLike | None = None,
        storage: str = "float32",
        cache_bytes: int = 256 << 20,
        prior: npt.ArrayLike | None = None,
    ) -> None:
        if storage != "float32":
            raise ValueError(f"storage: expected 'float32', got {storage!r}")
        rows = as_real("vectors", vectors)
        if rows.ndim != 2 or 0 in rows.shape:
            raise ValueError(f"vectors: expected shape (n, d) with n, d >= 1, got {rows.shape}")
        n_items, dim = rows.shape
        ids = as_ids("item_ids", item_ids)
        if ids.shape != (n_items,):
            raise ValueError(f"item_ids: expected {n_items}, one a row of vectors, got {len(ids)}")
        index = IdIndex("item_ids", ids)
        order = None if prior is None else _descending(as_finite("prior", prior, (n_items,)))
        if order is not None:
            index = index.taken(order)
        panels, max_norm = _pack(rows, order)
        arrays = {"item_ids": index.ids, "item_order": index.order, "panels": panels}
        max_bias = 0.0
        if bias is not None:
            padded = np.zeros(panels.shape[0] * _native.LANES, np.float32)
            values = as_float32("bias", bias, (n_items,))
            padded[:n_items] = values if order is None else values[order]
            arrays["bias"] = padded
            max_bias = float(np.abs(padded).max())
        if order is not None:
            arrays |= {"rows": order, "panel_rows": _panel_rows(order)}
        digests = {name: store.array_digest(array) for name, array in arrays.items()}
        content = {"storage": storage, "n_items": n_items, "dim": dim}
        meta = {
            **content,
            "max_norm": max_norm,
            "max_bias": max_bias,
            "catalog_version": store.content_hash({**content, "arrays": digests}),
        }
        self._set(meta, arrays, digests, index, cache_bytes)

    def _set(
        self,
        meta: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
        digests: Mapping[str, str],
        index: IdIndex,
        cache_bytes: int,
    ) -> None:
        self._meta = meta
        self._arrays = arrays
        self._digests = digests
        self._index = index
        self._n_items: int = meta["n_items"]
        self._dim: int = meta["dim"]
        self._version: str = meta["catalog_version"]
        # Positions are those of the items as they are stored, rows those of the caller's arrays.
        self._rows = arrays.get("rows")
        self._item_ids = index.ids if self._rows is None else None
        self._packed = _native.PackedCatalog(
            arrays["panels"],
            arrays.get("bias"),
            self._n_items,
            meta["max_norm"],
            meta["max_bias"],
            self._rows,
            arrays.get("panel_rows"),
        )
        self._trees = _TreeCache(as_count("cache_bytes", cache_bytes, low=0))

    # ---- Keeping ----------------------------------------------------------------------------

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the catalog to a directory, whole or not at all.

        A fastrank directory that is there is replaced atomically: who opens it meanwhile gets the
        old catalog or the new one. A directory that holds anything else is refused. Writers
        wait for each other.
        """
        store.write(directory, self._meta, self._arrays, self._digests)

    @classmethod
    def open(
        cls, directory: str | os.PathLike[str], verify: bool = False, cache_bytes: int = 256 << 20
    ) -> Catalog:
        """Maps a saved catalog; copies nothing, so processes share one image of it.

        Parameters
        ----------
        directory : path
            What `save` wrote; a model's directory will do.
        verify : bool
            Check every file's SHA-256 too, which reads all of them. Without it the manifest's own
            hash, the format version, and every file's size, dtype and shape are checked.

        Raises
        ------
        ValueError
            With the reason, if the directory is foreign, damaged or of another version.
        """
        return cls._from_store(directory, *store.read(directory, verify), cache_bytes, verify)

    @classmethod
    def _from_store(
        cls,
        directory: str | os.PathLike[str],
        manifest: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
        cache_bytes: int,
        verify: bool,
    ) -> Catalog:
        keys = ("storage", "n_items", "dim", "max_norm", "max_bias", "catalog_version")
        known = ("item_ids", "item_order", "panels", "bias", "rows", "panel_rows")
        names = [name for name in known if name in arrays]
        try:
            meta = {key: manifest[key] for key in keys}
            own = {name: arrays[name] for name in names}
            n_items, dim = meta["n_items"], meta["dim"]
            if type(n_items) is not int or type(dim) is not int or n_items < 1 or dim < 1:
                raise ValueError(f"n_items is {n_items!r}, dim is {dim!r}")
            for key in ("max_norm", "max_bias"):
                if type(meta[key]) is not float or not 0.0 <= meta[key] < np.inf:
                    raise ValueError(f"{key} is {meta[key]!r}")
            n_panels = -(-n_items // _native.LANES)
            expected = {
                "item_ids": (n_items,),
                "item_order": (n_items,),
                "panels": (n_panels, dim, _native.LANES),
                "bias": (n_panels * _native.LANES,),
                "rows": (n_items,),
                "panel_rows": (n_panels,),
            }
            dtypes = {"panels": "<f4", "bias": "<f4", **dict.fromkeys(_POSITIONS, "<i8")}
            for name, array in own.items():
                if array.shape != expected[name] or array.dtype.str != dtypes.get(
                    name, array.dtype.str
                ):
                    raise ValueError(f"{name} has shape {array.shape}, dtype {array.dtype}")
            if own["item_ids"].dtype.str != "<i8" and own["item_ids"].dtype.kind != "U":
                raise ValueError(f"item_ids has dtype {own['item_ids'].dtype}")
            if ("rows" in own) != ("panel_rows" in own):
                raise ValueError("of rows and panel_rows one is missing")
            if verify and "rows" in own:
                _check_rows(own["rows"], own["panel_rows"])
            if meta["storage"] != "float32":
                raise ValueError(f"storage {meta['storage']!r} is not known to this version")
            digests = {name: manifest["arrays"][name]["sha256"] for name in own}
            index = IdIndex("item_ids", own["item_ids"], own["item_order"])
            catalog = cls.__new__(cls)
            catalog._set(meta, own, digests, index, cache_bytes)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{directory}: not a catalog: {error!r} in its manifest") from None
        except ValueError as error:
            raise ValueError(f"{directory}: not a catalog: {error}") from None
        return catalog

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Catalog is not copied or pickled: save it, and open it where it is wanted"
        )

    def __len__(self) -> int:
        return self._n_items

    def __repr__(self) -> str:
        return f"Catalog({self._n_items} items, dim {self._dim}, version {self._version[:12]})"

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    @property
    def item_ids(self) -> IdArray:
        """ndarray of int64 or str, shape (n,): ids in catalog order, that of the rows given.

        O(n) the first time in a catalog with a prior.
        """
        if self._item_ids is None:
            self._item_ids = self._by_row(self._index.ids)
            self._item_ids.flags.writeable = False
        return self._item_ids

    @property
    def version(self) -> str:
        """Content hash: the same items, vectors and bias in the same order have the same one.

        Of two priors only the order counts.
        """
        return self._version

    # ---- Ranking ----------------------------------------------------------------------------

    def rank(
        self,
        query: npt.ArrayLike,
        k: int = 10,
        *,
        policy: Policy,
        seed: int | None = None,
        exclude: Ids | None = None,
        allow: Ids | None = None,
        bias: npt.ArrayLike | None = None,
    ) -> Ranking:
        """Draws one ranking, with the exact probability of having drawn it.

        Parameters
        ----------
        query : array_like of real numbers, shape (d,)
            The user's vector.
        k : int
            Places to fill, at least 1. With fewer eligible items the ranking is shorter.
        policy : Policy
            How to draw. There is no default: it decides what the log can be used for.
        seed : int, optional
            In [0, 2**64). Drawn from the operating system, below 2**53, if not given. Let it be
            drawn in production: a caller who picks the seed makes the propensity untrue.
        exclude, allow : array_like of ids, optional
            Not these; only these. They act before sampling, so the propensities are those of the
            filtered law. Unknown ids and repeats are ignored; exclude wins; None is no filter,
            an empty `allow` allows nothing.
        bias : array_like of real numbers, shape (n,), optional
            Added to the scores of this call, in catalog order.

        Returns
        -------
        Ranking

        Raises
        ------
        ValueError
            Naming the argument and the value.

        Notes
        -----
        O(n d + k log k) and O(k) memory, and n / 8 bytes where there is a filter; see
        `PlackettLuce` for its other samplers.
        """
        return self._rank(
            self._query(query),
            min(as_count("k", k), self._n_items),
            policy,
            draw_seed() if seed is None else as_seed("seed", seed),
            self._find("exclude", exclude),
            self._find("allow", allow),
            None if bias is None else self._bias(bias),
        )

    def rank_batch(
        self,
        queries: npt.ArrayLike,
        k: int = 10,
        *,
        policy: Policy | Sequence[Policy],
        seeds: Sequence[int] | npt.NDArray[Any] | None = None,
        exclude: Sequence[Ids | None] | None = None,
        allow: Sequence[Ids | None] | None = None,
        bias: npt.ArrayLike | None = None,
    ) -> RankingBatch:
        """Draws one ranking for each of b users; row i is what `rank` gives for seeds[i].

        Parameters
        ----------
        queries : array_like of real numbers, shape (b, d)
        k : int
        policy : Policy or sequence of b policies
        seeds : sequence of b int, optional
            b different ones are drawn if not given. A single number is an error: one noise for
            all users makes their rankings move together, and every joint propensity wrong.
        exclude, allow : sequence of b (array_like of ids or None), optional
        bias : array_like of real numbers, shape (n,) or (b, n), optional
            One for all users, or one for each.

        Returns
        -------
        RankingBatch
        """
        rows = as_real("queries", queries)
        if rows.ndim != 2:
            raise ValueError(f"queries: expected shape (b, {self._dim}), got {rows.shape}")
        b = len(rows)
        rows = as_float32("queries", rows, (b, self._dim))
        places = min(as_count("k", k), self._n_items)
        policies: list[Policy] = (
            list(_each("policy", policy, b)) if isinstance(policy, Sequence) else [policy] * b
        )
        if seeds is None:
            all_seeds = draw_seeds(b)
        else:
            given = _each("seeds", seeds, b)
            all_seeds = [as_seed(f"seeds[{i}]", seed) for i, seed in enumerate(given)]
        excluded = [None] * b if exclude is None else _each("exclude", exclude, b)
        allowed = [None] * b if allow is None else _each("allow", allow, b)
        if bias is None:
            biases: Sequence[Float32Array | None] = [None] * b
        elif np.ndim(bias) == 2:
            biases = [self._stored(row) for row in as_float32("bias", bias, (b, self._n_items))]
        else:
            biases = [self._bias(bias)] * b

        filler = "" if self.item_ids.dtype.kind == "U" else -1
        ids = np.full((b, places), filler, dtype=self.item_ids.dtype)
        scores = np.full((b, places), np.nan, np.float32)
        log_propensities = np.full((b, places), np.nan)
        counts = np.zeros(b, np.int64)
        log_propensity, log_norm, log_norm_error = np.zeros(b), np.full(b, np.nan), np.zeros(b)
        n_eligible = np.zeros(b, np.int64)
        kinds = []
        for i in range(b):
            excluded_i = self._find(f"exclude[{i}]", excluded[i])
            allowed_i = self._find(f"allow[{i}]", allowed[i])
            try:
                r = self._rank(
                    rows[i], places, policies[i], all_seeds[i], excluded_i, allowed_i, biases[i]
                )
            except ValueError as error:  # it speaks of one call's arguments
                raise ValueError(f"queries: row {i}: {error}") from None
            m = counts[i] = len(r)
            ids[i, :m], scores[i, :m], log_propensities[i, :m] = (
                r.item_ids,
                r.scores,
                r.log_propensities,
            )
            log_propensity[i] = r.log_propensity
            log_norm[i] = np.nan if r.log_norm is None else r.log_norm
            log_norm_error[i] = r.log_norm_error
            n_eligible[i] = r.n_eligible
            kinds.append(r.propensity_kind)
        return RankingBatch(
            item_ids=ids,
            scores=scores,
            log_propensities=log_propensities,
            counts=counts,
            log_propensity=log_propensity,
            log_norm=log_norm,
            seeds=np.array(all_seeds, np.uint64),
            n_eligible=n_eligible,
            policies=tuple(policies),
            catalog_version=self._version,
            propensity_kind=tuple(kinds),
            log_norm_error=log_norm_error,
        )

    def log_propensities(
        self,
        query: npt.ArrayLike,
        item_ids: Ids,
        *,
        policy: Policy,
        exclude: Ids | None = None,
        allow: Ids | None = None,
        bias: npt.ArrayLike | None = None,
    ) -> FloatArray:
        """How probable any ranking is under a policy, place by place.

        Parameters
        ----------
        item_ids : array_like of ids, shape (k,)
            The ranking, best place first.
        query, policy, exclude, allow, bias
            As in `rank`.

        Returns
        -------
        ndarray of float64, shape (k,)
            log P(item at place j | items at places before j). An unknown, ineligible or repeated
            item gets -inf and removes nothing: later places are conditional on what is left.

        Notes
        -----
        One pass, O(n d + k log k). All samplers of `PlackettLuce` have the same law.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog([1, 2, 3], [[0.0], [0.0], [0.0]])
        >>> lp = catalog.log_propensities([1.0], [3, 1], policy=fr.PlackettLuce())
        >>> [round(float(p), 3) for p in np.exp(lp)]
        [0.333, 0.5]
        """
        vector = self._query(query)
        positions = self._index.find("item_ids", item_ids)
        eligible, n_eligible = self._eligible(
            self._find("exclude", exclude), self._find("allow", allow)
        )
        spec = _spec(policy)
        result: FloatArray = self._packed.log_propensities(
            vector,
            positions,
            spec.kind,
            spec.temperature,
            spec.epsilon,
            None if bias is None else self._bias(bias),
            eligible,
            n_eligible,
        )
        return result

    def scores(self, query: npt.ArrayLike, bias: npt.ArrayLike | None = None) -> Float32Array:
        """Raw scores (n,) float32 of all items in catalog order, to the bit as rankings have them.

        For checks and diagnostics; ranking does not need them. O(n d).
        """
        result: Float32Array = self._packed.scores(
            self._query(query), None if bias is None else self._bias(bias)
        )
        return result if self._rows is None else self._by_row(result)

    def _query(self, query: npt.ArrayLike) -> Float32Array:
        # The core looks for what is not finite, too: what it can take as it is goes straight on.
        if type(query) is np.ndarray and query.dtype == np.float32 and query.shape == (self._dim,):
            return np.ascontiguousarray(query)
        return as_float32("query", query, (self._dim,))

    def _bias(self, bias: npt.ArrayLike) -> Float32Array:
        return self._stored(as_float32("bias", bias, (self._n_items,)))

    def _stored(self, values: Float32Array) -> Float32Array:
        """Values by row, in the order of positions."""
        return values if self._rows is None else values[self._rows]

    def _by_row(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values by position, in the order of rows."""
        result = np.empty_like(values)
        result[self._rows] = values
        return result

    def _rows_of(self, item_ids: Ids) -> Positions:
        """Rows (m,) of ids, -1 where there is no such id."""
        positions = self._index.find("item_ids", item_ids)
        if self._rows is None:
            return positions
        return np.where(positions >= 0, self._rows[positions], -1)

    def _find(self, name: str, ids: Ids | None) -> Positions | None:
        """Positions of the ids that are known."""
        if ids is None:
            return None
        positions = self._index.find(name, ids)
        return positions[positions >= 0]

    def _eligible(
        self, excluded: Positions | None, allowed: Positions | None
    ) -> tuple[npt.NDArray[np.uint16] | None, int]:
        if excluded is None and allowed is None:
            return None, self._n_items
        bits, count = _native.make_filter(self._n_items, allowed, excluded)
        return bits, count

    def _rank(
        self,
        query: Float32Array,
        k: int,
        policy: Policy,
        seed: int,
        excluded: Positions | None,
        allowed: Positions | None,
        bias: Float32Array | None,
    ) -> Ranking:
        spec = _spec(policy)
        if spec.cached:
            positions, scores, log_propensities, log_norm, n_eligible = self._rank_cached(
                query, k, spec.temperature, seed, excluded, allowed, bias
            )
        else:
            eligible, n_eligible = self._eligible(excluded, allowed)
            positions, scores, log_propensities, log_norm = self._packed.rank(
                query,
                k,
                spec.kind,
                spec.temperature,
                spec.epsilon,
                seed,
                bias,
                eligible,
                n_eligible,
            )
        return new_ranking(
            item_ids=self._index.ids[positions],
            scores=scores,
            log_propensities=log_propensities,
            log_propensity=float(np.add.reduce(log_propensities)),
            seed=seed,
            policy=policy,
            log_norm=log_norm if spec.plackett_luce else None,
            n_eligible=n_eligible,
            catalog_version=self._version,
        )

    def _rank_cached(
        self,
        query: Float32Array,
        k: int,
        temperature: float,
        seed: int,
        excluded: Positions | None,
        allowed: Positions | None,
        bias: Float32Array | None,
    ) -> tuple[Positions, Float32Array, FloatArray, float, int]:
        key = (query.tobytes(), temperature)
        tree = None if bias is not None else self._trees.get(key)
        if tree is None:
            scores = self._packed.scores(query, bias)
            tree = _Tree(scores, _native.build_tree(scores, temperature))
            if bias is None:  # a bias belongs to its call alone
                self._trees.put(key, tree)
        # Sorted and unique, as the tree's overlay wants them.
        excluded = None if excluded is None else np.unique(excluded)
        n_eligible = self._n_items - (0 if excluded is None else len(excluded))
        if allowed is not None:
            allowed = np.unique(allowed)
            if excluded is not None:
                allowed, excluded = np.setdiff1d(allowed, excluded, assume_unique=True), None
            n_eligible = len(allowed)
        result = _native.rank_tree(tree.scores, tree.nodes, k, temperature, seed, allowed, excluded)
        return *result, n_eligible


class _Spec(NamedTuple):
    """A policy in the kernels' terms."""

    kind: int
    temperature: float = 1.0
    epsilon: float = 0.0
    plackett_luce: bool = False
    cached: bool = False


def _spec(policy: Policy) -> _Spec:
    match policy:
        case PlackettLuce():
            kind = _native.SEQUENTIAL if policy.sampler == "sequential" else _native.GUMBEL
            return _Spec(kind, policy.temperature, 0.0, True, policy.sampler == "cached")
        case Deterministic():
            return _Spec(_native.DETERMINISTIC)
        case EpsilonGreedy():
            return _Spec(_native.EPSILON_GREEDY, 1.0, policy.epsilon)
        case Uniform():
            return _Spec(_native.UNIFORM)
        case _:
            raise ValueError(f"policy: expected one of fastrank's policies, got {policy!r}")


class _Tree(NamedTuple):
    scores: Float32Array
    nodes: FloatArray

    @property
    def nbytes(self) -> int:
        """With the entry's key and objects, which weigh more than the tree of a small catalog."""
        return self.scores.nbytes + self.nodes.nbytes + _ENTRY_BYTES


class _TreeCache:
    """Trees by (query bytes, temperature), least recently used out first. Thread-safe."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._start()

    def _start(self) -> None:
        self._used = 0
        self._trees: OrderedDict[tuple[bytes, float], _Tree] = OrderedDict()
        self._lock = Lock()
        self._process = os.getpid()

    def get(self, key: tuple[bytes, float]) -> _Tree | None:
        if (
            os.getpid() != self._process
        ):  # forked, perhaps while a thread that is gone held the lock
            self._start()
        with self._lock:
            tree = self._trees.get(key)
            if tree is not None:
                self._trees.move_to_end(key)
            return tree

    def put(self, key: tuple[bytes, float], tree: _Tree) -> None:
        if tree.nbytes > self._capacity:
            return
        with self._lock:
            if key in self._trees:  # another thread was first
                return
            self._trees[key] = tree
            self._used += tree.nbytes
            while self._used > self._capacity:
                self._used -= self._trees.popitem(last=False)[1].nbytes


def _descending(prior: FloatArray) -> Positions | None:
    """The rows in descending order, earlier ones first among equals; None if they are in it."""
    order = np.argsort(-prior, kind="stable").astype(np.int64, copy=False)
    order.flags.writeable = False
    return None if (order[1:] > order[:-1]).all() else order


def _panel_rows(rows: Positions) -> Positions:
    """The lowest row of each panel."""
    return np.minimum.reduceat(rows, np.arange(0, len(rows), _native.LANES))


def _check_rows(rows: Positions, panel_rows: Positions) -> None:
    seen = np.zeros(len(rows), np.bool_)
    if rows.min() >= 0 and rows.max() < len(rows):
        seen[rows] = True
    if not seen.all() or not np.array_equal(panel_rows, _panel_rows(rows)):
        raise ValueError("rows are not a permutation, or panel_rows not theirs")


def _pack(rows: npt.NDArray[Any], order: Positions | None) -> tuple[Float32Array, float]:
    """Panels (ceil(n / 16), d, 16), page-aligned, and the largest norm. Casts block by block."""
    n_items, dim = rows.shape
    shape = (-(-n_items // _native.LANES), dim, _native.LANES)
    size = int(np.prod(shape)) * 4
    room = np.empty(size + 4096, np.uint8)
    start = -room.ctypes.data % 4096
    panels = room[start : start + size].view(np.float32).reshape(shape)
    max_square = 0.0
    for first in range(0, n_items, _PACK_ROWS):
        taken = slice(first, first + _PACK_ROWS)
        block = rows[taken] if order is None else rows[order[taken]]
        with np.errstate(over="ignore"):
            block32 = np.ascontiguousarray(block, dtype=np.float32)
        bad, square = _native.pack(block32, first, panels)
        if bad >= 0:
            row, column = divmod(bad, dim)
            place = first + row if order is None else order[first + row]
            raise ValueError(
                f"vectors: row {place}, column {column}: must be finite in float32, "
                f"got {block[row, column]}"
            )
        max_square = max(max_square, square)
    panels.flags.writeable = False
    return panels, float(np.sqrt(max_square))


def _each(name: str, values: Any, count: int) -> Sequence[Any]:
    """A sequence of `count` entries."""
    if not _is_sequence(values):
        raise ValueError(f"{name}: expected one entry for each of {count} users, got {values!r}")
    if len(values) != count:
        raise ValueError(f"{name}: expected one entry for each of {count} users, got {len(values)}")
    return values  # type: ignore[no-any-return]


def _is_sequence(values: Any) -> bool:
    if isinstance(values, np.ndarray):
        return values.ndim > 0
    return isinstance(values, Sequence) and not isinstance(values, str | bytes)
