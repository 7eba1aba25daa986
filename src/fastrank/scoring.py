"""Score functions: scores that an expression cannot state, in Python compiled by Numba.

A function is scalar: it receives one item's dot product and the columns and parameters that it
names, and returns that item's score. fastrank runs the loop over items, so nothing is written out
of bounds; a result that is not finite, or an exception, is an error that names the item. `exp`,
`log` and `sigmoid` here are versions that Numba can vectorise.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import math
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from fastrank import _native
from fastrank.compiled import code_of, dispatcher, divisor, exp, log, sigmoid
from fastrank.expressions import Param, Params, said
from fastrank.features import Features
from fastrank.inputs import shown
from fastrank.store import content_hash

__all__ = ["ScoreFunction", "exp", "imported", "log", "score_function", "sigmoid"]


_OWN = (exp, log, sigmoid)


def score_function(function: Callable[..., Any]) -> ScoreFunction:
    """Make a score function from a Python function.

    Parameters
    ----------
    function : callable
        Its arguments are `dot`, names of columns (numbers and booleans), and parameters of a call,
        with or without a default: every name that is no column is a parameter. It is scalar and
        returns a number.

    Returns
    -------
    ScoreFunction
        For ``score=``. Numba compiles it on first use, and the machine code is kept for the next
        process.

    Raises
    ------
    ValueError
        If its source cannot be read, or contains what a score function may not.

    Notes
    -----
    Numbers are float32, including those written in the function. Arithmetic is plain IEEE without
    shortcuts, the same on every CPU.

    Examples
    --------
    >>> import fastrank as fr
    >>> from fastrank.scoring import exp
    >>> @fr.score_function
    ... def recent(dot, age, half_life=30.0):
    ...     return dot + 0.3 * exp(-age / half_life)
    >>> recent.arguments
    ('dot', 'age', 'half_life')
    """
    return ScoreFunction(function)


def imported(paths: Iterable[str]) -> list[ScoreFunction]:
    """Import score functions, named ``module:name``, from the caller's modules.

    Importing a module runs its code.

    Raises
    ------
    ValueError
        If there is no such module, or it has no such score function.

    Examples
    --------
    >>> imported(["fastrank.scoring:nothing"])
    Traceback (most recent call last):
        ...
    ValueError: ...
    """
    found = []
    for path in paths:
        module, _, name = path.partition(":")
        try:
            function: Any = importlib.import_module(module)
            for part in name.split("."):
                function = getattr(function, part)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"{shown(path)}: expected module:name ({error})") from None
        if not isinstance(function, ScoreFunction):
            raise ValueError(f"{shown(path)}: expected a score function, got {shown(function)}")
        found.append(function)
    return found


class ScoreFunction:
    """A function of an item's dot product, its features, and a call's parameters.

    Attributes
    ----------
    text : str
        The function's name.
    path : str
        ``module:name``, by which a saved catalog identifies the function it needs.
    hash : str
        SHA-256 of its source, arguments, and the numbers and functions that it refers to.
    arguments : tuple of str
    names : frozenset of str
        Its arguments without `dot`.
    """

    kind = "function"

    def __init__(self, function: Callable[..., Any], _helpers: _Helpers | None = None) -> None:
        if not isinstance(function, types.FunctionType):
            raise ValueError(f"score_function: expected a Python function, got {shown(function)}")
        if hasattr(function, "__wrapped__"):
            raise ValueError(
                f"score_function: {function.__name__}: another decorator stands in its place, whose"
                " source is not that of the function"
            )
        self.function = function
        self.text = function.__name__
        self.path = f"{function.__module__}:{function.__qualname__}"
        self.__doc__ = function.__doc__
        self._tree = _source_of(function)
        self.arguments, self.defaults = _arguments_of(function)
        self.names = frozenset(self.arguments) - {"dot"}
        _check_assigned(self._tree)
        self._referred = dict(_referred(function, self._tree, {} if _helpers is None else _helpers))
        self.hash = _hash_of(self)
        self._dispatcher: Any = None

    def __repr__(self) -> str:
        return f"ScoreFunction({self.path}({', '.join(self.arguments)}))"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the Python function itself, for one item."""
        return self.function(*args, **kwargs)

    def bind(
        self,
        features: Features | None,
        params: Params,
        n_items: int,
        refuse: Callable[[int, str], str],
    ) -> _native.Function:
        """Join the function with its columns and parameters, as the core takes it.

        Raises
        ------
        ValueError
            If a name or a type does not fit, or Numba cannot compile it.
        """
        kinds = {} if features is None else features.columns
        unknown = [name for name in params if name not in self.names or name in kinds]
        if unknown:
            what = "is a column" if unknown[0] in kinds else "is no argument"
            raise ValueError(f"params: {unknown[0]!r} {what} of the score function {self.text}")
        values: list[float] = []
        columns: list[Any] = []
        passed: list[tuple[str, str]] = []
        for name in self.arguments:
            if name == "dot":
                passed.append(("dot", "number"))
            elif name in kinds:
                if kinds[name] not in ("number", "boolean"):
                    raise ValueError(
                        f"score: {self.text}: the column {name!r} holds texts, whose numbers differ"
                        " from catalog to catalog: an expression can compare them"
                    )
                assert features is not None
                columns.append(features.values(name))
                passed.append(("column", kinds[name]))
            else:
                value = self._param(name, params, kinds)
                values.append(float(value))
                passed.append(("param", "boolean" if isinstance(value, bool) else "number"))
        found = np.array(values, np.float64)
        with np.errstate(over="ignore"):
            cast = found.astype(np.float32)
        if not np.isfinite(cast).all():
            raise ValueError(f"params: {dict(params)}: beyond the float32 range")
        code = code_of(self, tuple(passed))
        return _native.Function(n_items, refuse, cast, columns, [], None, code)

    def _param(self, name: str, params: Params, kinds: dict[str, str]) -> float | bool:
        value: Param | None = params.get(name, self.defaults.get(name))
        if value is None:
            have = ", ".join(sorted(kinds)) or "none"
            given = ", ".join(sorted(params)) or "none"
            raise ValueError(
                f"score: {self.text}: {name!r} is neither a column (there are {have}) nor among the"
                f" params (given are {given})"
            )
        if isinstance(value, str):
            raise ValueError(
                f"params[{name!r}]: a score function takes numbers and booleans, got {value!r}"
            )
        return value

    def as_float32(self) -> Callable[..., Any]:
        """The function with its numbers in float32, for Numba to compile."""
        return _remade(self.function, self._tree, self._referred)

    def as_helper(self) -> Any:
        """The function compiled by Numba, for other functions to call."""
        if self._dispatcher is None:
            self._dispatcher = dispatcher(self.as_float32())
        return self._dispatcher


# ---- Source ---------------------------------------------------------------------------------

_LARGEST = float(np.finfo(np.float32).max)
# What is the same wherever a hash is: of another module it would say the name, and not the values.
_MODULES = ("math", "numpy", "fastrank", "fastrank.scoring")
_LIBRARIES = ("builtins", "math", "numpy")
_REFUSED: dict[type[ast.AST], str] = {
    ast.Yield: "yields",
    ast.YieldFrom: "yields",
    ast.Await: "awaits",
    ast.Global: "changes a global",
    ast.Nonlocal: "changes what is outside",
    ast.Import: "imports",
    ast.ImportFrom: "imports",
    ast.Lambda: "holds a lambda",
}


def _source_of(function: types.FunctionType) -> ast.FunctionDef:
    name = function.__name__
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError) as error:
        raise ValueError(
            f"score_function: {name}: its source cannot be read, which its hash is of"
            f" ({error}); define it by `def`, in a file or a notebook"
        ) from None
    if not isinstance(tree, ast.FunctionDef):
        raise ValueError(f"score_function: {name}: expected a function that `def` defines")
    for node in ast.walk(tree):
        if type(node) in _REFUSED:
            line = getattr(node, "lineno", 1)
            raise ValueError(f"score_function: {name}, line {line}: it {_REFUSED[type(node)]}")
        if node is not tree and isinstance(node, ast.FunctionDef | ast.ClassDef):
            raise ValueError(f"score_function: {name}: it defines {node.name!r} within")
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, int | float)
            and abs(node.value) > _LARGEST
        ):
            raise ValueError(
                f"score_function: {name}, line {node.lineno}: a number is beyond the float32 range"
            )
    # Parts that are not compiled: defaults are values, and annotations are unused.
    tree.decorator_list, tree.args.defaults, tree.returns = [], [], None
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return tree


def _check_assigned(tree: ast.FunctionDef) -> None:
    """Refuse a name that may be read before it has a value, which Numba would take for 0.

    Python finds out only when the line runs; here no item should fail. A loop may run zero times,
    so what it assigns needs a value before the loop.
    """
    own = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }

    def read(node: ast.AST | None, known: set[str]) -> set[str]:
        """The names with a value after an expression."""
        known = set(known)
        for each in ast.walk(node) if node is not None else ():
            if isinstance(each, ast.comprehension):
                known |= {x.id for x in ast.walk(each.target) if isinstance(x, ast.Name)}
            elif isinstance(each, ast.NamedExpr):
                known |= {each.target.id}
        for each in ast.walk(node) if node is not None else ():
            if not isinstance(each, ast.Name) or each.id not in own - known:
                continue
            if isinstance(each.ctx, ast.Load):
                raise ValueError(
                    f"score_function: {tree.name}, line {each.lineno}: {each.id!r} may have no"
                    " value here: give it one before"
                )
        return known

    def stored(target: ast.expr, known: set[str]) -> set[str]:
        names = {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}
        return known | names

    def block(body: list[ast.stmt], known: set[str] | None) -> set[str] | None:
        """The names with a value after statements; None if nothing runs after them."""
        for node in body:
            if known is None:
                return None
            known = after(node, known)
        return known

    def both(*branches: set[str] | None) -> set[str] | None:
        there = [branch for branch in branches if branch is not None]
        return set.intersection(*there) if there else None

    def after(node: ast.stmt, known: set[str]) -> set[str] | None:
        match node:
            case ast.Assign(targets=targets, value=value):
                known = read(value, known)
                for target in targets:
                    known = stored(target, known)
                return known
            case ast.AnnAssign(target=target, value=value):
                return read(None, known) if value is None else stored(target, read(value, known))
            case ast.AugAssign(target=ast.Name(id=name) as target, value=value):
                read(ast.copy_location(ast.Name(name, ast.Load()), target), known)
                return read(value, known)
            case ast.If(test=test, body=body, orelse=other):
                known = read(test, known)
                return both(block(body, known), block(other, known))
            case ast.For(target=target, iter=values, body=body, orelse=other):
                known = read(values, known)
                block(body, stored(target, known))
                return block(other, known)
            case ast.While(test=test, body=body, orelse=other):
                known = read(test, known)
                block(body, known)
                return block(other, known)
            case ast.Try(body=body, handlers=handlers, orelse=other, finalbody=last):
                tried = block(other, block(body, known))
                caught = [block(each.body, known) for each in handlers]
                return block(last, both(tried, *caught))
            case ast.Return() | ast.Raise() | ast.Break() | ast.Continue():
                read(node, known)
                return None
        return read(node, known)

    block(tree.body, {each.arg for each in tree.args.args})


def _arguments_of(function: types.FunctionType) -> tuple[tuple[str, ...], dict[str, float | bool]]:
    defaults: dict[str, float | bool] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            raise ValueError(
                f"score_function: {function.__name__}: the argument {name!r} has no place and name"
                " of its own"
            )
        if parameter.default is not parameter.empty:
            value = parameter.default
            if not isinstance(value, bool | int | float) or not math.isfinite(value):
                raise ValueError(
                    f"score_function: {function.__name__}: the default of {name!r} is"
                    f" {shown(value)}, neither a finite number nor a boolean"
                )
            defaults[name] = value
    names = tuple(inspect.signature(function).parameters)
    if "dot" in defaults:
        raise ValueError(f"score_function: {function.__name__}: `dot` has a default")
    return names, defaults


# Helpers of one function by their Python function: each is read once. None: being read.
_Helpers: TypeAlias = "dict[types.FunctionType, ScoreFunction | None]"


def _referred(
    function: types.FunctionType, tree: ast.FunctionDef, helpers: _Helpers
) -> Iterator[tuple[str, Any]]:
    """What a function refers to outside itself, by name; what cannot be compiled is refused."""
    free = function.__code__.co_freevars
    cells = function.__closure__ or ()
    outside = dict(zip(free, cells, strict=True))
    local = set(function.__code__.co_varnames)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    helpers[function] = None
    for name in sorted(names - local):
        if name == tree.name:
            raise ValueError(f"score_function: {function.__name__}: it calls itself")
        if name in outside:
            try:
                value = outside[name].cell_contents
            except ValueError:
                value = None
        elif name in function.__globals__:
            value = function.__globals__[name]
        elif hasattr(builtins, name):
            continue
        else:
            raise ValueError(f"score_function: {function.__name__}: {name!r} is not defined")
        yield name, _known(function.__name__, name, value, helpers)


def _known(within: str, name: str, value: Any, helpers: _Helpers) -> Any:
    """A value that a function refers to, as it is now, whatever is assigned later."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int | float | ScoreFunction) or any(value is f for f in _OWN):
        if isinstance(value, int | float) and math.isfinite(value) and abs(value) > _LARGEST:
            raise ValueError(f"score_function: {within}: {name!r} is beyond the float32 range")
        return value
    if isinstance(value, types.ModuleType):
        if value.__name__ in _MODULES:
            return value
        raise ValueError(
            f"score_function: {within}: {name!r} is the module {value.__name__}, whose values could"
            " be others under the same hash: import by name what it has of them"
        )
    home = (getattr(value, "__module__", None) or type(value).__module__).split(".")[0]
    if callable(value) and home in _LIBRARIES:
        return value
    plain = getattr(value, "py_func", value)  # where Numba compiled it by itself
    if not isinstance(plain, types.FunctionType):
        raise ValueError(
            f"score_function: {within}: {name!r} is {shown(value)}: it can refer to numbers, to"
            " functions, and to the modules math and numpy"
        )
    if plain not in helpers:
        helpers[plain] = ScoreFunction(plain, helpers)
    found = helpers[plain]
    if found is None:
        raise ValueError(f"score_function: {within}: {name!r} calls itself")
    return found


def _hash_of(score: ScoreFunction) -> str:
    told = ["fastrank function 1", repr(score.arguments), repr(sorted(score.defaults.items()))]
    told += [said(each, integers=True) for each in score._tree.body]
    for name, value in score._referred.items():
        told.append(f"{name} = {_identity(value)}")
    return content_hash({"function": told})


def _identity(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, ScoreFunction):
        return value.hash
    return f"{getattr(value, '__module__', None) or type(value).__module__}.{value.__name__}"


# ---- float32 --------------------------------------------------------------------------------


class _Narrow(ast.NodeTransformer):
    """Make the numbers written in a function float32: as float64 they would widen all of its
    arithmetic. Exponents, indices and counts stay integers."""

    def __init__(self, tree: ast.FunctionDef) -> None:
        self.constants: dict[str, np.float32] = {}
        names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
        names += [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]
        self._prefix = "_float32_"
        while any(name.startswith(self._prefix) for name in names):
            self._prefix = f"_{self._prefix}"
        self.divisor = f"{self._prefix}divisor"

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return self._narrow(node, node.value) if isinstance(node.value, float) else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if isinstance(node.op, ast.BitAnd | ast.BitOr | ast.BitXor | ast.LShift | ast.RShift):
            return self.generic_visit(node)
        node.left = self._operand(node.left)
        exponent = node.right
        is_integer = isinstance(exponent, ast.Constant) and type(exponent.value) is int
        if not (isinstance(node.op, ast.Pow) and is_integer):  # such a power is multiplied out
            node.right = self._operand(exponent)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        node.left = self._operand(node.left)
        node.comparators = [self._operand(each) for each in node.comparators]
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        node.value = self.visit(node.value)
        return node

    def _operand(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return self._narrow(node, node.value)
        narrowed: ast.expr = self.visit(node)
        return narrowed

    def _narrow(self, node: ast.Constant, value: float) -> ast.expr:
        name = f"{self._prefix}{len(self.constants)}"
        self.constants[name] = np.float32(value)
        return ast.copy_location(ast.Name(name, ast.Load()), node)


class _Checked(ast.NodeTransformer):
    """Check the divisors of // and %: an integer 0 raises, as in Python."""

    def __init__(self, name: str) -> None:
        self._name = name

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.FloorDiv | ast.Mod):
            node.right = self._divisor(node.right)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.FloorDiv | ast.Mod):
            node.value = self._divisor(node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "divmod" and len(node.args) == 2:
            node.args[1] = self._divisor(node.args[1])
        return node

    def _divisor(self, node: ast.expr) -> ast.expr:
        return ast.copy_location(ast.Call(ast.Name(self._name, ast.Load()), [node], []), node)


def _remade(
    function: types.FunctionType, tree: ast.FunctionDef, referred: dict[str, Any]
) -> Callable[..., Any]:
    narrow = _Narrow(tree)
    checked = _Checked(narrow.divisor)
    body = [checked.visit(narrow.visit(each)) for each in ast.parse(ast.unparse(tree)).body]
    module = ast.fix_missing_locations(ast.Module(body, []))
    namespace: dict[str, Any] = {**narrow.constants, narrow.divisor: divisor}
    for name, value in referred.items():
        if type(value) is float:
            namespace[name] = np.float32(value)
        elif isinstance(value, ScoreFunction):
            namespace[name] = value.as_helper()
        else:
            namespace[name] = value
    exec(compile(module, inspect.getfile(function), "exec"), namespace)
    made: Callable[..., Any] = namespace[tree.name]
    return made
