"""The canvas in English and Chinese: texts of every node, input and output, and help pages, where the host looks for
them."""
import re
import shutil
import sys

import palimpsest
import pytest
from palimpsest.examples import pages

import locales
from pack import ROOT, find_host

PAGES = ROOT / palimpsest.WEB_DIRECTORY / "docs"
BARE = {"LEDITS++", "Palimpsest", "CFG", "CLIP", "VAE", "Sigmas"}  # as in the host's own Chinese, and a method's name
HOST_TYPES = {"MODEL", "CLIP", "VAE", "IMAGE", "MASK", "LATENT", "SIGMAS", "SAMPLER", "CONDITIONING",
              "STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"}


@pytest.fixture(scope="module")
def english():
    return locales.english()


@pytest.fixture(scope="module")
def chinese():
    return locales.read("zh")


def numbers(text):
    """The numbers that a text states, whatever the order."""
    return set(re.findall(r"\d+(?:\.\d+)?", text))


def is_chinese(text):
    return text in BARE or re.search(r"[\u4e00-\u9fff]", text)


def rows(page):
    """The first cells of a help page's table, the heading left out."""
    return re.findall(r"^\| (.+?) \|", page, re.MULTILINE)[1:]


def test_english_is_what_the_schemas_say(english):
    """`python tools/locales.py` writes it again, and says what has to be translated."""
    assert locales.read("en") == english


def test_chinese_has_every_text_and_no_other(english, chinese):
    assert locales.flat(english).keys() == locales.flat(chinese).keys()


def test_chinese_is_chinese(chinese):
    assert not {key: text for key, text in locales.flat(chinese).items() if not is_chinese(text)}
    assert all(is_chinese(text) for part in locales.read("zh", "main").values() for text in part.values())


def test_both_languages_state_the_same_numbers(english, chinese):
    chinese = locales.flat(chinese)
    assert not {key: (text, chinese[key]) for key, text in locales.flat(english).items()
                if numbers(text) != numbers(chinese[key])}


def test_no_text_has_a_sign_that_the_frontend_takes_for_its_own(english, chinese):
    """It reads {…}, @: and | in a text as a place to fill, a link and a plural."""
    for texts in (english, chinese):
        assert not [key for key, text in locales.flat(texts).items() if set(text) & set("{}@|")]


def test_categories_and_types_of_this_pack_have_chinese_names():
    infos = locales.infos()
    main = locales.read("zh", "main")
    assert main["nodeCategories"].keys() == {part for info in infos for part in info["category"].split("/")}
    types = {kind for info in infos for _, kind, *_ in locales.declared(info)}
    types |= {o for info in infos for o in info["output"]}
    assert main["dataTypes"].keys() == types - HOST_TYPES


def test_help_pages_exist_in_both_languages_and_nowhere_else(english):
    found = {page.relative_to(PAGES).as_posix() for page in PAGES.rglob("*.md")}
    assert found == {f"{name}{end}" for name in english for end in (".md", "/zh.md")}


def test_chinese_help_pages_say_what_the_english_ones_do(english, chinese):
    """Title and inputs as on the Chinese canvas, each with its id; the same rows, numbers and papers."""
    for name in english:
        ours, theirs = ((PAGES / page).read_text(encoding="utf-8") for page in (f"{name}.md", f"{name}/zh.md"))
        assert theirs.splitlines()[0] == f"# {chinese[name]['display_name']}"
        inputs = chinese[name].get("inputs", {})
        expected = ["、".join(f"{inputs[i]['name']}（{i}）" for i in row.split(", ")) for row in rows(ours)]
        assert rows(theirs) == expected, name
        assert numbers(theirs) == numbers(ours), name
        assert is_chinese(theirs.splitlines()[1]), name


def test_help_pages_name_every_input_and_say_what_to_try_and_what_it_does(english):
    for name, texts in english.items():
        page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert {i for row in rows(page) for i in row.split(", ")} == texts.get("inputs", {}).keys(), name
        assert not re.search(r"\| *\|", page.replace("|\n|", "")), name


def test_help_pages_show_their_pictures(english):
    """One file for both languages: the frontend looks for `src` in /extensions/<pack>/docs/, where the English pages
    lie."""
    shown = set()
    for name in english:
        ours, theirs = (re.findall(r"!\[.+?\]\((.+?)\)", (PAGES / page).read_text(encoding="utf-8"))
                        for page in (f"{name}.md", f"{name}/zh.md"))
        assert ours == theirs, name
        shown.update(ours)
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
