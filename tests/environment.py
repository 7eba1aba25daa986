"""The environment that commands and servers are started in."""

from __future__ import annotations

import os

__all__ = ["OWN", "inherited"]

# Of the tests and of builds; a server would refuse them, as names that it does not know.
OWN = (
    *("FASTRANK_TEST_DRAWS", "FASTRANK_TEST_WHEEL", "FASTRANK_URL", "FASTRANK_PICTURE"),
    "FASTRANK_NOTEBOOKS",
    *("FASTRANK_PROBES", "FASTRANK_COMPILED", "FASTRANK_CXXFLAGS"),
)


def inherited() -> dict[str, str]:
    """This process's, without what is the tests' own or SageMaker's."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in OWN and not name.startswith("SAGEMAKER_")
    }
