"""FAISS indexes that find candidates for `FlatTail`; FAISS is imported where it is used."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrank import store
from fastrank.arraytypes import Float32Array, IdArray, Positions
from fastrank.ask import Found
from fastrank.inputs import as_count, shown

__all__ = ["LABELS", "FaissIndex", "Finder"]

_OF_USERS = ("rows", "item_ids")
LABELS = ("positions", *_OF_USERS)  # positions in the catalog: only in indexes that fastrank builds

_SAID = re.compile(r"Error in .* at \S+:\d+: (?:Error: '.*' failed: ?)?(.*)", re.DOTALL)


class FaissIndex:
    """A FAISS index over a catalog's items, which finds candidates for `FlatTail`.

    `fastrank.retrieval.build_ivf` builds an index; this class wraps an existing one.

    Parameters
    ----------
    index : faiss.Index
        An index of inner products over item vectors; if the catalog has biases, over item vectors
        with the bias as one more coordinate at the end. It must not change from here on. It may
        hold only some of the items: the others belong to the tail.
    labels : {"rows", "item_ids"}
        The labels of items in the index: rows, as `index.add` numbers them, or item ids, which
        must then be integers (`IndexIDMap`) other than -1, FAISS's label for no result.
    n_probes : int, optional
        For an inverted file, how many lists a search reads. By default `index.nprobe`.
    version : str, optional
        The version that logs record. By default a hash of the index's serialised content.

    Notes
    -----
    Candidates are weighted by their scores. Scores from flat, IVFFlat and HNSWFlat indexes are used
    as they are: inner products in float32. Any other index may round vectors, so the catalog scores
    its candidates again. This is slow with float32 storage, whose panels interleave vectors.

    A search uses one thread. A process must not fork once it has searched: the child would lack
    OpenMP's threads.

    Examples
    --------
    >>> import faiss, fastrank as fr
    >>> vectors = np.eye(4, dtype=np.float32)
    >>> flat = faiss.IndexFlatIP(4)
    >>> flat.add(vectors)
    >>> catalog = fr.Catalog([10, 20, 30, 40], vectors).with_index(FaissIndex(flat))
    >>> policy = fr.FlatTail(temperature=0.5, m=2, factor=0.1)
    >>> ranking = catalog.rank([3.0, 2.0, 1.0, 0.0], k=3, policy=policy, seed=1)
    >>> ranking.made_by, ranking.candidates.n_found
    ('index', 2)
    """

    def __init__(
        self,
        index: Any,
        *,
        labels: str = "rows",
        n_probes: int | None = None,
        version: str | None = None,
    ) -> None:
        if labels not in _OF_USERS:
            raise ValueError(f"labels: expected {' or '.join(_OF_USERS)}; got {shown(labels)}")
        if version is not None and (not isinstance(version, str) or not version):
            raise ValueError(f"version: expected a text, got {shown(version)}")
        self._labels = labels
        self._n_probes = None if n_probes is None else as_count("n_probes", n_probes)
        self._version = version
        self._content: npt.NDArray[np.uint8] | None = None  # the file's bytes, if from a file
        self._digest: str | None = None  # the digest in the file's manifest
        self._lock = threading.Lock()
        self._index: Any = None
        self._set(index)

    @classmethod
    def of_positions(cls, index: Any, n_probes: int) -> FaissIndex:
        """Wrap an index of a catalog's vectors, added in the order in which it stores them."""
        found = cls(index, n_probes=n_probes)
        found._labels = "positions"
        return found

    @classmethod
    def mapped(
        cls,
        content: npt.NDArray[np.uint8],
        digest: str,
        version: str,
        labels: str,
        n_probes: int | None,
    ) -> FaissIndex:
        """Wrap an index in a file, which the first use reads and checks against its digest."""
        found = cls.__new__(cls)
        found._labels, found._n_probes, found._version = labels, n_probes, version
        found._content, found._digest = content, digest
        found._lock, found._index = threading.Lock(), None
        return found

    def __repr__(self) -> str:
        return f"FaissIndex({self._labels}, version {self.version[:12]})"

    @property
    def version(self) -> str:
        """The version that logs record."""
        if self._version is None:
            self._version = store.array_digest(self.content)
        return self._version

    @property
    def labels(self) -> str:
        """The labels of items in the index: "rows", "item_ids" or "positions" in the catalog."""
        return self._labels

    @property
    def n_probes(self) -> int | None:
        """Number of lists that a search reads; None if the index has no lists."""
        return self._n_probes

    @property
    def content(self) -> npt.NDArray[np.uint8]:
        """Return the index as bytes in FAISS's format: its file's, or else serialised now."""
        if self._content is not None:
            return self._content
        import faiss

        try:
            content: npt.NDArray[np.uint8] = faiss.serialize_index(self._index)
        except RuntimeError as error:
            raise ValueError(f"index: FAISS cannot write it: {_reason(error)}") from None
        return content

    def stated_content(self) -> tuple[npt.NDArray[np.uint8], str]:
        """Return the bytes and their digest; bytes from a file keep its digest, even if damaged."""
        content = self.content
        return content, store.array_digest(content) if self._digest is None else self._digest

    @property
    def index(self) -> Any:
        """The FAISS index itself."""
        if self._index is None:
            with self._lock:
                if self._index is None:
                    self._read()
        return self._index

    def _read(self) -> None:
        import faiss

        content = self._content
        assert content is not None  # set by `mapped`
        # FAISS does not check what it reads: in a damaged file, it would read past the end.
        if store.array_digest(content) != self._digest:
            raise ValueError("index: damaged: it does not match its SHA-256")
        try:
            reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(content), content.size)
            self._set(faiss.read_index(reader))
        except RuntimeError as error:
            raise ValueError(f"index: FAISS cannot read it: {_reason(error)}") from None

    def _set(self, index: Any) -> None:
        import faiss

        if not isinstance(index, faiss.Index):
            raise ValueError(f"index: expected a FAISS index, got {shown(index)}")
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError("index: expected the metric METRIC_INNER_PRODUCT, got another")
        if not index.is_trained:
            raise ValueError("index: not trained; call its method `train` first")
        inner, transformed = _inner(index)
        self._is_exact = not transformed and isinstance(
            inner, faiss.IndexFlat | faiss.IndexIVFFlat | faiss.IndexHNSWFlat
        )
        if isinstance(inner, faiss.IndexIVF):
            probes = inner.nprobe if self._n_probes is None else self._n_probes
            self._n_probes = min(int(probes), int(inner.nlist))
        elif self._n_probes is not None:
            raise ValueError(f"n_probes: {type(inner).__name__} has no lists; got {self._n_probes}")
        self._plain = _parameters(index, None, self._n_probes)
        self._index = index

    def search(
        self, query: Float32Array, m: int, selector: Any
    ) -> tuple[npt.NDArray[np.int64], Float32Array | None]:
        """Find labels of at most m items, best first, and scores if they are inner products."""
        index = self.index
        if query.shape[1] != index.d:
            raise ValueError(f"index: got {index.d} dimensions; expected {query.shape[1]}")
        labels = np.empty((1, m), np.int64)
        distances = np.empty((1, m), np.float32)
        parameters = (
            self._plain if selector is None else _parameters(index, selector, self._n_probes)
        )
        try:
            index.search(query, m, D=distances, I=labels, params=parameters)
        except RuntimeError as error:
            with_filter = "" if selector is None else " with items excluded"
            raise ValueError(
                f"index: FAISS cannot search it{with_filter}: {_reason(error)}"
            ) from None
        found = labels[0]
        scores = distances[0]
        if found[-1] == -1:  # fewer than m were found: FAISS fills up with -1
            is_found = found != -1
            found, scores = found[is_found], scores[is_found]
        if not np.isfinite(scores).all():
            worst = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise ValueError(f"index: got a score of {scores[worst]} for label {found[worst]}")
        return found, scores if self._is_exact else None


class Finder:
    """An index, and the catalog whose items it finds."""

    def __init__(
        self,
        index: FaissIndex,
        dim: int,
        has_bias: bool,
        item_ids: IdArray,
        rows: Positions | None,
        positions_of: Callable[[IdArray], Positions],
    ) -> None:
        """item_ids: by position. rows: the row at each position; None if they are equal.
        positions_of: finds the positions of ids, -1 for unknown ones."""
        self.index = index
        self._dim = dim
        self._has_bias = has_bias
        self._item_ids = item_ids
        self._rows = rows
        self._positions_of = positions_of
        self._position_of_row: Positions | None = None

    def find(
        self,
        query: Float32Array,
        m: int,
        excluded: Positions | None,
        eligible: npt.NDArray[np.uint16] | None,
    ) -> Found:
        """Find the best eligible items, at most m, with the index."""
        own = np.empty((1, self._dim + self._has_bias), np.float32)
        own[0, : self._dim] = query[: self._dim]
        if self._has_bias:
            own[0, self._dim] = 1.0
        selector = None if eligible is None else self._selector(excluded, eligible)
        labels, scores = self.index.search(own, m, selector)
        return Found(self._as_positions(labels), scores, self.index.version, self.index.n_probes)

    def _selector(self, excluded: Positions | None, eligible: npt.NDArray[np.uint16]) -> Any:
        import faiss

        if self.index.labels == "positions":
            return faiss.IDSelectorBitmap(eligible.view(np.uint8))
        assert excluded is not None  # a selector is only made if there is a filter
        labels = excluded
        if self.index.labels == "item_ids":
            labels = self._item_ids[excluded]
        elif self._rows is not None:
            labels = self._rows[excluded]
        return faiss.IDSelectorNot(faiss.IDSelectorBatch(labels))

    def _as_positions(self, labels: npt.NDArray[np.int64]) -> Positions:
        kind, n = self.index.labels, len(self._item_ids)
        if kind == "positions":
            return labels  # from an index built here; the core checks positions, too
        if kind == "item_ids":
            positions: Positions = self._positions_of(labels)
            missing = np.flatnonzero(positions < 0)
            if missing.size:
                raise ValueError(
                    f"index: found the id {labels[missing[0]]}, which is not in the catalog"
                )
            return positions
        outside = np.flatnonzero((labels < 0) | (labels >= n))
        if outside.size:
            raise ValueError(f"index: found row {labels[outside[0]]} in a catalog of {n} items")
        if self._rows is None:
            return labels
        if self._position_of_row is None:
            assert self._rows is not None
            positions_of_rows = np.empty(n, np.int64)
            positions_of_rows[self._rows] = np.arange(n)
            self._position_of_row = positions_of_rows
        found: Positions = self._position_of_row[labels]
        return found


def _inner(index: Any) -> tuple[Any, bool]:
    """Unwrap indexes that rename or transform: return the one that searches, and whether any
    wrapper transforms."""
    import faiss

    transformed = False
    for _ in range(8):  # more wrappers than any real index has
        index = faiss.downcast_index(index)
        if isinstance(index, faiss.IndexPreTransform):
            transformed = True
        elif not isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2):
            break
        index = index.index
    return index, transformed


def _parameters(index: Any, selector: Any, n_probes: int | None) -> Any:
    """Make the parameters of a search; the index supplies what they leave open."""
    import faiss

    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(
            index_params=_parameters(index.index, selector, n_probes)
        )
    if isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2):
        return _parameters(index.index, selector, n_probes)
    chosen = {} if selector is None else {"sel": selector}
    if isinstance(index, faiss.IndexIVF):
        if isinstance(index, faiss.IndexIVFPQ):
            return faiss.IVFPQSearchParameters(nprobe=n_probes, **chosen)
        return faiss.SearchParametersIVF(nprobe=n_probes, **chosen)
    if selector is None:
        return None
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=index.hnsw.efSearch, **chosen)
    return faiss.SearchParameters(**chosen)


def _reason(error: RuntimeError) -> str:
    """The message of a FAISS error, without the place in FAISS's sources."""
    found = _SAID.fullmatch(str(error).strip())
    return found[1] if found and found[1] else str(error)
