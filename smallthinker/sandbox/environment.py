"""Templates of strangers: a jinja2 environment in which none takes more than a set amount of time and memory.

Every loop, call, filter, test, operator and output is charged for before it is done, and what isn't known here can't be
used. Knows nothing about messages or models.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from sys import getsizeof
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner
from jinja2.visitor import NodeTransformer

from smallthinker.sandbox import functions, operators
from smallthinker.sandbox.meter import ITEM, LOOKUP, NODE, OPERATION, Meter

# Several times the largest that are published, and compiled in under a second.
MAX_SOURCE, MAX_NODES, MAX_NESTING, MAX_ELIFS = 1 << 17, 10_000, 80, 200
_ASSIGNMENT_NODES, _MACRO_NODES = 10, 50  # what these cost jinja2's compiler

_STATEMENTS_AND_EXPRESSIONS = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Macro, nodes.CallBlock,
    nodes.FilterBlock, nodes.With, nodes.Assign, nodes.AssignBlock, nodes.ExprStmt, nodes.Scope, nodes.Break,
    nodes.Continue, nodes.Name, nodes.NSRef, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair,
    nodes.Keyword, nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Getitem, nodes.Getattr, nodes.Slice,
    nodes.Concat, nodes.Compare, nodes.Operand, nodes.BinExpr, nodes.UnaryExpr,
)  # fmt: skip


class Sandbox(ImmutableSandboxedEnvironment):
    """`load` a template, then `render` it. One rendering at a time."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, _Generation],
            optimized=False,  # would compute constants, however large, while compiling
            finalize=operators.output,
        )
        self.meter = Meter()
        self.globals = {"range": self.globals["range"], **functions.GLOBALS}
        self.filters, self.tests = {**functions.FILTERS, **operators.OPERATORS}, dict(functions.TESTS)

    def load(self, source: str) -> tuple[Any, frozenset[str]]:
        """The template, and the names that it asks for. Raises TemplateSyntaxError, RecursionError, and what Python
        raises for a program that is too large for it."""
        if len(source) > MAX_SOURCE:
            raise TemplateSyntaxError(f"expected at most {MAX_SOURCE} characters, found {len(source)}", 1)
        self.meter = Meter()
        tree = _Guards(self).visit(self.parse(source))
        return self.from_string(tree), frozenset(meta.find_undeclared_variables(tree))

    def render(self, template: Any, values: dict[str, Any]) -> str:
        """Raises TooCostlyError, and anything else that can go wrong in a program."""
        self.meter = Meter()
        text: str = template.render(values)
        return text

    # What compiled templates call.

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.meter.charge(LOOKUP)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.meter.charge(LOOKUP)
        if not isinstance(argument, (str, int)):
            self.meter.read(argument)  # its hash is that of all its items
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        is_format = isinstance(value, BuiltinMethodType) and value.__name__ == "format" and type(value.__self__) is str
        return operators.Format(self, value.__self__) if is_format else None

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = self.meter
        meter.charge(OPERATION)
        if isinstance(left, (int, float)) and isinstance(right, (int, float)):
            operators.check_numbers(operator, left, right)
        elif operator == "%" and isinstance(left, str):
            operators.need_printf(meter, left, right)
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            meter.need(4 * (len(left) + len(right)))
        elif operator == "+" and isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
            meter.need(8 * (len(left) + len(right)))
        elif operator == "*" and isinstance(left, (str, list, tuple)) and isinstance(right, int):
            meter.need(8 * len(left) * max(right, 0))
        elif operator == "*" and isinstance(left, int) and isinstance(right, (str, list, tuple)):
            meter.need(8 * len(right) * max(left, 0))
        elif not isinstance(left, Undefined) and not isinstance(right, Undefined):  # which have errors of their own
            raise TypeError(f"{operator} is not for {type(left).__name__} and {type(right).__name__}")
        return meter.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  (as in jinja2)
        meter = __self.meter
        meter.charge(OPERATION + ITEM * (len(args) + len(kwargs)))
        if isinstance(__obj, (Macro, LoopContext, Undefined)):
            return super().call(__context, __obj, *args, **kwargs)
        given = [*args, *(value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars"))]
        if isinstance(__obj, BuiltinMethodType):
            operators.check_method(meter, __obj.__self__, __obj.__name__, given)
            return meter.made(super().call(__context, __obj, *args, **kwargs), ITEM)
        owner = __obj.__self__ if isinstance(__obj, MethodType) else __obj
        known = isinstance(owner, (LoopContext, Cycler, Joiner, operators.Format))
        if not known and not any(__obj is function for function in __self.globals.values()):
            raise SecurityError(f"a {type(__obj).__name__} can't be called from a template")
        meter.read(*given)
        return super().call(__context, __obj, *args, **kwargs)


class _Generation(Extension):
    """`{% generation %}`: what an assistant wrote, marked for training; here only what is in it matters."""

    tags = {"generation"}  # noqa: RUF012  (as in jinja2)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Guards(NodeTransformer):
    """Put a charge before every loop's and macro's turn, and around what jinja2 doesn't let its environment intercept.
    The names of these filters can't be written as such in a template."""

    def __init__(self, environment: Environment) -> None:
        self._environment, self._level, self._nodes, self._cost = environment, 0, 0, 0

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(node, _STATEMENTS_AND_EXPRESSIONS):
            raise TemplateSyntaxError(f"{type(node).__name__.lower()} can't be used in a chat template", node.lineno)
        self._level += 1
        self._nodes += _ASSIGNMENT_NODES if getattr(node, "ctx", "") == "store" else 1
        self._cost += NODE
        if self._level > MAX_NESTING:
            raise TemplateSyntaxError("it is nested too deeply", node.lineno)
        visited = super().visit(node, *args, **kwargs)
        if self._nodes > MAX_NODES:
            raise TemplateSyntaxError("it is too large", node.lineno)
        self._level -= 1
        return visited

    def _filter(self, node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
        made = nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)
        made.set_environment(self._environment)
        return made

    def _tick(self, cost: int, line: int) -> nodes.Filter:
        return self._filter(nodes.Const(cost, lineno=line), "<turn>")

    def _repeated(self, node: Any) -> Any:
        before, nodes_before = self._cost, self._nodes
        node = self.generic_visit(node)
        cost = self._cost - before + OPERATION
        self._nodes += (self._nodes - nodes_before) // 4  # jinja2 looks through all of a body again, at every level
        node.body.insert(0, nodes.ExprStmt(self._tick(cost, node.lineno), lineno=node.lineno))
        if getattr(node, "test", None) is not None:
            node.test = nodes.And(self._tick(cost, node.lineno), node.test, lineno=node.lineno)
        return node

    def visit_For(self, node: nodes.For) -> Any:  # noqa: N802
        return self._repeated(node)

    def visit_Macro(self, node: nodes.Macro) -> Any:  # noqa: N802
        self._nodes += _MACRO_NODES
        self._cost += 1000  # a function made
        return self._repeated(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> Any:  # noqa: N802
        self._nodes += _MACRO_NODES
        self._cost += 1000
        return self._repeated(node)

    def visit_If(self, node: nodes.If) -> Any:  # noqa: N802
        if len(node.elif_) > MAX_ELIFS:  # each is one level of Python's syntax tree
            raise TemplateSyntaxError(f"over {MAX_ELIFS} times elif", node.lineno)
        return self.generic_visit(node)

    def visit_TemplateData(self, node: nodes.TemplateData) -> Any:  # noqa: N802
        self._cost += getsizeof(node.data)
        return node

    def visit_Const(self, node: nodes.Const) -> Any:  # noqa: N802
        if isinstance(node.value, int) and node.value.bit_length() > operators.MAX_BITS:
            raise TemplateSyntaxError(f"a number of over {operators.MAX_BITS} bits", node.lineno)
        return node

    def visit_NSRef(self, node: nodes.NSRef) -> Any:  # noqa: N802
        if node.attr.startswith("_"):
            raise TemplateSyntaxError("a namespace has no names that begin with _", node.lineno)
        return node

    def visit_Pair(self, node: Any) -> Any:  # noqa: N802
        self._cost += 2 * ITEM
        node = self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = self._filter(node.key, "<key>")
        return node

    def visit_Concat(self, node: Any) -> Any:  # noqa: N802
        node = self.generic_visit(node)
        return self._filter(nodes.List(node.nodes, lineno=node.lineno), "~")

    def visit_Compare(self, node: Any) -> Any:  # noqa: N802
        node = self.generic_visit(node)
        pairs = [(nodes.Const(operand.op, lineno=node.lineno), operand.expr) for operand in node.ops]
        return self._filter(node.expr, "<compare>", *chain.from_iterable(pairs))

    def visit_Getitem(self, node: Any) -> Any:  # noqa: N802
        node = self.generic_visit(node)
        return self._filter(node, "[:]") if isinstance(node.arg, nodes.Slice) else node
