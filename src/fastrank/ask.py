"""A call in the kernels' terms: what is asked of a table of scores, and the answer.

The caller has checked the arguments. Items are positions in the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fastrank import _native
from fastrank.arraytypes import Float32Array, FloatArray, Positions
from fastrank.policies import FlatTail, Law, Policy, is_frozen, law_of
from fastrank.ranking import Candidates, Score

__all__ = [
    "BEST",
    "ENTRY_BYTES",
    "FLAT_TAIL",
    "Ask",
    "AskBatch",
    "Bound",
    "Drawn",
    "DrawnBatch",
    "Found",
    "Spec",
    "Table",
    "spec_of",
]

_KINDS = {
    "deterministic": _native.DETERMINISTIC,
    "gumbel": _native.GUMBEL,
    "sequential": _native.SEQUENTIAL,
    "cached": _native.TABLE,
    "auto": _native.GUMBEL,  # a model with a ready table for the user makes it "cached"
    "epsilon_greedy": _native.EPSILON_GREEDY,
    "uniform": _native.UNIFORM,
}

# The laws that each kind draws: under any other law the log would have wrong propensities.
_DRAWS: dict[int, Callable[[Law], bool]] = {
    _native.DETERMINISTIC: lambda law: law.is_certain,
    _native.GUMBEL: lambda law: law.explore == 1.0 and law.temperature < np.inf,
    _native.SEQUENTIAL: lambda law: law.explore == 1.0 and law.temperature < np.inf,
    _native.TABLE: lambda law: law.explore == 1.0 and law.temperature < np.inf,
    _native.EPSILON_GREEDY: lambda law: law.temperature == np.inf,
    _native.UNIFORM: lambda law: law.explore == 1.0 and law.temperature == np.inf,
}


class Spec(NamedTuple):
    """A policy in the kernels' terms."""

    kind: int
    temperature: float
    epsilon: float
    head: int
    has_norm: bool  # whether rankings state it
    m: int = 0  # of FlatTail
    factor: float = 1.0


FLAT_TAIL = -1  # it has a call of its own in the core
BEST = Spec(_native.DETERMINISTIC, 1.0, 0.0, 0, False)


ENTRY_BYTES = 2048  # in the cache, for the key and objects of a table

_last: tuple[Policy | None, Spec] = (None, BEST)  # most calls repeat the policy of the previous one


def spec_of(policy: Policy, name: str = "policy") -> Spec:
    """How to draw by a policy; a ValueError if no sampler, or not its own, draws by that law."""
    global _last
    known, spec = _last
    if policy is known:
        return spec
    if isinstance(policy, FlatTail):
        spec = Spec(FLAT_TAIL, policy.temperature, 0.0, 0, True, policy.m, policy.factor)
    else:
        spec = _spec_of_law(policy, name)
    if is_frozen(policy):
        _last = policy, spec
    return spec


def _spec_of_law(policy: Policy, name: str) -> Spec:
    law, sampler = law_of(policy, name), policy.sampler
    kind = _KINDS.get(sampler) if isinstance(sampler, str) else None
    if kind is None:
        raise ValueError(f"{name}: no sampler of fastrank draws by it: {policy!r}")
    if not _DRAWS[kind](law):
        raise ValueError(f"{name}: its sampler {sampler!r} does not draw by {law}: {policy!r}")
    flat = law.temperature == np.inf
    return Spec(
        kind,
        1.0 if flat else law.temperature,
        law.explore if flat else 0.0,
        law.head,
        law.is_plackett_luce,
    )


class Table(NamedTuple):
    """Masses of all cells of a query at a temperature (ext/kernels.h, "Tables")."""

    depths: npt.NDArray[np.uint32]
    reference: float
    largest: float

    @property
    def nbytes(self) -> int:
        """Bytes, with the key and objects of a cache entry."""
        return self.depths.nbytes + ENTRY_BYTES


class Bound(NamedTuple):
    """A score with a catalog's columns and a call's parameters."""

    function: _native.Function
    score: Score
    key: bytes  # of its scores, in addition to the query's
    features_version: str | None  # None if it uses no columns


class Ask(NamedTuple):
    """A call, checked, in the kernels' terms; items are positions."""

    query: Float32Array
    k: int  # at most n
    spec: Spec
    seed: int
    excluded: Positions | None
    allowed: Positions | None
    bias: Float32Array | None
    threads: int
    bound: Bound | None = None


# Positions, scores, log-propensities, log_norm, its error, number of items scored, whether a table
# was used, n_eligible, and the candidates of a flat tail.
Drawn: TypeAlias = tuple[
    Positions, Float32Array, FloatArray, float, float, int, bool, int, Candidates | None
]


class AskBatch(NamedTuple):
    """The calls of b users: each field holds a row, or an entry of a list, per user."""

    queries: Float32Array
    k: int
    specs: list[Spec]
    seeds: list[int]
    excluded: list[Positions | None]
    allowed: list[Positions | None]
    biases: Float32Array | None  # (b, n), or (1, n) for all
    threads: int
    bounds: list[Bound | None] | None = None

    def one(self, i: int) -> Ask:
        """The call of one user."""
        return Ask(
            self.queries[i],
            self.k,
            self.specs[i],
            self.seeds[i],
            self.excluded[i],
            self.allowed[i],
            None if self.biases is None else self.biases[i % len(self.biases)],
            self.threads,
            self.bound_of(i),
        )

    @classmethod
    def joined(cls, asks: list[Ask]) -> AskBatch:
        """Join calls of the same number of places, one per user."""
        biases = None
        if any(ask.bias is not None for ask in asks):
            n_items = next(len(ask.bias) for ask in asks if ask.bias is not None)
            none = np.zeros(n_items, np.float32)
            biases = np.array([none if ask.bias is None else ask.bias for ask in asks])
        bounds = [ask.bound for ask in asks]
        return cls(
            np.array([ask.query for ask in asks]),
            asks[0].k,
            [ask.spec for ask in asks],
            [ask.seed for ask in asks],
            [ask.excluded for ask in asks],
            [ask.allowed for ask in asks],
            biases,
            asks[0].threads,
            bounds if any(bounds) else None,
        )

    def bound_of(self, i: int) -> Bound | None:
        """The score of one user."""
        return None if self.bounds is None else self.bounds[i]

    @property
    def functions(self) -> list[_native.Function | None] | None:
        """The compiled score of each user."""
        if self.bounds is None:
            return None
        return [None if bound is None else bound.function for bound in self.bounds]

    def of(self, users: list[int]) -> AskBatch:
        """The calls of some users."""
        if len(users) == len(self.specs):
            return self
        biases = self.biases
        return self._replace(
            queries=self.queries[users],
            specs=[self.specs[i] for i in users],
            seeds=[self.seeds[i] for i in users],
            excluded=[self.excluded[i] for i in users],
            allowed=[self.allowed[i] for i in users],
            biases=biases if biases is None or len(biases) == 1 else biases[users],
            bounds=None if self.bounds is None else [self.bounds[i] for i in users],
        )


class Found(NamedTuple):
    """Candidates of a flat tail."""

    positions: Positions
    scores: Float32Array | None  # None: the catalog's own
    index_version: str | None = None  # None: found by a pass
    n_probes: int | None = None


class DrawnBatch(NamedTuple):
    """What was drawn for b users, in rows; places from `counts` on are meaningless."""

    positions: Positions
    scores: Float32Array
    log_propensities: FloatArray
    log_norm: FloatArray
    log_norm_error: FloatArray
    counts: Positions
    n_eligible: Positions
    n_scored: Positions
    from_table: npt.NDArray[np.bool_]
    candidates: list[Candidates | None] | None = None  # of flat tails

    @classmethod
    def empty(cls, b: int, k: int) -> DrawnBatch:
        """Empty rows, to be filled by `put`."""
        return cls(
            positions=np.zeros((b, k), np.int64),
            scores=np.zeros((b, k), np.float32),
            log_propensities=np.zeros((b, k)),
            log_norm=np.full(b, np.nan),
            log_norm_error=np.zeros(b),
            counts=np.zeros(b, np.int64),
            n_eligible=np.zeros(b, np.int64),
            n_scored=np.zeros(b, np.int64),
            from_table=np.zeros(b, np.bool_),
        )

    def one(self, i: int) -> Drawn:
        """What was drawn for one user."""
        m = int(self.counts[i])
        return (
            self.positions[i, :m],
            self.scores[i, :m],
            self.log_propensities[i, :m],
            float(self.log_norm[i]),
            float(self.log_norm_error[i]),
            int(self.n_scored[i]),
            bool(self.from_table[i]),
            int(self.n_eligible[i]),
            None if self.candidates is None else self.candidates[i],
        )

    def put_one(self, i: int, drawn: Drawn) -> None:
        """Set all fields of one user."""
        m = len(drawn[0])
        self.positions[i, :m], self.scores[i, :m], self.log_propensities[i, :m] = drawn[:3]
        self.log_norm[i], self.log_norm_error[i], self.counts[i] = drawn[3], drawn[4], m
        self.n_scored[i], self.from_table[i], self.n_eligible[i] = drawn[5:8]
        if self.candidates is not None:
            self.candidates[i] = drawn[8]

    def put(self, users: list[int], first: int, part: DrawnBatch) -> None:
        """Set the places of some users from `first` on; fields of a whole ranking are set once."""
        places = slice(first, first + part.positions.shape[1])
        self.positions[users, places] = part.positions
        self.scores[users, places] = part.scores
        self.log_propensities[users, places] = part.log_propensities
        self.log_norm_error[users] = part.log_norm_error
        self.counts[users] += part.counts
        self.n_scored[users] += part.n_scored
        self.from_table[users] |= part.from_table
        if first == 0:
            self.log_norm[users], self.n_eligible[users] = part.log_norm, part.n_eligible
        if self.candidates is not None and part.candidates is not None:
            for i, each in zip(users, part.candidates, strict=True):
                self.candidates[i] = each
