"""Every link and every command of the documents is true."""
import re
from urllib.parse import unquote

import pytest

import dev
from pack import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("miniature/*.md")])
documents = pytest.mark.parametrize("path", DOCUMENTS, ids=[path.name for path in DOCUMENTS])


@documents
def test_every_link_leads_somewhere(path):
    text = re.sub(r"`[^`\n]*`", "", path.read_text(encoding="utf-8"))
    links = {unquote(link.partition("#")[0]) for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    assert not {link for link in links if not (path.parent / link).exists()}


@documents
def test_every_command_is_known(path):
    text = path.read_text(encoding="utf-8")
    for command, name in re.findall(r"python tools/dev\.py (\w+)(?: +([a-z_]\w*))?", text):
        assert command in dev.COMMANDS
        if command in ("tool", "bench") and name:
            folder = {"tool": "tools", "bench": "bench"}[command]
            assert (ROOT / folder / f"{name}.py").is_file(), name
    for script in re.findall(r"python (tools/\w+\.py)", text):
        assert (ROOT / script).is_file()
