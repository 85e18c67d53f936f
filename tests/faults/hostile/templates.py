"""Chat templates that strangers may have written to stop this program, and what the person is told."""

DATA = "{% for m in messages %}{{ m['content'] }}{% endfor %}"

# Name → template, and a pattern of what the error or the row says.
TEMPLATES: dict[str, tuple[str, str]] = {
    "repeat": ("{{ 'a' * 10**10 }}", "needs more memory"),
    "width": ("{{ '%1000000000d' % 1 }}", "memory|characters"),
    "format": ("{{ '{:>2000000000}'.format(1) }}", "needs more memory"),
    "center": ("{{ 'x'|center(10**9) }}", "memory|characters"),
    "list": ("{{ [1] * 10**9 }}", "needs more memory"),
    "join": ("{{ ['aaaaaaaa'] * 10**6 | int }}{{ (['a' * 1000] * 2000000)|join }}", "memory|characters|computed"),
    "loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "computed for more than",
    ),
    "doubling": (
        "{% set n = namespace(s='a' * 100) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
        "needs more memory",
    ),
    "replace": (
        "{% set n = namespace(s='a' * 10000) %}{% for i in range(30) %}{% set n.s = n.s|replace('a', 'aaaaaaaaaa') %}{% endfor %}{{ n.s }}",
        "needs more memory|computed for more",
    ),
    "pieces": ("{% for i in range(99999) %}{{ 'a' * 99999 }}{{ i }}{% endfor %}", "memory|computed|characters"),
    "power": ("{{ 10 ** (10 ** 9) }}", "took more time or memory|needs more memory"),
    "multiply": (
        "{% set n = namespace(x=3 ** 9999999) %}{% for i in range(9) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x > 1 }}",
        "took more time or memory|needs more memory|computed",
    ),
    "batch": ("{{ range(99999)|list|batch(1)|list|batch(1)|list|string * 3000 }}", "memory|characters|computed"),
    "nested_json": (
        "{% set n = namespace(x=[1]) %}{% for i in range(28) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x|tojson }}",
        "memory|computed|took more",
    ),
    "recursion": ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "refuses it|recursion"),
    "lipsum": ("{{ lipsum(n=1000000) }}", "computed|memory|refuses it"),
    "wordwrap": ("{{ ('a ' * 9999999)|wordwrap(1) }}", "memory|computed|took more|characters"),
    "striptags": ("{{ ('<' * 3000000)|striptags }}", "memory|computed|took more|characters"),
    "long": (DATA + "{# " + "x" * 50_000_000 + " #}", "is the most"),
}
