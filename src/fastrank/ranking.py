"""Ranking: what was shown, how probable it was, and what was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import Float32Array, FloatArray, IdArray, IntArray
from fastrank.policies import Policy
from fastrank.rules import AppliedRules

__all__ = [
    "Candidates",
    "Filters",
    "Ranking",
    "RankingBatch",
    "Score",
    "new_ranking",
    "recommended",
    "relabelled",
]

_IDS_SAID = 3  # ids listed in a repr
_RANKINGS_SHOWN, _ITEMS_SHOWN = 10, 5  # in a notebook

Filters: TypeAlias = tuple[IdArray | list[str] | None, ...]


class Candidates(NamedTuple):
    """The candidates that a `FlatTail` ranking was drawn from.

    Attributes
    ----------
    is_candidate : ndarray of bool, shape (m,)
        For each item shown, whether it was a candidate, with weight exp(score / T), or of the tail,
        with the tail's weight.
    tail_log_weight : float
        Logarithm of the weight of every other eligible item, on the scale of score / T.
    n_found : int
        Number of candidates: `FlatTail.m`, or fewer if fewer were eligible or found.
    index_version : str or None
        Version of the index that found them; None if a pass found the m best.
    n_probes : int or None
        Lists that the index searched, if it has lists.
    """

    is_candidate: npt.NDArray[np.bool_]
    tail_log_weight: float
    n_found: int
    index_version: str | None = None
    n_probes: int | None = None

    @property
    def retrieval(self) -> dict[str, str] | None:
        """The index, as logs and answers name it; None without an index."""
        if self.index_version is None:
            return None
        return {"name": "faiss", "version": self.index_version}

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of a log row; what does not apply is left out."""
        found = {
            "is_candidate": self.is_candidate,
            "tail_log_weight": self.tail_log_weight,
            "n_candidates": self.n_found,
            "retrieval": self.retrieval,
            "n_probes": self.n_probes,
        }
        return {name: value for name, value in found.items() if value is not None}


class Score(NamedTuple):
    """The score that replaced dot products in a ranking, as logs state it.

    Attributes
    ----------
    name : str
        The expression, or the function's name.
    hash : str
        SHA-256 of what it computes, independent of spacing and names.
    params : dict of str to (float, bool or str)
    """

    name: str
    hash: str
    params: dict[str, float | bool | str]

    @property
    def params_text(self) -> str:
        """The parameters as JSON, sorted by name."""
        return json.dumps(self.params, sort_keys=True)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ranking:
    """One ranking, with the exact probability of having drawn it, and what it was asked for.

    Two rankings are equal if the same was drawn: all fields up to `log_norm_error` are equal, bit
    for bit, so that NaN equals NaN. Iterating yields (item id, score, propensity) place by place
    from the top, as plain Python values. Those propensities are probabilities, not logarithms: the
    exponential of each entry of `log_propensities`, which is 0 below 1e-308.

    Attributes
    ----------
    item_ids : ndarray of int64 or str, shape (m,)
        The caller's ids, best place first; m = min(k, n_eligible), never padded.
    scores : ndarray of float32, shape (m,)
        Raw scores (dot product + bias), before any temperature.
    log_propensities : ndarray of float64, shape (m,)
        Conditional: log P(item at place j | items at places before j), natural log, never above 0.
    log_propensity : float
        Log-probability of the whole ranking: the sum of `log_propensities`.
    seed : int
        The seed that drew it; the same call with this seed returns the same ranking.
    policy : Policy
        The policy that drew it.
    log_norm : float or None
        Under Plackett-Luce, logsumexp(scores / T) over all eligible items; under `FlatTail`, the
        logarithm of the sum of their weights; None under other policies.
    n_eligible : int
        Number of items that the filters left.
    catalog_version : str
        Content hash of the catalog that was ranked. Empty for given scores (`rank_scores`): hashing
        a million of them costs more than ranking them.
    propensity_kind : str
        "exact", or "bounded" if the normaliser was estimated.
    log_norm_error : float
        Bound on the error of `log_norm`, and so of each conditional log-propensity, beyond float
        rounding; 0 for "exact". It holds with probability 1 - 1e-9 over the catalog's random
        rounding, for any one query that does not depend on that rounding.
    k : int or None
        Places that were asked for. This field and those below hold what a log also needs, copied at
        the call. They are None in a ranking made by hand.
    exclude, allow : sequence of ids or None
        The filters of the call; None if it had none.
    bias : ndarray of float32, shape (n,), or None
        The bias of the call, in catalog order; None if it had none.
    user_temperature : float or None
        The user's own factor in the policy's temperature, as `Model.recommend` applied it.
    model_version : str or None
        Version of the model that recommended it.
    made_by : str or None
        "pass" if a pass over the catalog drew it; "table" if it was drawn from the masses cached
        for the user (``PlackettLuce(sampler="cached")``, or "auto"); "index" if from the candidates
        of an index.
    n_scored : int or None
        Number of items that were scored: for a pass, all eligible items; `BestFirst` takes two
        passes. Items that an index scores while searching are not counted.
    candidates : Candidates or None
        Set under `FlatTail`.
    score : Score or None
        The score that replaced dot products; None for dot products.
    features_version : str or None
        Version of the columns that the score or the rules use; None if they use none.
    rules : AppliedRules or None
        The rules of the call; None if it had none.
    after : sequence of ids or None
        The items that the pages before showed; None if there were none.
    seen_id : str or None
        Identifies the lists (`Model.seen_id`) from which the user's own was left out; None if the
        user has none.

    Examples
    --------
    >>> import fastrank as fr
    >>> catalog = fr.Catalog(["a", "b", "c"], [[1.0], [1.0], [0.5]])
    >>> ranking = catalog.rank([1.0], k=2, policy=fr.EpsilonGreedy(epsilon=0.3), seed=4)
    >>> ranking
    Ranking(['a', 'c'], 2 of 3 items, EpsilonGreedy(epsilon=0.3), seed=4, log_propensity=-2.12026)
    >>> for item, score, propensity in ranking:
    ...     print(item, score, round(propensity, 3))
    a 1.0 0.8
    c 0.5 0.15
    """

    item_ids: IdArray
    scores: Float32Array
    log_propensities: FloatArray
    log_propensity: float
    seed: int
    policy: Policy
    log_norm: float | None
    n_eligible: int
    catalog_version: str
    propensity_kind: str = "exact"
    log_norm_error: float = 0.0
    k: int | None = field(default=None, compare=False)
    exclude: IdArray | list[str] | None = field(default=None, compare=False)
    allow: IdArray | list[str] | None = field(default=None, compare=False)
    bias: Float32Array | None = field(default=None, compare=False)
    user_temperature: float | None = field(default=None, compare=False)
    model_version: str | None = field(default=None, compare=False)
    made_by: str | None = field(default=None, compare=False)
    n_scored: int | None = field(default=None, compare=False)
    candidates: Candidates | None = field(default=None, compare=False)
    score: Score | None = field(default=None, compare=False)
    features_version: str | None = field(default=None, compare=False)
    rules: AppliedRules | None = field(default=None, compare=False)
    after: IdArray | list[str] | None = field(default=None, compare=False)
    seen_id: str | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.item_ids)

    def __iter__(self) -> Iterator[tuple[int | str, float, float]]:
        propensities = np.exp(self.log_propensities).tolist()
        return zip(self.item_ids.tolist(), self.scores.tolist(), propensities, strict=True)

    def __eq__(self, other: object) -> bool:
        return _same(self, other) if isinstance(other, Ranking) else NotImplemented

    def __hash__(self) -> int:
        # only fields that cannot change; arrays can
        return hash((self.seed, self.policy, self.n_eligible, self.catalog_version))

    def __repr__(self) -> str:
        from fastrank.frames import said_in_a_line

        ids = [said_in_a_line(item) for item in np.asarray(self.item_ids[:_IDS_SAID]).tolist()]
        more = ["..."] if len(self) > _IDS_SAID else []
        return (
            f"Ranking([{', '.join([*ids, *more])}], {len(self)} of {self.n_eligible} items,"
            f" {said_in_a_line(self.policy)}, seed={self.seed},"
            f" log_propensity={self.log_propensity:.6g})"
        )

    def _repr_html_(self) -> str:
        from fastrank.frames import as_html, number, said_in_a_line

        joint = f"log-propensity {number(self.log_propensity)}"
        return as_html(
            f"{len(self):,} of {self.n_eligible:,} items by {said_in_a_line(self.policy)},"
            f" seed {self.seed}; {joint}",
            ["place", "item", "score", "propensity"],
            (
                [str(place), str(item), number(score), number(propensity)]
                for place, (item, score, propensity) in enumerate(self, start=1)
            ),
            len(self),
            figures=("place", "score", "propensity"),
            unit="places",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what was drawn and asked for as JSON types, under the names of a server's answers.

        What was not asked for is left out: filters, rules, a score, candidates. `bias`, one number
        per item of the catalog, is always left out. A value that is not finite becomes None; drawn
        rankings have none. Seeds from 2**53 on, which only callers choose, are exact in Python but
        not in every JSON reader.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog(["a", "b"], [[1.0], [0.5]])
        >>> found = catalog.rank([1.0], 1, policy=fr.Deterministic(), exclude=["b"]).to_dict()
        >>> found["item_ids"], found["policy"], found["exclude"]
        (['a'], {'name': 'deterministic', 'params': {}}, ['b'])
        """
        from fastrank.frames import plain

        found: dict[str, Any] = {
            "item_ids": self.item_ids,
            "scores": self.scores,
            "log_propensities": self.log_propensities,
            "log_propensity": self.log_propensity,
            "log_norm": self.log_norm,
            "propensity_kind": self.propensity_kind,
            "log_norm_error": self.log_norm_error,
            "k": self.k,
            "policy": {"name": self.policy.inference_type, "params": self.policy.params},
            "user_temperature": self.user_temperature,
            "seed": self.seed,
            "n_eligible": self.n_eligible,
            "made_by": self.made_by,
            "n_scored": self.n_scored,
            "model_version": self.model_version,
            "catalog_version": self.catalog_version,
        }
        asked = {
            "exclude": self.exclude,
            "allow": self.allow,
            "after": self.after,
            "score": None if self.score is None else self.score._asdict(),
            "features_version": self.features_version,
            "seen_id": self.seen_id,
        }
        found |= {name: value for name, value in asked.items() if value is not None}
        if self.rules is not None:
            rules, params = self.rules
            found["rules"] = {"id": rules.id, "content": rules.to_dict(), "params": params}
        if self.candidates is not None:
            found |= self.candidates.to_dict()
        whole: dict[str, Any] = plain(found)
        return whole

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame with one row per place.

        Its columns are `place`, from 1; `item_id`; `score`; `propensity`, of the item at its place
        given those above it; and `conditional_log_propensity`, its logarithm. `item_id`, `score`
        and the last are the entries of the log's lists `item_ids`, `scores` and `log_propensities`;
        the last column's sum is the log's `log_propensity`, that of the whole ranking.

        Raises
        ------
        ModuleNotFoundError
            If pandas is missing; the message says what to install.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog(["a", "b"], [[1.0], [0.5]])
        >>> catalog.rank([1.0], 2, policy=fr.Deterministic()).to_pandas()[["place", "item_id"]]
           place item_id
        0      1       a
        1      2       b
        """
        from fastrank.frames import as_pandas

        return as_pandas(self._columns())

    def to_arrow(self) -> Any:
        """Return a pyarrow.Table with the columns of `to_pandas`.

        Raises
        ------
        ModuleNotFoundError
            If pyarrow is missing; the message says what to install.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog(["a", "b"], [[1.0], [0.5]])
        >>> catalog.rank([1.0], 2, policy=fr.Deterministic()).to_arrow()["item_id"].to_pylist()
        ['a', 'b']
        """
        from fastrank.frames import as_arrow

        return as_arrow(self._columns())

    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "place": np.arange(1, len(self) + 1),
            **_of_places(self.item_ids, self.scores, self.log_propensities),
        }


def _of_places(
    item_ids: IdArray, scores: Float32Array, log_propensities: FloatArray
) -> dict[str, npt.NDArray[Any]]:
    """Columns of data frames, copied."""
    return {
        "item_id": item_ids.copy(),
        "score": scores.copy(),
        "propensity": np.exp(log_propensities),
        "conditional_log_propensity": log_propensities.copy(),
    }


class _Draft:
    """A `Ranking` that is not frozen yet."""

    __slots__ = tuple(each.name for each in fields(Ranking))


def new_ranking(
    item_ids: IdArray,
    scores: Float32Array,
    log_propensities: FloatArray,
    log_propensity: float,
    seed: int,
    policy: Policy,
    log_norm: float | None,
    n_eligible: int,
    catalog_version: str,
    propensity_kind: str = "exact",
    log_norm_error: float = 0.0,
    k: int | None = None,
    exclude: IdArray | list[str] | None = None,
    allow: IdArray | list[str] | None = None,
    bias: Float32Array | None = None,
    user_temperature: float | None = None,
    model_version: str | None = None,
    made_by: str | None = None,
    n_scored: int | None = None,
    candidates: Candidates | None = None,
    score: Score | None = None,
    features_version: str | None = None,
    rules: AppliedRules | None = None,
    after: IdArray | list[str] | None = None,
    seen_id: str | None = None,
) -> Ranking:
    """Make a ``Ranking``, faster: a frozen dataclass sets its fields slowly, 1.5 us in all."""
    draft: Any = _Draft()
    draft.item_ids = item_ids
    draft.scores = scores
    draft.log_propensities = log_propensities
    draft.log_propensity = log_propensity
    draft.seed = seed
    draft.policy = policy
    draft.log_norm = log_norm
    draft.n_eligible = n_eligible
    draft.catalog_version = catalog_version
    draft.propensity_kind = propensity_kind
    draft.log_norm_error = log_norm_error
    draft.k = k
    draft.exclude = exclude
    draft.allow = allow
    draft.bias = bias
    draft.user_temperature = user_temperature
    draft.model_version = model_version
    draft.made_by = made_by
    draft.n_scored = n_scored
    draft.candidates = candidates
    draft.score = score
    draft.features_version = features_version
    draft.rules = rules
    draft.after = after
    draft.seen_id = seen_id
    draft.__class__ = Ranking  # which Python allows, since both classes have the same slots
    ranking: Ranking = draft
    return ranking


def recommended(
    ranking: Ranking, policy: Policy, model_version: str, user_temperature: float | None
) -> Ranking:
    """Set on a ranking that nobody else holds yet which model made it, by which policy and
    factor."""
    _set_policy(ranking, policy)
    _set_model_version(ranking, model_version)
    _set_user_temperature(ranking, user_temperature)
    return ranking


def relabelled(ranking: Ranking, policy: Policy) -> Ranking:
    """Set on a ranking that nobody else holds yet the name under which its policy was asked for."""
    _set_policy(ranking, policy)
    return ranking


# What object.__setattr__ would look up each time.
_set_model_version = Ranking.__dict__["model_version"].__set__
_set_policy = Ranking.__dict__["policy"].__set__
_set_user_temperature = Ranking.__dict__["user_temperature"].__set__


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RankingBatch(Sequence[Ranking]):
    """Rankings of b users as arrays; ``batch[i]`` is the i-th as a `Ranking`.

    In row i, cells from place `counts[i]` on are NaN (-1 or '' for ids) and meaningless. Two
    batches are equal if the same was drawn, bit for bit.

    Attributes
    ----------
    item_ids : ndarray of int64 or str, shape (b, k)
    scores : ndarray of float32, shape (b, k)
    log_propensities : ndarray of float64, shape (b, k)
    counts : ndarray of int64, shape (b,)
        Places filled in each row.
    log_propensity, log_norm : ndarray of float64, shape (b,)
        `log_norm` is NaN in rows that are neither Plackett-Luce nor `FlatTail`.
    seeds : ndarray of uint64, shape (b,)
    n_eligible : ndarray of int64, shape (b,)
    policies : tuple of Policy, length b
    catalog_version : str
    propensity_kind : tuple of str, length b
    log_norm_error : ndarray of float64, shape (b,)
    k : int or None
        Places that were asked for. This field, the filters and the bias are those of the call,
        copied.
    exclude, allow : tuple of (sequence of ids or None), length b, or None
        None if no user had any.
    bias : ndarray of float32, shape (1, n) or (b, n), or None
        In catalog order, one for all users or one for each.
    made_by : tuple of str, length b, or None
    n_scored : ndarray of int64, shape (b,), or None
    candidates : tuple of (Candidates or None), length b, or None
        None if no row is by `FlatTail`.
    scores_by : tuple of (Score or None), length b, or None
        The scores that replaced dot products; None if no row has one.
    features_version : str or None
    rules : tuple of (AppliedRules or None), length b, or None
    after : tuple of (sequence of ids or None), length b, or None
    seen_ids : tuple of (str or None), length b, or None
    model_version : str or None
    user_temperatures : tuple of (float or None), length b, or None

    Examples
    --------
    >>> import fastrank as fr
    >>> catalog = fr.Catalog(["a", "b"], [[1.0], [0.5]])
    >>> policy = fr.Deterministic()
    >>> batch = catalog.rank_batch([[1.0], [-1.0]], 2, policy=policy, exclude=[None, ["a"]])
    >>> batch.item_ids.tolist(), batch.counts.tolist(), len(batch[1])
    ([['a', 'b'], ['b', '']], [2, 1], 1)
    """

    item_ids: IdArray
    scores: Float32Array
    log_propensities: FloatArray
    counts: IntArray
    log_propensity: FloatArray
    log_norm: FloatArray
    seeds: npt.NDArray[np.uint64]
    n_eligible: IntArray
    policies: tuple[Policy, ...]
    catalog_version: str
    propensity_kind: tuple[str, ...]
    log_norm_error: FloatArray
    k: int | None = field(default=None, compare=False)
    exclude: Filters | None = field(default=None, compare=False)
    allow: Filters | None = field(default=None, compare=False)
    bias: Float32Array | None = field(default=None, compare=False)
    made_by: tuple[str, ...] | None = field(default=None, compare=False)
    n_scored: IntArray | None = field(default=None, compare=False)
    candidates: tuple[Candidates | None, ...] | None = field(default=None, compare=False)
    scores_by: tuple[Score | None, ...] | None = field(default=None, compare=False)
    features_version: str | None = field(default=None, compare=False)
    rules: tuple[AppliedRules | None, ...] | None = field(default=None, compare=False)
    after: Filters | None = field(default=None, compare=False)
    seen_ids: tuple[str | None, ...] | None = field(default=None, compare=False)
    model_version: str | None = field(default=None, compare=False)
    user_temperatures: tuple[float | None, ...] | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.counts)

    def __eq__(self, other: object) -> bool:
        return _same(self, other) if isinstance(other, RankingBatch) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.policies, self.catalog_version, self.propensity_kind))

    def __repr__(self) -> str:
        return (
            f"RankingBatch({len(self)} rankings of up to {self.item_ids.shape[1]} places,"
            f" {_said_of_all(self.policies)})"
        )

    def _repr_html_(self) -> str:
        from fastrank.frames import as_html, cut, number

        def row(at: int) -> list[str]:
            m = int(self.counts[at])
            ids = [
                cut(str(item), 24) for item in self.item_ids[at, : min(m, _ITEMS_SHOWN)].tolist()
            ]
            more = ["…"] if m > _ITEMS_SHOWN else []
            return [
                str(at),
                ", ".join([*ids, *more]),
                str(m),
                number(float(self.log_propensity[at])),
                str(self.seeds[at]),
            ]

        return as_html(
            f"{len(self):,} rankings of up to {self.item_ids.shape[1]:,} places by"
            f" {_said_of_all(self.policies)}",
            ["row", "items", "places", "log-propensity", "seed"],
            map(row, range(len(self))),
            len(self),
            figures=("row", "places", "log-propensity", "seed"),
            unit="rankings",
            most=_RANKINGS_SHOWN,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a list ``rankings`` of what `Ranking.to_dict` returns for each, as JSON types.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog(["a", "b"], [[1.0, 0.0], [0.0, 1.0]])
        >>> queries = [[1.0, 0.2], [0.2, 1.0]]
        >>> batch = catalog.rank_batch(queries, k=1, policy=fr.Deterministic(), seeds=[1, 2])
        >>> [each["item_ids"] for each in batch.to_dict()["rankings"]]
        [['a'], ['b']]
        """
        return {"rankings": [each.to_dict() for each in self]}

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame with one row per filled place, ranking after ranking.

        The columns are those of `Ranking.to_pandas`, preceded by `row`, from 0, which counts
        rankings.

        Raises
        ------
        ModuleNotFoundError
            If pandas is missing; the message says what to install.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog(["a", "b"], [[1.0], [0.5]])
        >>> batch = catalog.rank_batch([[1.0], [-1.0]], 1, policy=fr.Deterministic())
        >>> batch.to_pandas()[["row", "place", "item_id"]]
           row  place item_id
        0    0      1       a
        1    1      1       b
        """
        from fastrank.frames import as_pandas

        return as_pandas(self._columns())

    def to_arrow(self) -> Any:
        """Return a pyarrow.Table with the columns of `to_pandas`.

        Raises
        ------
        ModuleNotFoundError
            If pyarrow is missing; the message says what to install.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog(["a", "b"], [[1.0], [0.5]])
        >>> batch = catalog.rank_batch([[1.0], [-1.0]], 1, policy=fr.Deterministic())
        >>> batch.to_arrow()["item_id"].to_pylist()
        ['a', 'b']
        """
        from fastrank.frames import as_arrow

        return as_arrow(self._columns())

    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        filled = np.arange(self.item_ids.shape[1]) < self.counts[:, None]
        rows, places = np.nonzero(filled)
        found = (self.item_ids[filled], self.scores[filled], self.log_propensities[filled])
        return {"row": rows, "place": places + 1, **_of_places(*found)}

    @overload
    def __getitem__(self, index: int) -> Ranking: ...
    @overload
    def __getitem__(self, index: slice) -> list[Ranking]: ...
    def __getitem__(self, index: int | slice) -> Ranking | list[Ranking]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]  # negative indices, and IndexError past the end
        m = int(self.counts[i])
        log_norm = float(self.log_norm[i])
        return new_ranking(
            item_ids=self.item_ids[i, :m],
            scores=self.scores[i, :m],
            log_propensities=self.log_propensities[i, :m],
            log_propensity=float(self.log_propensity[i]),
            seed=int(self.seeds[i]),
            policy=self.policies[i],
            log_norm=None if np.isnan(log_norm) else log_norm,
            n_eligible=int(self.n_eligible[i]),
            catalog_version=self.catalog_version,
            propensity_kind=self.propensity_kind[i],
            log_norm_error=float(self.log_norm_error[i]),
            k=self.k,
            exclude=None if self.exclude is None else self.exclude[i],
            allow=None if self.allow is None else self.allow[i],
            bias=None if self.bias is None else self.bias[i % len(self.bias)],
            made_by=None if self.made_by is None else self.made_by[i],
            n_scored=None if self.n_scored is None else int(self.n_scored[i]),
            candidates=None if self.candidates is None else self.candidates[i],
            score=None if self.scores_by is None else self.scores_by[i],
            features_version=self.features_version,
            rules=None if self.rules is None else self.rules[i],
            after=None if self.after is None else self.after[i],
            seen_id=None if self.seen_ids is None else self.seen_ids[i],
            model_version=self.model_version,
            user_temperature=None if self.user_temperatures is None else self.user_temperatures[i],
        )

    def __iter__(self) -> Iterator[Ranking]:
        return (self[i] for i in range(len(self)))


def _said_of_all(policies: Sequence[Policy]) -> str:
    """The policy of all rows, or that of the first and a note that others follow."""
    from fastrank.frames import said_in_a_line

    if not policies:
        return "no policy"
    same = all(each is policies[0] or each == policies[0] for each in policies)
    return f"{said_in_a_line(policies[0])}{'' if same else ' and others'}"


def _same(one: Any, other: Any) -> bool:
    """Whether all fields that say what was drawn are equal, bit for bit."""
    return all(
        _same_values(getattr(one, each.name), getattr(other, each.name))
        for each in fields(one)
        if each.compare
    )


def _same_values(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one.hex() == other.hex()
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray):
        return bool(one == other)
    if one.dtype.kind == "f":
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return np.array_equal(one, other)  # ids are the same at any width
