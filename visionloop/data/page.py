"""The contract's page: the verdict, then Great Expectations' own account of it; nothing is fetched from outside."""

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from visionloop.data.expectations import Result, render
from visionloop.records import Check

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1d2433; }
table { border-collapse: collapse; margin: .6rem 0 1.2rem; }
th, td { border: 1px solid #d8dde6; padding: .35rem .7rem; text-align: left; vertical-align: top; }
th { background: #f2f4f8; } .badge { background: #eef1f6; border-radius: 4px; padding: 0 .35rem; }
.accepted, .text-success { color: #1a7f37; } .refused, .text-danger { color: #b42318; }
.fa-check-circle::before { content: "\\2713"; } .fa-times::before { content: "\\2717"; font-weight: bold; }
summary { cursor: pointer; font-size: 1.15rem; margin: 1rem 0; } h4, h5 { margin: .8rem 0 .3rem; }
"""
# Great Expectations' page asks four CDNs and a tracking picture; its labels come from outside: so nothing may run.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
FOREIGN = re.compile(
    r"<script\b.*?</script>|<nav\b.*</nav>|<footer\b.*?</footer>|<link\b[^>]*>|<img\b[^>]*>|<button\b.*?</button>"
    r"|<a\b[^>]*>\s*Show more info.*?</a>",
    re.DOTALL | re.IGNORECASE,
)
BODY = re.compile(r"<body[^>]*>(.*)</body>", re.DOTALL)


def page(title: str, outcome: str, checks: Sequence[Check], suites: Sequence[Sequence[Result]]) -> str:
    """One HTML page, whole in itself. `suites` are the results of each suite that was run."""
    rows = "".join(_row(check) for check in checks)
    accounts = "".join(_account(results[0].raw) for results in suites)
    return (
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style></head><body>'
        f"<h1>{escape(title)}: <span class='{outcome}'>{outcome}</span></h1>"
        "<table><tr><th>check</th><th>expected</th><th>found</th><th>passed</th><th>if not</th></tr>"
        f"{rows}</table>{accounts}</body></html>"
    )


def _row(check: Check) -> str:
    passed = "<span class='accepted'>yes</span>" if check.passed else "<span class='refused'>no</span>"
    follows = {"error": "batch refused", "quarantine": "sample quarantined", "warn": "nothing"}[check.severity]
    return (
        f"<tr><td>{escape(check.name)}</td><td>{escape(check.expected)}</td><td>{escape(check.observed)}</td>"
        f"<td>{passed}</td><td>{follows}</td></tr>"
    )


def _account(answer: Any) -> str:
    """Great Expectations' rendering of one suite, without its frame."""
    whole = render(answer)
    found = BODY.search(whole)
    body = FOREIGN.sub("", found[1] if found else whole)
    return f"<details><summary>Great Expectations: {escape(answer.suite_name)}</summary>{body}</details>"
