"""Arrays that only some estimators need: marginals, a reward model's values, slate weights."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import Float32Array, FloatArray, Mask, Rows
from fastrank.catalog import Catalog
from fastrank.eventlog import LogBatch
from fastrank.inputs import shown
from fastrank.lru import LRU
from fastrank.marginals import (
    MAX_ITEMS,
    SlateInverse,
    next_law,
    position_marginals,
    pseudo_inverse_weights,
    slate_inverse,
)
from fastrank.model import Model
from fastrank.ope.batch import FLAT_ARRAYS
from fastrank.ope.estimators import ESTIMATORS
from fastrank.ope.propensities import ByModel, EvaluationPolicy
from fastrank.ope.queries import (
    Newer,
    Queries,
    Query,
    SeenThen,
    Writers,
    catalog_of,
    catalogs_of,
    displayed_items,
    logging_policy,
)
from fastrank.policies import Policy, law_of
from fastrank.ruled import BoundRules, State, log_factor_rows
from fastrank.rules import Rules
from fastrank.scorer import Scorer

__all__ = ["OptionalArrays", "RewardModel"]

RewardModel: TypeAlias = Callable[[Float32Array, npt.NDArray[Any]], npt.ArrayLike]

T = TypeVar("T")

_MARGINALS = ("marginals_logged", "marginals_evaluated")
_OF_LAWS = {*_MARGINALS, "slate_weights"}
_OF_REWARD_MODEL = {"q_logged", "q_expected", "q_direct"}
_CACHE_BYTES = 128 << 20  # of laws kept from one batch to the next
_OVERHEAD = 500  # bytes of an entry in addition to its arrays


class OptionalArrays:
    """The optional arrays of a batch that the estimators need.

    Parameters
    ----------
    names : sequence of str
        Estimators.
    policies : sequence of EvaluationPolicy
    logging : sequence of Model or Catalog
        The models that wrote the log.
    places : int
    reward_model : callable, optional
    restrict : bool
        Whether evaluation policies are limited to the logged catalog.
    keep_candidates : bool
        Whether they choose from the candidates that the logging policy saw.

    Raises
    ------
    ValueError
        If an estimator lacks something; the message names both.

    Notes
    -----
    Rows of a batch with the same query, filters and policy share one computation of their law, also
    with rows of earlier batches, as far as 128 MiB of results reach (marginals of ten shown items
    at ten places: 1.4 kB).
    """

    def __init__(
        self,
        names: Sequence[str],
        policies: Sequence[EvaluationPolicy],
        logging: Sequence[Model | Scorer],
        places: int,
        reward_model: RewardModel | None,
        restrict: bool = False,
        keep_candidates: bool = False,
    ) -> None:
        self._restrict = restrict
        self._keep_candidates = keep_candidates
        self._catalogs = catalogs_of(logging)
        self._writers = Writers(logging)
        self._places = places
        self._reward_model = reward_model
        self._wanted = {need for name in names for need in ESTIMATORS[name].needs}
        self._want_laws = " and ".join(
            name for name in names if not _OF_LAWS.isdisjoint(ESTIMATORS[name].needs)
        )
        self._cache = LRU[Any, Any](_CACHE_BYTES)
        self._by_slates = [
            policy
            for policy in policies
            if isinstance(policy, ByModel) and "slate_weights" not in policy.arrays
        ]
        # Arrays of the last rows that depend only on the log, or were computed for all policies.
        self._last_marginals = _OfRows[FloatArray]()
        self._last_slates = _OfRows[dict[int, FloatArray]]()
        self.laws = 0  # computed so far; they are nearly all of the work
        for name in names:
            for policy in policies:
                for need in ESTIMATORS[name].needs:
                    if need not in policy.arrays:
                        self._check(name, need, policy)

    def _check(self, name: str, need: str, policy: EvaluationPolicy) -> None:
        def refuse(why: str) -> None:
            raise ValueError(f"estimators: {name} of {policy.label}: {why}, or a column of {need}")

        if self._places == 1 and need in _OF_LAWS:
            return  # with one place they equal the propensities and their ratio
        by_model = isinstance(policy, ByModel)
        if isinstance(policy, ByModel) and (need in _OF_LAWS or need == "q_expected"):
            asked = policy.policy
            if isinstance(asked, Policy) and asked.law is None:
                refuse(f"knows laws of the scores alone, not {shown(asked)}")
        if need in _OF_LAWS:
            if isinstance(policy, ByModel):
                _refuse_rules(f"{name} of {policy.label}", need, policy.rules)
            if not by_model or not self._writers.models:
                refuse("needs a policy on a model, and the model that wrote the log")
            assert isinstance(policy, ByModel)
            sizes = [len(catalog_of(each)) for each in (policy.model, *self._writers.models)]
            if need in _MARGINALS and max(sizes) > MAX_ITEMS:
                refuse(f"takes at most {MAX_ITEMS} items, got {max(sizes)}")
        elif need not in _OF_REWARD_MODEL:
            raise ValueError(f"estimators: {name} of {policy.label}: needs a column of {need}")
        elif not by_model or self._reward_model is None:
            refuse("needs a reward model and a policy on a model")

    def arrays(
        self,
        policy: EvaluationPolicy,
        batch: LogBatch,
        rows: Rows,
        logged: FloatArray,
        evaluated: FloatArray,
        advance: Callable[[float], None] = lambda rows: None,
    ) -> dict[str, FloatArray]:
        """The arrays for these rows, (len(rows), places) or (len(rows),).

        `advance` is called with the number of rows done since its last call; these add up to all
        rows. Pass the same `rows` object for all policies: arrays that depend only on the log are
        kept for it.
        """
        done = 0.0

        def step(count: float) -> None:
            nonlocal done
            done += count
            advance(count)

        result = {
            need: self._column(batch, need, policy.arrays[need], rows)
            for need in self._wanted
            if need in policy.arrays
        }
        missing = self._wanted - result.keys()
        if missing and self._places == 1:
            result |= {
                "marginals_logged": np.exp(logged),
                "marginals_evaluated": np.exp(evaluated),
                "slate_weights": np.exp(evaluated - logged)[:, 0],
            }
            missing -= result.keys()
        if missing:
            assert isinstance(policy, ByModel)
            result |= self._by_model(policy, batch, rows, missing, step)
        advance(len(rows) - done)
        return {name: array for name, array in result.items() if name in self._wanted}

    def _column(self, batch: LogBatch, need: str, column: str, rows: Rows) -> FloatArray:
        """A column of the log, (len(rows),) or (len(rows), places)."""
        name, flat = f"{need}: column {column}", need in FLAT_ARRAYS
        if column not in batch.columns:
            raise ValueError(f"{name}: the log is not read with it")
        array = np.array(batch.columns[column][rows], np.float64)
        if flat and array.ndim == 2 and array.shape[1] == 1:  # the form of rankings of one place
            array = array[:, 0]
        if flat != (array.ndim == 1):
            one, each = "one number a row", "a list of numbers a row, one for each place"
            wanted, got = (one, each) if flat else (each, one)
            raise ValueError(f"{name}: expected {wanted}; got {got}")
        if not flat:
            array = array[:, : self._places]
            array = np.pad(array, [(0, 0), (0, self._places - array.shape[1])])
            there = np.arange(self._places) < batch.lengths[rows][:, None]
            array[~there] = 0.0
        fine, wanted = np.isfinite(array), "must be finite"
        if need in _MARGINALS:
            fine &= (array >= 0.0) & (array <= 1.0 + 1e-9)
            wanted = "must be a probability"
            if need == "marginals_logged":  # of the items shown
                fine &= (array > 0.0) | ~there
                wanted += " above 0"
        bad = np.argwhere(~fine)
        if len(bad):
            row, *place = bad[0].tolist()
            where = f", place {place[0] + 1}" if place else ""
            raise ValueError(
                f"{name}: request {batch.value('request_id', int(rows[row]))}{where}: {wanted},"
                f" got {array[tuple(bad[0])]}"
            )
        return array

    def _by_model(
        self,
        policy: ByModel,
        batch: LogBatch,
        rows: Rows,
        wanted: set[str],
        advance: Callable[[float], None],
    ) -> dict[str, FloatArray]:
        evaluated = self._evaluated_law(policy, batch)
        writers = self._writers.queries(batch)
        rewards = wanted & _OF_REWARD_MODEL
        kinds = len(wanted - rewards) + bool(rewards)

        def logged(i: int) -> _Law:
            return self._logged_law(batch, i, writers)

        for need in wanted & _OF_LAWS:
            self._check_rows(policy, batch, rows, need)

        def step(count: float) -> None:
            advance(count / kinds)

        result = {
            name: np.zeros(len(rows) if name in FLAT_ARRAYS else (len(rows), self._places))
            for name in wanted
        }
        if "marginals_logged" in wanted:
            result["marginals_logged"] = self._logged_marginals(batch, rows, logged, step)
        if "marginals_evaluated" in wanted:
            self._marginals(result["marginals_evaluated"], batch, rows, evaluated, step)
        if "slate_weights" in wanted:
            result["slate_weights"] = self._slate_weights(policy, batch, rows, logged, step)
        if rewards:
            for j, i in enumerate(rows.tolist()):
                law = evaluated(i)
                items = displayed_items(batch, i)[: self._places]
                seed = int(batch.request_hash[i, 0])
                self._rewards(result, j, seed, items, law)
                step(1)
        return result

    def _check_rows(self, policy: ByModel, batch: LogBatch, rows: Rows, need: str) -> None:
        """Raise ValueError for the first row whose rules leave marginals unknown."""
        sequential = rows[batch.is_sequential[rows]]
        if len(sequential):
            i = int(sequential[0])
            logged = batch.rules(i)
            where = f"{self._want_laws} of {policy.label}: request {batch.value('request_id', i)}"
            _refuse_rules(where, need, None if logged is None else logged.rules)

    def _evaluated_law(self, policy: ByModel, batch: LogBatch) -> LawOf:
        catalog = catalog_of(policy.model)
        barred = Newer(catalog, self._catalogs) if self._restrict else None
        asked = Queries(
            policy.model,
            batch,
            seen=SeenThen([policy.model, *self._writers.models], batch),
            barred=barred,
            keep_candidates=self._keep_candidates,
            rules=policy.rules,
            params=policy.params,
        )

        def law(i: int) -> _Law:
            query = asked.row(i)
            assert isinstance(query, Query)  # rows that cannot be judged have been left out
            return _Law(catalog, query, query.policy(policy.policy), int(batch.k[i]))

        return law

    def _logged_law(self, batch: LogBatch, i: int, writers: Sequence[Queries]) -> _Law:
        writer = self._writers.of(batch, i)
        policy = logging_policy(batch, i)
        if writer is None or policy is None or policy.law is None:
            why = "its model is not among those given"
            if policy is not None and policy.law is None:
                why = f"its policy has no law of the scores alone: {shown(policy)}"
            if policy is None:
                why = f"its policy {batch.value('policy_name', i)!r} is none that fastrank knows"
            raise ValueError(
                f"logging: request {batch.value('request_id', i)}: {why};"
                f" the logging policy's law is needed for {self._want_laws}"
            )
        query = writers[writer].row(i)
        if isinstance(query, str):
            raise ValueError(
                f"logging: request {batch.value('request_id', i)}: {query};"
                f" the logging policy's law is needed for {self._want_laws}"
            )
        return _Law(catalog_of(self._writers.models[writer]), query, policy, int(batch.k[i]))

    # ---- Marginals --------------------------------------------------------------------------

    def _logged_marginals(
        self, batch: LogBatch, rows: Rows, law: LawOf, advance: Callable[[float], None]
    ) -> FloatArray:
        """The same for all evaluation policies, so those of the last rows are kept."""
        array = self._last_marginals.get(batch, rows)
        if array is None:
            array = np.zeros((len(rows), self._places))
            self._marginals(array, batch, rows, law, advance)
            self._last_marginals.put(batch, rows, array)
        return array

    def _marginals(
        self,
        result: FloatArray,
        batch: LogBatch,
        rows: Rows,
        law_of: LawOf,
        advance: Callable[[float], None],
    ) -> None:
        """Rows of one law together: more items cost little more than those of one row."""
        groups: dict[bytes, list[int]] = {}
        for j, i in enumerate(rows.tolist()):
            groups.setdefault(law_of(i).key, []).append(j)
        for key, members in groups.items():
            law = law_of(int(rows[members[0]]))
            items = [displayed_items(batch, int(rows[j]))[: self._places] for j in members]
            lengths = [len(each) for each in items]
            place = np.concatenate([np.arange(length) for length in lengths])
            if len(place):
                positions = law.catalog._rows_of(np.concatenate(items))
                asked, again = np.unique(positions, return_inverse=True)
                found = self._marginals_of(key, law, asked)
                result[np.repeat(members, lengths), place] = found[again.reshape(-1), place]
            advance(len(members))

    def _marginals_of(self, key: bytes, law: _Law, asked: Rows) -> FloatArray:
        """Marginals (m, places) of ascending positions."""
        known, values = self._cache.get(
            key, (np.empty(0, np.int64), np.empty((0, self._places)))
        )  # fmt: skip
        missing = np.setdiff1d(asked, known, assume_unique=True)
        if len(missing):
            self.laws += 1
            more = position_marginals(
                law.scores(), law.policy, self._places, missing, law.eligible()
            )
            known = np.concatenate([known, missing])
            order = np.argsort(known)
            known, values = known[order], np.concatenate([values, more])[order]
            self._cache.put(key, (known, values), known.nbytes + values.nbytes + _OVERHEAD)
        return np.asarray(values[np.searchsorted(known, asked)], np.float64)

    def _slate_weights(
        self,
        policy: ByModel,
        batch: LogBatch,
        rows: Rows,
        logged: LawOf,
        advance: Callable[[float], None],
    ) -> FloatArray:
        """For all policies together: an inverse costs more than everything else, and is large."""
        found = self._last_slates.get(batch, rows) or {}
        if id(policy) not in found:
            known = any(each is policy for each in self._by_slates)
            policies = self._by_slates if known else [policy]
            found = {id(each): np.ones(len(rows)) for each in policies}
            laws = [
                (found[id(each)], self._evaluated_law(each, batch), each.label) for each in policies
            ]
            # A ranking of m places is a slate of m places; an empty one has weight 1.
            groups: dict[tuple[bytes, int], list[int]] = {}
            for j, i in enumerate(rows.tolist()):
                m = min(int(batch.lengths[i]), self._places)
                if m:
                    groups.setdefault((logged(i).key, m), []).append(j)
            for (key, m), members in groups.items():
                law = logged(int(rows[members[0]]))
                orders = [
                    law.catalog._rows_of(displayed_items(batch, int(rows[j]))[:m]) for j in members
                ]
                for result, evaluated, label in laws:
                    self._weigh(
                        result, batch, rows, members, np.stack(orders), key, law, evaluated, label
                    )
                advance(len(members))
            self._last_slates.put(batch, rows, found)
        return found[id(policy)]

    def _weigh(
        self,
        result: FloatArray,
        batch: LogBatch,
        rows: Rows,
        members: Sequence[int],
        orders: Rows,
        key: bytes,
        logged: _Law,
        evaluated: LawOf,
        label: str,
    ) -> None:
        """Slates (b, m) of one logging law; those of one evaluation law together."""
        groups: dict[bytes, list[int]] = {}
        for at, j in enumerate(members):
            groups.setdefault(evaluated(int(rows[j])).key, []).append(at)
        for ats in groups.values():
            law = evaluated(int(rows[members[ats[0]]]))
            if not np.array_equal(logged.catalog.item_ids, law.catalog.item_ids):
                raise ValueError("estimators: pi wants both models to have the same items")
            is_ruled = law.query.is_ruled or logged.query.is_ruled
            if is_ruled and not np.array_equal(logged.eligible(), law.eligible()):
                raise ValueError(
                    f"estimators: pi of {label}: needs rules that leave the same items eligible"
                )
            scores = law.scores()

            def weights(
                ats: list[int], law: _Law = law, scores: Float32Array = scores
            ) -> FloatArray:
                inverse = self._inverse(key, logged, orders.shape[1])
                return pseudo_inverse_weights(orders[ats], inverse, scores, law.policy)

            try:
                result[[members[at] for at in ats]] = weights(ats)
            except ValueError:
                for at in ats:  # the request's name is needed to find it in the log
                    try:
                        weights([at])
                    except ValueError as error:
                        name = batch.value("request_id", int(rows[members[at]]))
                        message = f"estimators: pi of {label}: request {name}: {error}"
                        raise ValueError(message) from None
                raise

    def _inverse(self, key: bytes, law: _Law, places: int) -> SlateInverse:
        found: SlateInverse | None = self._cache.get((key, places))
        if found is None:
            self.laws += 1
            found = slate_inverse(law.scores(), law.policy, places, law.eligible())
            arrays = (found.positions, found.moments, found.matrix)
            size = sum(array.nbytes for array in arrays if array is not None)
            self._cache.put((key, places), found, size + _OVERHEAD)
        return found

    # ---- Reward models ----------------------------------------------------------------------

    def _rewards(
        self,
        result: Mapping[str, FloatArray],
        j: int,
        seed: int,
        items: npt.NDArray[Any],
        law: _Law,
    ) -> None:
        assert self._reward_model is not None
        catalog, query, policy = law.catalog, law.query, law.policy
        ids = catalog.item_ids
        q = np.asarray(self._reward_model(query.vector, ids), np.float64)
        if q.shape == (len(ids),):
            q = np.broadcast_to(q[:, None], (len(ids), self._places))
        if q.shape != (len(ids), self._places) or not np.isfinite(q).all():
            raise ValueError(
                f"reward_model: expected {len(ids)} finite numbers, or {self._places} for each;"
                f" got shape {q.shape}"
            )
        m = len(items)
        at = catalog._rows_of(items)
        if "q_logged" in result:
            # An item that the model does not have has weight 0, whatever its value.
            known = np.where(at >= 0, q[np.maximum(at, 0), np.arange(m)], 0.0)
            result["q_logged"][j, :m] = known
        if "q_expected" in result:
            for place, (order, p) in enumerate(law.places(items)):
                result["q_expected"][j, place] = p @ q[order, place]
        if "q_direct" in result:
            ranking = catalog.rank(
                query.vector,
                law.k if query.is_ruled else max(m, 1),
                policy=policy,
                seed=seed,
                exclude=query.exclude,
                allow=query.allow,
                bias=query.bias,
                **query.call,
            )
            drawn = catalog._rows_of(ranking.item_ids[: max(m, 1)])
            result["q_direct"][j] = q[drawn, np.arange(len(drawn))].sum()


class _OfRows(Generic[T]):
    """A value computed for the last rows of a batch, kept as long as these exist."""

    def __init__(self) -> None:
        self._of: tuple[int, weakref.ref[Rows], T] | None = None

    def get(self, batch: LogBatch, rows: Rows) -> T | None:
        if self._of is None or self._of[0] != id(batch) or self._of[1]() is not rows:
            return None
        return self._of[2]

    def put(self, batch: LogBatch, rows: Rows, value: T) -> None:
        self._of = id(batch), weakref.ref(rows), value


@dataclass(frozen=True, slots=True)
class _Law:
    """The law of a row's rankings."""

    catalog: Scorer
    query: Query
    policy: Policy
    k: int

    @property
    def key(self) -> bytes:
        """Equal for rows of the same law, and almost certainly for no others: 128 bits."""
        of_query = self.query
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self.catalog.version} {self.policy!r}".encode())
        if of_query.is_ruled:
            rules = "" if of_query.rules is None else of_query.rules.id
            digest.update(f" {rules} {sorted(of_query.params.items())!r} ".encode())
        parts = (of_query.vector, of_query.exclude, of_query.allow, of_query.bias, of_query.after)
        for part in parts:
            # Lengths come first; otherwise the end of one list could look like the start of the
            # next.
            content = b"" if part is None else part.tobytes()
            digest.update(b"-" if part is None else f"{part.dtype} {len(content)} ".encode())
            digest.update(content)
        return digest.digest()

    def scores(self) -> Float32Array:
        """Scores as rankings have them, (n,), by row."""
        query, bound = self.query, self._bound()
        scores = self.catalog.scores(query.vector, query.bias, **query.score)
        boosts = None if bound is None else bound.bias(law_of(self.policy).temperature)
        if boosts is None:
            return scores
        return scores + self.catalog._by_row(boosts).astype(np.float32)

    def eligible(self) -> Mask:
        """Items that filters and earlier pages leave, (n,), by row."""
        query, bound = self.query, self._bound()
        mask = np.full(len(self.catalog), query.allow is None)
        for ids, value in ((query.allow, True), (query.exclude, False), (query.after, False)):
            if ids is not None:
                rows = self.catalog._rows_of(ids)
                mask[rows[rows >= 0]] = value
        if bound is not None and bound.where is not None:
            mask &= self.catalog._by_row(bound.where)
        return mask

    def places(self, items: npt.NDArray[Any]) -> Iterator[tuple[Rows, FloatArray]]:
        """For each place: the rows that may stand there, given those above, and their law.

        O(n log n) per place.
        """
        left, scores = self.eligible(), self.scores().astype(np.float64)
        temperature, bound = law_of(self.policy).temperature, self._bound()
        state = None
        if bound is not None and bound.is_walked:
            after = [] if self.query.after is None else self._positions(self.query.after).tolist()
            state = State(bound, min(self.k, int(left.sum())), after)
        of_items = self.catalog._rows_of(items), self._positions(items)
        for place, (row, position) in enumerate(zip(*of_items, strict=True)):
            factors = np.zeros(len(left)) if state is None else self._log_factors(state, left)
            rows = np.flatnonzero(left & (factors > -np.inf))
            values = scores[rows]
            if factors[rows].any():
                values = values + temperature * factors[rows]
            order = np.argsort(-values, kind="stable")
            values = values[order][None]
            yield rows[order], next_law(values, self.policy, place)[0] if len(rows) else values[0]
            is_shown = row >= 0 and bool(left[row])
            if is_shown:
                left[row] = False
            if state is not None:
                state.show(int(position) if is_shown else -1)

    def _log_factors(self, state: State, left: Mask) -> FloatArray:
        """Logarithms of the factors that rules apply to weights at the next place, (n,), by row."""
        nothing = np.full(len(left), -np.inf)
        if state.place >= state.places:
            return nothing
        if state.pinned is not None:
            nothing[state.pinned] = 0.0
            return np.asarray(self.catalog._by_row(nothing), np.float64)
        for level in range(state.levels):
            (factors,) = log_factor_rows([state.regime(level)], np.arange(len(left)))
            factors[[*state.reserved, *state.shown]] = -np.inf
            by_row = np.asarray(self.catalog._by_row(factors), np.float64)
            if (left & (by_row > -np.inf)).any():
                return by_row
        return nothing

    def _positions(self, items: npt.NDArray[Any]) -> Rows:
        return self.catalog._index.find("item_ids", items, ordered=True)

    def _bound(self) -> BoundRules | None:
        if self.query.rules is None:
            return None
        assert isinstance(self.catalog, Catalog)  # only catalogs take rules
        call = self.query.call
        _, ruled = self.catalog._bind_call(
            call.get("score"), call.get("params"), self.query.rules, None
        )
        return None if ruled is None else ruled.bound


LawOf: TypeAlias = Callable[[int], _Law]  # of a row of the batch


def _refuse_rules(where: str, need: str, rules: Rules | None) -> None:
    """Raise ValueError for rules that make a place's law depend on the places above."""
    if rules is not None and rules.is_sequential:
        what = "slate weights" if need == "slate_weights" else "marginals of places"
        raise ValueError(
            f"estimators: {where}: {what} are not known under {shown(rules)}, where what may stand"
            f" at a place depends on what stands above it: use rules that are filters and boosts"
            f" alone, or give a"
            f" column of {need}"
        )
