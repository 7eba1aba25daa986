"""BestFirst: the first places by score, the rest drawn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fastrank.inputs import shown
from fastrank.policies.base import Law, Policy, real

__all__ = ["MAX_HEAD", "BestFirst"]

MAX_HEAD = 1_000_000


@dataclass(frozen=True, slots=True)
class BestFirst(Policy):
    """Show the best items in the first places, and draw the rest from what is left.

    The head's log-propensities are 0, so a log holds no information about other items there; all
    places below the head can be evaluated. For a given seed, the ranking is the deterministic head
    followed by the ranking that `then` draws with that seed and the head excluded.

    Parameters
    ----------
    head : int
        Number of places in the head, from 1 to 1,000,000. A ranking of at most so many places is
        deterministic.
    then : Policy
        `PlackettLuce`, `EpsilonGreedy` or another policy that draws from its first place on. Its
        inference type, with a parameter ``head``, names the policy in services and logs.

    Examples
    --------
    >>> import fastrank as fr
    >>> catalog = fr.Catalog([1, 2, 3, 4], [[3.0], [2.0], [1.0], [0.0]])
    >>> ranking = catalog.rank([1.0], k=3, policy=BestFirst(2, then=fr.PlackettLuce()), seed=1)
    >>> ranking.item_ids[:2].tolist(), ranking.log_propensities.round(2).tolist()
    ([1, 2], [0.0, 0.0, -0.31])
    >>> fr.policy("stochastic_gumbel_softmax_trick", temperature=0.5, head=2)
    BestFirst(head=2, then=PlackettLuce(temperature=0.5, sampler='gumbel'))
    """

    head: int
    then: Policy
    law: Law = field(init=False, repr=False, compare=False)

    takes_head = False

    def __post_init__(self) -> None:
        head = real("head", self.head, 1, MAX_HEAD)
        if head != int(head):
            raise ValueError(f"head: expected an integer, got {shown(self.head)}")
        law = self.then.law if isinstance(self.then, Policy) else None
        if law is None or law.head or not self.then.takes_head:
            raise ValueError(
                "then: expected PlackettLuce, EpsilonGreedy or another policy that draws from its"
                " first place on, got " + shown(self.then)
            )
        object.__setattr__(self, "head", int(head))
        object.__setattr__(self, "law", replace(law, head=int(head)))

    @property
    def inference_type(self) -> str:
        return self.then.inference_type

    @property
    def params(self) -> dict[str, float]:
        return {**self.then.params, "head": self.head}

    @property
    def sampler(self) -> str | None:
        """The sampler of `then`."""
        return self.then.sampler

    @property
    def law_name(self) -> str:
        """The name of the law of `then`: the head is a parameter."""
        return self.then.law_name

    def with_sampler(self, sampler: str) -> BestFirst:
        return BestFirst(self.head, self.then.with_sampler(sampler))

    def at_temperature(self, temperature: float) -> BestFirst:
        return BestFirst(self.head, self.then.at_temperature(temperature))
