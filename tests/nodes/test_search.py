"""Everyday words find the nodes. tests/tools/test_browser.py asks the host's own search."""
import re

import pytest
from palimpsest.nodes import found, search

from searches import BEHIND, SEARCHES

SCHEMAS = {node.GET_SCHEMA().node_id.removeprefix("Palimpsest"): node.GET_SCHEMA() for node in found()}


def words(text):
    return re.findall(r"[^\W_]+", text.lower())


@pytest.mark.skipif(not search.KNOWN, reason="this host knows no aliases")
@pytest.mark.parametrize("text, nodes", [*SEARCHES.items(), *BEHIND.items()])
def test_a_wanted_node_has_all_words_of_the_search_in_one_of_its_names(text, nodes):
    """The host's search asks for this at least: each typed word begins a word of one and the same name."""
    def matches(name):
        return all(any(word.startswith(typed) for word in words(name)) for typed in words(text))
    for node in nodes.split():
        assert any(map(matches, [SCHEMAS[node].display_name, *SCHEMAS[node].search_aliases])), node


@pytest.mark.skipif(not search.KNOWN, reason="this host knows no aliases")
@pytest.mark.parametrize("node", SCHEMAS)
def test_every_node_has_aliases_of_which_each_finds_more_than_its_name_does(node):
    """The host's search finds no word that begins after the thirtieth letter."""
    schema = SCHEMAS[node]
    names = [schema.display_name, *schema.search_aliases]
    assert len(names) > 1 and len({name.lower() for name in names}) == len(names)
    assert all(name.rfind(" ") < 30 for name in names)


def test_an_older_host_is_given_none(monkeypatch):
    monkeypatch.setattr(search, "KNOWN", False)
    assert search.aliases("change a word") == {}
