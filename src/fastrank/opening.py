"""Open a directory that holds a model, or a catalog alone."""

from __future__ import annotations

import os

from fastrank import store
from fastrank.catalog import Catalog
from fastrank.model import Model

__all__ = ["open_directory"]


def open_directory(
    directory: str | os.PathLike[str], verify: bool = False
) -> tuple[Catalog, Model | None]:
    """The catalog of a directory, and the model where there are users.

    Parameters
    ----------
    directory : path
    verify : bool
        Check every file's SHA-256 too.

    Raises
    ------
    ValueError
        As `Model.open` and `Catalog.open`: a model whose users are damaged is not taken for a
        catalog alone.
    """
    manifest, _ = store.read(directory)
    if "user_ids" not in manifest["arrays"]:
        return Catalog.open(directory, verify=verify), None
    model = Model.open(directory, verify=verify)
    return model.catalog, model
