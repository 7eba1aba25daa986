"""What each user has seen: lists of items that their rankings leave out, kept with a model.

All lists lie in one array, one after another, beside an array of their offsets: 4 bytes per pair,
mapped from the model's directory, and 8 per user. The id of the lists is a hash of their content
and of the ids of users and items. A log row with this id and the user thus says what was left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastrank.arraytypes import AnyArray, IntArray, Positions
from fastrank.store import content_hash

__all__ = ["ARRAYS", "Seen", "SeenLists", "arrays_of"]

ARRAYS = ("seen_offsets", "seen_items")
_MOST_ITEMS = 2**32


class Seen(NamedTuple):
    """One user's list, as `Model.seen` returns it and `Catalog.rank` accepts it.

    Attributes
    ----------
    id : str
        Id of the lists of all users: `Model.seen_id`, which logs record.
    catalog : str
        Digest of the item ids that `items` are positions in.
    items : ndarray of uint32, shape (m,)
        Positions in the catalog, ascending; a view of the mapped file.
    """

    id: str
    catalog: str
    items: npt.NDArray[np.uint32]


class SeenLists:
    """The lists of all users of a model.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        `seen_offsets`, int64 (u + 1,), and `seen_items`, uint32 (p,), as they are saved.
    digests : mapping of str to str
        Digests of the arrays.
    user_ids, item_ids : str
        Digests of the model's user ids and the catalog's item ids.
    """

    def __init__(
        self,
        arrays: Mapping[str, AnyArray],
        digests: Mapping[str, str],
        user_ids: str,
        item_ids: str,
    ) -> None:
        self._offsets: IntArray = arrays["seen_offsets"]
        self._items: npt.NDArray[np.uint32] = arrays["seen_items"]
        self._catalog = item_ids
        lists = {name: digests[name] for name in ARRAYS}
        self.id = content_hash({"users": user_ids, "items": item_ids, **lists})

    def __len__(self) -> int:
        """How many pairs of a user and an item there are."""
        return len(self._items)

    def of(self, row: int) -> Seen | None:
        """Return the list of the user in this row, without a copy; None if it is empty."""
        start, end = self._offsets[row : row + 2].tolist()
        if start == end:
            return None
        if not 0 <= start <= end <= len(self._items):
            raise ValueError(
                f"damaged: seen_offsets: row {row} is {start} to {end} of {len(self._items)} items"
            )
        return Seen(self.id, self._catalog, self._items[start:end])


def arrays_of(rows: Positions, items: Positions, n_users: int, n_items: int) -> dict[str, AnyArray]:
    """Make the arrays to save from m pairs of a user's row and an item's position. O(m log m).

    Pairs may come in any order, and repeats are dropped.
    """
    if n_items > _MOST_ITEMS:
        raise ValueError(
            f"items: got a catalog of {n_items:,} items; expected at most {_MOST_ITEMS:,}"
        )
    pairs = np.unique(rows * n_items + items)
    owners, kept = np.divmod(pairs, max(n_items, 1))
    offsets = np.zeros(n_users + 1, np.int64)
    np.cumsum(np.bincount(owners, minlength=n_users), out=offsets[1:])
    found: dict[str, AnyArray] = {
        "seen_offsets": offsets,
        "seen_items": kept.astype(np.uint32),
    }
    for array in found.values():
        array.flags.writeable = False
    return found
