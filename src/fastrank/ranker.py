"""Ranker: checks calls and hands them to the native core, wherever the scores come from.

A source of scores (`fastrank.catalog`, `fastrank.given`) is a `Ranker` with a native table of its
own. The head of a law is drawn here, by one more pass; samplers know nothing of it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

from fastrank import _native, walk
from fastrank.arraytypes import Float32Array, FloatArray, Positions
from fastrank.ask import (
    BEST,
    FLAT_TAIL,
    Ask,
    AskBatch,
    Bound,
    Drawn,
    DrawnBatch,
    Found,
    Spec,
    Table,
    spec_of,
)
from fastrank.expressions import Params
from fastrank.features import Features, Joint
from fastrank.ids import PADDING, Ids, Listed, Lookup, is_compact, listed
from fastrank.inputs import as_column, as_count, as_seed, draw_seed, draw_seeds, shown
from fastrank.lru import LRU
from fastrank.policies import PlackettLuce, Policy
from fastrank.ranking import Candidates, Filters, Ranking, RankingBatch, new_ranking
from fastrank.ruled import BoundRules, bind_rules
from fastrank.rules import Rules
from fastrank.seen import Seen

__all__ = [
    "RNG_VERSION",
    "Ranker",
    "draws_as",
    "each_of",
    "is_one",
]

# ext/kernels.h says what the version pins.
RNG_VERSION = 2
"""The same seed, inputs and RNG_VERSION give the same ranking."""
# What version 2 draws differently from version 1, in addition to "gumbel" over codes.
_NEW_IN_2 = frozenset({"cached", "uniform"})

_MANY = 4096  # ids of a filter above which it is not copied
_NO_RULES = Rules()
_new = tuple.__new__  # makes a NamedTuple in a third of the time of its own constructor
_MOST_THREADS = 1 << 16  # any integer is accepted; no catalog has work for more


class Ranker:
    """Items with ids, and a native table of their scores.

    A subclass sets `_n_items`, `_index`, `_packed` and `_version`, and also `_tables` if the same
    scores may be asked for again; without `_tables` the sampler "cached" is refused.
    """

    _n_items: int
    _index: Lookup
    _packed: _native.PackedCatalog
    _version: str
    _items_digest: str = ""  # of the item ids, where lists of them are stored
    _tables: LRU[tuple[bytes, float], Table] | None = None  # by query and temperature
    _ready: LRU[tuple[bytes, float], Table]  # likewise, from a model's files; beside `_tables`
    _rules: LRU[tuple[str, str], BoundRules]
    tables_made: int = 0  # by a pass, for rankings that needed one

    @property
    def has_codes(self) -> bool:
        """Whether passes read codes of the vectors, as with int8 storage."""
        return False

    def _rank(
        self,
        query: Float32Array,
        k: int,
        policy: Policy,
        seed: int | None,
        exclude: Ids | None,
        allow: Ids | None,
        bias: Float32Array | None,
        threads: int,
        bound: Bound | None = None,
        ruled: Ruled | None = None,
        seen: Seen | None = None,
    ) -> Ranking:
        """Draw one ranking; all but query, bias, score and rules are as the caller passed them.

        The bias is a copy, by row: the ranking keeps it, and copies of the filters.
        """
        k, spec = as_count("k", k), self._spec(policy)
        seed = draw_seed() if seed is None else as_seed("seed", seed)
        left_out = only = excluded = allowed = None
        if exclude is not None:
            left_out, excluded = self._filter("exclude", exclude)
        if allow is not None:
            only, allowed = self._filter("allow", allow)
        if seen is not None:
            excluded = _with(excluded, self._seen("seen", seen))
        own_bias = None if bias is None else self._stored(bias)
        places = min(k, self._n_items)
        threads = as_threads(threads)
        ask = _new(Ask, (query, places, spec, seed, excluded, allowed, own_bias, threads, bound))
        (
            positions,
            scores,
            log_propensities,
            log_norm,
            log_norm_error,
            n_scored,
            from_table,
            n_eligible,
            candidates,
        ) = self._draw(ask) if ruled is None else self._draw_ruled(ask, policy, k, ruled)
        return new_ranking(  # positional, in the order of the fields: keywords take 0.7 us more
            self._index.ids[positions],
            scores,
            log_propensities,
            float(np.add.reduce(log_propensities)),
            seed,
            policy,
            log_norm if spec.has_norm else None,
            n_eligible,
            self._version,
            _kind_of(log_norm_error),
            log_norm_error,
            k,
            left_out,
            only,
            bias,
            None,
            None,
            _made_by(from_table, candidates),
            n_scored,
            candidates,
            None if bound is None else bound.score,
            _version_of(bound, ruled),
            None if ruled is None else ruled.bound.applied,
            None if ruled is None else ruled.ids,
            None if seen is None else seen.id,
        )

    def _draw_ruled(self, ask: Ask, policy: Policy, k: int, ruled: Ruled) -> Drawn:
        ask = self._under(ask, policy, k, ruled)
        if not ruled.bound.is_walked:
            return self._draw(ask)
        return walk.draw(self, ask, ruled.bound, ruled.after)

    def _under(self, ask: Ask, policy: Policy, k: int, ruled: Ruled) -> Ask:
        """The call with the filters and boosts of its rules, and without items that pages before
        showed."""
        bound = ruled.bound
        bound.check(policy, k)
        allowed, excluded = ask.allowed, ask.excluded
        if bound.where is not None and allowed is not None:
            allowed = allowed[bound.where[allowed]]
        elif bound.allowed is not None:
            allowed = bound.allowed
        elif bound.excluded is not None:
            excluded = _with(excluded, bound.excluded)
        ask = ask._replace(allowed=allowed, excluded=excluded)
        if bound.pins:
            words, _ = self._eligible(excluded, allowed)

            def is_eligible(position: int) -> bool:
                lanes = 0xFFFF if words is None else int(words[position // _native.LANES])
                return bool(lanes >> position % _native.LANES & 1)

            bound.check_pins(is_eligible, ruled.after, self._index.ids)
        if len(ruled.after):
            after = np.array(ruled.after, np.int64)
            ask = ask._replace(excluded=_with(excluded, after))
        bias = bound.bias(ask.spec.temperature)
        return ask if bias is None else self._boosted(ask, bias.astype(np.float32))

    def _boosted(self, ask: Ask, bias: Float32Array) -> Ask:
        """The call with more bias (n,), by position."""
        return ask._replace(bias=bias if ask.bias is None else ask.bias + bias)

    def _bind_rules(
        self, rules: Any, after: Any, params: Params, features: Features | None
    ) -> Ruled | None:
        """The rules of a call, and the pages before it; None if there are neither."""
        if rules is None and after is None:
            return None
        if rules is None:
            rules = _NO_RULES
        if not isinstance(rules, Rules):
            raise ValueError(f"rules: expected Rules, got {shown(rules)}")
        key = rules.id, json.dumps(sorted(params.items()))
        bound = self._rules.get(key)
        if bound is None:
            bound = bind_rules(rules, params, features, self._n_items, self._index.find)
            self._rules.put(key, bound, bound.nbytes)
        ids, positions = self._pages_before(after, bound)
        return Ruled(bound, positions, ids)

    def _pages_before(self, after: Any, bound: BoundRules) -> tuple[Listed | None, list[int]]:
        """Ids and positions of the items that the pages before showed, the first place first."""
        if after is None:
            return None, []
        if isinstance(after, Ranking):
            after = self._shown_until(after, bound)
        ids = listed("after", after)
        ids = ids.copy()
        positions = self._index.find("after", ids, ordered=True)
        unknown = np.flatnonzero(positions < 0)
        if unknown.size:
            one = ids[unknown[0]]
            own = one.item() if isinstance(one, np.generic) else one
            raise ValueError(f"after: {shown(own)} is not in the catalog")
        found: list[int] = positions.tolist()
        seen: set[int] = set()
        for position in found:
            if position in seen:
                raise ValueError(f"after: {shown(self._index.ids[position].item())} is there twice")
            seen.add(position)
        return ids, found

    def _shown_until(self, page: Ranking, bound: BoundRules) -> list[Any]:
        """Items that a page and those before it showed."""
        if page.catalog_version != self._version:
            raise ValueError(
                f"after: the page is of the catalog {page.catalog_version[:12]!r}, this one is"
                f" {self._version[:12]!r}"
            )
        own = _NO_RULES if page.rules is None else page.rules.rules
        if own != bound.applied.rules:
            raise ValueError(
                f"after: the page was ranked by other rules: {shown(own)}, not"
                f" {shown(bound.applied.rules)}"
            )
        params = {} if page.rules is None else page.rules.params
        if params != bound.applied.params:
            raise ValueError(
                f"after: the page was ranked with the parameters {shown(dict(params))}, not"
                f" {shown(dict(bound.applied.params))}"
            )
        if page.features_version != bound.features_version and bound.features_version is not None:
            raise ValueError("after: the page was ranked by other columns")
        before = [] if page.after is None else list(page.after)
        return [*before, *page.item_ids.tolist()]

    def _draw(self, ask: Ask) -> Drawn:
        spec = ask.spec
        if spec.head:
            return self._draw_below(ask)
        query, k, _, seed, excluded, allowed, bias, threads, bound = ask
        eligible, n_eligible = self._eligible(excluded, allowed)
        if spec.kind == FLAT_TAIL:
            return self._draw_flat_tail(ask, eligible, n_eligible)
        table = None
        if spec.kind == _native.TABLE:
            if bias is None:
                table = self._table(query, spec.temperature, bound)
            else:  # a table knows only the catalog's own scores
                spec = spec._replace(kind=_native.GUMBEL)
        drawn = self._packed.rank(
            query,
            k,
            spec.kind,
            spec.temperature,
            spec.epsilon,
            seed,
            bias,
            eligible,
            n_eligible,
            threads,
            table,
            None if bound is None else bound.function,
        )
        return (*drawn, n_eligible, None)

    def _draw_labelled(self, ask: Ask, joint: Joint) -> tuple[Drawn, FloatArray, float]:
        """Draw in one pass, which sums the mass of undrawn items by label, relative to a score."""
        eligible, n_eligible = self._eligible(ask.excluded, ask.allowed)
        drawn = self._packed.rank(
            *(ask.query, ask.k, _native.GUMBEL, ask.spec.temperature, 0.0, ask.seed, ask.bias),
            *(eligible, n_eligible, ask.threads, None),
            None if ask.bound is None else ask.bound.function,
            labels=joint.labels,
            n_labels=joint.n_labels,
        )
        return (*drawn[:7], n_eligible, None), drawn[7], drawn[8]

    def _draw_flat_tail(
        self, ask: Ask, eligible: npt.NDArray[np.uint16] | None, n_eligible: int
    ) -> Drawn:
        spec = ask.spec
        _refuse_score(ask.bound)
        found = self._find_candidates(
            ask.query, spec.m, ask.bias, ask.excluded, ask.allowed, eligible, n_eligible
        )
        drawn = self._packed.rank_flat_tail(
            ask.query,
            ask.k,
            spec.temperature,
            spec.factor,
            ask.seed,
            found.positions,
            found.scores,
            ask.bias,
            eligible,
            n_eligible,
        )
        candidates = Candidates(
            *drawn[7:], len(found.positions), found.index_version, found.n_probes
        )
        n_scored = drawn[5] if found.index_version is not None else n_eligible
        return (*drawn[:5], n_scored, drawn[6], n_eligible, candidates)

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
        """The best of the eligible items, at most m: here exactly the best, found by a pass."""
        positions, scores = self._packed.rank(
            query, m, _native.DETERMINISTIC, 1.0, 0.0, 0, bias, eligible, n_eligible
        )[:2]
        return Found(positions, scores)

    def _draw_below(self, ask: Ask) -> Drawn:
        """Draw a head of the best items, and the rest with the head excluded."""
        k, head = ask.k, ask.spec.head
        best = self._draw(ask._replace(k=min(k, head), spec=BEST))
        if k <= head:
            return best
        positions, scores, log_propensities, _, _, n_scored, _, n_eligible, _ = best
        below = self._draw(
            ask._replace(
                k=k - head,
                spec=ask.spec._replace(head=0),
                excluded=_with(ask.excluded, positions),
            )
        )
        return (
            np.concatenate([positions, below[0]]),
            np.concatenate([scores, below[1]]),
            np.concatenate([log_propensities, below[2]]),
            *below[3:5],
            n_scored + below[5],
            below[6],
            n_eligible,
            None,
        )

    def _table(self, query: Float32Array, temperature: float, bound: Bound | None) -> Table:
        """The table of a query, kept for the next call if there is room."""
        kept = self._kept(key_of(query, temperature, bound))
        if kept is not None:
            return kept
        try:
            return self._tables_of([(query, temperature, bound)], 1)[0]
        except ValueError as error:
            raise ValueError(str(error).removeprefix("queries: row 0: ")) from None

    def _kept(self, key: tuple[bytes, float]) -> Table | None:
        assert self._tables is not None  # by `_spec`
        ready = self._ready.get(key)
        return self._tables.get(key) if ready is None else ready

    def _tables_of(
        self, wanted: list[tuple[Float32Array, float, Bound | None]], threads: int
    ) -> list[Table]:
        """A table for each query, temperature and score; missing ones are made together."""
        cache = self._tables
        assert cache is not None  # by `_spec`
        keys = [key_of(*each) for each in wanted]
        found = {key: self._kept(key) for key in keys}
        new = [key for key, table in found.items() if table is None]
        if new:
            own = dict(zip(keys, wanted, strict=True))
            self.tables_made += len(new)
            bounds = [own[key][2] for key in new]
            depths, tops = self._packed.make_tables(
                np.array([own[key][0] for key in new]),
                np.array([temperature for _, temperature in new]),
                threads,
                [None if bound is None else bound.function for bound in bounds],
            )
            for key, row, top in zip(new, depths, tops.tolist(), strict=True):
                # A row is copied out of a batch, so that keeping it does not keep the whole
                # batch.
                made = Table(row.copy() if len(new) > 1 else row, *top)
                found[key] = made
                cache.put(key, made, made.nbytes)
        return [table for key in keys if (table := found[key]) is not None]

    def _rank_batch(
        self,
        queries: Float32Array,
        k: int,
        policy: Policy | Sequence[Policy],
        seeds: Sequence[int] | npt.NDArray[Any] | None,
        exclude: Sequence[Ids | None] | None,
        allow: Sequence[Ids | None] | None,
        biases: Float32Array | None,
        threads: int,
        bounds: list[Bound | None] | None = None,
        ruled: list[Ruled | None] | None = None,
        seen: Sequence[Seen | None] | None = None,
    ) -> RankingBatch:
        """Draw one ranking for each query; the rest as for `_rank`."""
        b = len(queries)
        k = as_count("k", k)
        places = min(k, self._n_items)
        policies, specs = self._specs(policy, b)
        drawn_by = as_seeds(seeds, b)
        left_out, excluded = self._filters("exclude", exclude, b)
        only, allowed = self._filters("allow", allow, b)
        lists = None if seen is None else each_of("seen", seen, b)
        for i, each in enumerate(lists or ()):
            if each is not None:
                excluded[i] = _with(excluded[i], self._seen(f"seen[{i}]", each))
        own_biases = None if biases is None else self._stored(biases)
        ask = AskBatch(
            queries,
            places,
            specs,
            drawn_by,
            excluded,
            allowed,
            own_biases,
            as_threads(threads),
            bounds,
        )
        if ruled is None:
            drawn = self._draw_batch(ask)
        else:
            drawn = self._draw_batch_ruled(ask, policies, k, ruled)
        positions, scores, log_propensities = drawn[:3]
        log_norm, log_norm_error, counts, n_eligible = drawn[3:7]
        ids = self._index.ids[positions]
        short = np.flatnonzero(counts < places)
        if short.size:
            past = np.arange(places) >= counts[:, None]
            ids[past] = "" if ids.dtype.kind == "U" else -1
            scores[past] = np.nan
            log_propensities[past] = np.nan
        log_propensity = log_propensities.sum(axis=1)
        for i in short.tolist():
            log_propensity[i] = log_propensities[i, : counts[i]].sum()
        return RankingBatch(
            item_ids=ids,
            scores=scores,
            log_propensities=log_propensities,
            counts=counts,
            log_propensity=log_propensity,
            log_norm=log_norm,
            seeds=np.array(drawn_by, np.uint64),
            n_eligible=n_eligible,
            policies=policies,
            catalog_version=self._version,
            propensity_kind=tuple(map(_kind_of, log_norm_error)),
            log_norm_error=log_norm_error,
            made_by=tuple("table" if each else "pass" for each in drawn.from_table.tolist())
            if drawn.candidates is None
            else tuple(map(_made_by, drawn.from_table.tolist(), drawn.candidates)),
            n_scored=drawn.n_scored,
            k=k,
            exclude=left_out,
            allow=only,
            bias=biases,
            candidates=None if drawn.candidates is None else tuple(drawn.candidates),
            scores_by=None
            if bounds is None
            else tuple(None if bound is None else bound.score for bound in bounds),
            features_version=_features_version(bounds, ruled),
            rules=None
            if ruled is None
            else tuple(None if each is None else each.bound.applied for each in ruled),
            after=None
            if ruled is None
            else tuple(None if each is None else each.ids for each in ruled),
            seen_ids=None
            if lists is None
            else tuple(None if each is None else each.id for each in lists),
        )

    def _draw_batch_ruled(
        self, ask: AskBatch, policies: Sequence[Policy], k: int, ruled: list[Ruled | None]
    ) -> DrawnBatch:
        """Draw rows under rules; they begin with orders that are drawn together."""
        b = len(ask.specs)
        asks = []
        for i, each in enumerate(ruled):
            try:
                one = ask.one(i)
                asks.append(one if each is None else self._under(one, policies[i], k, each))
            except ValueError as error:
                raise ValueError(f"row {i}: {error}") from None
        drawn = DrawnBatch.empty(b, ask.k)._replace(candidates=[None] * b)
        walked = [i for i, each in enumerate(ruled) if each is not None and each.bound.is_walked]
        are_walked = {*walked}
        others = [i for i in range(b) if i not in are_walked]
        if others:
            drawn.put(others, 0, self._draw_batch(AskBatch.joined([asks[i] for i in others])))
        firsts = self._draw_firsts(asks, ruled, walked)
        for i in walked:
            own = ruled[i]
            assert own is not None
            try:
                one_drawn = walk.draw(self, asks[i], own.bound, own.after, firsts.get(i))
            except ValueError as error:
                raise ValueError(f"queries: row {i}: {error}") from None
            drawn.put_one(i, one_drawn)
        if not any(drawn.candidates or ()):
            return drawn._replace(candidates=None)
        return drawn

    def _draw_firsts(
        self, asks: list[Ask], ruled: list[Ruled | None], rows: list[int]
    ) -> dict[int, walk.First]:
        """Draw the orders with which the lists of some rows begin, where their policies have one;
        rows whose passes sum by the same labels share a pass."""
        together: dict[tuple[int, int], tuple[Joint | None, list[int], list[Ask]]] = {}
        for i in rows:
            own = ruled[i]
            assert own is not None
            if walk.draws_order(asks[i].spec):
                n_eligible = self._eligible(asks[i].excluded, asks[i].allowed)[1]
                ask, joint = walk.first_of(self, asks[i], own.bound, n_eligible, own.after)
                _, users, wanted = together.setdefault((id(joint), ask.k), (joint, [], []))
                users.append(i)
                wanted.append(ask)
        firsts: dict[int, walk.First] = {}
        for joint, users, wanted in together.values():
            joined = AskBatch.joined(wanted)
            if joint is None:
                drawn = self._draw_batch(joined)
                firsts |= {i: walk.First(drawn.one(row)) for row, i in enumerate(users)}
                continue
            drawn, masses, references = self._draw_batch_labelled(joined, joint)
            for row, i in enumerate(users):
                reference = float(references[row])
                firsts[i] = walk.First(drawn.one(row), joint, masses[row], reference)
        return firsts

    def _draw_batch_labelled(
        self, ask: AskBatch, joint: Joint
    ) -> tuple[DrawnBatch, FloatArray, FloatArray]:
        drawn = self._packed.rank_batch(
            *_columns_of(ask), None, ask.functions, labels=joint.labels, n_labels=joint.n_labels
        )
        return DrawnBatch(*drawn[:9]), drawn[9], drawn[10]

    def _draw_batch(self, ask: AskBatch) -> DrawnBatch:
        """Draw one row per user, each as `_draw` does."""
        specs = ask.specs
        if any(spec.kind == FLAT_TAIL for spec in specs):
            return self._draw_batch_flat(ask)
        if any(spec.head for spec in specs):
            return self._draw_batch_below(ask)
        tabled = [i for i, spec in enumerate(specs) if spec.kind == _native.TABLE]
        tables: list[tuple[npt.NDArray[np.uint32], float, float] | None] | None = None
        if tabled and ask.biases is not None:  # a table knows only the catalog's own scores
            specs = [
                spec._replace(kind=_native.GUMBEL) if spec.kind == _native.TABLE else spec
                for spec in specs
            ]
        elif tabled:
            self._packed.check(ask.queries)  # before tables are made
            tables = [None] * len(specs)
            wanted = [(ask.queries[i], specs[i].temperature, ask.bound_of(i)) for i in tabled]
            for i, table in zip(tabled, self._tables_of(wanted, ask.threads), strict=True):
                tables[i] = table
        own = ask._replace(specs=specs)
        return DrawnBatch(*self._packed.rank_batch(*_columns_of(own), tables, ask.functions))

    def _draw_batch_below(self, ask: AskBatch) -> DrawnBatch:
        """Draw users grouped by the length of their heads, since those passes differ in places."""
        k = ask.k
        drawn = DrawnBatch.empty(len(ask.specs), k)
        for head in sorted({spec.head for spec in ask.specs}):
            users = [i for i, spec in enumerate(ask.specs) if spec.head == head]
            own = ask.of(users)
            if head:
                best = self._draw_batch(own._replace(k=min(k, head), specs=[BEST] * len(users)))
                drawn.put(users, 0, best)
                own = own._replace(
                    excluded=[
                        _with(each, shown[:m])
                        for each, shown, m in zip(
                            own.excluded, best.positions, best.counts.tolist(), strict=True
                        )
                    ]
                )
            if k > head:
                specs = [spec._replace(head=0) for spec in own.specs]
                below = self._draw_batch(own._replace(k=k - head, specs=specs))
                drawn.put(users, head, below)
        return drawn

    def _draw_batch_flat(self, ask: AskBatch) -> DrawnBatch:
        """Draw users of flat tails one by one: each needs candidates of their own."""
        b = len(ask.specs)
        candidates: list[Candidates | None] = [None] * b
        drawn = DrawnBatch.empty(b, ask.k)._replace(candidates=candidates)
        others = [i for i, spec in enumerate(ask.specs) if spec.kind != FLAT_TAIL]
        if others:
            drawn.put(others, 0, self._draw_batch(ask.of(others)))
        for i in range(b):
            if ask.specs[i].kind != FLAT_TAIL:
                continue
            try:
                one = self._draw(ask.one(i))
            except ValueError as error:
                raise ValueError(f"queries: row {i}: {error}") from None
            drawn.put_one(i, one)
        return drawn

    def _judge(
        self,
        query: Float32Array,
        name: str,
        ranking: Ids,
        policy: Policy,
        exclude: Ids | None,
        allow: Ids | None,
        bias: Float32Array | None,
        bound: Bound | None = None,
        ruled: Ruled | None = None,
        k: int | None = None,
    ) -> FloatArray:
        """Log-propensities of any ranking, called `name` in errors; the rest as for `_rank`."""
        positions = self._index.find(name, ranking, ordered=True)
        places = _places(positions, k)
        excluded, allowed = self._find("exclude", exclude), self._find("allow", allow)
        own_bias = None if bias is None else self._stored(bias)
        if ruled is not None:
            return self._judge_ruled(
                query, positions, policy, excluded, allowed, own_bias, bound, ruled, places
            )
        eligible, n_eligible = self._eligible(excluded, allowed)
        spec = spec_of(policy)
        if spec.kind == FLAT_TAIL:
            _refuse_score(bound)
            return self._judge_flat_tail(
                query, positions, spec, own_bias, excluded, allowed, eligible, n_eligible
            )
        function = None if bound is None else bound.function
        return self._log_propensities(
            self._packed, query, positions, spec, own_bias, eligible, n_eligible, function
        )

    def _judge_ruled(
        self,
        query: Float32Array,
        positions: Positions,
        policy: Policy,
        excluded: Positions | None,
        allowed: Positions | None,
        bias: Float32Array | None,
        bound: Bound | None,
        ruled: Ruled,
        places: int,
    ) -> FloatArray:
        spec = spec_of(policy)
        if spec.kind == FLAT_TAIL:
            _refuse_score(bound)
        k = min(places, self._n_items)
        ask = Ask(query, k, spec, 0, excluded, allowed, bias, 1, bound)
        ask = self._under(ask, policy, places, ruled)
        return walk.judge(self, ask, positions.tolist(), ruled.bound, ruled.after)

    def _count_allowed(
        self,
        query: Float32Array,
        ranking: Ids,
        exclude: Ids | None,
        allow: Ids | None,
        ruled: Ruled,
        k: int,
    ) -> int:
        """Count the items that rules allow after the first items of a list of k places. O(n)."""
        policy = PlackettLuce()  # what rules allow does not depend on the law
        excluded, allowed = self._find("exclude", exclude), self._find("allow", allow)
        places = min(k, self._n_items)
        ask = Ask(query, places, spec_of(policy), 0, excluded, allowed, None, 1, None)
        ask = self._under(ask, policy, k, ruled)
        positions = self._index.find("item_ids", ranking, ordered=True)
        return walk.count_allowed(self, ask, positions.tolist(), ruled.bound, ruled.after)

    def _found(self, ask: Ask) -> Found:
        """The candidates of a flat tail."""
        eligible, n_eligible = self._eligible(ask.excluded, ask.allowed)
        return self._find_candidates(
            ask.query, ask.spec.m, ask.bias, ask.excluded, ask.allowed, eligible, n_eligible
        )

    def _judge_flat_tail(
        self,
        query: Float32Array,
        positions: Positions,
        spec: Spec,
        bias: Float32Array | None,
        excluded: Positions | None,
        allowed: Positions | None,
        eligible: npt.NDArray[np.uint16] | None,
        n_eligible: int,
    ) -> FloatArray:
        found = self._find_candidates(query, spec.m, bias, excluded, allowed, eligible, n_eligible)
        result: FloatArray = self._packed.flat_tail_log_propensities(
            query,
            positions,
            spec.temperature,
            spec.factor,
            found.positions,
            found.scores,
            bias,
            eligible,
            n_eligible,
        )
        return result

    def _judge_batch(
        self,
        table: _native.PackedCatalog,
        scores_of: Callable[..., Float32Array],
        queries: Float32Array,
        item_ids: Sequence[Ids],
        policies: Sequence[Policy | Sequence[Policy]],
        exclude: Sequence[Ids | None] | None,
        allow: Sequence[Ids | None] | None,
        biases: Float32Array | None,
        bounds: list[Bound | None] | None = None,
        ruled: list[Ruled | None] | None = None,
        ks: Sequence[int | None] | None = None,
    ) -> FloatArray:
        """Log-propensities (p, b, k) of a ranking for each query, under each of p policies.

        `scores_of` returns all items' scores, by position, for a query, its bias and, if the source
        takes scores, the function of its score; `table` is one of given scores, which judges by
        them. The rest is as the caller passed it, except for queries, biases and scores.
        """
        b = len(queries)
        rankings = self._find_rankings(each_of("item_ids", item_ids, b))
        by_row: list[list[Policy]] = []
        specs: list[list[Spec]] = []
        for j, each in enumerate(as_column("policies", policies, "a sequence of policies")):
            if is_one(each):
                by_row.append([each] * b)
                specs.append([spec_of(each, f"policies[{j}]")] * b)
                continue
            by_row.append(list(each_of(f"policies[{j}]", each, b)))
            specs.append(
                [spec_of(one, f"policies[{j}]: row {i}") for i, one in enumerate(by_row[-1])]
            )
        _, excluded = self._filters("exclude", exclude, b)
        _, allowed = self._filters("allow", allow, b)
        own_biases = None if biases is None else self._stored(biases)
        places = max(map(len, rankings), default=0)
        if not is_compact(b, places, sum(map(len, rankings))):
            row = max(range(b), key=lambda i: len(rankings[i]))
            raise ValueError(
                f"item_ids[{row}]: its {places:,} places make each of {b:,} rankings as wide, over"
                f" {PADDING} times what they hold in all; pass it by itself"
            )
        result = np.full((len(specs), b, places), np.nan)
        kinds = [{spec.kind for spec in row} for row in zip(*specs, strict=True)]
        scores, before = np.empty(0, np.float32), None
        for i, positions in enumerate(rankings):
            eligible, n_eligible = self._eligible(excluded[i], allowed[i])
            own_bias = None if own_biases is None else own_biases[i % len(own_biases)]
            bound = None if bounds is None else bounds[i]
            own_rules = None if ruled is None else ruled[i]
            try:
                own_places = _places(positions, None if ks is None else ks[i])
            except ValueError as error:
                raise ValueError(f"k: row {i}: {str(error).removeprefix('k: ')}") from None
            if own_rules is not None:
                own_policies = [of_policy[i] for of_policy in by_row]
                try:
                    for j, one in enumerate(own_policies):
                        result[j, i, : len(positions)] = self._judge_ruled(
                            queries[i],
                            positions,
                            one,
                            excluded[i],
                            allowed[i],
                            own_bias,
                            bound,
                            own_rules,
                            own_places,
                        )
                except ValueError as error:
                    raise ValueError(f"queries: row {i}: {error}") from None
                continue
            for j, of_policy in enumerate(specs):
                if of_policy[i].kind == FLAT_TAIL:
                    _refuse_score(bound)
                    result[j, i, : len(positions)] = self._judge_flat_tail(
                        queries[i],
                        positions,
                        of_policy[i],
                        own_bias,
                        excluded[i],
                        allowed[i],
                        eligible,
                        n_eligible,
                    )
            if kinds and kinds[i] == {FLAT_TAIL}:
                continue
            key = (
                queries[i].tobytes(),
                i if own_biases is not None and len(own_biases) > 1 else 0,
                b"" if bound is None else bound.key,
            )
            if key != before:
                functions = [] if bound is None else [bound.function]
                try:
                    scores, before = scores_of(queries[i], own_bias, *functions), key
                except ValueError as error:
                    if bound is not None and eligible is not None:
                        # An item that the filter leaves out may have no score.
                        self._judge_row(
                            result[:, i],
                            queries[i],
                            positions,
                            [of_policy[i] for of_policy in specs],
                            own_bias,
                            eligible,
                            n_eligible,
                            bound,
                            i,
                        )
                        continue
                    text = str(error).removeprefix("query: ")
                    raise ValueError(f"queries: row {i}: {text}") from None
            for j, of_policy in enumerate(specs):
                if of_policy[i].kind == FLAT_TAIL:
                    continue
                result[j, i, : len(positions)] = self._log_propensities(
                    table, scores, positions, of_policy[i], None, eligible, n_eligible
                )
        return result

    def _judge_row(
        self,
        result: FloatArray,
        query: Float32Array,
        positions: Positions,
        specs: list[Spec],
        bias: Float32Array | None,
        eligible: npt.NDArray[np.uint16],
        n_eligible: int,
        bound: Bound,
        row: int,
    ) -> None:
        """One row of `_judge_batch`, one pass per policy; only eligible items are read."""
        for j, spec in enumerate(specs):
            try:
                result[j, : len(positions)] = self._log_propensities(
                    self._packed,
                    query,
                    positions,
                    spec,
                    bias,
                    eligible,
                    n_eligible,
                    bound.function,
                )
            except ValueError as error:
                raise ValueError(f"queries: row {row}: {error}") from None

    def _log_propensities(
        self,
        table: _native.PackedCatalog,
        query: Float32Array,
        positions: Positions,
        spec: Spec,
        bias: Float32Array | None,
        eligible: npt.NDArray[np.uint16] | None,
        n_eligible: int,
        function: _native.Function | None = None,
    ) -> FloatArray:
        def by(kind: int, temperature: float, epsilon: float) -> FloatArray:
            return table.log_propensities(
                query, positions, kind, temperature, epsilon, bias, eligible, n_eligible, function
            )

        found = by(spec.kind, spec.temperature, spec.epsilon)
        if spec.head:  # each place is conditional on the items above it, however they were placed
            best = by(_native.DETERMINISTIC, 1.0, 0.0)
            found[: spec.head] = best[: spec.head]
        return found

    # ---- Of what is ranked ------------------------------------------------------------------

    def _stored(self, values: Float32Array) -> Float32Array:
        """Values by row, reordered by position."""
        return values

    def _spec(self, policy: Policy, name: str = "policy") -> Spec:
        """How to draw by a policy from these scores."""
        spec = spec_of(policy, name)
        if spec.kind == _native.TABLE and self._tables is None:
            raise ValueError(
                f"{name}: the sampler 'cached' keeps a table of masses for the next call, and"
                " these scores have none: use 'gumbel', which draws by the same law"
            )
        return spec

    def _specs(
        self, policy: Policy | Sequence[Policy], b: int
    ) -> tuple[tuple[Policy, ...], list[Spec]]:
        """One policy for all of b users, or one for each."""
        if is_one(policy):
            return (policy,) * b, [self._spec(policy)] * b
        policies = tuple(each_of("policy", policy, b))
        return policies, [self._spec(each, f"policy: row {i}") for i, each in enumerate(policies)]

    # ---- Ids --------------------------------------------------------------------------------

    def _find(self, name: str, ids: Ids | None) -> Positions | None:
        """Positions of the known ids."""
        if ids is None:
            return None
        positions = self._index.find(name, ids)
        return positions[positions >= 0]

    def _filter(self, name: str, ids: Ids) -> tuple[Listed, Positions]:
        """The ids of a filter, as a copy of the caller's list or array, and positions of the known
        ones."""
        own = listed(name, ids)
        if type(ids) is not list or own is ids:  # an array was made of a list of integers
            own = own.copy()
        positions = self._index.find_listed(name, own)
        if len(positions) > _MANY and positions.min() >= 0:
            return own, positions  # copying many ids costs more than this check
        return own, positions[positions >= 0]

    def _seen(self, name: str, seen: Any) -> Positions:
        """Positions of a user's list, in O(m); a damaged file may hold others."""
        if not isinstance(seen, Seen):
            raise ValueError(f"{name}: expected what Model.seen returns, got {shown(seen)}")
        if seen.catalog != self._items_digest:
            raise ValueError(f"{name}: is of another catalog's items")
        if seen.items.max(initial=0) >= self._n_items:
            raise ValueError(
                f"damaged: seen_items: {seen.items.max()} is none of {self._n_items} items"
            )
        return seen.items.astype(np.int64)

    def _find_rankings(self, rankings: Sequence[Any]) -> list[Positions]:
        dtypes = {
            each.dtype.str if type(each) is np.ndarray and each.ndim == 1 else None
            for each in rankings
        }
        if len(dtypes) == 1 and None not in dtypes:  # NumPy would make one of several
            lengths = [len(each) for each in rankings]
            with contextlib.suppress(ValueError):  # each is checked by itself below
                found = self._index.find("item_ids", np.concatenate(rankings))
                return np.split(found, np.cumsum(lengths)[:-1])
        return [
            self._index.find(f"item_ids[{i}]", each, ordered=True)
            for i, each in enumerate(rankings)
        ]

    def _filters(
        self, name: str, ids: Sequence[Ids | None] | None, b: int
    ) -> tuple[Filters | None, list[Positions | None]]:
        """The filter of each user, as `_filter`; ids that users share as one object are found
        once."""
        if ids is None:
            return None, [None] * b
        each = list(each_of(name, ids, b))  # keeps them alive, so that no id() is reused
        found: dict[int, tuple[Listed | None, Positions | None]] = {id(None): (None, None)}
        for i, these in enumerate(each):
            if id(these) not in found:
                found[id(these)] = self._filter(f"{name}[{i}]", these)
        filters = [found[id(these)] for these in each]
        return tuple(own for own, _ in filters), [positions for _, positions in filters]

    def _eligible(
        self, excluded: Positions | None, allowed: Positions | None
    ) -> tuple[npt.NDArray[np.uint16] | None, int]:
        if excluded is None and allowed is None:
            return None, self._n_items
        bits, count = _native.make_filter(self._n_items, allowed, excluded)
        return bits, count


def _columns_of(ask: AskBatch) -> _Columns:
    """The arguments of a batch as columns for the core."""
    return (
        ask.queries,
        ask.k,
        np.array([spec.kind for spec in ask.specs], np.int32),
        np.array([spec.temperature for spec in ask.specs], np.float64),
        np.array([spec.epsilon for spec in ask.specs], np.float64),
        np.array(ask.seeds, np.uint64),
        ask.biases,
        ask.excluded,
        ask.allowed,
        ask.threads,
    )


_Columns: TypeAlias = tuple[
    Float32Array,
    int,
    npt.NDArray[np.int32],
    FloatArray,
    FloatArray,
    npt.NDArray[np.uint64],
    Float32Array | None,
    list[Positions | None],
    list[Positions | None],
    int,
]


def _places(positions: Positions, k: int | None) -> int:
    """How many places a ranking was drawn for."""
    if k is None:
        return max(1, len(positions))
    places = as_count("k", k)
    if len(positions) > places:
        raise ValueError(f"k: a ranking of {len(positions)} places has more than {places}")
    return places


class Ruled(NamedTuple):
    """The rules of a call, and the pages before it."""

    bound: BoundRules
    after: list[int]  # positions
    ids: Listed | None


def _version_of(bound: Bound | None, ruled: Ruled | None) -> str | None:
    """Version of the columns that the score or the rules use; both are of one catalog."""
    if ruled is not None and ruled.bound.features_version is not None:
        return ruled.bound.features_version
    return None if bound is None else bound.features_version


def key_of(query: Float32Array, temperature: float, bound: Bound | None) -> tuple[bytes, float]:
    """The key of a table: the scores, and the temperature."""
    scores = query.tobytes()
    return scores if bound is None else scores + bound.key, temperature


def _features_version(
    bounds: list[Bound | None] | None, ruled: list[Ruled | None] | None
) -> str | None:
    """Version of the columns of all rows, which are those of one catalog."""
    versions = [bound.features_version for bound in bounds or () if bound is not None]
    versions += [each.bound.features_version for each in ruled or () if each is not None]
    return next((version for version in versions if version is not None), None)


def _refuse_score(bound: Bound | None) -> None:
    if bound is not None:
        raise ValueError(
            "policy: FlatTail takes candidates that an index finds by dot products: it cannot use"
            f" the score {bound.score.name!r}"
        )


def _with(excluded: Positions | None, more: Positions) -> Positions:
    return more if excluded is None else np.concatenate([excluded, more])


def draws_as(rng_version: int, policy: Policy, ranker: Ranker) -> bool:
    """Whether a seed still draws what it drew with another `RNG_VERSION`."""
    if rng_version == RNG_VERSION:
        return True
    return (
        rng_version == 1
        and policy.sampler not in _NEW_IN_2
        and not (policy.sampler in ("gumbel", "auto") and ranker.has_codes)
    )


# ---- Arguments ------------------------------------------------------------------------------


def as_seeds(seeds: Sequence[int] | npt.NDArray[Any] | None, b: int) -> list[int]:
    """b seeds; drawn if none are given."""
    if seeds is None:
        return draw_seeds(b)
    given = each_of("seeds", seeds, b)
    if isinstance(given, np.ndarray) and given.ndim == 1 and given.dtype.kind == "u":
        found: list[int] = given.tolist()  # every unsigned integer is a seed
        return found
    return [as_seed(f"seeds[{i}]", seed) for i, seed in enumerate(given)]


def as_threads(value: object) -> int:
    threads = as_count("threads", value)
    return threads if threads < _MOST_THREADS else _MOST_THREADS


def is_one(policy: object) -> TypeGuard[Policy]:
    """Whether this is a single policy, or at least not a sequence of them."""
    return isinstance(policy, str) or not isinstance(policy, Iterable)


def each_of(name: str, values: Any, count: int) -> Sequence[Any]:
    """The values as a sequence of `count` entries."""
    expected = f"one entry for each of {count} users"
    column: Any = as_column(name, values, expected)
    entries: Sequence[Any] = column
    if len(entries) != count:
        raise ValueError(f"{name}: expected {expected}, got {len(entries)}")
    return entries


def _made_by(from_table: bool, candidates: Candidates | None) -> str:
    if candidates is not None and candidates.index_version is not None:
        return "index"
    return "table" if from_table else "pass"


def _kind_of(log_norm_error: float) -> str:
    return "bounded" if log_norm_error > 0.0 else "exact"
