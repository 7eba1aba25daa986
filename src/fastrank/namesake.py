"""Detect PyPI's `fastrank`, another project, whose package has the same name and folder.

The folder has the `__init__.py` of the project that was installed last, beside the other's modules.
"""

from __future__ import annotations

import os

__all__ = ["refuse"]

_ITS_FILE = "clib.py"  # in each of its releases, and in none of ours


def refuse() -> None:
    """Raise ImportError if that project's files are in our folder; one access to the disk."""
    folder = os.path.dirname(__file__)
    if os.path.exists(os.path.join(folder, _ITS_FILE)):
        raise ImportError(
            f"two distributions have installed into {folder}: fastrank-sampling, which this is, and"
            " PyPI's fastrank, a library for learning to rank. They cannot share an environment:"
            ' "pip uninstall -y fastrank fastrank-sampling" removes both, then install the one that'
            " is wanted"
        )
