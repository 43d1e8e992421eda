"""Pages and chunks."""

import os
import random

import pytest

from obelisk.rag.split import chunks, split
from obelisk.rag.vault import Page, Vault, parse


def test_pages_are_markdown_files_that_are_not_hidden(vault):
    assert list(Vault(vault).scan()) == ["animals/birds.markdown", "animals/cats.md", "index.md"]


def test_a_vault_that_is_not_there_is_an_error_and_not_empty(tmp_path):
    with pytest.raises(OSError):
        Vault(tmp_path / "gone").scan()


def test_links_are_not_followed(vault, tmp_path):
    (tmp_path / "outside.md").write_text("secret")
    os.symlink(tmp_path / "outside.md", vault / "link.md")
    os.symlink(vault, vault / "again")
    assert "link.md" not in Vault(vault).scan()


def test_a_change_of_a_page_changes_its_stamp(vault):
    before = Vault(vault).scan()
    (vault / "index.md").write_text("# Another\n")
    after = Vault(vault).scan()
    assert [name for name in after if before[name] != after[name]] == ["index.md"]


@pytest.mark.parametrize(
    ("text", "body", "metadata"),
    [
        ("---\ntitle: T\nn: 1\nf: 1.5\nb: true\nl: [1]\nd: 2024-01-01\n---\nbody", "body", {"title": "T", "n": 1, "f": 1.5, "b": True}),
        ("---\r\ntitle: T\r\n---\r\nbody\r\n", "body\n", {"title": "T"}),
        ("---\ntitle: T\n---", "", {"title": "T"}),
        ("---\n---\n# Head\n", "# Head\n", {"title": "Head"}),
        ("---\nnot: [closed\n---\n# Head\n", "# Head\n", {"title": "Head"}),
        ("---\nno end\n", "---\nno end\n", {"title": "page"}),
        ("\ufeff# Head\n", "# Head\n", {"title": "Head"}),
        ("---\ntitle: 7\n---\n# Head\n", "# Head\n", {"title": "Head"}),
        ("", "", {"title": "page"}),
    ],
)
def test_front_matter_becomes_metadata(text, body, metadata):
    page = parse("a/page.md", text)
    assert (page.text, page.metadata) == (body, metadata)


def test_bytes_that_are_not_text_do_not_stop_the_vault(vault):
    (vault / "broken.md").write_bytes(b"# Caf\xe9\n")
    page = Vault(vault).read("broken.md")
    assert page is not None and page.metadata["title"] == "Caf\ufffd"


def test_short_texts_are_one_chunk_and_empty_ones_none():
    assert split("hello", 100, 10) == ["hello"]
    assert split(" \n ", 100, 10) == []


def test_a_text_is_cut_before_headings_first():
    text = "intro " * 10 + "\n## One\n" + "first " * 10 + "\n## Two\n" + "second " * 10
    parts = split(text, 90, 0)
    assert [part.split()[0] for part in parts] == ["intro", "##", "##"]


def test_neighbours_overlap_and_nothing_is_lost():
    rng = random.Random(7)
    words = ["word%d" % number for number in range(400)]
    for _ in range(50):
        text = "".join(word + rng.choice([" ", "\n", "\n\n## ", "\n- ", "\n```"]) for word in words)
        size = rng.randrange(50, 400)
        overlap = rng.randrange(0, size)
        parts = split(text, size, overlap)
        assert all(len(part) <= size for part in parts)
        joined = " ".join(parts)
        assert [word for word in words if word not in joined] == []
    assert split("abcdefghij", 4, 0) == ["abcd", "efgh", "ij"]
    parts = split(" ".join(f"w{number:03}" for number in range(100)), 50, 20)
    for before, after in zip(parts, parts[1:], strict=False):
        assert after.split()[0] in before.split()


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (10, 10), (10, -1)])
def test_impossible_sizes_are_refused(size, overlap):
    with pytest.raises(ValueError):
        split("x", size, overlap)


def test_ids_depend_on_what_a_chunk_is_and_on_nothing_else():
    page = Page("a.md", "# A\n" + "same words here. " * 40, {"title": "A"})
    ids = [chunk.id for chunk in chunks(page, 100, 20, "m")]
    assert ids == [chunk.id for chunk in chunks(page, 100, 20, "m")]
    assert len(set(ids)) == len(ids), "equal texts of one page are told apart"
    for other in (
        chunks(Page("b.md", page.text, page.metadata), 100, 20, "m"),
        chunks(Page("a.md", page.text, {"title": "B"}), 100, 20, "m"),
        chunks(page, 100, 20, "another model"),
    ):
        assert not set(ids) & {chunk.id for chunk in other}


def test_an_edit_changes_only_the_chunks_it_touches():
    sections = [f"\n## Section {number}\n" + f"text of section {number}. " * 8 for number in range(20)]
    before = {chunk.id for chunk in chunks(Page("a.md", "".join(sections)), 200, 0, "m")}
    sections[10] = sections[10].replace("text", "TEXT")
    after = {chunk.id for chunk in chunks(Page("a.md", "".join(sections)), 200, 0, "m")}
    assert 0 < len(after - before) <= 2


@pytest.mark.parametrize("value", ["123456789012345678901234567890", ".inf", '"x\\uD800y"', "[1]"])
def test_what_no_store_can_hold_is_left_out_of_the_metadata(value):
    page = parse("a.md", f"---\ntitle: T\nodd: {value}\n---\nbody")
    assert page.metadata == {"title": "T"}
    assert parse("a.md", f"---\ntitle: {value}\n---\n# Head\n").metadata == {"title": "Head"}
