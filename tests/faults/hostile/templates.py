"""Chat templates that strangers may have written to stop this program, and what the person gets."""

DATA = "{% for m in messages %}{{ m['content'] }}{% endfor %}"

# Which limit is met first depends on the machine.
OVERRUN = "needs more memory|computed for more than|took more time or memory|characters, which is far more"

# Name → template, and a pattern of what the error or the row says.
TEMPLATES: dict[str, tuple[str, str]] = {
    "repeat": ("{{ 'a' * 10**10 }}", OVERRUN),
    "width": ("{{ '%1000000000d' % 1 }}", OVERRUN),
    "format": ("{{ '{:>2000000000}'.format(1) }}", OVERRUN),
    "center": ("{{ 'x'|center(10**9) }}", OVERRUN),
    "list": ("{{ [1] * 10**9 }}", OVERRUN),
    "join": ("{{ ['aaaaaaaa'] * 10**6 | int }}{{ (['a' * 1000] * 2000000)|join }}", OVERRUN),
    "loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        OVERRUN,
    ),
    "doubling": (
        "{% set n = namespace(s='a' * 100) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
        OVERRUN,
    ),
    "replace": (
        "{% set n = namespace(s='a' * 10000) %}{% for i in range(30) %}{% set n.s = n.s|replace('a', 'aaaaaaaaaa') %}{% endfor %}{{ n.s }}",
        OVERRUN,
    ),
    "pieces": ("{% for i in range(99999) %}{{ 'a' * 99999 }}{{ i }}{% endfor %}", OVERRUN),
    "power": ("{{ 10 ** (10 ** 9) }}", OVERRUN),
    "multiply": (
        "{% set n = namespace(x=3 ** 9999999) %}{% for i in range(9) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x > 1 }}",
        OVERRUN,
    ),
    "batch": ("{{ range(99999)|list|batch(1)|list|batch(1)|list|string * 3000 }}", OVERRUN),
    "nested_json": (
        "{% set n = namespace(x=[1]) %}{% for i in range(28) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x|tojson }}",
        OVERRUN,
    ),
    "recursion": ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "refuses it|recursion"),
    "lipsum": ("{{ lipsum(n=1000000) }}", "computed|memory|refuses it"),
    "wordwrap": ("{{ ('a ' * 9999999)|wordwrap(1) }}", OVERRUN),
    "striptags": ("{{ ('<' * 3000000)|striptags }}", OVERRUN),
    "long": (DATA + "{# " + "x" * 50_000_000 + " #}", "is the most"),
}
