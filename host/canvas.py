"""Warnings and notes on the canvas: while a graph runs, each warning of the log appears on the node that it concerns,
and each note on the node that executes.

The host's `send_progress_text` shows one text on a node, which stays until the next. So the warnings of a node are kept
by the node that executed when they were logged, their speaker. When the speaker executes or samples again, those that
no longer hold go. Notes are kept with them. An undo or a reload of the page takes the texts off the canvas, so the next
prompt shows those again whose speaker has the same inputs. The frontend shows no text on a node in a folded subgraph,
so such a one goes to web/folded.js too.

A node is (id, class), which tells it from a node of another graph that has its id.
"""
import html
import logging
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from comfy_execution.graph_utils import is_link
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

PREFIX = "Palimpsest"  # of the pack's node ids
QUEUED = "queued"  # who speaks before any node executes
FOLDED = "palimpsest.folded"  # the event of a text on a node in a subgraph
_concerned: ContextVar[tuple[str, str] | None] = ContextVar("palimpsest.concerned", default=None)
_warnings: dict = {}  # {node: {speaker: (id of the prompt, {text: is it a warning}, inputs of the speaker)}}
log = logging.getLogger("palimpsest")


def executing_node() -> tuple[str, str] | None:
    """The node that the host executes, None outside a graph. For a node that another one made it is that other."""
    context = get_executing_context()
    if context is None:
        return None
    name = get_progress_state().dynprompt.get_display_node_id(context.node_id)
    return (name, _class(_graph(), name)) if name in _graph() else None


@contextmanager
def concerning(node: tuple[str, str] | None):
    """Warnings logged inside concern this node.

    Without one they concern the node that executes. So they do where the graph holds no such node, because it took that
    node's output from the host's cache."""
    token = _concerned.set(node)
    try:
        yield
    finally:
        _concerned.reset(token)


def note(message: str, *args):
    """Logs what a node chose, and shows it on the node that executes."""
    log.info(message, *args)
    _say(message % args, False)


def retract_warnings():
    """Takes back the warnings that the executing node gave when it executed for an earlier prompt."""
    speaker = executing_node()
    if speaker is not None:
        prompt = _prompt_id()
        for node, spoken in list(_warnings.items()):
            if speaker in spoken and spoken[speaker][0] != prompt:
                del spoken[speaker]
                if _holds(_graph(), node):
                    _show(node)


def watch_queue():
    """From now on, warns in every prompt of the server about editors whose MODEL nobody samples."""
    server = _server()
    if server is not None and _queued not in server.on_prompt_handlers:
        server.add_on_prompt_handler(_queued)


def survey(prompt: dict) -> tuple:
    """(silent, reached) of a prompt.

    silent: the pack's editors whose MODEL no node samples that the host will execute.
    reached: the nodes that an editor's MODEL reaches.
    """
    import nodes  # the host's

    links, kinds = _links(prompt), {name: nodes.NODE_CLASS_MAPPINGS.get(_class(prompt, name)) for name in prompt}
    gives = {name: [str(kind) for kind in getattr(kinds[name], "RETURN_TYPES", ())] for name in prompt}
    executed = _upstream(links, [name for name in prompt if getattr(kinds[name], "OUTPUT_NODE", False)])
    taken = [(source, *gives[source][int(slot):int(slot) + 1], reader) for reader in prompt
             for source, slot in links[reader]]
    models = [(source, reader) for source, *kind, reader in taken if kind == ["MODEL"]]
    # another pack's sampler may hand its MODEL on
    used = {source for source, *kind, reader in taken if kind != ["MODEL"] and reader in executed
            and not _ours(prompt, source)}
    sampled = {reader for _, reader in models if reader in executed
               and ("MODEL" not in gives[reader] or reader in used)}
    while more := {source for source, reader in models if reader in sampled} - sampled:
        sampled |= more
    edits = {reader for _, reader in models if _ours(prompt, reader) and "MODEL" in gives[reader]}
    reached = set(edits)
    while more := {reader for source, *kind, reader in taken if kind in (["MODEL"], ["GUIDER"])
                   and source in reached} - reached:
        reached |= more
    return tuple([(name, _class(prompt, name)) for name in prompt if name in found]
                 for found in (edits - sampled, reached))


def _queued(asked: dict) -> dict:
    """The host's hook of a prompt that is asked for, before it is checked."""
    prompt, client = asked.get("prompt", {}), asked.get("client_id")
    if not asked.get("partial_execution_targets"):
        silent, reached = survey(prompt)
        for node, spoken in list(_warnings.items()):
            # a sampler that lost its editors does not retract its warnings itself
            gone = [speaker for speaker in spoken
                    if (node not in silent if speaker == QUEUED else _holds(prompt, speaker)
                    and not _ours(prompt, speaker[0]) and speaker not in reached)]
            for speaker in gone:
                del spoken[speaker]
            again = any(_holds(prompt, speaker) and _inputs(prompt, speaker) == spoken[speaker][2] for speaker in spoken
                        if speaker != QUEUED)
            if (gone or again) and _holds(prompt, node):
                _show(node, client)
        for node in silent:
            name, kind = node
            text = f"No sampler takes the MODEL of {kind} (node {name}), so it changes nothing: connect it, or mute it."
            log.warning(text)
            _warnings.setdefault(node, {})[QUEUED] = None, {text: True}, None
            _show(node, client)
    return asked


def _prompt_id():
    """The id of the prompt that the host executes."""
    context = get_executing_context()
    return None if context is None else context.prompt_id


def _graph() -> dict:
    """The prompt that the host executes."""
    return get_progress_state().dynprompt.get_original_prompt()


def _links(prompt) -> dict:
    """{node: [(node, slot) that it takes]}."""
    return {name: [v for v in node.get("inputs", {}).values() if is_link(v) and v[0] in prompt]
            for name, node in prompt.items()}


def _upstream(links, names) -> list:
    """These nodes and those that they need."""
    found = list(names)
    for name in found:
        found += {source for source, _ in links[name]}.difference(found)
    return found


def _class(prompt, name):
    return prompt[name].get("class_type", "")


def _inputs(prompt, node):
    return prompt[node[0]].get("inputs", {})


def _ours(prompt, name):
    return _class(prompt, name).startswith(PREFIX)


def _holds(prompt, node):
    name, kind = node
    return name in prompt and _class(prompt, name) == kind


class _Canvas(logging.Handler):
    def emit(self, record):
        try:
            _say(record.getMessage())
        except Exception:
            self.handleError(record)


def _say(text, warns=True):
    """Shows a text on the node that is concerned, or else on the one that executes."""
    speaker, node = executing_node(), _concerned.get()
    if speaker is not None:
        prompt = _prompt_id()
        node = node if node and _holds(_graph(), node) else speaker
        spoken = _warnings.setdefault(node, {})
        if spoken.get(speaker, (None,))[0] != prompt:
            spoken[speaker] = prompt, {}, _inputs(_graph(), speaker)
        spoken[speaker][1][text] = warns
        _show(node)


def _show(node, client=None):
    """Shows the warnings that hold of a node. The frontend keeps the last text where it is sent an empty one, and takes
    each for HTML."""
    server = _server()
    client = client or getattr(server, "client_id", None)
    if server is not None and client is not None:
        texts = {text: warns for _, said, _ in _warnings[node].values() for text, warns in said.items()}
        server.send_progress_text(html.escape("\n".join(texts), quote=False) or " ", node[0], client)
        if ":" in node[0]:
            warnings = [text for text, warns in texts.items() if warns]
            server.send_sync(FOLDED, {"node": node[0], "text": "\n".join(texts), "warnings": warnings}, client)


def _server() -> Any:
    """The host's server, None in a script."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


log.addHandler(_Canvas(logging.WARNING))
