"""The page of search: one self-contained HTML file with the figures of `ray_jobs.search_figures`."""

from pathlib import Path
from typing import Any

import jinja2

from data_io import storage
from ray_jobs.search_figures import verdicts_of

_TEMPLATE = Path(__file__).parent / "templates" / "search.html"


def write_search_page(url: str, report: dict[str, Any]) -> None:
    """Write the page of a report as one file."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(_TEMPLATE.read_text()).render(report=report, verdicts=list(verdicts_of(report)))
    storage.write_bytes(url, page.encode())
