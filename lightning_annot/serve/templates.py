"""The HTML pages that are served."""

from __future__ import annotations

from typing import Any

from fastapi.responses import HTMLResponse

from lightning_annot.report.templates import templates

_PAGES = templates("lightning_annot.serve", "pages")


def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page from its template."""
    return HTMLResponse(_PAGES.get_template(template).render(**values), status)
