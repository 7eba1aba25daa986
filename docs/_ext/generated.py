"""Pages that the package itself fills: what a module's `__all__` names, and the HTTP contract."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective


class Api(SphinxDirective):
    """A public module: what it is, a table of its names, and each of them."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        names = [name for name in module.__all__ if not name.startswith("_")]
        lines = [f".. automodule:: {module.__name__}", "   :no-members:", ""]
        lines += [f".. currentmodule:: {module.__name__}", "", ".. autosummary::"]
        values = {name: getattr(module, name) for name in names if not _is_documented(module, name)}
        lines += ["   :nosignatures:", "", *(f"   {name}" for name in names if name not in values)]
        lines += [""]
        for name, value in values.items():
            lines += [f".. py:data:: {name}"]
            lines += [f"   :value: {value!r}"] if isinstance(value, (int, float, str)) else []
            lines += ["", *(f"   {line}" for line in _words_of_data(module, name)), ""]
        for name in names:
            found = getattr(module, name)
            if inspect.isclass(found):
                lines += [f".. autoclass:: {name}", "   :members:"]
                # A tuple's fields stand in its docstring; by themselves they have no words.
                fields = getattr(found, "_fields", ())
                lines += [f"   :exclude-members: {', '.join(fields)}"] if fields else []
                lines += [""]
            elif inspect.isroutine(found):
                lines += [f".. autofunction:: {name}", ""]
        return self.parse_text_to_nodes("\n".join(lines))


def _words_of_data(module: ModuleType, name: str) -> list[str]:
    """The docstring below an assignment, in the module that makes it, where there is one."""
    inside = [other for other in sys.modules if f"{other}.".startswith(f"{module.__name__}.")]
    for each in sorted(inside):
        if name in vars(sys.modules[each]):
            found = ModuleAnalyzer.for_module(each).find_attr_docs().get(("", name))
            if found is not None:
                return list(found)
    return []


def _is_documented(module: ModuleType, name: str) -> bool:
    found = getattr(module, name)
    return inspect.isclass(found) or inspect.isroutine(found)


# ---- HTTP -----------------------------------------------------------------------------------


class OpenApi(SphinxDirective):
    """The document that a server makes, as tables."""

    def run(self) -> list[nodes.Node]:
        from fastrank_serving.openapi import document
        from fastrank_serving.settings import Settings

        contract = document(Settings(model=Path(self.env.srcdir)))
        return self.parse_text_to_nodes("\n".join(_contract(contract)))


def _contract(document: Mapping[str, Any]) -> Iterator[str]:
    schemas = document["components"]["schemas"]
    paths = [
        (f"``{method.upper()} {path}``", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    yield from _rubric("Addresses")
    yield from _table(
        ("address", "answers"),
        [
            (address, said.get("description") or said["responses"]["200"]["description"])
            for address, said in paths
        ],
    )
    yield from _rubric("A request")
    yield "Give either ``user_id`` or ``query``. In a URL, lists are separated by commas."
    names = schemas["UserRequest"]["properties"] | {
        "user_id": schemas["UserRequest"]["properties"]["user_id"],
        "query": schemas["QueryRequest"]["properties"]["query"],
    }
    yield from _members(names)
    for name, title in (("Rules", "Rules of its own"), ("Answer", "An answer")):
        yield from _rubric(title)
        yield _literal(schemas[name]["description"])
        yield from _members(schemas[name]["properties"], schemas[name].get("required"))
    for name in ("PolicyName", "ScoreName", "RulesName", "Retrieval"):
        yield from _rubric(name)
        yield from _members(schemas[name]["properties"], schemas[name].get("required"))
    yield from _rubric("An error")
    yield from _members(schemas["Error"]["properties"]["error"]["properties"])
    errors = paths[0][1]["responses"]
    yield from _table(
        ("status", "when"),
        [(f"``{code}``", each["description"]) for code, each in errors.items()],
    )


def _members(properties: Mapping[str, Any], always: Collection[str] | None = None) -> Iterator[str]:
    """A row for each; those that are not always there say so."""
    rows = []
    for name, schema in properties.items():
        words = _literal(schema.get("description", ""))
        if "default" in schema:
            words = f"{words} Default: {schema['default']}.".strip()
        if always is not None and name not in always:
            words = f"*Not always there.* {words}".strip()
        rows.append((f"``{name}``", _kind(schema), words))
    yield from _table(("name", "kind", ""), rows)


def _kind(schema: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        as_text = "The number as text."
        kinds = [_kind(each) for each in schema["anyOf"] if each.get("description") != as_text]
        return " or ".join(kind for kind in kinds if kind != "null")
    if "enum" in schema:
        return ", ".join(f"``{value}``" for value in schema["enum"] if value is not None)
    kind = schema.get("type", "anything")
    if kind == "array":
        most = f", at most {schema['maxItems']:,}" if "maxItems" in schema else ""
        return f"list of {_kind(schema['items'])}{most}"
    if "maximum" in schema:
        return f"{kind}, {schema['minimum']:g} to {schema['maximum']:g}"
    if "maxLength" in schema and kind == "string":
        return f"text of at most {schema['maxLength']:,} characters"
    names = {"string": "text", "null": "null"}
    kinds = [kind] if isinstance(kind, str) else [each for each in kind if each != "null"]
    return " or ".join(names.get(each, each) for each in kinds)


def _literal(text: str) -> str:
    """Markdown's code as reStructuredText has it."""
    return re.sub("`([^`]+)`", r"``\1``", text)


def _rubric(text: str) -> Iterator[str]:
    yield from ("", f".. rubric:: {text}", "")


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield from ("", ".. list-table::", "   :header-rows: 1", "")
    for row in (header, *rows):
        for column, cell in enumerate(row):
            yield f"   {' ' if column else '*'} - {cell}"
    yield ""


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.add_directive("api", Api)
    app.add_directive("openapi", OpenApi)
    return {"parallel_read_safe": True}
