"""Rankings of a catalog's shards, merged into the ranking of the whole.

A Plackett-Luce ranking of a union of disjoint catalogs interleaves independent Plackett-Luce
rankings of the parts: each place takes the next item of one part, drawn by the masses that the
parts have left. A ranking says that mass itself: before place j it is, in logarithms,
score_j / T - log_propensity_j. Nothing is subtracted from a sum, so nothing cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import Float32Array, FloatArray, Hashes, IdArray, IntArray, Mask
from fastrank.inputs import as_count, as_seed, shown
from fastrank.policies import Law, Policy
from fastrank.ranker import as_seeds
from fastrank.ranking import Ranking, RankingBatch
from fastrank.rules import Rules

__all__ = ["check_rules", "joined_version", "merge", "merge_batch", "mergeable_law", "shard_seed"]

_SEED_BITS = 53  # as drawn seeds have


def shard_seed(seed: int, shard: int) -> int:
    """Return the seed by which one shard draws its part of a ranking.

    Each shard needs noise of its own. With one seed for all, items at the same position of two
    shards would stand high together, and the merged ranking would not be a Plackett-Luce ranking.

    Parameters
    ----------
    seed : int
        The whole ranking's, in [0, 2**64).
    shard : int
        Its place among the shards, from 0.

    Returns
    -------
    int
        Below 2**53: the first bits of a BLAKE2b hash of both.

    Raises
    ------
    ValueError
        If an argument is invalid; the message names the argument and the value.

    Examples
    --------
    >>> import fastrank as fr
    >>> [fr.shard_seed(7, shard) for shard in range(2)]
    [8758554476282166, 770509117242914]
    """
    shard = as_count("shard", shard, low=0)
    digest = _hash(b"shard", 8, as_seed("seed", seed), shard)
    return int.from_bytes(digest, "little") >> 64 - _SEED_BITS


def merge(rankings: Sequence[Ranking], k: int = 10, *, seed: int) -> Ranking:
    """Merge the rankings of disjoint shards into one ranking of all their items.

    The result is drawn by the law of the whole catalog, and its propensities are those of the whole
    catalog. It is another draw than the whole catalog's own with the same seed.

    Parameters
    ----------
    rankings : sequence of Ranking, length s >= 1
        One of each shard, always in the same order, and each of min(k, eligible items) places or
        more. All are asked the same: policy, user's temperature, filters, score, and rules; shard i
        draws by ``shard_seed(seed, i)``. Ids that a shard does not have are ignored in its filters,
        so each gets the whole filter. A merged ranking is a ranking: it may be merged again.
    k : int
        Places to fill, at least 1.
    seed : int
        The ranking's, in [0, 2**64).

    Returns
    -------
    Ranking
        Its `catalog_version`, `model_version`, `features_version` and `seen_id` are hashes of the
        shards' in their order, and its `log_norm_error` is the largest of the shards'.

    Raises
    ------
    ValueError
        If an argument is invalid; the message names the argument and the value. If shards were
        not asked the same. If a shard did not answer: without it the law would be another one. If
        two shards rank the same id. If the rankings cannot be merged: under a policy other than
        `Deterministic`, `PlackettLuce` and `Uniform`, a rule that depends on what is shown,
        ``on_empty="relax"``, or on a later page.

    Notes
    -----
    O(s k); some 0.7 ms for k = 10, where `merge_batch` takes 20 us a row. Propensities are as exact
    as the shards' own, and so within 1e-6 of the whole catalog's in logarithms, where all shards
    are exact. Bounds of shards of int8 codes hold with a probability of 1 - 1e-9 each, and so all
    together with one of at least 1 - s * 1e-9.

    Examples
    --------
    >>> import fastrank as fr
    >>> shards = [fr.Catalog(["a", "b"], [[1.0], [0.5]]), fr.Catalog(["c"], [[0.8]])]
    >>> policy = fr.PlackettLuce(0.5)
    >>> parts = [
    ...     shard.rank([1.0], 2, policy=policy, seed=fr.shard_seed(7, i))
    ...     for i, shard in enumerate(shards)
    ... ]
    >>> merged = fr.merge(parts, 2, seed=7)
    >>> merged.item_ids.tolist(), merged.n_eligible
    (['b', 'c'], 3)
    """
    parts = list(rankings)
    for i, part in enumerate(parts):
        if not isinstance(part, Ranking):
            raise _no_answer("rankings", i, "a Ranking", part)
    batches = [_batch_of_one(part) for part in parts]
    return _merge("rankings", batches, as_count("k", k), [as_seed("seed", seed)])[0]


def merge_batch(
    batches: Sequence[RankingBatch], k: int = 10, *, seeds: Sequence[int] | Hashes
) -> RankingBatch:
    """Merge rankings of many users; row r is what `merge` gives of the shards' rows r.

    Parameters
    ----------
    batches : sequence of RankingBatch, length s >= 1
        One of each shard, b rows each, the same users in the same order.
    k : int
        Places to fill, at least 1.
    seeds : sequence of int, length b
        The rankings' own. Row r of shard i is drawn by ``shard_seed(seeds[r], i)``.

    Returns
    -------
    RankingBatch

    Raises
    ------
    ValueError
        As in `merge`; the message names the row, too.

    Notes
    -----
    O(b s k).

    Examples
    --------
    >>> import fastrank as fr
    >>> shards = [fr.Catalog(["a", "b"], [[1.0], [0.5]]), fr.Catalog(["c"], [[0.8]])]
    >>> policy, users = fr.Deterministic(), [[1.0], [-1.0]]
    >>> parts = [shard.rank_batch(users, 2, policy=policy) for shard in shards]
    >>> fr.merge_batch(parts, 2, seeds=[7, 8]).item_ids.tolist()
    [['a', 'c'], ['b', 'c']]
    """
    parts = list(batches)
    for i, part in enumerate(parts):
        if not isinstance(part, RankingBatch):
            raise _no_answer("batches", i, "a RankingBatch", part)
        if len(part) != len(parts[0]):
            raise ValueError(
                f"batches[{i}]: expected {len(parts[0])} rows, as in batches[0], got {len(part)}"
            )
    if seeds is None:
        raise ValueError("seeds: expected those of which the shards' seeds were made, got None")
    own = as_seeds(seeds, len(parts[0]) if parts else 0)
    return _merge("batches", parts, as_count("k", k), own)


def _no_answer(name: str, i: int, expected: str, got: object) -> ValueError:
    why = "; without a shard that does not answer the law is another one" if got is None else ""
    return ValueError(f"{name}[{i}]: expected {expected}, got {shown(got)}{why}")


def _hash(person: bytes, size: int, *numbers: int) -> bytes:
    import hashlib  # late: loading OpenSSL takes a tenth of `import fastrank`

    content = b"".join(number.to_bytes(8, "little") for number in numbers)
    return hashlib.blake2b(content, digest_size=size, person=person).digest()


# ---- One way for both ------------------------------------------------------------------------


class _Places(NamedTuple):
    """What s shards ranked for b users, at up to m places; what is not filled is padded."""

    ids: IdArray  # (b, s, m)
    scores: Float32Array  # (b, s, m), -inf where not filled
    log_propensities: FloatArray  # (b, s, m), 0 where not filled
    counts: IntArray  # (b, s)


def _merge(name: str, parts: list[RankingBatch], k: int, seeds: list[int]) -> RankingBatch:
    if not parts:
        raise ValueError(f"{name}: expected one of each shard, got none")
    first, b = parts[0], len(parts[0])
    _check_asked_the_same(name, parts)
    steepness, is_certain = _laws(name, parts)
    _check_seeds(name, parts, seeds, is_certain)
    n_eligible = np.stack([part.n_eligible for part in parts], axis=1)
    places = _places(name, parts, k, n_eligible)
    log_norms = np.stack([part.log_norm for part in parts], axis=1)
    left = _left(name, parts, places, steepness, is_certain, log_norms, n_eligible)
    picked, at, log_propensities = _interleave(places.scores, left, is_certain, seeds, k)
    rows = np.arange(b)[:, None]
    filled = picked >= 0
    ids = places.ids[rows, picked, at]
    ids[~filled] = "" if ids.dtype.kind == "U" else -1
    scores = places.scores[rows, picked, at]
    scores[~filled] = np.nan
    _refuse_repeats(name, ids, filled)
    model_versions = [part.model_version for part in parts]
    return RankingBatch(
        item_ids=ids,
        scores=scores,
        log_propensities=log_propensities,
        counts=filled.sum(axis=1),
        log_propensity=np.where(filled, log_propensities, 0.0).sum(axis=1),
        log_norm=_log_sums(log_norms),
        seeds=np.array(seeds, np.uint64),
        n_eligible=n_eligible.sum(axis=1),
        policies=first.policies,
        catalog_version=joined_version([part.catalog_version for part in parts]) or "",
        propensity_kind=tuple(
            "exact" if kinds == {"exact"} else "bounded"
            for kinds in map(set, zip(*(part.propensity_kind for part in parts), strict=True))
        ),
        log_norm_error=np.max([part.log_norm_error for part in parts], axis=0),
        k=k,
        exclude=first.exclude,
        allow=first.allow,
        bias=_joined_bias(parts),
        made_by=_made_by(parts),
        n_scored=_n_scored(parts),
        scores_by=first.scores_by,
        features_version=joined_version([part.features_version for part in parts]),
        rules=first.rules,
        seen_ids=_seen(parts),
        model_version=joined_version(model_versions),
        user_temperatures=first.user_temperatures,
    )


def _check_asked_the_same(name: str, parts: list[RankingBatch]) -> None:
    """What the shards of one ranking must share, and what has no known way to be merged."""
    first = parts[0]
    for field in ("policies", "user_temperatures", "exclude", "allow", "scores_by", "rules"):
        own = getattr(first, field)
        for i, part in enumerate(parts[1:], start=1):
            other = getattr(part, field)
            if own is other:
                continue
            for r in range(len(first)):
                expected = None if own is None else own[r]
                got = None if other is None else other[r]
                if not _same(expected, got):
                    raise ValueError(
                        f"{_at(name, i, r)}: {_WORDS[field]}: expected {shown(expected)}, as in"
                        f" {name}[0], got {shown(got)}"
                    )
    for i, part in enumerate(parts):
        for r, applied in enumerate(part.rules or ()):
            if applied is not None:
                check_rules(f"{_at(name, i, r)}: rules", applied.rules)
        for r, pages in enumerate(part.after or ()):
            if pages is not None:
                raise ValueError(
                    f"{_at(name, i, r)}: after: later pages cannot be merged; exclude what the"
                    " pages before showed"
                )
        if (part.bias is None) != (first.bias is None):
            raise ValueError(f"{name}[{i}]: bias: expected one of each shard, or of none")
    versions = [part.catalog_version for part in parts if part.catalog_version]
    for i, version in enumerate(versions):
        if version in versions[:i]:
            raise ValueError(
                f"{name}[{i}]: catalog_version: {version[:12]!r} is that of"
                f" {name}[{versions.index(version)}], too; the shards of a catalog share no item"
            )


_WORDS = {
    "policies": "policy",
    "user_temperatures": "user_temperature",
    "exclude": "exclude",
    "allow": "allow",
    "scores_by": "score",
    "rules": "rules",
}


def _at(name: str, i: int, r: int) -> str:
    return f"{name}[{i}]" if name == "rankings" else f"{name}[{i}], row {r}"


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, np.ndarray | list) and isinstance(other, np.ndarray | list):
        return np.array_equal(np.asarray(one), np.asarray(other))
    if isinstance(one, np.ndarray | list) or isinstance(other, np.ndarray | list):
        return False
    return bool(one == other)


def check_rules(name: str, rules: Rules) -> None:
    """A ValueError for rules of which shards' rankings cannot be merged."""
    if rules.is_sequential or rules.on_empty == "relax":
        raise ValueError(
            f"{name}: expected where, boost and boost_score alone, which act on each item by itself"
            f" and so can be merged; got {shown(rules)}"
        )


def mergeable_law(name: str, policy: Policy) -> Law:
    """The law of a policy of which shards' rankings can be merged; a ValueError for another one."""
    law = policy.law
    if law is None or not (law.is_certain or law.is_plackett_luce or law.is_uniform):
        raise ValueError(
            f"{name}: expected Deterministic, PlackettLuce or Uniform, which can be merged, got"
            f" {shown(policy)}"
        )
    return law


def _laws(name: str, parts: list[RankingBatch]) -> tuple[FloatArray, Mask]:
    """1 / T of each row (0: the scores play no part), and where the best is shown for certain."""
    first = parts[0]
    steepness, is_certain = np.zeros(len(first)), np.zeros(len(first), np.bool_)
    known: dict[Policy, tuple[float, bool]] = {}
    for r, policy in enumerate(first.policies):
        if policy not in known:
            law = mergeable_law(f"{_at(name, 0, r)}: policy", policy)
            known[policy] = (law.steepness, law.is_certain)
        steepness[r], is_certain[r] = known[policy]
    return steepness, is_certain


def _check_seeds(name: str, parts: list[RankingBatch], seeds: list[int], is_certain: Mask) -> None:
    for i, part in enumerate(parts):
        for r in np.flatnonzero(~is_certain).tolist():
            expected, got = shard_seed(seeds[r], i), int(part.seeds[r])
            if got != expected:
                raise ValueError(
                    f"{_at(name, i, r)}: seed: expected shard_seed({seeds[r]}, {i}) = {expected},"
                    f" got {got}; each shard draws by a seed of its own"
                )


def _places(name: str, parts: list[RankingBatch], k: int, n_eligible: IntArray) -> _Places:
    kinds = {"text" if part.item_ids.dtype.kind == "U" else "integers" for part in parts}
    if len(kinds) > 1:
        raise ValueError(f"{name}: item_ids: some shards have integers, and others text")
    counts = np.stack([part.counts for part in parts], axis=1)
    short = np.argwhere(counts < np.minimum(k, n_eligible))
    if len(short):
        r, i = short[0].tolist()
        raise ValueError(
            f"{_at(name, i, r)}: expected {min(k, n_eligible[r, i])} places or more, as k = {k} and"
            f" {n_eligible[r, i]} eligible items make them, got {counts[r, i]}"
        )
    m = max(1, min(k, int(counts.max(initial=0))))
    is_filled = np.arange(m) < counts[:, :, None]
    widest = np.result_type(*(part.item_ids.dtype for part in parts))

    def stacked(arrays: list[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        out = np.zeros((len(counts), len(parts), m), dtype)
        for i, array in enumerate(arrays):
            out[:, i, : array.shape[1]] = array[:, :m]
        return out

    scores = stacked([part.scores for part in parts], np.float32)
    log_propensities = stacked([part.log_propensities for part in parts], np.float64)
    return _Places(
        stacked([part.item_ids for part in parts], widest),
        np.where(is_filled, scores, np.float32(-np.inf)),
        np.where(is_filled, log_propensities, 0.0),
        counts,
    )


def _left(
    name: str,
    parts: list[RankingBatch],
    places: _Places,
    steepness: FloatArray,
    is_certain: Mask,
    log_norms: FloatArray,
    n_eligible: IntArray,
) -> tuple[FloatArray, FloatArray]:
    """Log-weights of the items, and of what their shards have left before their places: (b, s, m).

    On the scale of (score - the best score) / T, by which large scores lose no digits.
    """
    b, s, m = places.scores.shape
    best = places.scores.reshape(b, s * m).max(axis=1, initial=-np.inf).astype(np.float64)
    best[~np.isfinite(best)] = 0.0
    is_filled = np.arange(m) < places.counts[:, :, None]
    above = np.where(is_filled, places.scores - best[:, None, None], 0.0)
    own = above * steepness[:, None, None]
    left = np.where(is_filled, own - places.log_propensities, -np.inf)
    # A ranking states what was left before its first place, too.
    with np.errstate(divide="ignore", invalid="ignore"):
        stated = np.where(steepness[:, None] > 0.0, log_norms, np.log(n_eligible))
        off = np.abs(left[:, :, 0] + (best * steepness)[:, None] - stated)
        bound = 1e-6 + 1e-12 * np.abs(stated)
    wrong = np.argwhere((places.counts > 0) & ~is_certain[:, None] & ~(off <= bound))
    if len(wrong):
        r, i = wrong[0].tolist()
        raise ValueError(
            f"{_at(name, i, r)}: log_propensities: they are not those of its scores under"
            f" {shown(parts[i].policies[r])}"
        )
    return own, left


def _interleave(
    scores: Float32Array,
    weights: tuple[FloatArray, FloatArray],
    is_certain: Mask,
    seeds: list[int],
    k: int,
) -> tuple[IntArray, IntArray, FloatArray]:
    """For k places of each row: the shard (-1: none), the place in it, the log-propensity."""
    own, left = weights
    b, s, m = scores.shape
    uniforms = np.zeros((b, k))
    for r in np.flatnonzero(~is_certain).tolist():
        uniforms[r] = _uniforms(seeds[r], k)
    end = np.full((b, s, 1), -np.inf)
    left = np.concatenate([left, end], axis=2)
    ranked = np.concatenate([scores.astype(np.float64), end], axis=2)
    k = min(k, s * m)
    picked, places = np.full((b, k), -1), np.zeros((b, k), np.int64)
    log_propensities = np.full((b, k), np.nan)
    at, rows = np.zeros((b, s), np.int64), np.arange(b)
    for j in range(k):
        here = at[:, :, None]
        mass = np.take_along_axis(left, here, axis=2)[:, :, 0]
        top = mass.max(axis=1, initial=-np.inf)
        is_open = top > -np.inf
        weight = np.exp(mass - np.where(is_open, top, 0.0)[:, None])
        sums = np.cumsum(weight, axis=1)
        # Below the last sum, so that a shard with nothing left is never drawn.
        level = np.minimum(uniforms[:, j] * sums[:, -1], np.nextafter(sums[:, -1], 0.0))
        drawn = (sums <= level[:, None]).sum(axis=1)
        best = np.take_along_axis(ranked, here, axis=2)[:, :, 0].argmax(axis=1)
        shard = np.where(is_certain, best, np.minimum(drawn, s - 1))
        place = at[rows, shard]
        with np.errstate(divide="ignore", invalid="ignore"):
            last = np.minimum(place, m - 1)
            log_p = own[rows, shard, last] - (top + np.log(sums[:, -1]))
        log_p = np.where(is_certain, 0.0, np.minimum(log_p, 0.0))
        picked[:, j] = np.where(is_open, shard, -1)
        places[:, j] = np.where(is_open, place, 0)
        log_propensities[:, j] = np.where(is_open, log_p, np.nan)
        at[rows[is_open], shard[is_open]] += 1
    return picked, places, log_propensities


def _uniforms(seed: int, k: int) -> FloatArray:
    """k numbers in [0, 1), of which no shard's noise is made."""
    import hashlib

    digest = hashlib.shake_256(b"fastrank merge" + seed.to_bytes(8, "little")).digest(8 * k)
    bits = np.frombuffer(digest, "<u8") >> np.uint64(64 - _SEED_BITS)
    return bits.astype(np.float64) * 2.0**-_SEED_BITS


def _log_sums(logs: FloatArray) -> FloatArray:
    """The logarithm of each row's sum; NaN where one is NaN."""
    top = logs.max(axis=1)
    top = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        sums: FloatArray = np.log(np.exp(logs - top[:, None]).sum(axis=1)) + top
    return sums


def _refuse_repeats(name: str, ids: IdArray, is_filled: Mask) -> None:
    if ids.shape[1] < 2:
        return
    in_order = np.sort(ids, axis=1)
    twice = (in_order[:, 1:] == in_order[:, :-1]) & (is_filled.sum(axis=1) > 1)[:, None]
    for r, column in np.argwhere(twice).tolist():
        item = in_order[r, column]
        if np.count_nonzero((ids[r] == item) & is_filled[r]) > 1:
            raise ValueError(
                f"{name}: item {shown(item.item())} is in two shards; the shards of a catalog share"
                " no item"
            )


# ---- What is said of the whole ---------------------------------------------------------------


def joined_version(versions: Sequence[str | None]) -> str | None:
    """One version for those of the shards: the SHA-256 of their lines; None where none has one.

    It changes with any of them, and with their order.
    """
    if not any(versions):
        return None
    import hashlib

    text = "\n".join(version or "" for version in versions)
    return hashlib.sha256(text.encode()).hexdigest()


def _seen(parts: list[RankingBatch]) -> tuple[str | None, ...] | None:
    if all(part.seen_ids is None for part in parts):
        return None
    b = len(parts[0])
    columns = [(None,) * b if part.seen_ids is None else part.seen_ids for part in parts]
    return tuple(joined_version(row) for row in zip(*columns, strict=True))


def _joined_bias(parts: list[RankingBatch]) -> Float32Array | None:
    found = [part.bias for part in parts if part.bias is not None]
    if not found:
        return None
    rows = max(len(bias) for bias in found)
    return np.concatenate([np.broadcast_to(bias, (rows, bias.shape[1])) for bias in found], axis=1)


def _made_by(parts: list[RankingBatch]) -> tuple[str, ...] | None:
    """How each row was made; "pass" where shards differ, the dearest way."""
    known = [part.made_by for part in parts if part.made_by is not None]
    if len(known) < len(parts):
        return None
    return tuple(ways[0] if len(set(ways)) == 1 else "pass" for ways in zip(*known, strict=True))


def _n_scored(parts: list[RankingBatch]) -> IntArray | None:
    known = [part.n_scored for part in parts if part.n_scored is not None]
    return np.sum(known, axis=0) if len(known) == len(parts) else None


def _batch_of_one(ranking: Ranking) -> RankingBatch:
    def one(value: Any) -> tuple[Any, ...] | None:
        return None if value is None else (value,)

    log_norm = np.nan if ranking.log_norm is None else ranking.log_norm
    return RankingBatch(
        item_ids=ranking.item_ids[None],
        scores=ranking.scores[None],
        log_propensities=ranking.log_propensities[None],
        counts=np.array([len(ranking)]),
        log_propensity=np.array([ranking.log_propensity]),
        log_norm=np.array([log_norm]),
        seeds=np.array([ranking.seed], np.uint64),
        n_eligible=np.array([ranking.n_eligible]),
        policies=(ranking.policy,),
        catalog_version=ranking.catalog_version,
        propensity_kind=(ranking.propensity_kind,),
        log_norm_error=np.array([ranking.log_norm_error]),
        k=ranking.k,
        exclude=one(ranking.exclude),
        allow=one(ranking.allow),
        bias=None if ranking.bias is None else ranking.bias[None],
        made_by=one(ranking.made_by),
        n_scored=None if ranking.n_scored is None else np.array([ranking.n_scored]),
        scores_by=one(ranking.score),
        features_version=ranking.features_version,
        rules=one(ranking.rules),
        after=one(ranking.after),
        seen_ids=one(ranking.seen_id),
        model_version=ranking.model_version,
        user_temperatures=one(ranking.user_temperature),
    )
