"""Catalog: items and their vectors, packed for the native pass, and the rankings drawn from them.

Python decides here what is asked for; `fastrank._native` computes it with the GIL released.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fastrank import _native, contents, packing, store
from fastrank.arraytypes import Float32Array, FloatArray, IdArray, Positions
from fastrank.ask import Bound, Found, Table
from fastrank.expressions import Expression, Params, as_params
from fastrank.faissindex import LABELS, FaissIndex, Finder
from fastrank.features import Features, as_features
from fastrank.ids import IdIndex, Ids, ItemIds, ids_of
from fastrank.inputs import as_bias, as_count, as_finite, as_float32, as_real, shown
from fastrank.lru import LRU
from fastrank.policies import Policy
from fastrank.ranker import RNG_VERSION, Ruled, as_threads, each_of, key_of
from fastrank.ranking import Ranking, RankingBatch, Score
from fastrank.ruled import BoundRules
from fastrank.rules import AppliedRules, Rules
from fastrank.score import ScoreLike, as_score, bind
from fastrank.scorer import Scorer
from fastrank.scoring import ScoreFunction
from fastrank.seen import Seen

__all__ = ["LOG_NORM_TOLERANCE", "MAX_NORM", "RNG_VERSION", "Catalog"]

# Of a vector: beyond it scores would leave the float32 range for queries of a norm of 1,000.
MAX_NORM = 1e35
LOG_NORM_TOLERANCE = 1e-3
_FLOAT32 = np.dtype(np.float32)
_READY = 4096  # tables that are a model's files: their keys and objects, some 2 KB each
_INDEX = "faiss_index"  # the file of an index
_RULES_BYTES = 128 << 20  # of rules with their parameters
_BOUNDS = 256  # scores with their parameters, some KB each
_BLOCK_BYTES = 8 << 20  # of vectors that are unpacked at a time
_LOOKS = 4  # searches that an index is tried by
_TABLES_TOGETHER = 256  # users: between looks at a signal, and reports of progress


class Catalog(Scorer):
    """Items with their vectors, ready to be ranked.

    Parameters
    ----------
    item_ids : array_like of int or str, shape (n,), or ItemIds
        Unique, of at most 1,024 characters. Kept as int64 or str; rankings carry them. What is
        taken for ids, here and elsewhere, is in docs/reference/ids.md.
    vectors : array_like of real numbers, shape (n, d)
        One row an item; cast to float32, finite, with a norm of at most 1e35. n, d >= 1.
    bias : array_like of real numbers, shape (n,), optional
        Added to each item's dot product; at most 1e37 in magnitude.
    storage : {"float32", "int8"}
        How vectors are kept. int8 scans a quarter of the bytes, and has the float32 vectors beside
        them for the few items that matter: rankings follow the same law, the deterministic one is
        the same, and scores are float32 scores. Only `log_norm`, and with it Plackett-Luce's
        log-propensities, are estimated, within a stated bound. It keeps 5 bytes a coordinate.
        Catalogs of fewer than 16,384 items, which fit a core's caches, are kept as float32 anyway.
    cache_bytes : int
        Room for the tables of ``PlackettLuce(sampler="cached")``, least recently used out first.
    log_norm_tolerance : float
        int8 storage: how large the bound `Ranking.log_norm_error` may be. Where it cannot be kept
        at the price of a scan, the normaliser is summed up in float32; 0 asks for that always.
    prior : array_like of real numbers, shape (n,), optional
        How likely an item is to rank high for users at large: its popularity, or its mean score.
        Likely items are then scanned first, which saves work where k is large beside n. A row is
        a row of the arguments all the same, also where ties go to the earlier one; but a seed
        draws another ranking of the same law than without a prior.
    features : mapping of str to array_like, shape (n,), or a table, optional
        Columns for ``score=``: numbers, booleans, texts (None: no text), or lists of texts
        (docs/reference/scores.md).

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

    _index: IdIndex
    _features: Features | None

    def __init__(
        self,
        item_ids: Ids | ItemIds,
        vectors: npt.ArrayLike,
        bias: npt.ArrayLike | None = None,
        storage: str = "float32",
        cache_bytes: int = 256 << 20,
        log_norm_tolerance: float = LOG_NORM_TOLERANCE,
        prior: npt.ArrayLike | None = None,
        features: Any = None,
    ) -> None:
        if not isinstance(storage, str) or storage not in packing.STORAGES:
            raise ValueError(
                f"storage: expected one of {', '.join(packing.STORAGES)}; got {shown(storage)}"
            )
        rows = as_real("vectors", vectors)
        if rows.ndim != 2 or 0 in rows.shape:
            raise ValueError(f"vectors: expected shape (n, d) with n, d >= 1, got {rows.shape}")
        n_items, dim = rows.shape
        storage = packing.kept_as(storage, n_items)
        ids, index = ids_of("item_ids", item_ids)
        if ids.shape != (n_items,):
            raise ValueError(
                f"item_ids: expected {n_items}, one for each row of vectors, got {len(ids)}"
            )
        index = index or IdIndex("item_ids", ids)
        order = None if prior is None else _descending(as_finite("prior", prior, (n_items,)))
        if order is not None:
            index = index.taken(order)
        packed, facts = packing.pack(storage, rows, order)
        if facts["max_norm"] > MAX_NORM * (1.0 + 1e-6):  # rounded to float32
            _refuse_norm(rows)
        arrays = {"item_ids": index.ids, "item_order": index.order, **packed}
        max_bias = 0.0
        if bias is not None:
            padded = np.zeros(-(-n_items // _native.LANES) * _native.LANES, np.float32)
            values = as_bias("bias", bias, (n_items,))
            padded[:n_items] = values if order is None else values[order]
            arrays["bias"] = padded
            max_bias = float(np.abs(padded).max())
        if order is not None:
            arrays |= {"rows": order, "panel_rows": contents.panel_rows_of(order)}
        digests = {name: store.array_digest(array) for name, array in arrays.items()}
        content = {"storage": storage, "n_items": n_items, "dim": dim}
        meta = {
            **content,
            **facts,
            "max_bias": max_bias,
            "catalog_version": store.content_hash({**content, "arrays": digests}),
        }
        self._set(meta, arrays, digests, index, cache_bytes, log_norm_tolerance)
        if features is not None:
            self._features = as_features(features, n_items, order)

    def _set(
        self,
        meta: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
        digests: Mapping[str, str],
        index: IdIndex,
        cache_bytes: int,
        log_norm_tolerance: float,
    ) -> None:
        self._meta = meta
        self._arrays = arrays
        self._digests = digests
        self._items_digest = digests["item_ids"]
        self._index = index
        self._n_items: int = meta["n_items"]
        self._dim: int = meta["dim"]
        self._version: str = meta["catalog_version"]
        # Positions are those of the items as they are stored, rows those of the caller's arrays.
        self._rows = arrays.get("rows")
        self._rows_checked = False
        self._item_ids = index.ids if self._rows is None else None
        self._packed = _native.PackedCatalog(
            arrays,
            arrays.get("bias"),
            self._n_items,
            self._dim,
            meta,
            meta["max_bias"],
            _tolerance(log_norm_tolerance),
            self._rows,
            arrays.get("panel_rows"),
        )
        # For propensities from a query's scores: those come from `_packed`, and so are in range.
        self._scored = self._packed.over_scores()
        self._finder: Finder | None = None
        self._features = None
        self._score: Expression | ScoreFunction | None = None  # where a call says none
        self._params: dict[str, Any] = {}
        self._default: Bound | None = None  # of both
        self._functions: dict[str, ScoreFunction] = {}  # that calls may name
        self._bounds = LRU[tuple[str, str], Bound](entries=_BOUNDS)
        self._rules = LRU[tuple[str, str], BoundRules](_RULES_BYTES)
        self._tables = LRU[tuple[bytes, float], Table](as_count("cache_bytes", cache_bytes, low=0))
        self._ready = LRU[tuple[bytes, float], Table](entries=_READY)

    # ---- Keeping ----------------------------------------------------------------------------

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the catalog to a directory, whole or not at all.

        An existing fastrank directory is replaced atomically: a process that opens it meanwhile
        gets the old catalog or the new one, and one that has it open keeps the old one. A directory
        that holds anything else is refused; names that begin with a dot, and ``lost+found``, count
        for nothing. Writers wait for each other; after a second the log ``fastrank.store`` says so.

        Raises
        ------
        ValueError
            If the directory is not fastrank's, which alone is replaced.
        OSError
            If the disk fails; what was there before is untouched then.
        """
        store.write(directory, *self._files())

    def _files(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]], dict[str, str]]:
        """What is saved: the manifest's entries, and arrays with their digests."""
        meta, arrays, digests = dict(self._meta), dict(self._arrays), dict(self._digests)
        if self._finder is not None:
            index = self._finder.index
            arrays[_INDEX], digests[_INDEX] = index.stated_content()
            meta["index"] = {
                "of": self._version,
                "version": index.version,
                "labels": index.labels,
                "n_probes": index.n_probes,
            }
        if self._features is not None:
            meta["features"], own, of_own = self._features.content(self._version)
            arrays |= own
            digests |= of_own
        if self._score is not None:
            meta["score"] = {
                "kind": self._score.kind,
                "name": self._score.path,
                "hash": self._score.hash,
                "params": self._params,
            }
        return meta, arrays, digests

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        verify: bool = False,
        cache_bytes: int = 256 << 20,
        log_norm_tolerance: float = LOG_NORM_TOLERANCE,
        functions: Sequence[ScoreFunction] = (),
    ) -> Catalog:
        """Maps a saved catalog; copies nothing, so processes share one image of it.

        Parameters
        ----------
        directory : path
            What `save` wrote; a model's directory will do.
        verify : bool
            Check every file's SHA-256 too, which reads all of them, and that what they hold fits
            together: ids in order, finite vectors. Without it the manifest's own hash, the format
            version, and every file's size, dtype and shape are checked.
        cache_bytes, log_norm_tolerance
            As for a new catalog; they are not saved.
        functions : sequence of ScoreFunction, optional
            As for `with_functions`. If its own score is a function it must be among them: a
            directory holds the name and the hash of one, and no code.

        Raises
        ------
        ValueError
            With the reason, if the directory is foreign, damaged or of another version.

        Notes
        -----
        While a catalog is open its files must not be changed in place, as ``cp`` over them does:
        the operating system ends a process that reads a mapped page whose file was cut. `save`,
        and whatever renames, replaces them safely.
        """
        return cls._from_store(
            directory,
            *store.read(directory, verify),
            cache_bytes,
            log_norm_tolerance,
            verify,
            functions,
        )

    @classmethod
    def _from_store(
        cls,
        directory: str | os.PathLike[str],
        manifest: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
        cache_bytes: int,
        log_norm_tolerance: float,
        verify: bool,
        functions: Sequence[ScoreFunction],
    ) -> Catalog:
        named = _named_functions(functions)
        try:
            storage, n_items, dim = (manifest[key] for key in ("storage", "n_items", "dim"))
            if storage not in packing.STORAGES:
                raise ValueError(f"storage {storage!r} is not known to this version")
            if type(n_items) is not int or type(dim) is not int or n_items < 1 or dim < 1:
                raise ValueError(f"n_items is {n_items!r}, dim is {dim!r}")
            facts = (*packing.META[storage], "max_bias")
            for key in facts:
                if type(manifest[key]) is not float or not 0.0 <= manifest[key] < np.inf:
                    raise ValueError(f"{key} is {manifest[key]!r}")
            keys = ("storage", "n_items", "dim", *facts, "catalog_version")
            n_panels = -(-n_items // _native.LANES)
            meta = {key: manifest[key] for key in keys}
            expected = {
                "item_ids": ((n_items,), "<i8"),
                "item_order": ((n_items,), "<i8"),
                **packing.expected(storage, n_items, dim),
                "bias": ((n_panels * _native.LANES,), "<f4"),
                "rows": ((n_items,), "<i8"),
                "panel_rows": ((n_panels,), "<i8"),
            }
            optional = ("bias", "rows", "panel_rows")
            own = {
                name: arrays[name] for name in expected if name not in optional or name in arrays
            }
            for name, array in own.items():
                shape, dtype = expected[name]
                fits = array.dtype.str == dtype or (name, array.dtype.kind) == ("item_ids", "U")
                if array.shape != shape or not fits:
                    raise ValueError(f"{name} has shape {array.shape}, dtype {array.dtype}")
            if ("rows" in own) != ("panel_rows" in own):
                raise ValueError("of rows and panel_rows one is missing")
            digests = {name: manifest["arrays"][name]["sha256"] for name in own}
            index = IdIndex("item_ids", own["item_ids"], own["item_order"])
            catalog = cls.__new__(cls)
            catalog._set(meta, own, digests, index, cache_bytes, log_norm_tolerance)
            if _INDEX in arrays or "index" in manifest:
                catalog._finder = catalog._finder_of(_mapped_index(manifest, arrays))
            if "features" in manifest:
                hashes = {name: entry["sha256"] for name, entry in manifest["arrays"].items()}
                catalog._features = Features.mapped(
                    manifest["features"], arrays, hashes, catalog._version, n_items
                )
            catalog._functions = named
            catalog._open_score(manifest.get("score"))
        except (KeyError, OverflowError, TypeError) as error:
            raise ValueError(f"{directory}: not a catalog: {error!r} in its manifest") from None
        except ValueError as error:
            raise ValueError(f"{directory}: not a catalog: {error}") from None
        if verify:
            try:
                contents.check(manifest, own)
                if catalog._features is not None:
                    catalog._features.check()
            except ValueError as error:
                raise ValueError(f"{directory}: {error}") from None
        return catalog

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Catalog is not copied or pickled: save it, and open it where it is wanted"
        )

    def __repr__(self) -> str:
        return f"Catalog({self._n_items} items, dim {self._dim}, version {self._version[:12]})"

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    @property
    def storage(self) -> str:
        """How vectors are kept: "float32" or "int8"."""
        kept: str = self._meta["storage"]
        return kept

    @property
    def item_ids(self) -> IdArray:
        """ndarray of int64 or str, shape (n,): ids in catalog order, that of the rows given.

        O(n) the first time in a catalog with a prior.
        """
        if self._item_ids is None:
            self._item_ids = self._by_row(self._index.ids)
            self._item_ids.flags.writeable = False
        return self._item_ids

    def __contains__(self, item_id: Any) -> bool:
        return self._index.holds("item_id", item_id)

    @property
    def vectors(self) -> Float32Array:
        """ndarray of float32, shape (n, d), read-only: a row an item, in catalog order.

        As they were handed in, cast to float32, under either storage. They are kept in the layout
        and the order that a pass wants, so that this makes them anew each time, in O(n d) time and
        4 n d bytes: keep it in a variable. Of int8 storage without a prior it is a view and costs
        nothing; where the catalog was opened, a view of its mapped file.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog(["a", "b"], [[1.0, 0.0], [0.5, 0.5]])
        >>> catalog.vectors[1].tolist(), "b" in catalog, "c" in catalog
        ([0.5, 0.5], True, False)
        """
        if self.has_codes and self._rows is None:
            return np.asarray(self._kept_vectors(0, self._n_items))
        result = np.empty((self._n_items, self._dim), np.float32)
        step = max(1, _BLOCK_BYTES // (4 * self._dim))
        for first in range(0, self._n_items, step):
            part = slice(first, min(first + step, self._n_items))
            rows = part if self._rows is None else self._as_indices()[part]
            result[rows] = self._kept_vectors(part.start, part.stop)
        result.flags.writeable = False
        return result

    @property
    def version(self) -> str:
        """Content hash: the same items, vectors and bias in the same order have the same one.

        Of two priors only the order counts.
        """
        return self._version

    @property
    def has_codes(self) -> bool:
        """Whether vectors are kept as int8, too."""
        return self.storage == "int8"

    # ---- Features and scores ----------------------------------------------------------------

    @property
    def features(self) -> Features | None:
        """The columns that a score may have."""
        return self._features

    @property
    def features_version(self) -> str | None:
        """Content hash of the columns. It is no part of `version`: they may be new every day."""
        return None if self._features is None else self._features.version

    @property
    def score(self) -> Score | None:
        """What makes scores where a call says nothing else; None: they are dot products."""
        return None if self._default is None else self._default.score

    @property
    def scores_key(self) -> str:
        """What its own score depends on besides `version`; empty for dot products."""
        return "" if self._default is None else self._default.key.decode()

    def score_of(
        self, logged: Score, features_version: str | None, any_version: bool = False
    ) -> dict[str, Any] | str:
        if not any_version and features_version not in (None, self.features_version):
            return "features_of_another_version"
        own = self._score
        if own is None or own.hash != logged.hash:
            try:
                own = self._as_score(logged.name)
            except ValueError:  # the name of a function that is not at hand
                own = None
            if own is None or own.hash != logged.hash:
                return "score_not_at_hand"
        try:
            bound = self._bind_one(own, as_params(logged.params))
        except ValueError:
            return "params_of_another_score"
        # The version may be there for the row's rules alone.
        if not any_version and bound.features_version not in (None, features_version):
            return "features_of_another_version"
        return {"score": own, "params": logged.params}

    def with_features(self, features: Any) -> Catalog:
        """A catalog that differs in its columns; it shares all else, and nothing is packed again.

        Parameters
        ----------
        features : mapping of str to array_like, shape (n,), or a table, or None
            All of them, in catalog order; None: a catalog without.

        Raises
        ------
        ValueError
            Naming the column, the row and the value; or if its own score lacks a column now.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog(["a", "b"], [[1.0], [2.0]]).with_features({"age": [3.0, 40.0]})
        >>> catalog.scores([1.0], score="dot * exp(-age / days)", params={"days": 30.0}).round(3)
        array([0.905, 0.527], dtype=float32)
        """
        catalog, order = self._copy(), None if self._rows is None else self._as_indices()
        catalog._features = (
            None if features is None else as_features(features, self._n_items, order)
        )
        catalog._bounds = LRU[tuple[str, str], Bound](entries=_BOUNDS)
        catalog._rules = LRU[tuple[str, str], BoundRules](_RULES_BYTES)
        catalog._set_score(self._score, self._params)
        return catalog

    def with_score(self, score: ScoreLike | None, params: Params | None = None) -> Catalog:
        """A catalog whose calls have this score where they say no other; it shares all else.

        The score is saved with the catalog: an expression as it is, a function by its name and
        hash. It is no part of `version`: rankings and logs say it beside that.

        Parameters
        ----------
        score : str, ScoreFunction or None
            As in `rank`; None, or "dot": dot products.
        params : mapping, optional
            Values of its parameters, which a call may replace one by one.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog(["a", "b"], [[1.0], [2.0]], features={"norm": [1.0, 2.0]})
        >>> catalog.with_score("dot / norm").scores([3.0])
        array([3., 3.], dtype=float32)
        """
        catalog = self._copy()
        catalog._set_score(None if score is None else self._as_score(score), as_params(params))
        return catalog

    def _copy(self) -> Catalog:
        catalog = type(self).__new__(type(self))
        vars(catalog).update(vars(self))
        return catalog

    def _set_score(self, score: Expression | ScoreFunction | None, params: Params) -> None:
        if score is None and params:
            raise ValueError(
                f"params: {next(iter(params))!r} is not used: the score is the dot product alone"
            )
        self._score, self._params = score, dict(params)
        self._default = None if score is None else self._bind_one(score, self._params)

    def _open_score(self, saved: Any) -> None:
        """The score of a manifest."""
        if saved is None:
            return
        kind, name, wanted = saved["kind"], saved["name"], saved["hash"]
        score: Expression | ScoreFunction | None
        if kind == "expression":
            score = as_score(name)
        else:
            score = next((f for f in self._functions.values() if f.path == name), None)
            if score is None:
                raise ValueError(
                    f"its score is the function {shown(name)}: hand it in (functions=, or"
                    " --score-function)"
                )
        if score is None or score.hash != wanted:
            raise ValueError(
                f"its score is {shown(name)} of the hash {str(wanted)[:12]}; this is another one"
            )
        self._set_score(score, as_params(saved["params"]))

    def with_functions(self, *functions: ScoreFunction) -> Catalog:
        """A catalog whose calls may name these functions as ``score=``, and whose logs can too.

        They take the place of those that it had, and are not saved.
        """
        catalog = self._copy()
        catalog._functions = _named_functions(functions)
        return catalog

    def _as_score(self, given: ScoreLike) -> Expression | ScoreFunction | None:
        named = self._functions.get(given) if isinstance(given, str) else None
        if named is None:
            return as_score(given)
        if self._features is not None and self._features.kind(named.text) is not None:
            raise ValueError(f"score: {named.text!r} is the name of a function and of a column")
        return named

    def _bind(self, score: ScoreLike | None, params: Params | None) -> Bound | None:
        """What makes the scores of a call; None: the dot product does."""
        if score is None and params is None:
            return self._default
        own = self._score if score is None else self._as_score(score)
        given = as_params(params)
        if own is None:
            if given:
                raise ValueError(
                    f"params: {next(iter(given))!r} is not used: the score is the dot product alone"
                )
            return None
        return self._bind_one(own, {**self._params, **given} if score is None else given)

    def _bind_one(self, score: Expression | ScoreFunction, params: Params) -> Bound:
        key = f"{score.text}\n{score.hash}", json.dumps(params)
        found = self._bounds.get(key)
        if found is None:
            found = bind(score, params, self._features, self._n_items, self._id_at)
            self._bounds.put(key, found)
        return found

    def _bind_all(self, score: ScoreLike | None, params: Any, b: int) -> list[Bound | None] | None:
        """What makes the scores of each user; None: dot products are those of all."""
        if params is None or isinstance(params, Mapping):
            bound = self._bind(score, params)
            return None if bound is None else [bound] * b
        found = []
        for i, each in enumerate(each_of("params", params, b)):
            try:
                found.append(self._bind(score, each))
            except ValueError as error:
                text = str(error).removeprefix("params: ")
                raise ValueError(f"params: row {i}: {text}") from None
        return found

    def _bind_call(
        self, score: ScoreLike | None, params: Any, rules: Any, after: Any
    ) -> tuple[Bound | None, Ruled | None]:
        """What makes the scores of a call, and its rules, which share its parameters."""
        if rules is None and after is None:
            return self._bind(score, params), None
        given = as_params(params)
        names = rules.names if isinstance(rules, Rules) else frozenset()
        own = self._score if score is None else self._as_score(score)
        of_score = frozenset() if own is None else own.names
        unknown = [name for name in given if name not in names and name not in of_score]
        if unknown:
            raise ValueError(
                f"params: {unknown[0]!r} is not used: neither the score nor the rules have it"
            )
        mine = {name: value for name, value in given.items() if name in names}
        others = {
            name: value for name, value in given.items() if name not in names or name in of_score
        }
        bound = self._bind(score, others or None)
        return bound, self._bind_rules(rules, after, mine, self._features)

    def _bind_calls(
        self, score: ScoreLike | None, params: Any, rules: Any, after: Any, b: int
    ) -> tuple[list[Bound | None] | None, list[Ruled | None] | None]:
        """Likewise of b users."""
        if rules is None and after is None:
            return self._bind_all(score, params, b), None
        by_row = [rules] * b if rules is None or isinstance(rules, Rules) else None
        all_rules = each_of("rules", rules, b) if by_row is None else by_row
        pages = [None] * b if after is None else each_of("after", after, b)
        one_params = params is None or isinstance(params, Mapping)
        all_params = [params] * b if one_params else each_of("params", params, b)
        bounds: list[Bound | None] = []
        ruled: list[Ruled | None] = []
        for i in range(b):
            try:
                bound, own = self._bind_call(score, all_params[i], all_rules[i], pages[i])
            except ValueError as error:
                raise ValueError(f"row {i}: {error}") from None
            bounds.append(bound)
            ruled.append(own)
        has_rules = any(own is not None for own in ruled)
        return bounds if any(bounds) else None, ruled if has_rules else None

    def _n_allowed(
        self,
        item_ids: Ids,
        applied: AppliedRules,
        *,
        exclude: Ids | None,
        allow: Ids | None,
        after: Ids | None,
        k: int,
    ) -> int:
        rules, params = applied
        _, ruled = self._bind_call("dot", params, rules, after)
        assert ruled is not None
        query = self._query(np.zeros(self._dim, np.float32))
        return self._count_allowed(query, item_ids, exclude, allow, ruled, k)

    def _id_at(self, position: int) -> Any:
        return self._index.ids[position].item()

    # ---- An index ---------------------------------------------------------------------------

    @property
    def index(self) -> FaissIndex | None:
        """What finds candidates for `FlatTail`; None: a pass does."""
        return None if self._finder is None else self._finder.index

    def with_index(self, index: FaissIndex | None) -> Catalog:
        """A catalog that differs in its index; it shares all else. None: one without.

        The index is saved with the catalog, and mapped when it is opened. It is no part of
        `version`: it decides what `FlatTail` draws, which says its index's version itself.

        Raises
        ------
        ValueError
            If the index is of another dimension, or of more items, or scores them otherwise.
        """
        catalog = self._copy()
        catalog._finder = None
        if index is not None:
            if not isinstance(index, FaissIndex):
                raise ValueError(f"index: expected a FaissIndex, got {shown(index)}")
            catalog._finder = catalog._finder_of(index)
            catalog._check_index()
        return catalog

    def _finder_of(self, index: FaissIndex) -> Finder:
        rows = None
        if self._rows is not None and index.labels != "positions":
            rows = self._as_indices()
        return Finder(
            index,
            self._dim,
            "bias" in self._arrays,
            self._index.ids,
            rows,
            lambda ids: self._index.find("index", ids),
        )

    def _check_index(self) -> None:
        """Refuses an index of other items, as far as a look at some of them tells."""
        assert self._finder is not None
        own, wanted = self._finder.index.index, self._dim + ("bias" in self._arrays)
        if own.d != wanted:
            more = ", and one for the bias" if wanted > self._dim else ""
            raise ValueError(f"index: has {own.d} dimensions, where vectors have {self._dim}{more}")
        if own.ntotal > self._n_items:
            raise ValueError(f"index: holds {own.ntotal} items, the catalog {self._n_items}")
        if own.ntotal == 0:
            raise ValueError("index: holds no items")
        for position in range(0, self._n_items, -(-self._n_items // _LOOKS)):
            query = self._vectors(position, position + 1)[0, : self._dim]
            query /= max(np.abs(query).max(), np.float32(1e-30))  # its scores must be in range
            found = self._finder.find(query, min(4, own.ntotal), None, None)
            for candidate, score in zip(
                found.positions.tolist(),
                [] if found.scores is None else found.scores.tolist(),
                strict=False,
            ):
                vector = self._vectors(candidate, candidate + 1)[0].astype(np.float64)
                query64 = np.append(query, [1.0] * (wanted - self._dim))
                size = np.abs(vector) @ np.abs(query64)
                if abs(vector @ query64 - score) > 1e-4 * size + 1e-30:
                    raise ValueError(
                        f"index: it scores the item {self._index.ids[candidate]!s} {score:g}, which"
                        f" the catalog scores {vector @ query64:g}: it holds other vectors"
                    )

    def _kept_vectors(self, first: int, last: int) -> Float32Array:
        """Vectors of the positions [first, last), a row each; a view, where that is possible."""
        if self.has_codes:
            vectors: Float32Array = self._arrays["vectors"][first:last, : self._dim]
            return vectors
        start = first // _native.LANES
        panels = self._arrays["panels"][start : -(-last // _native.LANES)]
        rows: Float32Array = panels.transpose(0, 2, 1).reshape(-1, self._dim)
        return rows[first - start * _native.LANES : last - start * _native.LANES]

    def _vectors(self, first: int, last: int) -> Float32Array:
        """Vectors of the positions [first, last), a row each; with the bias behind, if any."""
        last = min(last, self._n_items)
        rows = self._kept_vectors(first, last)
        if "bias" not in self._arrays:
            return np.array(rows, np.float32, order="C")
        # Of a single panel a stack is in another order.
        return np.ascontiguousarray(np.column_stack([rows, self._arrays["bias"][first:last]]))

    def _scored_at(
        self, query: Float32Array, positions: Positions
    ) -> tuple[FloatArray, FloatArray, dict[str, list[Any]]]:
        """Of some items: what its own score makes, without any bias; dot products in float64; and
        the columns that the score has."""
        assert self._default is not None  # the caller has looked
        assert self._score is not None
        vectors = np.concatenate([self._vectors(p, p + 1) for p in positions.tolist()])
        dots = vectors[:, : self._dim].astype(np.float64) @ query.astype(np.float64)
        function = self._default.function
        made = self._packed.scores_at(self._query(query), positions, None, function)
        if "bias" in self._arrays:
            made = made - self._arrays["bias"][positions]
        features, columns = self._features, {}
        if features is not None:
            columns = {
                name: features.entries(name, positions)
                for name in self._score.names
                if features.kind(name) is not None
            }
        return made.astype(np.float64), dots, columns

    def _candidates(
        self, query: Float32Array, m: int, exclude: Ids | None = None
    ) -> tuple[Positions, Float32Array | None]:
        """Rows of what a flat tail has as candidates, and their scores if not the catalog's."""
        excluded = self._find("exclude", exclude)
        eligible, n_eligible = self._eligible(excluded, None)
        own = self._query(query)
        found = self._find_candidates(own, m, None, excluded, None, eligible, n_eligible)
        rows = found.positions if self._rows is None else self._as_indices()[found.positions]
        return rows, found.scores

    def _find_candidates(
        self,
        query: Float32Array,
        m: int,
        bias: Float32Array | None,
        excluded: Positions | None,
        allowed: Positions | None,
        eligible: npt.NDArray[np.uint16] | None,
        n_eligible: int,
    ) -> Found:
        # An index knows the catalog's scores alone, and finds few of a few that are allowed. Of a
        # batch, rows without a bias have one of zeros.
        is_biased = bias is not None and bool(bias.any())
        if self._finder is None or is_biased or allowed is not None or n_eligible == 0:
            return super()._find_candidates(query, m, bias, excluded, allowed, eligible, n_eligible)
        return self._finder.find(query, min(m, n_eligible), excluded, eligible)

    @property
    def table_bytes(self) -> int:
        """Of the tables that are kept, at most `cache_bytes`."""
        assert self._tables is not None
        return int(self._tables.weight)

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
        threads: int = 1,
        score: ScoreLike | None = None,
        params: Params | None = None,
        rules: Rules | None = None,
        after: Ranking | Ids | None = None,
        seen: Seen | None = None,
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
            Not these; only these; a set will do. They act before sampling, so the propensities are
            those of the filtered law. Unknown ids and repeats are ignored; exclude wins; None is no
            filter, an empty `allow` allows nothing.
        bias : array_like of real numbers, shape (n,), optional
            Added to the scores of this call, in catalog order. The ranking keeps a copy for its log
            row; a float32 array that is read-only (``bias.flags.writeable = False``) is kept as it
            is.
        threads : int
            How many threads may work on this call, at least 1. They are started for the call
            and end with it; the ranking is the same, bit for bit, for any number. Worth it for
            hundreds of thousands of items, on cores that are idle otherwise: on busy ones they
            wait for each other. Many users at once are better served by a call, or a part of
            a batch, on each thread.
        score : str or ScoreFunction, optional
            What makes scores: an expression of `dot`, columns and parameters, as ``"dot - 0.1 *
            log1p(sales)"``, or what `score_function` made. A bias is added behind it. By default
            the catalog's own, `Catalog.score`, or else the dot product.
        params : mapping of str to (float, bool or str), optional
            Values of the parameters that the score and the rules have.
        rules : Rules, optional
            What may stand where in the list, by the catalog's features.
        after : Ranking or array_like of ids, optional
            The page before this one, or all that the pages before showed, in their order: it is
            not shown again, and rules know of it.
        seen : Seen, optional
            A user's own list, as `Model.seen` gives it: left out beside `exclude`.
            `Model.recommend` takes it by itself.

        Returns
        -------
        Ranking

        Raises
        ------
        ValueError
            Naming the argument and the value.

        Notes
        -----
        O(n d + k log k) and O(k) memory, and n / 8 bytes where there is a filter; int8 storage
        notes items for the normaliser, usually 0.2 MB in all, at most one in seven (two in five
        where vectors are long) at 100 bytes.
        See `PlackettLuce` for its other samplers. Threads divide the scan: `Uniform` and the
        sequential and cached samplers run on one.
        """
        added = None if bias is None else as_bias("bias", bias, (self._n_items,), copy=True)
        if rules is None and after is None:
            bound = self._default if score is None and params is None else self._bind(score, params)
            ruled = None
        else:
            bound, ruled = self._bind_call(score, params, rules, after)
        return self._rank(
            self._query(query), k, policy, seed, exclude, allow, added, threads, bound, ruled, seen
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
        threads: int = 1,
        score: ScoreLike | None = None,
        params: Params | Sequence[Params | None] | None = None,
        rules: Rules | Sequence[Rules | None] | None = None,
        after: Sequence[Ranking | Ids | None] | None = None,
        seen: Sequence[Seen | None] | None = None,
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
        threads : int
            How many threads may work on this call, as in `rank`. With 8 users a thread or more,
            each ranks for users of its own; with fewer they share the scan.
        score : str or ScoreFunction, optional
            As in `rank`, for all users.
        params : mapping, or sequence of b (mapping or None), optional
            One for all users, or one for each.
        rules : Rules, or sequence of b (Rules or None), optional
        after : sequence of b (Ranking, array_like of ids or None), optional
        seen : sequence of b (Seen or None), optional

        Returns
        -------
        RankingBatch

        Raises
        ------
        ValueError
            Naming the argument, the row and the value; before any work is done.

        Notes
        -----
        O(n d + k log k) a user, as for `rank`, but users share every item that is loaded, 64 at a
        time on each thread. `Uniform` and the sequential and cached samplers have no scan to share:
        they cost what `rank` does. Beyond the result, memory is O(k), and n / 8 bytes with a
        filter, for each of these 64 users; over int8 storage also what they note, as for `rank`.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog(["a", "b", "c"], [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
        >>> users, policy = [[1.0, 0.2], [0.1, 0.9]], fr.Deterministic()
        >>> batch = catalog.rank_batch(users, k=2, policy=policy, exclude=[None, ["b"]])
        >>> batch.item_ids.tolist()
        [['a', 'c'], ['c', 'a']]
        """
        rows = as_real("queries", queries)
        if rows.ndim != 2:
            raise ValueError(f"queries: expected shape (b, {self._dim}), got {rows.shape}")
        b = len(rows)
        rows = self._padded(as_float32("queries", rows, (b, self._dim)))
        added = self._biases(bias, b, copy=True)
        bounds, ruled = self._bind_calls(score, params, rules, after, b)
        return self._rank_batch(
            rows, k, policy, seeds, exclude, allow, added, threads, bounds, ruled, seen
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
        score: ScoreLike | None = None,
        params: Params | None = None,
        rules: Rules | None = None,
        after: Ranking | Ids | None = None,
        k: int | None = None,
    ) -> FloatArray:
        """How probable any ranking is under a policy, place by place.

        Parameters
        ----------
        item_ids : array_like of ids, shape (k,)
            The ranking, best place first.
        query, policy, exclude, allow, bias, score, params, rules, after
            As in `rank`.
        k : int, optional
            Places that were asked for, on which shares and pins of rules depend; by default as many
            as the ranking has.

        Returns
        -------
        ndarray of float64, shape (m,)
            log P(item at place j | items at places before j). An unknown, ineligible or repeated
            item gets -inf and removes nothing: later places are conditional on what is left. An
            item that rules do not allow at its place gets -inf, and is shown there.

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
        added = None if bias is None else as_bias("bias", bias, (self._n_items,))
        bound, ruled = self._bind_call(score, params, rules, after)
        return self._judge(
            self._query(query), "item_ids", item_ids, policy, exclude, allow, added, bound, ruled, k
        )

    def log_propensities_batch(
        self,
        queries: npt.ArrayLike,
        item_ids: Sequence[Ids],
        *,
        policies: Sequence[Policy | Sequence[Policy]],
        exclude: Sequence[Ids | None] | None = None,
        allow: Sequence[Ids | None] | None = None,
        bias: npt.ArrayLike | None = None,
        score: ScoreLike | None = None,
        params: Params | Sequence[Params | None] | None = None,
        rules: Rules | Sequence[Rules | None] | None = None,
        after: Sequence[Ranking | Ids | None] | None = None,
        k: int | Sequence[int | None] | None = None,
    ) -> FloatArray:
        """How probable b rankings are under each of p policies.

        Parameters
        ----------
        queries : array_like of real numbers, shape (b, d)
        item_ids : sequence of b (array_like of ids)
            Each user's ranking, best place first; of any length. Where one is so much longer than
            the others that the result would take more than 128 MiB a policy, and 16 times what
            they hold, it is refused: pass it by itself.
        policies : sequence of p (Policy, or sequence of b Policy)
        exclude, allow : sequence of b (array_like of ids or None), optional
        bias : array_like of real numbers, shape (n,) or (b, n), optional
        score, params, rules, after
            As in `rank_batch`.
        k : int, or sequence of b (int or None), optional
            As in `log_propensities`, of all rankings or of each.

        Returns
        -------
        ndarray of float64, shape (p, b, k)
            ``[j, i]`` is what `log_propensities` gives for ranking i under policy j, to the bit;
            k is the longest ranking's length, and places that a shorter one lacks are NaN.

        Notes
        -----
        Scores are computed once for each run of equal queries, O(n d), and every policy takes one
        pass over them, O(n). Sort rows by user where users repeat.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog([1, 2, 3], [[0.0], [0.0], [0.0]])
        >>> rankings, policies = [[3, 1], [2]], [fr.Uniform(), fr.PlackettLuce()]
        >>> lp = catalog.log_propensities_batch([[1.0], [2.0]], rankings, policies=policies)
        >>> np.exp(lp[1]).round(3).tolist()
        [[0.333, 0.5], [0.333, nan]]
        """
        rows = as_real("queries", queries)
        if rows.ndim != 2:
            raise ValueError(f"queries: expected shape (b, {self._dim}), got {rows.shape}")
        b = len(rows)
        rows = self._padded(as_float32("queries", rows, (b, self._dim)))
        bounds, ruled = self._bind_calls(score, params, rules, after, b)
        ks = [k] * b if k is None or isinstance(k, int) else each_of("k", k, b)
        return self._judge_batch(
            self._scored,
            self._packed.scores,
            rows,
            item_ids,
            policies,
            exclude,
            allow,
            self._biases(bias, b),
            bounds,
            ruled,
            ks,
        )

    def scores(
        self,
        query: npt.ArrayLike,
        bias: npt.ArrayLike | None = None,
        score: ScoreLike | None = None,
        params: Params | None = None,
    ) -> Float32Array:
        """Raw scores (n,) float32 of all items in catalog order, to the bit as rankings have them.

        For checks and diagnostics; ranking does not need them. O(n d). Parameters as in `rank`.
        """
        bound = self._bind(score, params)
        result: Float32Array = self._packed.scores(
            self._query(query),
            None if bias is None else self._bias(bias),
            None if bound is None else bound.function,
        )
        return self._by_row(result)

    def _make_tables(
        self,
        vectors: Float32Array,
        rows: Positions,
        temperatures: FloatArray,
        threads: int,
        advance: Callable[[int, int], None] | None,
    ) -> tuple[npt.NDArray[np.uint32], FloatArray]:
        """The parts of a table of each row of vectors, at its temperature."""
        depths = np.empty((len(rows), _native.table_size(self._n_items)), np.uint32)
        tops = np.empty((len(rows), 2))
        threads = as_threads(threads)
        for first in range(0, len(rows), _TABLES_TOGETHER):
            part = slice(first, first + _TABLES_TOGETHER)
            own = self._padded(vectors[rows[part]])
            function = None if self._default is None else self._default.function
            depths[part], tops[part] = self._packed.make_tables(
                own, temperatures[part], threads, [function] * len(own)
            )
            if advance is not None:
                advance(min(first + _TABLES_TOGETHER, len(rows)), len(rows))
        return depths, tops

    def _keep(self, query: Float32Array, temperature: float, table: Table) -> None:
        """Keeps a table that was made ahead, as if it had been made for a request."""
        key = key_of(self._padded(query), temperature, self._default)
        if self._ready.get(key) is None:
            self._ready.put(key, table)

    def _query(self, query: npt.ArrayLike) -> Float32Array:
        # The core looks for what is not finite, too: what it can take as it is goes straight on.
        if type(query) is np.ndarray and query.dtype is _FLOAT32 and query.shape == (self._dim,):
            return self._padded(np.ascontiguousarray(query))
        return self._padded(as_float32("query", query, (self._dim,)))

    def _check_range(self, name: str, queries: Float32Array) -> None:
        """Refuses queries (b, d) whose scores could pass the float32 range, as ranking would."""
        room = 0.5 * float(np.finfo(np.float32).max) - self._meta["max_bias"]
        largest = float(max(queries.max(), -queries.min()))
        if largest * self._dim**0.5 * self._meta["max_norm"] <= room:
            return
        norms = np.linalg.norm(queries.astype(np.float64), axis=1)
        beyond = np.flatnonzero(norms * self._meta["max_norm"] > room)
        if beyond.size:
            raise ValueError(
                f"{name}: row {beyond[0]}: with a norm of {norms[beyond[0]]:g} scores could pass"
                " the float32 range; scale it down"
            )

    def _padded(self, queries: Float32Array) -> Float32Array:
        """Queries (..., d) with as many zeros at the end as the kernels want.

        -0.0, since to add 0.0 * -0.0 changes nothing: 0.0 * 0.0 would make a 0.0 of a -0.0.
        """
        if self._packed.query_length == self._dim:
            return queries
        padded = np.full((*queries.shape[:-1], self._packed.query_length), -0.0, np.float32)
        padded[..., : self._dim] = queries
        return padded

    def _bias(self, bias: npt.ArrayLike) -> Float32Array:
        return self._stored(as_bias("bias", bias, (self._n_items,)))

    def _biases(
        self, bias: npt.ArrayLike | None, b: int, copy: bool = False
    ) -> Float32Array | None:
        """By row: one for all users, or one for each; None for none."""
        if bias is None:
            return None
        rows = as_real("bias", bias)
        shape = (b, self._n_items) if rows.ndim == 2 else (self._n_items,)
        return as_bias("bias", rows, shape, copy).reshape(-1, self._n_items)

    def _stored(self, values: Float32Array) -> Float32Array:
        """Values by row, in the order of positions."""
        return values if self._rows is None else np.take(values, self._as_indices(), axis=-1)

    def _by_row(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._rows is None:
            return values
        result = np.empty_like(values)
        result[self._as_indices()] = values
        return result

    def _as_indices(self) -> Positions:
        """Each position's row. They may be a damaged file's: O(n) the first time, to look."""
        assert self._rows is not None
        if not self._rows_checked:
            try:
                contents.check_permutation(self._rows)
            except ValueError as error:
                raise ValueError(f"damaged: rows: {error}") from None
            self._rows_checked = True
        return self._rows

    def _rows_of(self, item_ids: Ids) -> Positions:
        positions = super()._rows_of(item_ids)
        if self._rows is None:
            return positions
        return np.where(positions >= 0, self._as_indices()[positions], -1)


def _named_functions(functions: Sequence[ScoreFunction]) -> dict[str, ScoreFunction]:
    if not isinstance(functions, list | tuple):
        raise ValueError(f"functions: expected a list of ScoreFunctions, got {shown(functions)}")
    named: dict[str, ScoreFunction] = {}
    for j, each in enumerate(functions):
        if not isinstance(each, ScoreFunction):
            raise ValueError(f"functions[{j}]: expected a ScoreFunction, got {shown(each)}")
        if each.text in named or each.text == "dot":
            raise ValueError(f"functions[{j}]: the name {each.text!r} means another score already")
        named[each.text] = each
    return named


def _mapped_index(
    manifest: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
) -> FaissIndex:
    said, content = manifest["index"], arrays[_INDEX]
    version, labels, n_probes = said["version"], said["labels"], said["n_probes"]
    if content.ndim != 1 or content.dtype.str != "|u1":
        raise ValueError(f"{_INDEX} has shape {content.shape}, dtype {content.dtype}")
    if said["of"] != manifest["catalog_version"]:
        raise ValueError("its index is of another catalog")
    if (
        not isinstance(version, str)
        or labels not in LABELS
        or not (n_probes is None or (type(n_probes) is int and n_probes >= 1))
    ):
        raise ValueError(f"index is {said!r}")
    digest = manifest["arrays"][_INDEX]["sha256"]
    return FaissIndex.mapped(content, digest, version, labels, n_probes)


def _tolerance(value: object) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, Real)
        or not 0.0 <= (tolerance := float(value)) < np.inf
    ):
        raise ValueError(f"log_norm_tolerance: expected a number of at least 0, got {value!r}")
    return tolerance


def _descending(prior: FloatArray) -> Positions | None:
    """The rows in descending order, earlier ones first among equals; None if they are in it."""
    order = np.argsort(-prior, kind="stable").astype(np.int64, copy=False)
    order.flags.writeable = False
    return None if (order[1:] > order[:-1]).all() else order


def _refuse_norm(rows: npt.NDArray[Any]) -> NoReturn:
    """Name the first row that is too long."""
    for first in range(0, len(rows), 4096):
        block = rows[first : first + 4096].astype(np.float32).astype(np.float64)
        norms = np.linalg.norm(block, axis=1)
        beyond = np.flatnonzero(norms > MAX_NORM)
        if beyond.size:
            break
    raise ValueError(
        f"vectors: row {first + beyond[0]}: scores could pass the float32 range, expected a norm of"
        f" at most {MAX_NORM:g}, got {norms[beyond[0]]:g}"
    )
