"""A catalog in shards, each a model of its own: all are asked at once, and their answers merged."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from fastrank import store
from fastrank.arraytypes import Hashes, IntArray
from fastrank.batch.rows import kind_of_items
from fastrank.eventlog.hashing import text_hashes
from fastrank.eventlog.schema import IdKind
from fastrank.inputs import as_count, shown
from fastrank.model import Model
from fastrank.policies import Policy
from fastrank.ranking import RankingBatch
from fastrank.scoring import imported
from fastrank.shards import joined_version, merge_batch, mergeable_law, shard_seed

__all__ = ["About", "Shard", "Shards", "as_shards", "is_of_ray"]

_ASKED = ("about", "find_users", "item_hashes", "items_of", "rank")  # what a shard must have
_OF_USERS = ("user_ids", "user_vectors", "user_temperatures")
_NAMED = 1000  # items that are looked up where shards share some


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a model, or of all shards together, before it ranks.

    Attributes
    ----------
    path : str or None
    version, catalog_version : str
    n_items, dim : int
    item_kind : str
    first_user : str
    users : str
        Hash of user ids, vectors and temperatures.
    policy : Policy or None
        The model's own.
    """

    path: str | None
    version: str
    catalog_version: str
    n_items: int
    dim: int
    item_kind: IdKind
    first_user: str
    users: str
    policy: Policy | None


class Shard:
    """One shard of a catalog: its model, mapped at the first use, which ranks what it is asked.

    `RankUsers` asks it. As it is, it ranks in the process that asks; made an actor of Ray,
    ``ray.remote(fr.batch.Shard).options(...).remote(path)``, it ranks where the actor is.

    Parameters
    ----------
    model : path
        Of a model's directory: the shard's items, and all users.
    threads : int
        That rank, each of which keeps a core busy.
    score_functions : sequence of str
        As `RankUsers` takes them.

    Raises
    ------
    ValueError
        If an argument is invalid; the message names the argument and the value.

    Examples
    --------
    >>> import tempfile
    >>> import fastrank as fr
    >>> from fastrank import batch
    >>> shards = []
    >>> for ids, vectors in (([10, 20], [[1.0], [0.5]]), ([30], [[0.8]])):
    ...     directory = tempfile.mkdtemp()
    ...     fr.Model(fr.Catalog(ids, vectors), ["ann", "bob"], [[1.0], [-1.0]]).save(directory)
    ...     shards.append(batch.Shard(directory))
    >>> run = fr.Run("2026-11-30", key=bytes(32))
    >>> rank = batch.RankUsers(None, run, 2, fr.Deterministic(), ts=0, shards=shards)
    >>> import pyarrow as pa
    >>> rank(pa.table({"user_id": ["bob", "ann"]}))["item_ids"].to_pylist()
    [[20, 30], [10, 30]]
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        threads: int = 1,
        score_functions: Sequence[str] = (),
    ) -> None:
        try:
            self.model = os.fspath(model)
        except TypeError:
            raise ValueError(f"model: expected a path, got {shown(model)}") from None
        if isinstance(score_functions, str):
            raise ValueError(f"score_functions: expected several, got {score_functions!r}")
        self.threads = as_count("threads", threads)
        self.score_functions = tuple(score_functions)

    def __repr__(self) -> str:
        return f"Shard({self.model!r})"

    def __getstate__(self) -> dict[str, Any]:
        own = dict(self.__dict__)
        for name in ("_opened", "_hashes"):  # each worker's
            own.pop(name, None)
        return own

    @cached_property
    def _opened(self) -> Model:
        return Model.open(self.model, functions=imported(self.score_functions))

    def about(self) -> About:
        """What the shards of one catalog are compared by."""
        model = self._opened
        digests = {name: model._digests.get(name) for name in _OF_USERS}
        return About(
            path=self.model,
            version=model.version,
            catalog_version=model.catalog.version,
            n_items=len(model.catalog),
            dim=model.catalog.dim,
            item_kind=kind_of_items(model.catalog.item_ids),
            first_user=str(model.user_ids[0].item()),
            users=store.content_hash(digests),
            policy=model.policy,
        )

    def asked(self, policy: Policy | None) -> Policy:
        """The policy of a call: by default the model's own."""
        return self._opened._asked(policy)

    def find_users(self, user_ids: Sequence[str]) -> IntArray:
        """Rows (m,) of users, as `Model.find_users`."""
        return self._opened.find_users(list(user_ids))

    def item_hashes(self) -> Hashes:
        """A number for each item (n,): an integer id itself, or a hash of a text."""
        return self._hashes

    @cached_property
    def _hashes(self) -> Hashes:
        ids = self._opened.catalog.item_ids
        if ids.dtype.kind == "i":
            return np.asarray(ids, np.int64).view(np.uint64)
        return text_hashes(pa.array(ids, pa.string()))[:, 0]

    def items_of(self, hashes: Hashes) -> list[Any]:
        """The ids that have one of these numbers."""
        found: list[Any] = self._opened.catalog.item_ids[np.isin(self._hashes, hashes)].tolist()
        return found

    def rank(
        self, rows: IntArray, k: int, policy: Policy | None, seeds: Hashes, **asked: Any
    ) -> RankingBatch:
        """The rankings of users in these rows of the model (b,), or of b strangers, in rows -1."""
        model, b = self._opened, len(rows)
        filters = {
            name: None if asked[name] is None else [asked[name]] * b
            for name in ("exclude", "allow")
        }
        asked = {**asked, **filters, "seeds": seeds, "threads": self.threads}
        if b and rows[0] >= 0:
            ids = model.user_ids[rows]
            batch = model.recommend_batch(ids, k, policy=policy, **asked)
        else:
            queries = np.zeros((b, model.catalog.dim), np.float32)
            batch = model.catalog.rank_batch(queries, k, policy=model._asked(policy), **asked)
        # What all were asked alike, whoever asks knows.
        return replace(batch, model_version=model.version, exclude=None, allow=None)


class Shards:
    """All shards of a catalog, asked as if they were one model.

    Parameters
    ----------
    shards : sequence of Shard, or of actors
    timeout : float
        Seconds within which an actor must answer.
    is_known : bool
        Whether it was looked at before that no item is in two shards.
    """

    def __init__(self, shards: Sequence[Any], timeout: float, is_known: bool) -> None:
        self._shards, self._timeout = shards, timeout
        self._each: list[About] = self._ask("about")
        for i, about in enumerate(self._each):
            self._check(i, about)
        if not is_known:
            self._check_apart()

    def about(self) -> About:
        """Of the whole: its versions change with any shard's, and with their order."""
        return replace(
            self._each[0],
            path=None,
            version=joined_version([each.version for each in self._each]) or "",
            catalog_version=joined_version([each.catalog_version for each in self._each]) or "",
            n_items=sum(each.n_items for each in self._each),
        )

    @property
    def each(self) -> list[About]:
        """Of each shard."""
        return self._each

    def _check(self, i: int, about: About) -> None:
        if not isinstance(about, About):
            raise ValueError(f"shards[{i}]: expected what is known of a model, got {shown(about)}")
        first = self._each[0]
        for words, expected, got in (
            ("dimension", first.dim, about.dim),
            ("item ids", first.item_kind, about.item_kind),
            ("policy", first.policy, about.policy),
        ):
            if expected != got:
                raise ValueError(
                    f"shards[{i}]: {words}: expected {shown(expected)}, as in shards[0], got"
                    f" {shown(got)}"
                )
        if about.users != first.users:
            raise ValueError(
                f"shards[{i}]: users: expected those of shards[0], with their vectors and"
                " temperatures, got others"
            )

    def _check_apart(self) -> None:
        """No item is in two shards: it would be drawn with twice its weight."""
        hashes = np.sort(np.concatenate(self._ask("item_hashes")))
        again = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])[:_NAMED]
        if not len(again):
            return
        owners: dict[Any, int] = {}
        for i, items in enumerate(self._ask("items_of", again)):
            for item in items:
                if owners.setdefault(item, i) != i:
                    raise ValueError(
                        f"shards[{i}]: item {shown(item)} is in shards[{owners[item]}], too; the"
                        " shards of a catalog share no item"
                    )

    def asked(self, policy: Policy | None) -> Policy:
        """As `Shard.asked`; a ValueError also for a policy that cannot be merged."""
        own = self._each[0].policy if policy is None else policy
        if own is None:
            raise ValueError("policy: the shards have none of their own: give one")
        mergeable_law("policy", own)
        return own

    def find_users(self, user_ids: Sequence[str]) -> IntArray:
        """Rows (m,) of users, the same in all shards; -1 for those who are unknown."""
        (rows,) = self._ask("find_users", list(user_ids), of=[0])
        found: IntArray = rows
        return found

    def rank(
        self, rows: IntArray, k: int, policy: Policy | None, seeds: Hashes, **asked: Any
    ) -> RankingBatch:
        """As `Shard.rank`, of the whole."""
        own = [
            np.array([shard_seed(seed, i) for seed in seeds.tolist()], np.uint64)
            for i in range(len(self._shards))
        ]
        batches = self._ask("rank", rows, k, policy, each=own, **asked)
        for i, (batch, about) in enumerate(zip(batches, self._each, strict=True)):
            if not isinstance(batch, RankingBatch) or len(batch) != len(rows):
                raise ValueError(f"shards[{i}]: expected {len(rows)} rankings, got {shown(batch)}")
            if batch.model_version != about.version:
                raise ValueError(
                    f"shards[{i}]: its model is version {batch.model_version} now; it was"
                    f" {about.version}"
                )
        try:
            return merge_batch(batches, k, seeds=seeds)
        except ValueError as error:
            raise ValueError(re.sub(r"^batches\b", "shards", str(error))) from None

    def _ask(
        self,
        what: str,
        *given: Any,
        each: Sequence[Any] | None = None,
        of: Sequence[int] | None = None,
        **named: Any,
    ) -> list[Any]:
        """The answers of all shards, or of some; all are asked before the first is waited for."""
        places = range(len(self._shards)) if of is None else of
        begun = []
        for i in places:
            own = given if each is None else (*given, each[i])
            begun.append(self._answer(i, partial(self._begin, i, what, own, named)))
        return [self._answer(i, waiting) for i, waiting in zip(places, begun, strict=True)]

    def _begin(
        self, i: int, what: str, given: tuple[Any, ...], named: dict[str, Any]
    ) -> Callable[[], Any]:
        method = getattr(self._shards[i], what)
        if not hasattr(method, "remote"):
            return partial(method, *given, **named)
        import ray

        return partial(ray.get, method.remote(*given, **named), timeout=self._timeout)

    def _answer(self, i: int, ask: Callable[[], Any]) -> Any:
        """What a shard says; a ValueError of its own, or a ConnectionError, names it."""
        try:
            return ask()
        except Exception as error:
            cause = getattr(error, "cause", error)  # of what Ray brings from an actor
            if isinstance(cause, ValueError):
                row = re.match(r"row \d+: ", str(cause))
                start = "" if row is None else row[0]
                raise ValueError(f"{start}shards[{i}]: {str(cause).removeprefix(start)}") from None
            said = f"{type(cause).__name__}: {cause}".strip().partition("\n")[0]
            raise ConnectionError(
                f"shards[{i}] did not answer ({said.strip(': ')}); without it the law would be"
                " another one"
            ) from error


def as_shards(shards: Any) -> tuple[Any, ...]:
    """Shards, or actors of them, as a tuple; a ValueError for what is none."""
    if isinstance(shards, str) or not isinstance(shards, Sequence) or not shards:
        raise ValueError(f"shards: expected a sequence of Shards, got {shown(shards)}")
    for i, each in enumerate(shards):
        if not all(hasattr(each, name) for name in _ASKED) or isinstance(each, type):
            raise ValueError(
                f"shards[{i}]: expected a fastrank.batch.Shard, or an actor of one, got"
                f" {shown(each)}"
            )
    return tuple(shards)


def is_of_ray(shards: Sequence[Any]) -> bool:
    """Whether some are actors, which a process of ours cannot ask."""
    return any(hasattr(each.rank, "remote") for each in shards)
