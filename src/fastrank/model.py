"""Model: a catalog and the users it serves; what a service loads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrank import store
from fastrank.catalog import LOG_NORM_TOLERANCE, Catalog
from fastrank.ids import IdArray, IdIndex, Ids, as_ids
from fastrank.inputs import Float32Array, as_float32, as_real
from fastrank.policies import Policy
from fastrank.ranking import Ranking

__all__ = ["Model"]


class Model:
    """A catalog with users, and titles to show.

    Parameters
    ----------
    catalog : Catalog
    user_ids : array_like of int or str, shape (u,)
        Unique.
    user_vectors : array_like of real numbers, shape (u, d)
        A user's query; cast to float32, finite.
    item_titles : sequence of n str, optional
        In catalog order.

    Raises
    ------
    ValueError
        Naming the argument, the row and the value.

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
    ) -> None:
        rows = as_real("user_vectors", user_vectors)
        if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] != catalog.dim:
            raise ValueError(
                f"user_vectors: expected shape (u, {catalog.dim}) with u >= 1, got {rows.shape}"
            )
        ids = as_ids("user_ids", user_ids)
        if ids.shape != (len(rows),):
            raise ValueError(
                f"user_ids: expected {len(rows)}, one a row of user_vectors, got {len(ids)}"
            )
        vectors = as_float32("user_vectors", rows, rows.shape).copy()  # not the caller's array
        vectors.flags.writeable = False
        index = IdIndex("user_ids", ids)
        arrays = {"user_ids": index.ids, "user_order": index.order, "user_vectors": vectors}
        if item_titles is not None:
            text, offsets = _pack_titles(item_titles, len(catalog))
            arrays |= {"title_text": text, "title_offsets": offsets}
        digests = {name: store.array_digest(array) for name, array in arrays.items()}
        self._set(catalog, arrays, digests, index)

    def _set(
        self,
        catalog: Catalog,
        arrays: dict[str, npt.NDArray[Any]],
        digests: dict[str, str],
        index: IdIndex,
    ) -> None:
        self._catalog = catalog
        self._arrays = arrays
        self._digests = digests
        self._index = index
        self._version = store.content_hash({"catalog": catalog.version, "arrays": digests})

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes model and catalog to one directory, as `Catalog.save` does."""
        store.write(
            directory,
            {**self._catalog._meta, "model_version": self._version},
            {**self._catalog._arrays, **self._arrays},
            {**self._catalog._digests, **self._digests},
        )

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        verify: bool = False,
        cache_bytes: int = 256 << 20,
        log_norm_tolerance: float = LOG_NORM_TOLERANCE,
    ) -> Model:
        """Maps a saved model; copies nothing. Parameters and errors as `Catalog.open`."""
        manifest, arrays = store.read(directory, verify)
        catalog = Catalog._from_store(
            directory, manifest, arrays, cache_bytes, log_norm_tolerance, verify
        )
        if "user_ids" not in arrays:
            raise ValueError(f"{directory}: a catalog without users; Catalog.open opens it")
        names = ("user_ids", "user_order", "user_vectors", "title_text", "title_offsets")
        own = {name: arrays[name] for name in names if name in arrays}
        users = len(own["user_ids"])
        expected = {
            "user_order": ((users,), "<i8"),
            "user_vectors": ((users, catalog.dim), "<f4"),
            "title_offsets": ((len(catalog) + 1,), "<i8"),
        }
        for name, (shape, dtype) in expected.items():
            if name not in own and name == "title_offsets" and "title_text" not in own:
                continue
            if name not in own or own[name].shape != shape or own[name].dtype.str != dtype:
                raise ValueError(f"{directory}: not a model: {name} is missing or does not fit")
        digests = {name: manifest["arrays"][name]["sha256"] for name in own}
        model = cls.__new__(cls)
        index = IdIndex("user_ids", own["user_ids"], own["user_order"])
        model._set(catalog, own, digests, index)
        return model

    def __repr__(self) -> str:
        return f"Model({len(self._index.ids)} users, {self._catalog!r})"

    @property
    def catalog(self) -> Catalog:
        """The items."""
        return self._catalog

    @property
    def user_ids(self) -> IdArray:
        """ndarray of int64 or str, shape (u,)."""
        return self._index.ids

    @property
    def version(self) -> str:
        """Content hash of catalog, users and titles."""
        return self._version

    @property
    def has_titles(self) -> bool:
        """Whether items have titles."""
        return "title_text" in self._arrays

    def __contains__(self, user_id: Any) -> bool:
        try:
            return bool(self._index.find("user_id", [user_id])[0] >= 0)
        except ValueError:
            return False

    def user_vector(self, user_id: Any) -> Float32Array:
        """The user's query, (d,) float32; a ValueError for an unknown user."""
        position = self._index.find("user_id", [user_id])[0]
        if position < 0:
            raise ValueError(f"user_id: {user_id!r} is not in the model")
        vector: Float32Array = self._arrays["user_vectors"][position]
        return vector

    def recommend(
        self,
        user_id: Any,
        k: int = 10,
        *,
        policy: Policy,
        seed: int | None = None,
        exclude: Ids | None = None,
        allow: Ids | None = None,
        bias: npt.ArrayLike | None = None,
        threads: int = 1,
    ) -> Ranking:
        """`Catalog.rank` for the vector of a known user; parameters as there."""
        return self._catalog.rank(
            self.user_vector(user_id),
            k,
            policy=policy,
            seed=seed,
            exclude=exclude,
            allow=allow,
            bias=bias,
            threads=threads,
        )

    def titles(self, item_ids: Ids) -> list[str]:
        """Titles of items, '' where the item or its title is unknown."""
        return [self._title(int(row)) for row in self._catalog._rows_of(item_ids)]

    def _title(self, row: int) -> str:
        if row < 0 or not self.has_titles:
            return ""
        start, end = self._arrays["title_offsets"][row : row + 2]
        return self._arrays["title_text"][start:end].tobytes().decode("utf-8", "replace")


def _pack_titles(
    titles: Iterable[str], n_items: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """UTF-8 text of all titles, and where each starts: one long title must not widen the others."""
    if isinstance(titles, str) or not isinstance(titles, Iterable):
        raise ValueError(f"item_titles: expected {n_items} titles, got {titles!r}")
    encoded = []
    for row, title in enumerate(titles):
        if not isinstance(title, str):
            raise ValueError(f"item_titles: row {row}: expected a str, got {title!r}")
        encoded.append(title.encode("utf-8", "replace"))
    if len(encoded) != n_items:
        raise ValueError(f"item_titles: expected {n_items}, one an item, got {len(encoded)}")
    offsets = np.zeros(n_items + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    text = np.frombuffer(b"".join(encoded) or b"\0", np.uint8)
    return text, offsets
