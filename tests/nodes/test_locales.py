"""The canvas in English and Chinese: texts of every node, input and output, and help pages, where
the host looks for them."""
import re
import shutil
import sys
import warnings

import pytest
from palimpsest.showcase import pages

import locales
from pack import find_host

PAGES = locales.PAGES
BARE = {"LEDITS++", "Palimpsest", "CFG", "CLIP", "VAE", "Sigmas"}  # as in the host's own Chinese, and names of methods


@pytest.fixture(scope="module")
def english():
    return locales.english()


@pytest.fixture(scope="module")
def chinese():
    return locales.read("zh")


def numbers(text):
    """The numbers in a text, in any order."""
    return set(re.findall(r"\d+(?:\.\d+)?", text))


def is_chinese(text):
    return text in BARE or re.search(r"[\u4e00-\u9fff]", text)


def rows(page):
    """The first cells of a help page's first table, without the heading."""
    table = re.search(r"(?:^\|.*\n)+", page, re.MULTILINE)
    return re.findall(r"^\| (.+?) \|", table[0], re.MULTILINE)[1:] if table else []


def pictures(page):
    return re.findall(r"!\[.+?\]\((.+?)\)", page)


def test_english_is_what_the_schemas_say(english):
    """`python tools/locales.py` writes it again, and lists what must be translated."""
    assert locales.read("en") == english


def test_what_chinese_lacks_is_reported():
    """The canvas shows a text in English until someone translates it."""
    if lacking := locales.owed("zh"):
        warnings.warn("\n  ".join(["not yet in Chinese:", *lacking]), stacklevel=1)


def test_chinese_has_no_text_that_english_lacks(english, chinese):
    assert not locales.flat(chinese).keys() - locales.flat(english).keys()


def test_chinese_is_chinese(chinese):
    assert not {key: text for key, text in locales.flat(chinese).items() if not is_chinese(text)}
    assert all(is_chinese(text) for part in locales.read("zh", "main").values() for text in part.values())


def test_both_languages_state_the_same_numbers(english, chinese):
    chinese = locales.flat(chinese)
    assert not {key: (text, chinese[key]) for key, text in locales.flat(english).items()
                if key in chinese and numbers(text) != numbers(chinese[key])}


def test_no_text_has_a_sign_that_the_frontend_takes_for_its_own(english, chinese):
    """The frontend reads {…}, @: and | in a text as a placeholder, a link and a plural."""
    for texts in (english, chinese):
        assert not [key for key, text in locales.flat(texts).items() if set(text) & set("{}@|")]


def test_chinese_names_no_category_and_no_type_that_is_not_there():
    main, names = locales.read("zh", "main"), locales.names()
    assert main.keys() == names.keys() and not {part: words.keys() - names[part] for part, words in main.items()
                                                if words.keys() - names[part]}


def test_every_node_has_a_help_page_and_there_is_no_other(english):
    found = {page.relative_to(PAGES).as_posix() for page in PAGES.rglob("*.md")}
    assert {page for page in found if "/" not in page} == {f"{name}.md" for name in english}
    assert {page for page in found if "/" in page} <= {f"{name}/zh.md" for name in english}


def test_chinese_help_pages_say_what_the_english_ones_do(chinese):
    """Title and inputs as on the Chinese canvas, each with its id, and the same rows, numbers, papers and pictures."""
    for page in PAGES.glob("*/zh.md"):
        name, theirs = page.parent.name, page.read_text(encoding="utf-8")
        ours = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        words = locales.flat(chinese.get(name, {}))
        assert theirs.splitlines()[0] == f"# {words.get('display_name', theirs.splitlines()[0][2:])}"
        cells = [re.findall(r"([^、]+)（(\w+)）", row) for row in rows(theirs)]
        assert [", ".join(i for _, i in row) for row in cells] == rows(ours), name
        assert all(said == words.get(f"inputs.{i}.name", said) for row in cells for said, i in row), name
        assert numbers(theirs) == numbers(ours), name
        assert is_chinese(theirs.splitlines()[1]), name
        assert pictures(theirs) == pictures(ours), name


def test_help_pages_name_every_input_and_say_what_to_try_and_what_it_does(english):
    for name, texts in english.items():
        page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert {i for row in rows(page) for i in row.split(", ")} == texts.get("inputs", {}).keys(), name
        assert not re.search(r"\| *\|", page.replace("|\n|", "")), name


def test_help_pages_show_their_pictures(english):
    """One file serves both languages. The frontend looks for `src` in /extensions/<pack>/docs/,
    where the English pages are."""
    shown = {picture for name in english for picture in pictures((PAGES / f"{name}.md").read_text(encoding="utf-8"))}
    assert shown == {path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.*") if path.suffix != ".md"}
    assert shown <= {f"{node}/example.jpg" for node in pages()}


def test_a_text_whose_english_changed_is_missing_until_it_is_translated_again():
    old = {"A": {"display_name": "One", "inputs": {"x": {"name": "x", "tooltip": "Old."}, "gone": {"name": "gone"}}}}
    new = {"A": {"display_name": "One", "inputs": {"x": {"name": "x", "tooltip": "New."}, "y": {"name": "y"}}}}
    words = {"B": {"display_name": "乙"},
             "A": {"inputs": {"x": {"tooltip": "旧。", "name": "甲"}, "gone": {"name": "无"}}, "display_name": "一"}}
    left = {"A": {"display_name": "一", "inputs": {"x": {"name": "甲"}}}}
    assert locales.kept(words, old, new) == left
    done = {"A": {"display_name": "一", "inputs": {"x": {"name": "甲", "tooltip": "新。"}, "y": {"name": "丙"}}}}
    assert locales.kept(done, old, new) == left | {"A": {**left["A"],
                                                         "inputs": {"x": {"name": "甲"}, "y": {"name": "丙"}}}}
    assert locales.kept(done, new, new) == locales.kept(done, {}, new) == done


def test_the_host_serves_the_texts(tmp_path, monkeypatch, english, chinese):
    """GET /i18n answers with this."""
    monkeypatch.setattr(sys, "path", [str(find_host()), *sys.path])  # an older host has two modules `utils`
    import folder_paths
    from app.custom_node_manager import CustomNodeManager
    shutil.copytree(locales.FOLDER, tmp_path / "palimpsest" / "locales")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "custom_nodes", ([str(tmp_path)], set()))
    served = CustomNodeManager().build_translations()
    assert served == {"en": {"nodeDefs": english}, "zh": {"nodeDefs": chinese, **locales.read("zh", "main")}}
