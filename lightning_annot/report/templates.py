"""Templates of HTML pages whose every value is text, never markup."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def templates(package: str, folder: str) -> Environment:
    """Those in a ``folder`` of a ``package``; a value that is not given is an error."""
    loader = PackageLoader(package, folder)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
