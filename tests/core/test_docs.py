"""What the documents point to is there."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PAGES = sorted([*REPO.glob("*.md"), *REPO.glob("docs/**/*.md"), *REPO.glob("eam_core/assets/*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


def test_messages_quoted_among_the_problems_are_real() -> None:
    sources = "\n".join(
        path.read_text(encoding="utf-8") for folder in ("eam_core", "nodes") for path in (REPO / folder).rglob("*.py")
    ) + (REPO / "__init__.py").read_text(encoding="utf-8")
    quoted = re.findall(r'"(expected [^"]+)"', (REPO / "docs" / "PROBLEMS.md").read_text(encoding="utf-8"))
    assert quoted
    for message in quoted:
        # Names and numbers are filled in: the words up to the first of them must stand in the code.
        start = re.split(r"\d|ComfyUI's", message)[0].strip()
        assert start in sources, message
