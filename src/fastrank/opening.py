"""Open a directory of a model or a catalog."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fastrank import store
from fastrank.catalog import Catalog
from fastrank.model import Model
from fastrank.scoring import ScoreFunction

__all__ = ["open_directory"]


def open_directory(
    directory: str | os.PathLike[str],
    verify: bool = False,
    functions: Sequence[ScoreFunction] = (),
) -> tuple[Catalog, Model | None]:
    """Open the catalog in a directory, and the model if it has users.

    Parameters
    ----------
    directory : path
    verify : bool
        Check every file's SHA-256 too.
    functions : sequence of ScoreFunction
        Functions that its own score, or calls, may name.

    Raises
    ------
    ValueError
        As `Model.open` and `Catalog.open`; a model with damaged users is not opened as a catalog.
    """
    manifest, _ = store.read(directory)
    if "user_ids" not in manifest["arrays"]:
        return Catalog.open(directory, verify=verify, functions=functions), None
    model = Model.open(directory, verify=verify, functions=functions)
    return model.catalog, model
