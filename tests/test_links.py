"""Every link in the repository's Markdown leads somewhere: to a file, and to a heading in it."""

import re

import pytest
from pages import ROOT

FOLDERS = (".", "bench", "docs", "fastopt", "kernels", "tests", ".ci")
PAGES = sorted({page for folder in FOLDERS for page in (ROOT / folder).glob("*.md")})
LINK = re.compile(r"\]\(([^()\s]+(?:\([^()]*\)[^()\s]*)*)\)|^\[[^]]+\]: (\S+)|(?:src|href)=\"([^\"]+)\"", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`[^`\n]*`")


def prose(page):
    """A page without its blocks of code, in which brackets are no links and a # begins a comment."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def links(page):
    """Where a page leads, other than to the web."""
    targets = ("".join(found) for found in LINK.findall(INLINE.sub("", prose(page))))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page):
    """The names of a page's headings, as GitHub makes them."""
    found = []
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert ROOT.resolve() in (target, *target.parents), f"{link} is outside of the repository"
        if anchor:
            assert anchor in anchors(target), link


def test_the_index_has_every_page():
    """And the README leads to the index."""
    linked = {(ROOT / "docs" / link.partition("#")[0]).resolve() for link in links(ROOT / "docs/index.md")}
    assert {page.resolve() for page in PAGES if page.name != "index.md"} <= linked
    assert "docs/index.md" in links(ROOT / "README.md")


def test_every_picture_is_on_a_page():
    """One that is on none is forgotten when the others are drawn anew."""
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    pictures = [path.resolve() for suffix in ("png", "gif", "svg") for path in (ROOT / "docs").glob(f"*.{suffix}")]
    assert pictures
    assert {*pictures} <= shown


def test_what_a_dead_link_is(tmp_path):
    """The functions above, on a page of which all is known."""
    page = tmp_path / "page.md"
    seen = ["# One `two`: C++!", "[a](other.md#x) ![b](b.png) [w](https://x.y/z) `[c](no.md)`", "[e]: e.md"]
    code = ["```sh", "# [d](no.md)", "```"]
    page.write_text("\n".join([*seen, *code, "# One", "# One", ""]), encoding="utf-8")
    assert links(page) == ["other.md#x", "b.png", "e.md"]
    assert anchors(page) == ["one-two-c", "one", "one-1"]
