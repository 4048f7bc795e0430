"""The Python blocks of the pages in docs/, run as they stand."""

from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"


def block(page: str, heading: str) -> str:
    """The first Python block under a heading of a page."""
    section = (DOCS / page).read_text().split(f"\n## {heading}")[1]
    return section.split("```python\n")[1].split("```")[0]


def run_block(page: str, heading: str, **names: Any) -> dict[str, Any]:
    """Runs that block with some names given; returns all that it leaves."""
    exec(block(page, heading), names)
    return names
