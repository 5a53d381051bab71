"""Chat templates: what they may use, as transformers renders it, and that none takes much time or memory."""

from __future__ import annotations

import json
import tracemalloc
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jinja2.ext import LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from smallthinker.errors import TokenizerError
from smallthinker.sandbox import meter
from smallthinker.sandbox.environment import Sandbox
from smallthinker.text.chat_template import ChatTemplate, load_chat_template

MESSAGES = [{"role": "user", "content": "hi <&>\n there"}, {"role": "assistant", "content": "é😀"}]
DOUBLED = (
    "{% set ns = namespace(s=(1,)) %}{% for i in range(60) %}{% set ns.s = (ns.s, ns.s) %}{% endfor %}"
    "{% set d = ns.s %}"
)


def template(folder: Path, source: object, **config: object) -> ChatTemplate:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": source, **config}))
    return load_chat_template(folder)


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(meter, "BUDGET", 1 << 22)
    return 1 << 22


HOSTILE = [
    "{{ 'a' * 3000000000 }}",
    "{{ 3000000000 * 'a' }}",
    "{{ [1] * 10**10 }}",
    "{{ (1,) * 10**10 }}",
    "{{ 10**10**8 }}",
    "{% set ns = namespace(i=2) %}{% for i in range(300) %}{% set ns.i = ns.i * ns.i %}{% endfor %}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%.999999999f' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%(a(b)c)999999999d' % {'a(b)c': 1} }}",
    "{{ '%999999999d'|format(1) }}",
    "{{ ('%(a)s' * 100000) % {'a': 'x' * 100000} }}",
    "{{ '%999999999d' is even }}",
    "{{ '%999999999d' is divisibleby(3) }}",
    "{{ ['%999999999d']|select('odd')|list }}",
    "{{ 'a'|round(9, 'floor') }}",
    "{{ 5|round(-1000000000) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ ('{0}' * 100000).format('x' * 100000) }}",
    "{{ '{:>1000000000}'|attr('format')(1) }}",
    "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "{{ 'x'|center(10**9) }}",
    "{{ 'x'.center(10**9) }}",
    "{{ 'x'['ljust'](10**9) }}",
    "{{ 'x'|attr('zfill')(10**9) }}",
    "{{ 'a\tb'.expandtabs(10**9) }}",
    "{{ 'a'.translate({97: 'x' * 1000000}) }}",
    "{{ 'aaaa'.replace('', 'x' * 10**5).replace('', 'x' * 10**5) }}",
    "{{ ('a' * 10000)|replace('a', 'x' * 10000) }}",
    "{{ ('x' * 10**5).join(['a'] * 10000) }}",
    "{{ ('x' * 10**5).join('a' * 10000) }}",
    "{{ (['a'] * 10000)|join('x' * 10**5) }}",
    "{{ ('a' * 10000)|join('x' * 10**5) }}",
    "{{ ('a\n' * 10000)|indent(10**6) }}",
    "{{ ('a\n' * 10000)|indent('x' * 10000) }}",
    "{{ ('a b ' * 10000)|wordwrap(1, wrapstring='x' * 10000) }}",
    "{{ [1, 2]|tojson(indent=10**9) }}",
    "{{ ([1] * 10000)|tojson(separators=('x' * 10000, 'y')) }}",
    "{{ range(10**9)|list }}",
    "{{ lipsum(n=10**9) }}",
    "{{ ([[1] * 1000] * 1000)|sum(start=[]) }}",
    "{{ [1]|batch(10**9, 0)|list }}",
    "{{ [1]|slice(10**9)|list }}",
    "{{ strftime_now('%Y' * 100000) }}",
    "{{ f(*([1] * 10000000)) }}",
    "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in [a, b] %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) if false %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% set x = range(100000)|select|list %}{% endfor %}",
    "{% for a in range(100000) %}{% set x = range(100000)|map('string')|list %}{% endfor %}",
    "{% for a in range(100000) %}{% set x = range(100000)|sum %}{% endfor %}",
    "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(100) }}",
    "{% macro a() %}{% call b() %}c{% endcall %}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{% set ns = namespace(s='a') %}{% for i in range(1000) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='a') %}{% for i in range(1000) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(1000) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s]|join %}{% endfor %}",
    "{% set ns = namespace(s={}) %}{% for i in range(99999) %}{% set ns.s = dict(ns.s, **{i|string: i}) %}{% endfor %}",
    "{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% set a = 'a' * 1000000 %}{% for i in range(100000) %}{{ 'b' in a }}{% endfor %}",
    "{% set a = 'a' * 1000000 %}{{ a.rfind('b' ~ 'a' * 500000) }}",
    "{% set a = 'a' * 1000000 %}{{ a.strip('bcdefghijklmnopqrstuvwxyz' * 1000 ~ 'a') }}",
    "{% set a = 'a' * 1000000 %}{% for i in range(100000) %}{% set b = a[1:] %}{% endfor %}",
    "{% set a = 'ab ' * 300000 %}{{ a.split() }}",
    "{{ ('a' * 1000000)|list }}",
    DOUBLED + "{{ d }}",
    DOUBLED + "{{ d ~ 'a' }}",
    DOUBLED + "{{ d|tojson }}",
    DOUBLED + "{{ d|string }}",
    DOUBLED + "{{ '%s' % (d,) }}",
    DOUBLED + "{{ '{}'.format(d) }}",
    DOUBLED + "{{ '{!r:s}'.format(d) }}",
    DOUBLED + "{{ {d: 1} }}",
    DOUBLED + "{{ messages[0][d] }}",
    DOUBLED + "{{ messages[0].get(d) }}",
    DOUBLED + "{{ d in messages[0] }}",
    DOUBLED + "{{ [d]|unique|list }}",
    DOUBLED + "{{ [d].index(1) }}",
    DOUBLED + "{{ [d, d]|sort }}",
    DOUBLED + "{{ raise_exception(d) }}",
    DOUBLED.replace("(ns.s, ns.s)", "namespace(a=ns.s, b=ns.s)") + "{{ d }}",
    "{% set ns = namespace(s=[1]) %}{% set ns.s = ns %}{{ ns }}",
    "{% set ns = namespace(__html__=1) %}",
    "{% set ns = namespace() %}{% set ns.__html__ = 1 %}",
    "{% autoescape 'x'|center(10**9) %}{% endautoescape %}",
    "{% include 'x' %}",
    "{{ raise_exception('x\n' * 10000) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    # too large or too deep to be compiled
    "{{ " + "[" * 10000 + "]" * 10000 + " }}",
    "{{ " + "not " * 3000 + "a }}",
    "{{ " + "a + " * 3000 + "a }}",
    "{% if a %}" * 500 + "{% endif %}" * 500,
    "{% for a in [] %}" * 30 + "{% endfor %}" * 30,
    "{% for a in [] %}" * 15 + "{{ a }}" * 1000 + "{% endfor %}" * 15,
    "{% if a %}" + "{% elif a %}" * 500 + "{% endif %}",
    "{% macro a() %}{% endmacro %}" * 500,
    "{% set a = 1 %}" * 2000,
    "{{ " + "9" * 10000 + " }}",
    "{{ 0x" + "f" * 10000 + " }}",
    "{{ a }}" * 11000,
    "x" * (1 << 18),
]


@pytest.mark.parametrize("source", HOSTILE, ids=lambda source: source[:60])
def test_a_hostile_template_is_one_line_before_it_takes_time_or_memory(
    tmp_path: Path, source: str, small_budget: int
) -> None:
    with pytest.raises(TokenizerError) as caught:
        template(tmp_path, source).render(MESSAGES, {})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600 + len(str(tmp_path))
    assert "lambda" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[]) %}{% for i in range(99999) %}{% set ns.s = [ns.s, 'x' * 1000] %}{% endfor %}",
        "{% for i in range(100000) %}{{ 'é' * 1000 }}{% endfor %}",
        "{% set ns = namespace(s=[]) %}{% for i in range(99999) %}{% set ns.s = [ns.s] + ['%s' % i] %}{% endfor %}",
        "{% set a = ('a' * 900000) ~ '😀' %}{{ a ~ a ~ a }}",
        "{{ ('&' * 600000)|e ~ ('\x01' * 600000)|tojson }}",
        "{{ range(99999)|map('string')|list ~ range(99999)|map('string')|list }}",
    ],
)
def test_the_memory_of_a_rendering_stays_within_its_budget(source: str, small_budget: int) -> None:
    sandbox = Sandbox()
    loaded, _ = sandbox.load(source)
    tracemalloc.start()
    try:
        with pytest.raises(meter.TooCostlyError):
            sandbox.render(loaded, {})
        assert tracemalloc.get_traced_memory()[1] < 2 * small_budget
    finally:
        tracemalloc.stop()


def test_after_a_hostile_rendering_the_next_has_all_its_budget() -> None:
    sandbox = Sandbox()
    loaded, _ = sandbox.load("{{ 'a' * n }}")
    for _ in range(3):
        with pytest.raises(meter.TooCostlyError):
            sandbox.render(loaded, {"n": meter.BUDGET})
        assert sandbox.render(loaded, {"n": 5_000_000})


def test_a_long_conversation_takes_a_small_part_of_the_budget() -> None:
    """Two thousand messages and a megabyte, through a template that does to each what published ones do."""
    sandbox = Sandbox()
    loaded, _ = sandbox.load(
        "{% set ns = namespace(last=0) %}{% for m in messages[::-1] %}{% if m.role == 'user' and not"
        " m.content.startswith('<tool_response>') %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% set c = m.content if m.content is string else '' %}{% if '</think>' in c %}"
        "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\\n' + c|trim + '<|im_end|>\\n' }}{% endfor %}"
    )
    messages = [
        {"role": ("user", "assistant")[n % 2], "content": "<think>a</think>" + "word " * 100} for n in range(2000)
    ]
    assert len(sandbox.render(loaded, {"messages": messages})) > 900_000
    assert sandbox.meter.left > 0.5 * meter.BUDGET


RENDERED = [
    (
        "{% for i in [0, 1, 2, 3] %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% if i %}{% break %}{% endif %}"
        "{% endfor %}",
        "02",
    ),
    (
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ messages[1].role }}{{ x }}{% endgeneration %}{{ x }}",
        "assistant21",
    ),
    ("{{ ['é', {'b': 1, 'a': none}]|tojson }}", '["é", {"b": 1, "a": null}]'),
    (
        "{{ ['é', {'b': 1, 'a': '<'}]|tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}",
        '["\\u00e9",{"a":"<","b":1}]',
    ),
    ("{{ [1]|tojson(indent=2) }}", "[\n  1\n]"),
    ("{{ tools is not none }}{{ documents is not none }}{{ tools is defined }}", "FalseFalseTrue"),
    ("{{ tools if tools else 'none' }}{{ bos_token }}{{ eos_token is defined }}{{ pad_token }}", "none<s>False<pad>"),
    ("{{ strftime_now('%Y')|length }}", "4"),
    ("{{ ('<'|e).upper() ~ ('<'|escape + '<') ~ '<'|safe }}", "&LT;&lt;<<"),
    (
        "{{ messages|map(attribute='role')|join }}{{ messages|selectattr('role', 'eq', 'user')|list|length }}",
        "userassistant1",
    ),
    ("{{ '{} {:>3}'.format('a', 'b') }}{{ '%s-%05.2f' % ('a', 1.5) }}{{ '%s'|format('x') }}", "a   ba-01.50x"),
    (
        "{{ 1 < 2 < 3 }}{{ 3 > 2 > 2 }}{{ 'a' in 'abc' }}{{ 1 not in [2] }}{{ 'a' ~ 1 ~ none }}",
        "TrueFalseTrueTruea1None",
    ),
    ("{% for k, v in messages[0].items() %}{{ k }}{% endfor %}{{ messages[::-1][0].role }}", "rolecontentassistant"),
    (
        "{% macro m(a, b='x') %}{{ a }}{{ b }}{{ caller() if caller }}{% endmacro %}"
        "{{ m(1) }}{% call m(2) %}c{% endcall %}",
        "1x2xc",
    ),
    (
        "{% filter upper %}abc{% endfilter %}{% set x %}b{% endset %}{{ x }}{% with y = 3 %}{{ y }}{% endwith %}",
        "ABCb3",
    ),
    ("{% for x in [[1, [2]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}", "12"),
    ("{% for i in [1, 2] %}{{ loop.last }}{{ loop.cycle('a', 'b') }}{{ loop.nextitem }}{% endfor %}", "Falsea2Trueb"),
]


@pytest.mark.parametrize(("source", "expected"), RENDERED)
def test_a_template_may_use_what_transformers_gives(tmp_path: Path, source: str, expected: str) -> None:
    made = template(tmp_path, source, bos_token="<s>", eos_token=None, pad_token={"content": "<pad>"})
    assert made.render(MESSAGES, {}) == expected
    assert "lambda" not in repr(made) and "0x" not in repr(made)


# Any expression of these: as jinja2 renders it, or an error of this project.

ATOMS = st.sampled_from(
    ["1", "-2", "0", "2.5", "true", "none", "'a b'", "''", "'é😀\n'", "'%s'", "'{}'", "[3, 1, 2]", "[]", "('x', 'y')",
     "{'k': 'v', 'n': [1]}", "messages", "messages[0]", "messages[0].content", "missing", "range(4)", "'<&>'"]
)  # fmt: skip
SUFFIXES = st.sampled_from(
    ["|trim", "|upper", "|title", "|length", "|list", "|first", "|last", "|join('-')", "|tojson_", "|string", "|int",
     "|float", "|abs", "|sort", "|unique|list", "|reverse|list", "|sum", "|min", "|max", "|default('d')", "|items|list",
     "|dictsort", "|replace('a', 'bb')", "|indent(2)", "|round(1)", "|e", "|map('string')|list", "|select|list",
     "|truncate(3, true)", "|urlencode", "|wordcount", "|capitalize", "|format(1)", "[0]", "[-1]", "[1:]", "[::-1]",
     ".k", ".role", ".upper()", ".split()", ".split(' ', 1)", ".strip('a')", ".startswith('a')", ".items()",
     ".get('k')", ".keys()|list", ".index('x')", ".format(1)", ".join(['a', 'b'])", ".replace('', '-')",
     ".partition(' ')", ".count('a')", " is defined", " is none", " is string", " is mapping", " is iterable",
     " is odd", " is in [1]", " is eq 1"]
)  # fmt: skip
OPERATORS = st.sampled_from(
    ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">=", "in", "not in", "and", "or", "if missing else"]
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, SUFFIXES).map(lambda pair: f"({pair[0]}){pair[1]}"),
        st.tuples(inner, OPERATORS, inner).map(lambda parts: f"({' '.join(parts)})"),
    ),
    max_leaves=5,
)


def reference(source: str) -> str:
    environment = ImmutableSandboxedEnvironment(extensions=[LoopControlExtension])
    return environment.from_string(source).render(messages=deepcopy(MESSAGES))


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@given(EXPRESSIONS)
@example("(range(4)).count('a')")
@example("(range(4)).index('x')")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_expression_is_as_jinja2_renders_it_or_is_refused(expression: str) -> None:
    source = "{{ " + expression.replace("|tojson_", "|string") + " }}"
    sandbox, refused = Sandbox(), False
    try:
        loaded, _ = sandbox.load(source)
        ours = sandbox.render(loaded, {"messages": deepcopy(MESSAGES)})
    except Exception:
        refused = True
    try:
        theirs: Any = reference(source)
    except Exception:
        theirs = None
    if not refused:
        assert theirs is None or ours == theirs
    elif theirs is not None:
        # slices: jinja2 makes nothing of a constant number's, and an error of any other's
        words = ("%", "**", "-", "+", "*", "is odd", "round", "format", ":]")
        assert any(word in expression for word in words)


@pytest.mark.parametrize("source", ["{{ eos_token }}x", "{{ '\ud83d' }}", "{{ messages[0].content }}\ud800"])
def test_half_a_surrogate_pair_in_a_rendering_is_the_template_s_fault(tmp_path: Path, source: str) -> None:
    with pytest.raises(TokenizerError, match="chat_template failed: 'utf-8' codec can't encode"):
        template(tmp_path, source, eos_token="\udfff").render(MESSAGES, {})
