"""Model: a catalog and the users it serves; what a service loads."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrank import contents, store, tables
from fastrank.arraytypes import Float32Array, FloatArray, IdArray, IntArray
from fastrank.catalog import LOG_NORM_TOLERANCE, Catalog
from fastrank.expressions import Params
from fastrank.faissindex import FaissIndex
from fastrank.ids import IdIndex, Ids, as_ids
from fastrank.inputs import as_column, as_count, as_finite, as_float32, as_real, shown
from fastrank.policies import TABLED, PlackettLuce, Policy, law_of, no_policy
from fastrank.policies import policy as policy_of
from fastrank.ranking import Ranking, RankingBatch, recommended
from fastrank.rules import Rules
from fastrank.score import ScoreLike
from fastrank.scorer import Scorer
from fastrank.scoring import ScoreFunction
from fastrank.seen import ARRAYS as SEEN_ARRAYS
from fastrank.seen import Seen, SeenLists, arrays_of
from fastrank.tables import Advance, UserTables

__all__ = ["Model", "scorer_of"]

_LOG = logging.getLogger("fastrank.model")


class Model:
    """A catalog with users, and with titles to show.

    Parameters
    ----------
    catalog : Catalog
    user_ids : array_like of int or str, shape (u,)
        Unique, of at most 1,024 characters.
    user_vectors : array_like of real numbers, shape (u, d)
        Each user's query; cast to float32, finite.
    item_titles : sequence of n str, optional
        In catalog order.
    user_temperatures : array_like of real numbers, shape (u,), optional
        Each user's factor, above 0, on the temperature of any Plackett-Luce policy. Scores spread
        differently for different users, so one temperature explores a lot for some and hardly at
        all for others. `fastrank build` and `fastrank plan --apply` choose the factors.
    policy : Policy, optional
        The policy of `recommend` and of servers where a call names none. It is saved with the
        model, and is part of its version. It must be one of fastrank's own, which a name and
        parameters describe fully.

    Raises
    ------
    ValueError
        If an argument is invalid; the message names the argument, the row and the value.

    Examples
    --------
    >>> import fastrank as fr
    >>> catalog = fr.Catalog([10, 20], [[1.0, 0.0], [0.0, 1.0]])
    >>> model = fr.Model(catalog, ["ann", "bob"], [[1.0, 0.0], [0.0, 1.0]])
    >>> model.recommend("bob", k=1, policy=fr.Deterministic()).item_ids.tolist()
    [20]
    """

    def __init__(
        self,
        catalog: Catalog,
        user_ids: Ids,
        user_vectors: npt.ArrayLike,
        *,
        item_titles: Sequence[str] | None = None,
        user_temperatures: npt.ArrayLike | None = None,
        policy: Policy | None = None,
    ) -> None:
        if not isinstance(catalog, Catalog):  # it is saved and opened with the model
            raise ValueError(f"catalog: expected a Catalog, got {shown(catalog)}")
        rows = as_real("user_vectors", user_vectors)
        if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] != catalog.dim:
            raise ValueError(
                f"user_vectors: expected shape (u, {catalog.dim}) with u >= 1, got {rows.shape}"
            )
        ids = as_ids("user_ids", user_ids)
        if ids.shape != (len(rows),):
            raise ValueError(
                f"user_ids: expected {len(rows)}, one for each row of user_vectors, got {len(ids)}"
            )
        vectors = as_float32("user_vectors", rows, rows.shape).copy()  # callers may change theirs
        catalog._check_range("user_vectors", vectors)
        vectors.flags.writeable = False
        index = IdIndex("user_ids", ids)
        arrays = {"user_ids": index.ids, "user_order": index.order, "user_vectors": vectors}
        if item_titles is not None:
            text, offsets = _pack_titles(item_titles, len(catalog))
            arrays |= {"title_text": text, "title_offsets": offsets}
        if user_temperatures is not None:
            arrays["user_temperatures"] = _as_temperatures(user_temperatures, len(vectors))
        digests = {name: store.array_digest(array) for name, array in arrays.items()}
        self._set(catalog, arrays, digests, index, None, _as_policy(policy))

    def _set(
        self,
        catalog: Catalog,
        arrays: dict[str, npt.NDArray[Any]],
        digests: dict[str, str],
        index: IdIndex,
        user_tables: UserTables | None,
        policy: Policy | None,
    ) -> None:
        self._catalog = catalog
        self._arrays = arrays
        self._digests = digests
        self._index = index
        self._policy = policy
        content = {"catalog": catalog.version, "arrays": digests}
        if policy is not None:
            content["policy"] = _written(policy)
        self._version = store.content_hash(content)
        self._seen: SeenLists | None = None
        if "seen_items" in arrays:
            items = catalog._items_digest
            self._seen = SeenLists(arrays, digests, digests["user_ids"], items)
        self._tables = user_tables  # not part of the version: the law is the same without them

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the model and its catalog to one directory, as `Catalog.save` does."""
        meta, arrays, digests = self._catalog._files()
        meta["model_version"] = self._version
        if self._policy is not None:
            meta["policy"] = _written(self._policy)
        arrays |= self._arrays
        digests |= self._digests
        if self._tables is not None:
            own = self._tables.arrays()
            meta["table_temperature"] = self._tables.temperature
            meta["table_of"] = _tabled(self._catalog, self._digests, self._tables.temperature)
            meta["table_rounding"] = tables.rounding()
            arrays |= own
            digests |= {name: store.array_digest(array) for name, array in own.items()}
        store.write(directory, meta, arrays, digests)

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        verify: bool = False,
        cache_bytes: int = 256 << 20,
        log_norm_tolerance: float = LOG_NORM_TOLERANCE,
        functions: Sequence[ScoreFunction] = (),
    ) -> Model:
        """Open a saved model by mapping its files; nothing is copied."""
        manifest, arrays = store.read(directory, verify)
        catalog = Catalog._from_store(
            directory, manifest, arrays, cache_bytes, log_norm_tolerance, verify, functions
        )
        if "user_ids" not in arrays:
            raise ValueError(f"{directory}: is a catalog without users: open it with Catalog.open")
        names = (
            *("user_ids", "user_order", "user_vectors", "user_temperatures"),
            *("title_text", "title_offsets", *SEEN_ARRAYS),
        )
        own = {name: arrays[name] for name in names if name in arrays}
        users = len(own["user_ids"])
        expected = {
            "user_order": ((users,), "<i8"),
            "user_vectors": ((users, catalog.dim), "<f4"),
            "user_temperatures": ((users,), "<f8"),
            "title_offsets": ((len(catalog) + 1,), "<i8"),
            "title_text": ((own["title_text"].size if "title_text" in own else 0,), "|u1"),
            "seen_offsets": ((users + 1,), "<i8"),
            "seen_items": ((own["seen_items"].size if "seen_items" in own else 0,), "<u4"),
        }
        optional = ["user_temperatures"]
        for together in (("title_text", "title_offsets"), SEEN_ARRAYS):
            if not {*together} & own.keys():
                optional += together
        for name, (shape, dtype) in expected.items():
            if name not in own and name in optional:
                continue
            if name not in own or own[name].shape != shape or own[name].dtype.str != dtype:
                raise ValueError(f"{directory}: not a model: {name} is missing or does not fit")
        if "user_temperatures" in own:
            try:
                _check_temperatures(own["user_temperatures"])
            except ValueError as error:
                raise ValueError(f"{directory}: not a model: {error}") from None
        digests = {name: manifest["arrays"][name]["sha256"] for name in own}
        try:
            policy = _read_policy(manifest.get("policy"))
            user_tables = tables.from_arrays(
                arrays, manifest.get("table_temperature"), len(catalog), users
            )
            if user_tables is not None:
                tables_of = _tabled(catalog, digests, user_tables.temperature)
                if manifest.get("table_of") != tables_of:
                    raise ValueError("table_of: made for other items, users or temperatures")
                if manifest.get("table_rounding") != tables.rounding():
                    _LOG.warning(
                        "%s: its tables were made on a CPU that rounds otherwise, and are unused",
                        directory,
                    )
                    user_tables = None
        except ValueError as error:
            raise ValueError(f"{directory}: not a model: {error}") from None
        if verify:
            made_ahead = {} if user_tables is None else user_tables.arrays()
            try:
                contents.check(manifest, {**own, **made_ahead})
            except ValueError as error:
                raise ValueError(f"{directory}: {error}") from None
        model = cls.__new__(cls)
        index = IdIndex("user_ids", own["user_ids"], own["user_order"])
        model._set(catalog, own, digests, index, user_tables, policy)
        return model

    def __repr__(self) -> str:
        return f"Model({len(self._index.ids)} users, {self._catalog!r})"

    @property
    def catalog(self) -> Catalog:
        """The catalog of items."""
        return self._catalog

    @property
    def user_ids(self) -> IdArray:
        """ndarray of int64 or str, shape (u,): ids in the order of the rows given."""
        return self._index.ids

    @property
    def version(self) -> str:
        """Content hash of catalog, users, titles, user temperatures, seen items and policy."""
        return self._version

    @property
    def policy(self) -> Policy | None:
        """The policy of `recommend` and of servers where a call names none; None if the model has
        none."""
        return self._policy

    def with_policy(self, policy: Policy | None) -> Model:
        """Return a model with another policy of its own; it shares all arrays.

        Parameters
        ----------
        policy : Policy or None
            One of fastrank's own; None for a model without a policy.

        Raises
        ------
        ValueError
            If it is not such a policy.

        Examples
        --------
        >>> import fastrank as fr
        >>> model = fr.Model(fr.Catalog([1, 2], [[1.0], [0.0]]), ["ann"], [[1.0]])
        >>> model.with_policy(fr.PlackettLuce(0.25)).recommend("ann", k=1, seed=1).policy
        PlackettLuce(temperature=0.25, sampler='gumbel')
        """
        model = type(self).__new__(type(self))
        own = _as_policy(policy)
        model._set(self._catalog, self._arrays, self._digests, self._index, self._tables, own)
        return model

    def _asked(self, policy: Policy | None) -> Policy:
        """The policy of a call, by default the model's own."""
        if policy is not None:
            return policy
        if self._policy is None:
            raise ValueError(
                "policy: this model has none of its own: pass one, PlackettLuce(0.5) say,"
                " or store one in the model, by `fastrank plan --target-overlap 0.7 --apply` or"
                " Model.with_policy"
            )
        return self._policy

    @property
    def has_titles(self) -> bool:
        """Whether the model has titles of items."""
        return "title_text" in self._arrays

    def __contains__(self, user_id: Any) -> bool:
        return self._index.holds("user_id", user_id)

    def user_vector(self, user_id: Any) -> Float32Array:
        """Return the user's query, (d,) float32; a ValueError for an unknown user."""
        vector: Float32Array = self._arrays["user_vectors"][self._position(user_id)]
        return vector

    @property
    def user_vectors(self) -> Float32Array:
        """ndarray of float32, shape (u, d): one row per user."""
        vectors: Float32Array = self._arrays["user_vectors"]
        return vectors

    def find_users(self, user_ids: Iterable[Any] | npt.NDArray[Any]) -> IntArray:
        """Return the rows (m,) of users by their ids, -1 for unknown or missing ids.

        Integer ids may come as text, as they do in logs.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog([1, 2], [[1.0], [0.0]])
        >>> fr.Model(catalog, [7, 9], [[1.0], [2.0]]).find_users(["9", "8", None, "ann"]).tolist()
        [1, -1, -1, -1]
        """
        return self._index.find_logged("user_ids", user_ids)

    def users_starting_with(self, prefix: str, limit: int = 20) -> list[Any]:
        """Return the first `limit` user ids, in their order, that begin with a text.

        Integer ids are compared in decimal, shorter ones first. O(log u + limit).

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog([1, 2], [[1.0], [0.0]])
        >>> model = fr.Model(catalog, [117, 20, 11], [[1.0], [2.0], [3.0]])
        >>> model.users_starting_with("1")
        [11, 117]
        """
        rows = self._index.starting_with(prefix, as_count("limit", limit, low=0))
        found: list[Any] = self._index.ids[rows].tolist()
        return found

    def temperature_at(self, row: int) -> float:
        """Return the `user_temperature` of the user in this row."""
        if not self.has_user_temperatures:
            return 1.0
        return float(self._arrays["user_temperatures"][row])

    def _position(self, user_id: Any) -> int:
        position = self._index.find_one("user_id", user_id)
        if position < 0:
            raise ValueError(f"user_id: {shown(user_id)} is not in the model")
        return position

    @property
    def has_user_temperatures(self) -> bool:
        """Whether users have temperatures of their own."""
        return "user_temperatures" in self._arrays

    def user_temperature(self, user_id: Any) -> float:
        """Return this user's factor on a Plackett-Luce temperature; 1.0 where users have none."""
        return self.temperature_at(self._position(user_id))

    @property
    def seen_id(self) -> str | None:
        """Content hash of the lists of what users have seen; None without such lists."""
        return None if self._seen is None else self._seen.id

    @property
    def seen_pairs(self) -> int:
        """How many items users have seen, summed over users."""
        return 0 if self._seen is None else len(self._seen)

    def seen(self, user_id: Any) -> Seen | None:
        """Return the list of items that this user's rankings leave out, as `Catalog.rank` takes it.

        None if it is empty; a ValueError for an unknown user. O(1): a view of the mapped file.
        """
        position = self._position(user_id)
        return None if self._seen is None else self._seen.of(position)

    def seen_item_ids(self, user_id: Any) -> IdArray:
        """Return the ids of that list, (m,), in no particular order.

        Examples
        --------
        >>> import fastrank as fr
        >>> model = fr.Model(fr.Catalog([7, 8], [[1.0], [0.0]]), ["ann", "bob"], [[1.0], [2.0]])
        >>> model = model.with_seen(["bob", "bob", "bob"], [8, 7, 8])
        >>> model.seen_item_ids("bob").tolist(), model.seen_item_ids("ann").tolist()
        ([7, 8], [])
        """
        found = self.seen(user_id)
        own = np.empty(0, np.int64) if found is None else self._catalog._seen("seen", found)
        ids: IdArray = self._catalog._index.ids[own]
        return ids

    def with_seen(self, user_ids: Ids | None, item_ids: Ids | None = None) -> Model:
        """Return a model with other lists of what its users have seen; it shares all other arrays.

        Rankings for a user leave those items out before sampling, as `exclude` does, in
        `recommend`, `recommend_batch`, servers and ``fastrank rank --user``. The log identifies a
        list by `seen_id` and the user.

        Parameters
        ----------
        user_ids, item_ids : array_like of ids, shape (m,), or None
            Pairs, in any order. Repeats count once; pairs whose user or item the model does not
            know are ignored. None for a model without lists.

        Raises
        ------
        ValueError
            If ids are of another kind, or the columns of different lengths.

        Notes
        -----
        4 bytes per pair and 8 per user; O(m log m) to make. A ranking costs O(length of its user's
        list) more.

        Examples
        --------
        >>> import fastrank as fr
        >>> model = fr.Model(fr.Catalog([7, 8], [[1.0], [0.0]]), ["ann", "bob"], [[1.0], [2.0]])
        >>> seen = model.with_seen(["ann"], [7])
        >>> policy = fr.Deterministic()
        >>> [seen.recommend(user, policy=policy).item_ids.tolist() for user in ("ann", "bob")]
        [[8], [7, 8]]
        """
        if user_ids is None and item_ids is None:
            return self._with_pairs(None)
        if user_ids is None or item_ids is None:
            raise ValueError("user_ids, item_ids: give both, or neither")
        rows, items = self._find_pairs(user_ids, item_ids)
        known = (rows >= 0) & (items >= 0)
        return self._with_pairs((rows[known], items[known]))

    def _find_pairs(self, user_ids: Ids, item_ids: Ids) -> tuple[IntArray, IntArray]:
        """Rows of users and positions of items of pairs (m,), -1 where they are unknown."""
        rows = self._index.find("user_ids", user_ids, ordered=True)
        items = self._catalog._index.find("item_ids", item_ids, ordered=True)
        if len(rows) != len(items):
            raise ValueError(f"item_ids: expected {len(rows)}, one for each user, got {len(items)}")
        return rows, items

    def _with_pairs(self, pairs: tuple[IntArray, IntArray] | None) -> Model:
        arrays = {name: a for name, a in self._arrays.items() if name not in SEEN_ARRAYS}
        digests = {name: d for name, d in self._digests.items() if name not in SEEN_ARRAYS}
        if pairs is not None:
            own = arrays_of(*pairs, len(self._index.ids), len(self._catalog))
            arrays |= own
            digests |= {name: store.array_digest(array) for name, array in own.items()}
        model = type(self).__new__(type(self))
        model._set(self._catalog, arrays, digests, self._index, self._tables, self._policy)
        return model

    def user_policy(self, user_id: Any, policy: Policy | None = None) -> Policy:
        """Return the policy that `recommend` uses for this user, by default from the model's own.

        Plackett-Luce gets its temperature times `user_temperature`; any other policy is unchanged.

        Raises
        ------
        ValueError
            If the product leaves the range of temperatures, if the user is unknown, or if the model
            has no policy and none is given.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog([1, 2], [[1.0], [0.0]])
        >>> model = fr.Model(catalog, ["ann", "bob"], [[1.0], [9.0]], user_temperatures=[0.5, 4.5])
        >>> model.user_policy("bob", fr.PlackettLuce(temperature=2.0)).temperature
        9.0
        """
        return self._own_policy(self._position(user_id), self._asked(policy))[0]

    def _own_policy(self, position: int, policy: Policy) -> tuple[Policy, float | None]:
        """The policy for a user, and the factor of the user that it includes."""
        if not self.has_user_temperatures or not isinstance(policy, Policy):
            return policy, None
        own = float(self._arrays["user_temperatures"][position])
        try:
            scaled = policy.scaled(own)
            return scaled, None if scaled is policy else own
        except ValueError as error:
            text = str(error).removeprefix("temperature: ")
            if text == str(error):  # another error than the range
                raise
            raise ValueError(
                f"temperature: {policy.params['temperature']:g} times the {own:g} of user"
                f" {self._index.ids[position].item()!r} {text}"
            ) from None

    def with_user_temperatures(self, user_temperatures: npt.ArrayLike | None) -> Model:
        """Return a model with other user temperatures; it shares all other arrays.

        The new model has no tables: those of other temperatures are useless to it.

        Parameters
        ----------
        user_temperatures : array_like of real numbers, shape (u,), or None
            In the order of `user_ids`, finite and above 0; None for a model without them.

        Examples
        --------
        >>> import fastrank as fr
        >>> model = fr.Model(fr.Catalog([1, 2], [[1.0], [0.0]]), ["ann"], [[1.0]])
        >>> model.with_user_temperatures([0.25]).user_temperature("ann")
        0.25
        """
        own = "user_temperatures"
        arrays = {name: array for name, array in self._arrays.items() if name != own}
        digests = {name: digest for name, digest in self._digests.items() if name != own}
        if user_temperatures is not None:
            arrays[own] = _as_temperatures(user_temperatures, len(self._index.ids))
            digests[own] = store.array_digest(arrays[own])
        model = type(self).__new__(type(self))
        model._set(self._catalog, arrays, digests, self._index, None, self._policy)
        return model

    def with_tables(
        self,
        policy: Policy | None = None,
        user_ids: Ids | None = None,
        *,
        threads: int = 1,
        max_bytes: int = 1 << 30,
        advance: Advance | None = None,
    ) -> Model:
        """Return a model with users' tables ready for a policy; it shares all other arrays.

        With a user's table, a ranking by ``PlackettLuce(sampler="cached")``, or "auto", scores only
        some hundreds or thousands of items, whatever the size of the catalog. `recommend` and the
        server use it where a request has the policy's temperature. Versions and laws do not change.

        Parameters
        ----------
        policy : Policy, optional
            `PlackettLuce`, or a `BestFirst` with it. The tables are for its temperature times each
            user's own factor, if there is one. By default the model's own policy.
        user_ids : array_like of ids, shape (m,), optional
            Users whose tables to make; by default all.
        threads : int
        max_bytes : int
            Refuse tables of more bytes: a user of a million items takes about 16 KB.
        advance : callable, optional
            Called with the number of users done, and the number in all.

        Raises
        ------
        ValueError
            If an argument is invalid; the message names the argument and the value.

        Notes
        -----
        O(n d) per user, as for a pass over float32 vectors; vectors that are loaded serve several
        users.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog([10, 20], [[1.0, 0.0], [0.0, 1.0]])
        >>> model = fr.Model(catalog, ["ann", "bob"], [[1.0, 0.0], [0.0, 1.0]])
        >>> policy = fr.PlackettLuce(0.5, sampler="auto")
        >>> model.with_tables(policy).recommend("bob", k=1, policy=policy, seed=1).made_by
        'table'
        """
        policy = self._asked(policy)
        law = law_of(policy)
        if law.explore != 1.0 or law.temperature == math.inf:
            raise ValueError(f"policy: expected PlackettLuce, got {shown(policy)}")
        users = None if user_ids is None else self._rows_of_users(user_ids)
        rows = np.arange(len(self._index.ids)) if users is None else users
        size = tables.nbytes(len(self._catalog), len(rows))
        if size > as_count("max_bytes", max_bytes, low=0):
            one = tables.nbytes(len(self._catalog), 1)
            raise ValueError(
                f"max_bytes: tables of {len(rows):,} users take {size:,} bytes, over {max_bytes:,},"
                f" which has room for {max_bytes // one:,}"
            )
        temperatures = np.array(
            [law_of(self._own_policy(row, policy)[0]).temperature for row in rows.tolist()]
        )
        depths, tops = self._catalog._make_tables(
            self._arrays["user_vectors"], rows, temperatures, threads, advance
        )
        model = type(self).__new__(type(self))
        made = UserTables(law.temperature, depths, tops, users)
        model._set(self._catalog, self._arrays, self._digests, self._index, made, self._policy)
        return model

    def with_index(self, index: FaissIndex | None) -> Model:
        """Return a model whose catalog has an index for `FlatTail`; see `Catalog.with_index`."""
        model = type(self).__new__(type(self))
        catalog = self._catalog.with_index(index)
        model._set(catalog, self._arrays, self._digests, self._index, self._tables, self._policy)
        return model

    def with_features(self, features: Any) -> Model:
        """Return a model whose catalog has other columns; see `Catalog.with_features`.

        If its own score uses columns, the new model has no tables: those of other scores are
        useless.
        """
        return self._with_scores(self._catalog.with_features(features))

    def with_score(self, score: ScoreLike | None, params: Params | None = None) -> Model:
        """Return a model whose catalog has another score; no tables stay."""
        return self._with_scores(self._catalog.with_score(score, params))

    def with_functions(self, *functions: ScoreFunction) -> Model:
        """Return a model whose calls may name these functions; see `Catalog.with_functions`."""
        return self._with_scores(self._catalog.with_functions(*functions))

    def _with_scores(self, catalog: Catalog) -> Model:
        model = type(self).__new__(type(self))
        same = catalog.scores_key == self._catalog.scores_key
        kept = self._tables if same else None
        model._set(catalog, self._arrays, self._digests, self._index, kept, self._policy)
        return model

    def _rows_of_users(self, user_ids: Ids) -> IntArray:
        rows = self._index.find("user_ids", user_ids, ordered=True)
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            wanted = as_ids("user_ids", user_ids)[missing[0]]
            raise ValueError(f"user_ids: {shown(wanted.item())} is not in the model")
        return np.unique(rows)

    @property
    def table_temperature(self) -> float | None:
        """Temperature of the policies for which users' tables are ready; None without tables."""
        return None if self._tables is None else self._tables.temperature

    def _table_error(self, most: int) -> tuple[int, float]:
        """How many users' tables were made again, and how far log-masses differ at most."""
        kept = self._tables
        assert kept is not None
        places = np.random.default_rng(0).permutation(len(kept.depths))[:most]
        rows = places if kept.users is None else kept.users[places]
        policy = PlackettLuce(kept.temperature)
        temperatures = np.array(
            [law_of(self._own_policy(row, policy)[0]).temperature for row in rows.tolist()]
        )
        depths, tops = self._catalog._make_tables(
            self._arrays["user_vectors"], rows, temperatures, 1, None
        )
        return len(rows), tables.largest_difference(
            (kept.depths[places], kept.tops[places]), (depths, tops), temperatures
        )

    def keep_table(self, user_id: Any, policy: Policy) -> bool:
        """Hand this user's table for a policy to the catalog; return whether there is one.

        Only the model's files and the policy decide, so replicas agree. `recommend` does this by
        itself. Call it before `Catalog.rank` with the user's vector and `user_policy`; there "auto"
        draws as "gumbel", so if it returns True, draw by ``with_sampler("cached")``.
        """
        position = self._position(user_id)
        return self._keep_table(position, policy, self._own_policy(position, policy)[0])

    def _keep_table(self, position: int, policy: Policy, own: Policy) -> bool:
        if self._tables is None or not isinstance(own, Policy) or own.sampler not in TABLED:
            return False
        if law_of(policy).temperature != self._tables.temperature:
            return False
        table = self._tables.of(position)
        if table is None:
            return False
        self._catalog._keep(self._arrays["user_vectors"][position], law_of(own).temperature, table)
        return True

    def recommend(
        self,
        user_id: Any,
        k: int = 10,
        *,
        policy: Policy | None = None,
        seed: int | None = None,
        exclude: Ids | None = None,
        allow: Ids | None = None,
        bias: npt.ArrayLike | None = None,
        threads: int = 1,
        score: ScoreLike | None = None,
        params: Params | None = None,
        rules: Rules | None = None,
        after: Ranking | Ids | None = None,
    ) -> Ranking:
        """Draw one ranking for a known user, as `Catalog.rank` does for the user's vector.

        Parameters are those of `Catalog.rank`. The policy is by default the model's own; a
        ValueError if it has none.

        If users have temperatures of their own, the user's factor multiplies that of a
        Plackett-Luce policy: the ranking's `policy` holds the product, which is the temperature
        that was used, and its `user_temperature` the factor.

        What the user has seen (`with_seen`) is left out, in addition to `exclude`.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog([10, 20], [[1.0, 0.0], [0.0, 1.0]])
        >>> model = fr.Model(catalog, ["ann"], [[0.2, 1.0]], policy=fr.PlackettLuce(0.1))
        >>> ranking = model.recommend("ann", k=1, seed=1)
        >>> ranking.item_ids.tolist(), round(ranking.log_propensity, 5)
        ([20], -0.00034)
        >>> model.recommend("ann", k=2, policy=fr.Deterministic(), exclude=[20]).item_ids.tolist()
        [10]
        """
        position = self._position(user_id)
        policy = self._asked(policy)
        own, factor = self._own_policy(position, policy)
        # Tables that were made ahead are of the catalog's own score.
        has_table = score is None and not params and self._keep_table(position, policy, own)
        ranking = self._catalog.rank(
            self._arrays["user_vectors"][position],
            k,
            policy=own.with_sampler("cached") if has_table else own,
            seed=seed,
            exclude=exclude,
            allow=allow,
            bias=bias,
            threads=threads,
            score=score,
            params=params,
            rules=rules,
            after=after,
            seen=None if self._seen is None else self._seen.of(position),
        )
        return recommended(ranking, own, self._version, factor)

    def recommend_batch(
        self,
        user_ids: Ids,
        k: int = 10,
        *,
        policy: Policy | None = None,
        seeds: Sequence[int] | npt.NDArray[Any] | None = None,
        exclude: Sequence[Ids | None] | None = None,
        allow: Sequence[Ids | None] | None = None,
        bias: npt.ArrayLike | None = None,
        threads: int = 1,
        score: ScoreLike | None = None,
        params: Params | Sequence[Params | None] | None = None,
        rules: Rules | Sequence[Rules | None] | None = None,
        after: Sequence[Ranking | Ids | None] | None = None,
    ) -> RankingBatch:
        """Draw one ranking for each of b known users; row i is what `recommend` gives for seeds[i].

        Parameters
        ----------
        user_ids : array_like of ids, shape (b,)
        policy : Policy, optional
            One for all users, by default the model's own. Each user's temperature and list of items
            seen act as in `recommend`.
        k, seeds, exclude, allow, bias, threads, score, params, rules, after
            As `Catalog.rank_batch` takes them.

        Raises
        ------
        ValueError
            If an argument is invalid or a user unknown; the message names the argument, the row and
            the value.

        Examples
        --------
        >>> import fastrank as fr
        >>> catalog = fr.Catalog([10, 20], [[1.0, 0.0], [0.0, 1.0]])
        >>> model = fr.Model(catalog, ["ann", "bob"], [[1.0, 0.0], [0.0, 1.0]])
        >>> model.recommend_batch(["bob", "ann"], 1, policy=fr.Deterministic()).item_ids.tolist()
        [[20], [10]]
        """
        rows = self._index.find("user_ids", user_ids, ordered=True)
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            wanted = as_ids("user_ids", user_ids)[missing[0]]
            name = f"user_ids: row {missing[0]}"
            raise ValueError(f"{name}: {shown(wanted.item())} is not in the model")
        policy = self._asked(policy)
        owns = [self._own_policy(row, policy) for row in rows.tolist()]
        may_have = score is None and not params
        drawn_by = [
            own.with_sampler("cached") if may_have and self._keep_table(row, policy, own) else own
            for row, (own, _) in zip(rows.tolist(), owns, strict=True)
        ]
        seen = self._seen
        batch = self._catalog.rank_batch(
            self._arrays["user_vectors"][rows],
            k,
            policy=drawn_by,
            seeds=seeds,
            exclude=exclude,
            allow=allow,
            bias=bias,
            threads=threads,
            score=score,
            params=params,
            rules=rules,
            after=after,
            seen=None if seen is None else [seen.of(row) for row in rows.tolist()],
        )
        return replace(
            batch,
            policies=tuple(own for own, _ in owns),
            model_version=self._version,
            user_temperatures=tuple(factor for _, factor in owns),
        )

    def titles(self, item_ids: Ids) -> list[str]:
        """Return the titles of items, '' where the item or its title is unknown."""
        return [self._title(int(row)) for row in self._catalog._rows_of(item_ids)]

    def _title(self, row: int) -> str:
        if row < 0 or not self.has_titles:
            return ""
        start, end = self._arrays["title_offsets"][row : row + 2].tolist()
        text = self._arrays["title_text"]
        if not 0 <= start <= end <= len(text):
            raise ValueError(
                f"damaged: title_offsets: row {row} is {start} to {end} of {len(text)} bytes"
            )
        return text[start:end].tobytes().decode("utf-8", "replace")


def _tabled(catalog: Catalog, digests: Mapping[str, str], temperature: float) -> str:
    """What tables depend on: items, users, temperatures, and a score other than the dot product."""
    names = ("user_vectors", "user_temperatures")
    own = {name: digests[name] for name in names if name in digests}
    scores = {"scores": catalog.scores_key} if catalog.scores_key else {}
    return store.content_hash({**catalog._digests, **own, **scores, "temperature": temperature})


def _as_policy(policy: object) -> Policy | None:
    """Check that a policy's name and parameters describe it fully, as files need."""
    if policy is None:
        return None
    if isinstance(policy, Policy):
        try:
            if policy_of(policy.inference_type, **policy.params) == policy:
                return policy
        except ValueError:  # a custom policy, or one with parameters of its own
            pass
    raise no_policy("policy", policy)


def _written(policy: Policy) -> dict[str, Any]:
    return {"inference_type": policy.inference_type, "params": policy.params}


def _read_policy(written: Any) -> Policy | None:
    if written is None:
        return None
    try:
        return policy_of(written["inference_type"], **written["params"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"policy: {shown(written)}: {error}") from None


def _as_temperatures(values: npt.ArrayLike, users: int) -> FloatArray:
    temperatures = as_finite("user_temperatures", values, (users,))
    _check_temperatures(temperatures)
    temperatures.flags.writeable = False  # as_finite made a copy
    return temperatures


def _check_temperatures(temperatures: FloatArray) -> None:
    bad = np.flatnonzero(~(np.isfinite(temperatures) & (temperatures > 0.0)))
    if bad.size:
        value = temperatures[bad[0]]
        raise ValueError(f"user_temperatures: row {bad[0]}: must be above 0, got {value}")


def scorer_of(name: str, model: Model | Scorer) -> Scorer:
    """Return what ranks: a model's catalog, or the scorer given; refuse anything else."""
    if isinstance(model, Model):
        return model.catalog
    if not isinstance(model, Scorer):
        raise ValueError(f"{name}: expected a Model, Catalog or Scorer, got {shown(model)}")
    return model


def _pack_titles(titles: Iterable[str], n_items: int) -> tuple[npt.NDArray[np.uint8], IntArray]:
    """Pack titles as UTF-8, with the start of each: one long title must not widen the others."""
    column = as_column("item_titles", titles, f"{n_items} titles")
    encoded = []
    for row, title in enumerate(column.tolist() if isinstance(column, np.ndarray) else column):
        if not isinstance(title, str):
            raise ValueError(f"item_titles: row {row}: expected a str, got {shown(title)}")
        encoded.append(title.encode("utf-8", "replace"))
    if len(encoded) != n_items:
        raise ValueError(f"item_titles: expected {n_items}, one for each item, got {len(encoded)}")
    offsets = np.zeros(n_items + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    text = np.frombuffer(b"".join(encoded) or b"\0", np.uint8)
    return text, offsets
