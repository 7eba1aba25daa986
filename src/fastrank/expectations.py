"""Expectations over rankings that are not drawn yet, place by place.

Every policy draws the next item from a mixture: with probability g the best item left, otherwise
item a with probability exp(b s_a) / D, where D is the sum over the items left (Plackett-Luce:
g = 0, b = 1 / T; epsilon-greedy: g = 1 - epsilon, b = 0; places of a head: g = 1). The next place,
given the places before it, thus depends on one sum over the items left, and nearly all items of a
catalog are always left.

The catalog draws rankings. Each place then contributes its *conditional expectation* given the
places before it, instead of what was drawn there. The first place is therefore exact, the others
have far less noise than counts would, and the weight of items that were not drawn is included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import Float32Array, FloatArray, IntArray, Mask
from fastrank.calibration import condense
from fastrank.policies import Policy, law_of
from fastrank.scorer import Eligible, Scorer

__all__ = ["Audience", "Draws", "Laws"]


_SPARE = 22  # items stored one by one in addition to the k best and the k worst


@dataclass(frozen=True, slots=True)
class Laws:
    """Laws of the next item, per user: the best left by probability `greedy`, or softmax(b s)."""

    greedy: FloatArray  # (k,): by place
    steepness: FloatArray  # (u,): b

    @property
    def flat(self) -> bool:
        """Whether scores only matter for which item is the best left."""
        return not self.steepness.any()

    @property
    def certain(self) -> bool:
        """Whether only one ranking is possible."""
        return bool((self.greedy == 1.0).all())


@dataclass(frozen=True, slots=True)
class Draws:
    """Rankings drawn for each user.

    slots (u, r, k) int64: the slot of each item among those stored one by one, -1 for other items;
    scores (u, r, k): relative to the user's best.
    """

    slots: IntArray
    scores: FloatArray


class _Weights:
    """Log-weights of all items for each user, to be summed over the items left."""

    def __init__(
        self,
        kept: FloatArray,
        others: FloatArray,
        drawn: FloatArray | None = None,
        without_best: bool = False,
    ) -> None:
        self.kept = kept  # (u, s): log-weights of the items stored one by one
        self.others = others  # (u,): log of the sum over all other items
        self.drawn = drawn  # (u, r, k): log-weights of the items drawn, used if among the others
        self.without_best = without_best
        self.top = kept.max(axis=1)
        self.top[~np.isfinite(self.top)] = 0.0
        self.linear = np.exp(kept - self.top[:, None])[..., None]


class Audience:
    """Users, and a catalog's scores for them.

    A user's scores are stored relative to the best one. The k + 22 best items and as many of the
    worst are stored one by one (float64) in slots, in the order of the deterministic policy. All
    others (float32) are only summed. The sum over the others that are left is computed by
    subtraction. This is accurate: whether weights rise or fall with the score, some items in slots
    are always left, and they weigh more than any of the others.

    Parameters
    ----------
    catalog : Catalog or Eligible
    queries : ndarray of float32, shape (u, d)
    k : int
        Places of a ranking, from 1 to n.
    advance : callable, optional
        Called with the number of users done.

    Attributes
    ----------
    mean_gap, top_gap : ndarray of float64, shape (u,)
        Mean distance of the scores of all items, and of the top k, below the best one.
    best : ndarray of float64, shape (u,)
        The best raw score.
    condensed : tuple of ndarray
        Raw scores as `fastrank.calibration.condense` returns them, (u, m), and their counts.

    Examples
    --------
    >>> import fastrank as fr
    >>> catalog = fr.Catalog([1, 2, 3, 4], [[3.0], [2.0], [1.0], [0.0]])
    >>> audience = Audience(catalog, np.ones((1, 1), np.float32), k=2)
    >>> policies = [fr.PlackettLuce()]
    >>> draws = audience.draw(policies, np.arange(1000, dtype=np.uint64)[None])
    >>> overlap, gap, entropy = audience.kept_and_lost(audience.law(policies), draws)
    >>> round(float(overlap.mean()), 2)
    0.81
    """

    def __init__(
        self,
        catalog: Scorer | Eligible,
        queries: Float32Array,
        k: int,
        advance: Callable[[int], None] | None = None,
    ) -> None:
        self.catalog = catalog
        self.queries = queries
        self.k = k
        users = len(self.queries)
        heads = self.k + _SPARE
        kept_rows, kept = [], []
        self.others: list[Float32Array] = []  # u arrays (n - s,), relative to their own best
        self.others_best = np.zeros(users)  # (u,)
        self.best = np.empty(users)  # (u,): the raw score that all others are relative to
        self.mean_gap = np.empty(users)  # (u,): mean distance of all items below the best
        raw = []
        for user, query in enumerate(self.queries):
            scores = self.catalog.scores(query).astype(np.float64)
            raw.append(condense(scores, self.k))
            self.best[user] = scores.max()
            scores -= self.best[user]
            slots, others = _slots(scores, heads)
            kept_rows.append(slots)
            kept.append(scores[slots])
            rest = scores[others]
            if len(rest):
                self.others_best[user] = rest.max()
            self.others.append((rest - self.others_best[user]).astype(np.float32))
            self.mean_gap[user] = -scores.mean()
            if advance is not None:
                advance(user + 1)
        self.kept = np.array(kept)  # (u, s)
        self.kept_ids = self.catalog.item_ids[np.array(kept_rows)]  # (u, s)
        self.top_gap = -self.kept[:, : self.k].mean(axis=1)  # (u,): the same for the top k
        self.condensed = (
            np.array([values for values, _ in raw]),
            np.array([counts for _, counts in raw]),
        )

    def law(self, policies: Sequence[Policy]) -> Laws:
        """Return the laws of policies, one per user; they may differ only in temperature."""
        laws = [law_of(policy) for policy in policies]
        if len({(law.explore, law.head) for law in laws}) > 1:
            raise ValueError("policies: the users' policies may differ only in temperature")
        explore = np.array([laws[0].explore_at(place) for place in range(self.k)])
        return Laws(1.0 - explore, np.array([law.steepness for law in laws]))

    def draw(self, policies: Sequence[Policy], seeds: npt.NDArray[np.uint64]) -> Draws:
        """Draw rankings for each user from the catalog; just one if the policy is deterministic."""
        if law_of(policies[0]).is_certain:
            seeds = seeds[:, :1]
        users, draws = seeds.shape
        batch = self.catalog.rank_batch(
            np.repeat(self.queries, draws, axis=0),
            self.k,
            policy=[policy for policy in policies for _ in range(draws)],
            seeds=seeds.ravel().tolist(),
        )
        shape = (users, draws, self.k)
        item_ids = batch.item_ids.reshape(users, draws * self.k)
        slots = np.empty(item_ids.shape, np.int64)
        for user, ids in enumerate(self.kept_ids):
            order = np.argsort(ids)
            at = order[np.minimum(np.searchsorted(ids[order], item_ids[user]), len(ids) - 1)]
            slots[user] = np.where(ids[at] == item_ids[user], at, -1)
        slots = slots.reshape(shape)
        scores = batch.scores.reshape(shape).astype(np.float64) - self.best[:, None, None]
        return Draws(slots, scores)

    def weights(self, steepness: FloatArray, draws: Draws, without_best: bool = False) -> _Weights:
        """Return the weights exp(b s)."""
        kept = self.kept * steepness[:, None]
        drawn = draws.scores * steepness[:, None, None]
        return _Weights(kept, self.sums_of_others(steepness)[0], drawn, without_best)

    def sums_of_others(self, steepness: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the logs of the sums of exp(b s) and of (best - s) exp(b s) over the others."""
        sums = np.full((2, len(self.others)), -np.inf)
        for user, (others, b) in enumerate(zip(self.others, steepness.tolist(), strict=True)):
            if not len(others):
                continue
            reference = others.min() if b < 0.0 else np.float32(0.0)
            with np.errstate(over="ignore", under="ignore"):
                terms = np.exp((others - reference) * np.float32(b))
            shift = b * (self.others_best[user] + float(reference))
            total = float(terms.sum(dtype=np.float64))
            gaps = float((terms * others).sum(dtype=np.float64))
            weighted = -(gaps + self.others_best[user] * total)
            sums[0, user] = math.log(total) + shift
            sums[1, user] = math.log(weighted) + shift if weighted > 0.0 else -np.inf
        return sums[0], sums[1]

    def walk(self, draws: Draws, weights: Sequence[_Weights]) -> tuple[IntArray, list[FloatArray]]:
        """Return, for each place, the slot of the best item left, and log-sums over items left.

        All have shape (u, r, k); there is a sum for each of `weights`.
        """
        users, n_draws, places = draws.slots.shape
        left = np.ones((users, n_draws, self.kept.shape[1]))
        best = np.empty(draws.slots.shape, np.int64)
        sums = [np.empty(draws.slots.shape) for _ in weights]
        of_others = [_others_left(each, draws.slots) for each in weights]
        for place in range(places):
            best[:, :, place] = left.argmax(axis=2)  # slots are sorted, the best first
            for each, total, others in zip(weights, sums, of_others, strict=True):
                counted = left
                if each.without_best:
                    counted = left.copy()
                    np.put_along_axis(counted, best[:, :, place, None], 0.0, axis=2)
                total[:, :, place] = np.logaddexp(_log_sum(counted, each), others[:, :, place])
            at = draws.slots[:, :, place]
            user, draw = np.nonzero(at >= 0)
            left[user, draw, at[user, draw]] = 0.0
        return best, sums

    def kept_and_lost(self, law: Laws, draws: Draws) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return expected overlap and loss of score per ranking, and the first place's entropy.

        Overlap and mean distance from the best score have shape (u, r); each place is taken given
        those before it. The entropy has shape (u,).
        """
        sums = self.weights(law.steepness, draws)
        in_top = sums.kept.copy()
        in_top[:, self.k :] = -np.inf
        with np.errstate(divide="ignore"):
            kept_gap = sums.kept + np.log(-self.kept)
            drawn_gap = draws.scores * law.steepness[:, None, None] + np.log(-draws.scores)
        others_gap = self.sums_of_others(law.steepness)[1]
        best, (total, top, gap) = self.walk(
            draws,
            [
                sums,
                _Weights(in_top, np.full(len(in_top), -np.inf)),
                _Weights(kept_gap, others_gap, drawn_gap),
            ],
        )
        rest = 1.0 - law.greedy
        overlap = law.greedy + rest * np.minimum(np.exp(top - total), 1.0)
        best_gap = -np.take_along_axis(self.kept[:, None, :], best, axis=2)
        mean_gap = rest * np.exp(gap - total)
        # First place: probability p for the best item, and rest * exp(b s) / D for each other.
        log_d, expected_gap = total[:, 0, 0], mean_gap[:, 0, 0]
        p_best = law.greedy[0] + rest[0] * np.exp(-log_d)
        entropy = -p_best * np.log(p_best)
        if rest[0] > 0.0:
            of_others = -rest[0] * np.expm1(-log_d)
            entropy += of_others * (log_d - math.log(rest[0])) + law.steepness * expected_gap
        entropy = np.maximum(entropy, 0.0)
        return overlap.mean(axis=2), (law.greedy * best_gap + mean_gap).mean(axis=2), entropy

    def log_squares(self, logging: Laws, law: Laws, draws: Draws) -> FloatArray:
        """Return logs of estimates of E[w^2], for each prefix of each ranking the target drew.

        E[w^2] under the logging policy equals E[w] under the target. The last place of a prefix is
        summed over all items: sum over a of p1(a)^2 / p0(a), given the places before it.

        Returns
        -------
        ndarray of float64, shape (u, r, k)
        """
        b0, b1 = logging.steepness, law.steepness
        best, (d0, d1, ratio) = self.walk(
            draws,
            [
                self.weights(b0, draws),
                self.weights(b1, draws),
                self.weights(2.0 * b1 - b0, draws, without_best=True),
            ],
        )
        always = np.ones(best.shape, np.bool_)
        best_score = np.take_along_axis(self.kept[:, None, :], best, axis=2)
        log_last = 2.0 * _log_p(law, best_score, d1, always)
        log_last -= _log_p(logging, best_score, d0, always)
        with np.errstate(divide="ignore", invalid="ignore"):
            rest = 2.0 * np.log1p(-law.greedy) - np.log1p(-logging.greedy)
            drawn = np.logaddexp(log_last, rest + d0 - 2.0 * d1 + ratio)
        # Items that a deterministic place of the log never shows.
        never = np.where(np.isneginf(ratio), log_last, np.inf)
        drawn = np.where(logging.greedy < 1.0, drawn, never)
        log_last = np.where(law.greedy < 1.0, drawn, log_last)
        if logging.flat and law.flat:  # the last place does not depend on those before it
            return np.asarray(np.cumsum(log_last, axis=2))
        is_best = draws.slots == best
        log_w = _log_p(law, draws.scores, d1, is_best)
        with np.errstate(invalid="ignore"):  # NaN if the target never draws a ranking
            log_w -= _log_p(logging, draws.scores, d0, is_best)
        log_last[:, :, 1:] += np.cumsum(log_w, axis=2)[:, :, :-1]
        return log_last


def _slots(scores: FloatArray, heads: int) -> tuple[IntArray, IntArray]:
    """Return the rows of the best items, in the order of the deterministic policy, then of as many
    of the worst; and all other rows."""
    n = len(scores)
    if n <= 2 * heads:
        return np.argsort(-scores, kind="stable"), np.empty(0, np.int64)
    last = np.partition(scores, n - heads)[n - heads]
    above = np.flatnonzero(scores > last)
    equal = np.flatnonzero(scores == last)[: heads - len(above)]  # ties go to the earlier row
    top = np.concatenate([above, equal])
    top = top[np.lexsort((top, -scores[top]))]
    is_left = np.ones(n, np.bool_)
    is_left[top] = False
    rest = np.flatnonzero(is_left)
    order = np.argpartition(scores[rest], heads - 1)
    return np.concatenate([top, rest[order[:heads]]]), rest[order[heads:]]


def _others_left(weights: _Weights, slots: IntArray) -> FloatArray:
    """Return log-sums (u, r, k) of the others' weights, without those drawn at earlier places."""
    total = weights.others[:, None, None]
    result: FloatArray = np.broadcast_to(total, slots.shape).copy()
    of_others = slots < 0
    if weights.drawn is None or not of_others.any():
        return result
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = np.where(of_others, np.exp(np.minimum(weights.drawn - total, 0.0)), 0.0)
        taken = np.cumsum(np.nan_to_num(drawn), axis=2)
        result[:, :, 1:] += np.log(np.maximum(1.0 - taken[:, :, :-1], 0.0))
    return result


def _log_sum(left: FloatArray, weights: _Weights) -> FloatArray:
    """Return the log-sum of weights (u, s) over the slots that are left (u, r, s)."""
    sums = (left @ weights.linear)[:, :, 0]
    with np.errstate(divide="ignore"):
        result: FloatArray = np.log(sums) + weights.top[:, None]
    user, draw = np.nonzero(sums < 1e-200)  # the heaviest items are gone, and the rest underflow
    if len(user):
        terms = np.where(left[user, draw] > 0.0, weights.kept[user], -np.inf)
        top = terms.max(axis=1)
        shift = np.where(np.isfinite(top), top, 0.0)
        with np.errstate(divide="ignore"):
            result[user, draw] = np.log(np.exp(terms - shift[:, None]).sum(axis=1)) + shift
    return result


def _log_p(law: Laws, scores: FloatArray, log_d: FloatArray, is_best: Mask) -> FloatArray:
    """Return log-probabilities (u, r, k) that items with these scores come next."""
    with np.errstate(divide="ignore"):
        log_rest, log_greedy = np.log1p(-law.greedy), np.log(law.greedy)
    softmax = np.minimum(law.steepness[:, None, None] * scores - log_d, 0.0)
    result: FloatArray = np.logaddexp(log_rest + softmax, np.where(is_best, log_greedy, -np.inf))
    return result
