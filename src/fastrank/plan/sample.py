"""A sample of a model's users, and what a logging policy would show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import FloatArray
from fastrank.calibration import temperatures_for_overlap
from fastrank.expectations import Audience, Draws, Laws
from fastrank.inputs import as_count, as_seed
from fastrank.model import Model
from fastrank.plan.arguments import check_k, checked_prefixes, user_count, users_of
from fastrank.plan.points import Advance, Kind, Point, Share, Target
from fastrank.policies import EpsilonGreedy, PlackettLuce, Policy
from fastrank.scorer import Eligible, Scorer

__all__ = ["Sample", "share_of"]


class Sample:
    """A sample of users and the draws of targets, shared by all logging policies.

    `items` are the eligible ones.
    """

    def __init__(
        self,
        model: Model | Scorer,
        items: Scorer | Eligible,
        queries: npt.ArrayLike | None,
        k: int,
        users: int | None,
        draws: int,
        seed: int,
        targets: Mapping[str, Target],
        prefixes: Sequence[int] | None,
        advance: Advance | None,
    ) -> None:
        self.n_users = users_of(model, queries, [0])[3]
        self.n_eligible = len(items)
        self.k = check_k(k, items)
        self.seed = as_seed("seed", seed)
        self.draws = as_count("draws", draws, low=2)
        self.prefixes = checked_prefixes(prefixes, self.k)
        self.targets = targets
        self.fixed_draws: dict[Policy, tuple[Laws, Draws]] = {}  # of targets that are policies
        count = user_count(users, self.n_eligible, self.n_users)
        rng = np.random.default_rng(self.seed)
        rows = np.sort(rng.choice(self.n_users, count, replace=False)).tolist()
        _, vectors, factors, _ = users_of(model, queries, rows)
        self.has_factors = factors is not None
        self.factors = np.ones(count) if factors is None else factors  # (u,)
        # Below 2**53, and unique, so that no two rankings share a seed.
        seeds = rng.choice(2**53, (2, count, self.draws), replace=False).astype(np.uint64)
        self.logging_seeds, self.target_seeds = seeds[0], seeds[1]  # (u, r)
        tell = None if advance is None else lambda user: advance("scoring users", user, count)
        self.audience = Audience(items, vectors, self.k, tell)
        self.vectors = vectors

    def policies(self, kind: Kind, parameter: float) -> list[Policy]:
        """Return the logging policy of each user."""
        if kind == "epsilon":
            return [EpsilonGreedy(parameter)] * len(self.factors)
        if kind == "temperature":
            return [PlackettLuce(parameter * own) for own in self.factors.tolist()]
        values, counts = self.audience.condensed
        own = temperatures_for_overlap(values, self.k, parameter, counts)
        return [PlackettLuce(temperature) for temperature in own.tolist()]

    def served(self, policy: Policy) -> list[Policy]:
        """Return a policy as the model applies it to each user."""
        return [policy if own == 1.0 else policy.scaled(own) for own in self.factors.tolist()]

    def target(self, target: Target, logging: Sequence[Policy]) -> tuple[Laws, Draws] | None:
        """Return a target's laws and draws; None if it is not defined for this logging policy."""
        if isinstance(target, Policy):
            if target not in self.fixed_draws:
                policies = self.served(target)
                law = self.audience.law(policies)
                self.fixed_draws[target] = law, self.audience.draw(policies, self.target_seeds)
            return self.fixed_draws[target]
        try:
            policies = [target(policy) for policy in logging]
        except ValueError:
            return None
        return self.audience.law(policies), self.audience.draw(policies, self.target_seeds)

    def point(self, kind: Kind, parameter: float, shares: bool = True) -> Point:
        """Compute all figures of one logging policy."""
        policies = self.policies(kind, parameter)
        law = self.audience.law(policies)
        draws = self.audience.draw(policies, self.logging_seeds)
        overlaps, gaps, entropies = self.audience.kept_and_lost(law, draws)
        per_user = overlaps.mean(axis=1)
        loss = float((gaps.mean(axis=1) - self.audience.top_gap).mean())
        most = float((self.audience.mean_gap - self.audience.top_gap).mean())
        found: list[Share] = []
        for label, target in self.targets.items() if shares else ():
            drawn = self.target(target, policies)
            if drawn is not None:
                found += self.shares(label, law, *drawn)
        return Point(
            kind=kind,
            parameter=parameter,
            overlap=float(per_user.mean()),
            overlap_error=_standard_error(overlaps),
            overlap_low=float(np.quantile(per_user, 0.1)),
            overlap_median=float(np.median(per_user)),
            overlap_high=float(np.quantile(per_user, 0.9)),
            loss=loss,
            loss_error=_standard_error(gaps),
            relative_loss=loss / most if most > 0.0 else 0.0,
            perplexity=math.exp(float(entropies.mean())),
            shares=tuple(found),
        )

    def shares(self, label: str, logging: Laws, law: Laws, draws: Draws) -> list[Share]:
        """Compute ESS shares of a target by prefix, from rankings that the target drew."""
        log_squares = self.audience.log_squares(logging, law, draws)
        # A flat law's last place does not depend on earlier ones; a greedy law has one ranking.
        exact = law.certain or (logging.flat and law.flat)
        return [
            share_of(label, prefix, log_squares[:, :, prefix - 1], exact or prefix == 1)
            for prefix in self.prefixes
        ]


def share_of(label: str, prefix: int, log_squares: FloatArray, exact: bool) -> Share:
    """Compute 1 / E[w^2] from logs (u, r) of estimates of E[w^2]."""
    top = float(log_squares.max())
    if top == np.inf:
        return Share(label, prefix, 0.0, 0.0, True, 0.0, 0.0, 0.0, True)
    squares = np.exp(log_squares - top)
    of_users = squares.mean(axis=1)
    mean = float(of_users.mean())
    per_user = np.log(of_users, where=of_users > 0.0, out=np.full(len(of_users), -np.inf)) + top
    median = math.exp(-max(float(np.median(per_user)), 0.0))
    error = 0.0 if exact else _standard_error(squares) / mean
    heaviest_draw = float(squares.max() / squares.sum())
    return Share(
        target=label,
        prefix=prefix,
        share=math.exp(-max(top + math.log(mean), 0.0)),  # E[w^2] >= 1; an estimate may be below
        median=median,
        exact=exact,
        error=error,
        heaviest_draw=heaviest_draw,
        heaviest_user=float(of_users.max() / of_users.sum()),
        trusted=exact or (error <= 0.2 and heaviest_draw <= 0.1),
    )


def _standard_error(values: FloatArray) -> float:
    """Compute the error of the mean over draws (u, r) and users; the users are fixed."""
    users, draws = values.shape
    if draws == 1:  # the policy has only one ranking
        return 0.0
    return math.sqrt(float(values.var(axis=1, ddof=1).sum()) / int(draws)) / int(users)
