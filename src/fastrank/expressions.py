"""Expressions: functions of an item's score and features, in Python's syntax.

An expression such as ``dot + 0.3 * exp(-age / half_life)`` may use a whitelist of Python's `ast`.
It is compiled to steps that the native core executes over a tile of items (ext/kernels.h,
"Function"); no part of it is ever run as Python. A name is `dot`, a column, or otherwise a
parameter of the call.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn, TypeAlias
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from fastrank import _native
from fastrank.arraytypes import Float32Array, Mask
from fastrank.features import RESERVED, Features
from fastrank.inputs import shown
from fastrank.store import content_hash

__all__ = ["FUNCTIONS", "Expression", "Param", "Params", "as_params", "parsed", "said"]

Param: TypeAlias = float | bool | str
Params: TypeAlias = Mapping[str, Param]

FUNCTIONS = {
    **dict.fromkeys(("exp", "log", "log1p", "sqrt", "abs", "sigmoid"), (1, 1)),
    **dict.fromkeys(("min", "max"), (2, 16)),
    "clip": (3, 3),
}
_CONSTANTS = {"pi": math.pi, "e": math.e}
_MOST_CHARACTERS = 10_000
_MOST_PARAMS = 1000
_DEEPEST = 150
_BINARY = {
    ast.Add: "add",
    ast.Sub: "subtract",
    ast.Mult: "multiply",
    ast.Div: "divide",
    ast.Pow: "power",
}
_COMPARED = {
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "less",
    ast.GtE: "less_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}
_SWAPPED = (ast.Gt, ast.GtE)
_LARGEST_POWER = 16  # exponents up to this are multiplied out
# How errors call each kind of node.
_WORDS = {
    ast.Attribute: "an attribute",
    ast.Subscript: "an index",
    ast.Lambda: "a lambda",
    ast.NamedExpr: "an assignment",
    ast.JoinedStr: "an f-string",
    ast.Starred: "a star",
    ast.Await: "await",
    ast.Dict: "a dictionary",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.Tuple: "a tuple that does not follow `in`",
    ast.List: "a list that does not follow `in`",
    ast.Set: "a set that does not follow `in`",
    ast.FloorDiv: "the operator //",
    ast.Mod: "the operator %",
    ast.MatMult: "the operator @",
    ast.BitAnd: "the operator & (write `and`)",
    ast.BitOr: "the operator | (write `or`)",
    ast.BitXor: "the operator ^ (a power is **)",
    ast.Invert: "the operator ~ (write `not`)",
    ast.LShift: "the operator <<",
    ast.RShift: "the operator >>",
    ast.Is: "the operator `is` (write ==)",
    ast.IsNot: "the operator `is not` (write !=)",
}


class Expression:
    """A parsed expression, before its columns are known.

    Attributes
    ----------
    text : str
    hash : str
        SHA-256 of its content, which does not depend on spaces.
    names : frozenset of str
        The columns and parameters that it uses.
    """

    kind = "expression"

    def __init__(self, text: str, name: str, tree: ast.expr) -> None:
        self.text = self.path = text  # its name in a saved catalog
        self._name = name  # of the argument, for errors
        self.tree = tree
        self.names = frozenset(
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and node.id not in RESERVED
        )
        self.hash = _hash_of(tree)

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def bind(
        self,
        features: Features | None,
        params: Params,
        n_items: int,
        refuse: Callable[[int, str], str],
    ) -> _native.Function:
        """Bind columns and parameters; return the function for the core.

        Raises
        ------
        ValueError
            If a name is unknown or a type is wrong; the message has the position and the reason.
        """
        kinds = tuple((name, _kind_of(value)) for name, value in sorted(params.items()))
        program = _compiled(self.text, self._name, _Columns(features), kinds)
        return program.bind(features, params, n_items, refuse)

    def holds(self, features: Features | None, params: Params, n_items: int) -> Mask:
        """Evaluate a condition for all items: bool (n,), by position.

        Raises
        ------
        ValueError
            As `bind`; also if the expression is not a boolean, or uses `dot`.
        """
        kinds = tuple((name, _kind_of(value)) for name, value in sorted(params.items()))
        program = _compiled(self.text, self._name, _Columns(features), kinds, True)
        function = program.bind(features, params, n_items, _no_words)
        found: Mask = function.values() != 0.0
        return found


@lru_cache(maxsize=1024)
def parsed(text: str, name: str = "score") -> Expression:
    """Parse an expression; `name` is the argument's name, for errors.

    Raises
    ------
    ValueError
        If the text is not an expression; the message has the position and the reason.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(
            f"{name}: an expression has at most {_MOST_CHARACTERS:,} characters, got {len(text):,}"
        )
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        line = f", line {error.lineno}" if (error.lineno or 1) > 1 else ""
        at = f"{line}, column {error.offset}" if error.offset else ", at its end"
        words = str(error.msg)
        if "digits" in words:  # Python's message explains how to raise its limit
            at, words = "", "a number of more than 4,300 digits"
        raise ValueError(f"{name}: {shown(text)}{at}: {words}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        words = str(error) or "nests too deep"
        raise ValueError(f"{name}: {shown(text)}: {words}") from None
    _check(tree, name, text.strip())
    return Expression(text.strip(), name, tree)


def as_params(given: Any) -> dict[str, Param]:
    """Check parameters by name: finite numbers, booleans and texts."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"params: expected a mapping of names to values, got {shown(given)}")
    if len(given) > _MOST_PARAMS:
        raise ValueError(f"params: expected at most {_MOST_PARAMS:,}, got {len(given):,}")
    found: dict[str, Param] = {}
    for name, value in given.items():
        if not isinstance(name, str):
            raise ValueError(f"params: expected names as text, got {shown(name)}")
        name = normalize("NFKC", name)  # as Python reads names
        if name in found:
            raise ValueError(f"params: {name!r} is given twice")
        if isinstance(value, np.bool_ | np.integer | np.floating | np.str_):
            value = value.item()
        if isinstance(value, bool | str):
            found[name] = value
            continue
        if not isinstance(value, int | float):
            raise ValueError(
                f"params[{name!r}]: expected a number, a boolean or a text, got {shown(value)}"
            )
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ValueError(f"params[{name!r}]: must be finite, got {shown(value)}")
        found[name] = number
    return found


# ---- What the language allows ----------------------------------------------------------------


def _refuse(name: str, text: str, node: ast.AST, reason: str) -> NoReturn:
    at = ""
    if isinstance(node, ast.expr | ast.keyword):  # only what ends a line for Python's parser
        lines = text.replace("\r\n", "\n").replace("\r", "\n").encode().split(b"\n")
        before = lines[node.lineno - 1][: node.col_offset].decode()
        at = f", line {node.lineno}" if len(lines) > 1 else ""
        at += f", column {len(before) + 1}"
    raise ValueError(f"{name}: {shown(text)}{at}: {reason}")


def _check(tree: ast.expr, name: str, text: str) -> None:
    """Refuse nodes outside the language; this does not depend on the columns."""

    def refuse(node: ast.AST, reason: str) -> NoReturn:
        _refuse(name, text, node, reason)

    depth = 0

    def check(node: ast.expr, is_collection: bool = False) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            refuse(node, f"nests more than {_DEEPEST} deep; split a long sum by parentheses")
        check_one(node, is_collection)
        depth -= 1

    def check_one(node: ast.expr, is_collection: bool) -> None:
        match node:
            case ast.BoolOp(values=values):
                for each in values:
                    check(each)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not(), operand=operand):
                check(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                check(left)
                check(right)
            case ast.BinOp(op=other) | ast.UnaryOp(op=other):
                refuse(node, f"{_WORDS[type(other)]} is not part of the language")
            case ast.Compare(left=left, ops=ops, comparators=others):
                check(left)
                for how, each in zip(ops, others, strict=True):
                    if type(how) not in _COMPARED and not isinstance(how, ast.In | ast.NotIn):
                        refuse(node, f"{_WORDS[type(how)]} is not part of the language")
                    check(each, is_collection=isinstance(how, ast.In | ast.NotIn))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                check(test)
                check(body)
                check(orelse)
            case ast.Call(func=ast.Name(id=called), args=args, keywords=keywords):
                if called not in FUNCTIONS:
                    refuse(
                        node,
                        f"there is no function {shown(called)}: there are {', '.join(FUNCTIONS)}",
                    )
                least, most = FUNCTIONS[called]
                if keywords or not least <= len(args) <= most:
                    wanted = f"{least}" if least == most else f"{least} to {most}"
                    refuse(node, f"{called} takes {wanted} positional arguments")
                for each in args:
                    check(each)
            case ast.Call():
                refuse(node, "only functions can be called, by name")
            case ast.Name(id=known):
                if known in FUNCTIONS:
                    refuse(node, f"{known} is a function: {known}(...)")
            case ast.Constant(value=value):
                if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 1e300:
                    refuse(node, "a number is beyond the float32 range")
                if type(value) not in (bool, int, float, str):
                    refuse(node, f"{shown(value)} is not a number, a boolean or a text")
            case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements) if (
                is_collection
            ):
                for each in elements:
                    check(each)
            case _:
                words = _WORDS.get(type(node), type(node).__name__)
                refuse(node, f"{words} is not part of the language")

    check(tree)


def _hash_of(tree: ast.expr) -> str:
    return content_hash({"expression": said(tree)})


def said(node: ast.AST, integers: bool = False) -> str:
    """Write a node as text that is the same in every version of Python.

    With `integers`, integers are told apart from floats.
    """
    match node:
        case ast.Constant(value=value):
            return repr(float(value)) if type(value) is int and not integers else repr(value)
        case ast.Name(id=name):
            return name
    fields = [type(node).__name__]
    for name, value in ast.iter_fields(node):
        if name not in ("ctx", "kind"):
            values = value if isinstance(value, list) else [value]
            fields += [
                said(each, integers) if isinstance(each, ast.AST) else repr(each) for each in values
            ]
    return f"({' '.join(fields)})"


def _kind_of(value: Param) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number"


# ---- Compiling -------------------------------------------------------------------------------


class _Columns:
    """The kinds of a catalog's columns, as a cache key of programs compiled for them."""

    def __init__(self, features: Features | None) -> None:
        self.kinds = {} if features is None else features.columns
        self._key = frozenset(self.kinds.items())

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Columns) and self._key == other._key


class _Value(NamedTuple):
    """The value of a node: its kind, and where it is found.

    A value that is the same for all items is a `scalar`: a node that is evaluated when parameters
    are bound. Other values are operands; a text per item is represented by its column.
    """

    kind: str  # "number", "boolean", "text"; "categories": lists of texts
    scalar: ast.expr | None = None
    operand: int = 0
    column: str | None = None


@dataclass
class _Program:
    """Steps, and the sources of their constants, columns and flags."""

    name: str
    text: str
    steps: npt.NDArray[np.int32]
    constants: list[tuple[ast.expr, str | None]]  # with the column that numbers a text
    columns: list[str]
    flags: list[tuple[str, ast.expr]]

    def bind(
        self,
        features: Features | None,
        params: Params,
        n_items: int,
        refuse: Callable[[int, str], str],
    ) -> _native.Function:
        def fail(node: ast.AST, reason: str) -> NoReturn:
            _refuse(self.name, self.text, node, reason)

        values: list[float] = []
        for node, column in self.constants:
            value = _worked_out(node, params, fail)
            if column is not None:
                assert features is not None
                values.append(float(features.code(column, str(value))))
                continue
            assert not isinstance(value, str)
            if not abs(float(value)) <= float(np.finfo(np.float32).max):
                fail(node, f"its value {float(value):g} is not finite in float32")
            values.append(float(value))
        found: Float32Array = np.array(values, np.float32)
        if features is None:
            return _native.Function(n_items, refuse, found, [], [], self.steps)
        flags = []
        for column, node in self.flags:
            code = features.code(column, str(_worked_out(node, params, fail)))
            flags.append(features.flags(column, code))
        columns = [features.values(name) for name in self.columns]
        return _native.Function(n_items, refuse, found, columns, flags, self.steps)


_KIND = {name: place << 16 for place, name in enumerate(_native.OPERANDS)}
_OP = {name: place for place, name in enumerate(_native.OPS)}
_DOT = _KIND["dot"]


def _no_words(position: int, what: str) -> str:
    """The message for a value that is not finite: conditions have no such values."""
    raise AssertionError(position, what)


@lru_cache(maxsize=1024)
def _compiled(
    text: str,
    name: str,
    columns: _Columns,
    params: tuple[tuple[str, str], ...],
    is_condition: bool = False,
) -> _Program:
    expression = parsed(text, name)
    for param, _ in params:
        if param in RESERVED:
            raise ValueError(
                f"params: {shown(param)} has another meaning in the {name} {shown(text)}"
            )
        if param not in expression.names:
            raise ValueError(f"params: {shown(param)} is not in the {name} {shown(text)}")
        if param in columns.kinds:
            raise ValueError(f"params: {shown(param)} is a column of the {name} {shown(text)}")
    compiler = _Compiler(expression.text, name, columns.kinds, dict(params))
    return compiler.program(expression.tree, is_condition)


class _Compiler:
    def __init__(
        self, text: str, name: str, columns: Mapping[str, str], params: Mapping[str, str]
    ) -> None:
        self._text = text
        self._name = name
        self._kinds = columns
        self._params = params
        self._steps: list[tuple[int, ...]] = []
        self._constants: list[tuple[ast.expr, str | None]] = []
        self._columns: list[str] = []
        self._flags: list[tuple[str, ast.expr]] = []
        self._free = list(range(_native.REGISTERS))
        self._scalars: dict[ast.expr, str | None] = {}

    def program(self, tree: ast.expr, is_condition: bool = False) -> _Program:
        if is_condition:
            self._refuse_dot(tree)
            found = self._truth(tree)
        else:
            found = self._number(tree, "a score is a number")
        last = self._steps[-1] if self._steps else None
        if last is not None and found == last[1]:
            self._steps[-1] = (last[0], -1, *last[2:])
        else:
            self._steps.append((_OP["copy"], -1, found, 0, 0))
        return _Program(
            self._name,
            self._text,
            np.array([_filled(step) for step in self._steps], np.int32),
            self._constants,
            self._columns,
            self._flags,
        )

    def _refuse(self, node: ast.AST, reason: str) -> NoReturn:
        _refuse(self._name, self._text, node, reason)

    def _refuse_dot(self, tree: ast.expr) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == "dot":
                self._refuse(node, "a rule uses columns and parameters only, not `dot`")

    # ---- Values -----------------------------------------------------------------------------

    def _number(self, node: ast.expr, why: str) -> int:
        """Return the operand of a node that must be a number; booleans are refused."""
        value = self._value(node)
        if value.kind != "number":
            self._refuse(node, f"{why}, but this is {_said_of(value)}")
        return self._operand(value)

    def _term(self, node: ast.expr) -> int:
        """Return the operand of a node in arithmetic, where true is 1 and false 0."""
        value = self._value(node)
        if value.kind not in ("number", "boolean"):
            self._refuse(node, f"expected a number, but this is {_said_of(value)}")
        return self._operand(value)

    def _truth(self, node: ast.expr) -> int:
        value = self._value(node)
        if value.kind != "boolean":
            self._refuse(node, f"expected true or false, but this is {_said_of(value)}")
        return self._operand(value)

    def _operand(self, value: _Value) -> int:
        if value.scalar is None:
            return value.operand
        return self._constant(value.scalar, None)

    def _constant(self, node: ast.expr, column: str | None) -> int:
        self._constants.append((node, column))
        return _KIND["constant"] | (len(self._constants) - 1)

    def _column(self, name: str) -> int:
        if name not in self._columns:
            self._columns.append(name)
        return _KIND["column"] | self._columns.index(name)

    def _step(self, op: str, *operands: int, kept: int | None = None) -> int:
        """Add a step; the registers that it reads become free, except `kept`."""
        for each in set(operands):
            if each < _native.REGISTERS and each != kept:
                self._free.append(each)
        if not self._free:
            raise ValueError(
                f"{self._name}: {shown(self._text)}: needs more than {_native.REGISTERS}"
                " intermediate results at a time, since it nests too deep on the right"
            )
        to = self._free.pop()
        self._steps.append((_OP[op], to, *operands))
        return to

    def _value(self, node: ast.expr) -> _Value:
        kind = self._scalar_kind(node)
        if kind is not None:
            return _Value(kind, scalar=node)
        match node:
            case ast.Name(id="dot"):
                return _Value("number", operand=_DOT)
            case ast.Name(id=name):
                of = self._kinds[name]
                if of in ("category", "categories"):
                    return _Value("text" if of == "category" else of, column=name)
                return _Value(of, operand=self._column(name))
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return self._boolean("not", self._truth(inner))
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return self._made("negate", self._term(inner))
            case ast.UnaryOp(operand=inner):
                return self._made("add", self._term(inner), self._constant(_ZERO, None))
            case ast.BinOp(op=ast.Pow(), left=left, right=right):
                return self._power(left, right)
            case ast.BinOp(op=op, left=left, right=right):
                first = self._term(left)
                return self._made(_BINARY[type(op)], first, self._term(right))
            case ast.BoolOp(op=op, values=values):
                joined = self._truth(values[0])
                for each in values[1:]:
                    how = "and" if isinstance(op, ast.And) else "or"
                    joined = self._step(how, joined, self._truth(each))
                return _Value("boolean", operand=joined)
            case ast.IfExp(test=test, body=body, orelse=other):
                return self._choice(test, body, other)
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self._compared(node, [left, *others], ops)
            case ast.Call(func=ast.Name(id=name), args=args):
                return self._called(name, args)
        raise AssertionError(ast.dump(node))

    def _made(self, op: str, *operands: int) -> _Value:
        return _Value("number", operand=self._step(op, *operands))

    def _boolean(self, op: str, *operands: int) -> _Value:
        return _Value("boolean", operand=self._step(op, *operands))

    def _choice(self, test: ast.expr, body: ast.expr, other: ast.expr) -> _Value:
        asked = self._truth(test)
        first = self._value(body)
        yes = self._operand(first) if first.kind != "text" else 0
        second = self._value(other)
        kinds = {first.kind, second.kind}
        if not kinds <= {"number", "boolean"}:
            self._refuse(body, "both values of a choice must be numbers, or both true or false")
        found = self._step("select", asked, yes, self._operand(second))
        return _Value("boolean" if kinds == {"boolean"} else "number", operand=found)

    def _power(self, left: ast.expr, right: ast.expr) -> _Value:
        exponent = right.value if isinstance(right, ast.Constant) else None
        if isinstance(right, ast.UnaryOp) and isinstance(right.op, ast.USub):
            inner = right.operand
            if isinstance(inner, ast.Constant) and isinstance(inner.value, int | float):
                exponent = -inner.value
        base = self._term(left)
        if exponent == 0.5:
            return self._made("sqrt", base)
        if (
            not isinstance(exponent, int | float)
            or not 1 <= abs(exponent) <= _LARGEST_POWER
            or exponent != int(exponent)
        ):
            return self._made("power", base, self._term(right))
        found = self._multiplied(base, int(abs(exponent)))
        if exponent < 0:
            found = self._step("divide", self._constant(_ONE, None), found)
        return _Value("number", operand=found)

    def _multiplied(self, base: int, exponent: int) -> int:
        """Compute base ** exponent by squaring."""
        found: int | None = None
        while exponent:
            if exponent % 2 and found is None:
                found = base
            elif found is not None and exponent % 2:
                found = self._step("multiply", found, base, kept=base if exponent > 1 else None)
            exponent //= 2
            if exponent:
                base = self._step("multiply", base, base, kept=found)
        assert found is not None
        return found

    def _called(self, name: str, args: list[ast.expr]) -> _Value:
        found = self._term(args[0])
        if name == "clip":
            found = self._step("max", found, self._term(args[1]))
            return self._made("min", found, self._term(args[2]))
        if name in ("min", "max"):
            for each in args[1:]:
                found = self._step(name, found, self._term(each))
            return _Value("number", operand=found)
        return self._made(name, found)

    # ---- Comparisons ------------------------------------------------------------------------

    def _compared(self, node: ast.expr, terms: list[ast.expr], ops: list[ast.cmpop]) -> _Value:
        # A middle term is computed once: otherwise nested comparisons would double the work.
        found: int | None = None
        left: _Value | None = None
        for place, op in enumerate(ops):
            right: _Value | None = None
            if isinstance(op, ast.In | ast.NotIn):
                one = self._among(left or self._held(terms[place]), terms[place], terms[place + 1])
                one = self._step("not", one) if isinstance(op, ast.NotIn) else one
                if place + 1 < len(ops):
                    self._refuse(node, "`in` must be last in a chain of comparisons")
            else:
                left = left or self._held(terms[place])
                right = self._held(terms[place + 1])
                is_last = place + 1 == len(ops)
                one = self._one_comparison(node, left, op, right, None if is_last else right)
            found = one if found is None else self._step("and", found, one)
            left = right
        assert found is not None
        return _Value("boolean", operand=found)

    def _held(self, node: ast.expr) -> _Value:
        """Return a value with an operand; a number that is the same for all items is a constant."""
        value = self._value(node)
        if value.scalar is None or value.kind not in ("number", "boolean"):
            return value
        return value._replace(operand=self._operand(value))

    def _one_comparison(
        self, node: ast.expr, first: _Value, op: ast.cmpop, second: _Value, kept: _Value | None
    ) -> int:
        """Compile one comparison; the register of `kept` is read again later."""
        numbers = ("number", "boolean")
        if first.kind not in numbers:
            return self._equal_texts(node, first, second, op)
        if second.kind not in numbers:
            self._refuse(node, f"{_said_of(first)} is compared with {_said_of(second)}")
        one, other = first.operand, second.operand
        if isinstance(op, _SWAPPED):
            one, other = other, one
        return self._step(
            _COMPARED[type(op)], one, other, kept=None if kept is None else kept.operand
        )

    def _equal_texts(self, node: ast.expr, first: _Value, second: _Value, op: ast.cmpop) -> int:
        """Compare a column of texts with a text, by their numbers."""
        if first.kind != "text" or second.kind != "text":
            self._refuse(node, f"{_said_of(first)} is compared with {_said_of(second)}")
        if not isinstance(op, ast.Eq | ast.NotEq):
            self._refuse(node, "texts can be compared only by == and !=")
        column, text = first.column or second.column, first.scalar or second.scalar
        if column is None or text is None:
            self._refuse(node, "two columns of texts cannot be compared")
        return self._step(_COMPARED[type(op)], self._column(column), self._constant(text, column))

    def _among(self, text: _Value, left: ast.expr, right: ast.expr) -> int:
        if isinstance(right, ast.Tuple | ast.List | ast.Set):
            found: int | None = None
            for place, each in enumerate(right.elts, 1):
                kept = text if place < len(right.elts) else None
                one = self._one_comparison(left, text, ast.Eq(), self._held(each), kept)
                found = one if found is None else self._step("or", found, one)
            if found is None:
                return self._constant(_FALSE, None)
            return found
        lists = self._value(right)
        if lists.kind != "categories":
            self._refuse(
                right,
                f"expected a column of lists or (...) after `in`, but this is {_said_of(lists)}",
            )
        if text.kind != "text" or text.scalar is None:
            self._refuse(
                left, "expected one text, the same for all items, before `in` a column of lists"
            )
        assert lists.column is not None
        self._flags.append((lists.column, text.scalar))
        return _KIND["flags"] | (len(self._flags) - 1)

    # ---- Values that are the same for all items ---------------------------------------------

    def _scalar_kind(self, node: ast.expr) -> str | None:
        """Check a node without `dot` and columns, and return its kind; None if it uses them."""
        if node not in self._scalars:
            self._scalars[node] = self._kind_of_scalar(node)
        return self._scalars[node]

    def _kind_of_scalar(self, node: ast.expr) -> str | None:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return _kind_of(value)
            case ast.Name(id=name):
                if name in _CONSTANTS:
                    return "number"
                if name == "dot" or name in self._kinds:
                    return None
                if name not in self._params:
                    have = ", ".join(sorted(self._kinds)) or "none"
                    given = ", ".join(sorted(self._params)) or "none"
                    of_functions = ", nor a known score function" if name == self._text else ""
                    self._refuse(
                        node,
                        f"{shown(name)} is neither a column (there are {have}) nor among the params"
                        f" (given are {given}){of_functions}",
                    )
                return self._params[name]
        parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        if isinstance(node, ast.Call):
            parts = node.args
        kinds = [self._scalar_kind(part) for part in parts]
        if None in kinds:
            return None
        match node:
            case ast.Tuple() | ast.List() | ast.Set():
                return "tuple"
            case ast.Compare(ops=ops):
                for one, op, other in zip(kinds, ops, kinds[1:], strict=False):
                    self._check_scalars(node, str(one), op, str(other))
                return "boolean"
            case ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
                for part, kind in zip(parts, kinds, strict=True):
                    if kind != "boolean":
                        self._refuse(part, f"expected true or false, but this is a {kind}")
                return "boolean"
            case ast.IfExp():
                if kinds[0] != "boolean":
                    self._refuse(parts[0], f"expected true or false, but this is a {kinds[0]}")
                if kinds[1] != kinds[2]:
                    self._refuse(node, f"a choice between a {kinds[1]} and a {kinds[2]}")
                return kinds[1]
        for part, kind in zip(parts, kinds, strict=True):
            if kind not in ("number", "boolean"):
                self._refuse(part, f"expected a number, but this is a {kind}")
        return "number"

    def _check_scalars(self, node: ast.expr, one: str, op: ast.cmpop, other: str) -> None:
        numbers = {"number", "boolean"}
        if isinstance(op, ast.In | ast.NotIn):
            if other != "tuple":
                self._refuse(node, f"expected a column of lists or (...) after `in`, not a {other}")
            return
        if one in numbers and other in numbers:
            return
        if one == other == "text" and isinstance(op, ast.Eq | ast.NotEq):
            return
        self._refuse(node, f"a {one} is compared with a {other}")


_ZERO = ast.Constant(0.0)
_ONE = ast.Constant(1.0)
_FALSE = ast.Constant(False)


def _filled(step: tuple[int, ...]) -> tuple[int, ...]:
    """Fill a step up to three operands; unread ones repeat the first."""
    op, to, *operands = step
    return (op, to, *operands, *[operands[0]] * (3 - len(operands)))


def _said_of(value: _Value) -> str:
    words = {
        "number": "a number",
        "boolean": "true or false",
        "text": "a text",
        "categories": "a list of texts",
        "tuple": "a tuple",
    }[value.kind]
    return words if value.column is None else f"{words}, the column {value.column!r}"


def _worked_out(node: ast.expr, params: Params, fail: Callable[[ast.AST, str], NoReturn]) -> Param:
    """Evaluate a node without `dot` and columns in Python's numbers."""

    try:
        found: Param = _reckoned(node, params)
        return found
    except (ArithmeticError, ValueError) as error:
        fail(node, f"{error}, with params {dict(params)}")


def _reckoned(node: ast.expr, params: Params) -> Any:
    def of(each: ast.expr) -> Any:
        return _reckoned(each, params)

    match node:
        case ast.Constant(value=value):
            return float(value) if type(value) is int else value
        case ast.Name(id=name):
            return _CONSTANTS.get(name, params.get(name, 0.0))
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return not of(inner)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -float(of(inner))
        case ast.UnaryOp(operand=inner):
            return float(of(inner))
        case ast.BinOp(op=op, left=left, right=right):
            return _binary(op, float(of(left)), float(of(right)))
        case ast.BoolOp(op=op, values=values):
            found = [bool(of(each)) for each in values]
            return all(found) if isinstance(op, ast.And) else any(found)
        case ast.IfExp(test=test, body=body, orelse=other):
            return of(body) if of(test) else of(other)
        case ast.Compare(left=left, ops=ops, comparators=others):
            terms = [of(each) for each in (left, *others)]
            return all(_holds(*each) for each in zip(terms, ops, terms[1:], strict=False))
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            return [of(each) for each in elements]
        case ast.Call(func=ast.Name(id=name), args=args):
            return _SCALARS[name](*[float(of(each)) for each in args])
    raise AssertionError(ast.dump(node))


def _binary(op: ast.operator, left: float, right: float) -> float:
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
    return math.pow(left, right)


def _holds(one: Any, op: ast.cmpop, second: Any) -> bool:
    match op:
        case ast.In():
            return one in second
        case ast.NotIn():
            return one not in second
        case ast.Eq():
            return bool(one == second)
        case ast.NotEq():
            return bool(one != second)
        case ast.Lt():
            return bool(one < second)
        case ast.LtE():
            return bool(one <= second)
        case ast.Gt():
            return bool(one > second)
    return bool(one >= second)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0.0 else math.exp(x) / (1.0 + math.exp(x))


_SCALARS: dict[str, Callable[..., float]] = {
    "exp": math.exp,
    "log": math.log,
    "log1p": math.log1p,
    "sqrt": math.sqrt,
    "abs": abs,
    "sigmoid": _sigmoid,
    "min": min,
    "max": max,
    "clip": lambda x, low, high: min(max(x, low), high),
}
