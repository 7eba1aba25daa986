"""Docstrings of the public API are in numpydoc's form, and have what callers look for in them."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpydoc")
pytest.importorskip("msgspec")
pytest.importorskip("pyarrow")
pytest.importorskip("scipy")
from numpydoc.docscrape import get_doc_object
from numpydoc.validate import Validator, validate

# numpydoc wants Sphinx, which `make test` does without.
pytestmark = pytest.mark.slow

API = Path(__file__).resolve().parents[1] / "docs" / "reference" / "api"
# What the site shows; an sdist has the tests, and not the site.
MODULES = sorted(
    name
    for page in API.glob("*.rst")
    for name in re.findall(r"^\.\. api:: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
)

assert MODULES or not API.parents[1].exists(), f"no page in {API} names a module"

# Off: a summary may begin with a formula or a plural noun (SS02, SS05), as descriptions may (PR08,
# RT04), and say it all, what is returned, too (ES01, SA01, RT01, RT03). So may `k : int`, or "As in
# `rank`" for several parameters at once (PR03, PR04, PR07).
CHECKS = {
    *("GL01", "GL02", "GL03", "GL05", "GL06", "GL07", "GL08", "GL09", "GL10"),
    *("SS01", "SS03", "SS04", "SS06", "PR01", "PR02", "PR05", "PR06", "PR09", "PR10"),
    *("RT02", "RT05", "YD01", "SA02", "SA03", "SA04", "EX01"),
}
FEW = 2  # so many parameters may be explained without a section for them


class Docstring(Validator):  # type: ignore[misc]  # numpydoc has no types
    """Of one object, as numpydoc reads it; PR01 and EX01 are narrowed."""

    def __init__(self, found: Any) -> None:
        super().__init__(get_doc_object(found))

    @property
    def has_parameters(self) -> bool:
        return "Parameters" in self.section_titles

    @property
    def is_record(self) -> bool:
        return is_dataclass(self.obj) or hasattr(self.obj, "_fields")

    @property
    def is_function(self) -> bool:
        return inspect.isfunction(self.obj) and "." not in self.obj.__qualname__

    @property
    def signature_parameters(self) -> tuple[str, ...]:
        """Those to be documented: a record's, a function's of many, and all where one is."""
        named = tuple(n for n in super().signature_parameters if not n.startswith("_"))
        many = self.is_function and len(named) > FEW
        return named if self.has_parameters or self.is_record or many else ()

    @property
    def doc_all_parameters(self) -> dict[str, Any]:
        """Attributes of a record are its parameters."""
        attributes = self._doc_parameters(["Attributes"]) if self.is_record else {}
        return {
            **{n: attributes[n] for n in self.signature_parameters if n in attributes},
            **super().doc_all_parameters,
        }

    @property
    def examples(self) -> Any:
        """Wanted of functions, and of classes that callers make an object of."""
        is_made = inspect.isclass(self.obj) and self.has_parameters
        return super().examples if is_made or self.is_function else ["none is wanted"]


def public(module: str) -> Iterator[tuple[str, Any]]:
    """What a module's page names, and members of its classes that they do not list themselves."""
    here = importlib.import_module(module)
    for name in here.__all__:
        found = getattr(here, name)
        if name.startswith("_") or not (inspect.isclass(found) or inspect.isfunction(found)):
            continue
        yield f"{module}.{name}", found
        named = {each.name for each in get_doc_object(found)["Attributes"]}
        for member, value in vars(found).items() if inspect.isclass(found) else ():
            if (
                member not in named
                and not member.startswith("_")
                and (inspect.isroutine(value) or isinstance(value, property | cached_property))
            ):
                yield f"{module}.{name}.{member}", getattr(found, member)


def wrong(name: str, found: Any) -> list[str]:
    """What is wrong with a docstring, a line for each."""
    if not found.__doc__ and inspect.getdoc(found):
        return []  # that of the method which it overrides
    result = validate(name, validator_cls=lambda obj_name: Docstring(found))
    return [f"{name}: {code} {text}" for code, text in result["errors"] if code in CHECKS]


@pytest.mark.parametrize("module", MODULES)
def test_of_a_module(module: str) -> None:
    assert importlib.import_module(module).__doc__
    found = [line for name, each in public(module) for line in wrong(name, each)]
    assert not found, "\n".join(found)
