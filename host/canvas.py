"""Warnings and notes on the canvas: while a graph runs, each warning of the log appears on the node that it concerns,
and each note on the node that executes.

The host's `send_progress_text` shows one text on a node, which stays until the next. So what a node said is kept by its
key, by which the host's cache knows it too: its class and inputs, and those of all nodes before it. It holds wherever a
prompt has such a node, on any page, until such a node executes or samples again. A page that asks for a prompt is shown
what holds of it, and its web/texts.js takes off all else, also where this process did not say it. The frontend shows no
text on a node that is not on screen, so each text goes to web/texts.js too.

A node is (id, class), which tells it from a node of another graph that has its id.
"""
import html
import logging
import sys
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from graphlib import CycleError, TopologicalSorter
from hashlib import sha256
from typing import Any

from comfy_execution.graph_utils import is_link
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

PREFIX = "Palimpsest"  # of the pack's node ids
TEXT, TEXTS = "palimpsest.text", "palimpsest.texts"  # events: a node's text, the nodes that have one
MOST = 1000  # speakers that are remembered
_concerned: ContextVar[tuple[str, str] | None] = ContextVar("palimpsest.concerned", default=None)
_said: dict = {}  # {key of the speaker: (id of the prompt, {key of the node: {text: is it a warning}})}
_begun: list[str | None] = [None]  # id of the prompt that executes
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
        prompt, graph = _prompt_id(), _graph()
        keys = _keys(graph)
        if _begun[0] != prompt:  # the page shows what was said since it asked for this prompt
            _begun[0] = prompt
            _show(graph, None, _client())
        if _said.get(keys[speaker[0]], (prompt,))[0] != prompt:
            _, spoken = _said.pop(keys[speaker[0]])
            _show(graph, [name for name, key in keys.items() if key in spoken], _client())


def retracting(execute):
    """A node's `execute` that takes back its warnings first."""
    @wraps(execute)
    def again(*args, **kwargs):
        retract_warnings()
        return execute(*args, **kwargs)
    return again


def watch_queue():
    """From now on, warns in every prompt of the server about editors whose MODEL nobody samples."""
    server = _server()
    if server is not None and _queued not in server.on_prompt_handlers:
        server.add_on_prompt_handler(_queued)


def survey(prompt: dict) -> list:
    """The pack's editors whose MODEL no node samples that the host will execute."""
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
    return [name for name in prompt if name in edits - sampled]


def _queued(asked: dict) -> dict:
    """The host's hook of a prompt that is asked for, before it is checked."""
    prompt = asked.get("prompt", {})
    for name in survey(prompt):
        log.warning(_unread(prompt, name))
    _show(prompt, None, asked.get("client_id"))
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


def _keys(prompt) -> dict:
    """{node: its key}, without nodes of a ring and those behind it, which the host does not execute."""
    keys, links = {}, _links(prompt)
    order = TopologicalSorter({name: [source for source, _ in links[name]] for name in prompt})
    with suppress(CycleError):
        order.prepare()
    while ready := order.get_ready():
        for name in ready:
            inputs = {k: (keys[v[0]], v[1]) if is_link(v) and v[0] in prompt else v
                      for k, v in prompt[name].get("inputs", {}).items()}
            keys[name] = sha256(repr((_class(prompt, name), sorted(inputs.items()))).encode()).hexdigest()
        order.done(*ready)
    return keys


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
        retract_warnings()
        graph = _graph()
        keys = _keys(graph)
        name, _ = node if node and _holds(graph, node) else speaker
        _, spoken = _said.setdefault(keys[speaker[0]], (_prompt_id(), {}))
        spoken.setdefault(keys[name], {})[text] = warns
        if len(_said) > MOST:
            del _said[next(iter(_said))]
        _show(graph, [name], _client())


def _texts(prompt) -> dict:
    """{node: {text: is it a warning}} of what holds of a prompt."""
    texts, keys = {}, _keys(prompt)
    for key in keys.values():
        for of, said in list(_said.get(key, ("", {}))[1].items()):
            for name in (name for name in keys if keys[name] == of):
                texts.setdefault(name, {}).update(said)
    for name in survey(prompt):
        texts.setdefault(name, {})[_unread(prompt, name)] = True
    return texts


def _unread(prompt, name) -> str:
    return (f"No sampler takes the MODEL of {_class(prompt, name)} (node {name}), so it changes nothing: connect it, "
            "or mute it.")


def _show(prompt, nodes, client):
    """Shows a client what holds of these nodes, or for None of all, where it takes off all other texts too. The
    frontend keeps the last text where it is sent an empty one, and takes each for HTML."""
    server, texts = _server(), _texts(prompt)
    if server is None or client is None:
        return
    if nodes is None:
        server.send_sync(TEXTS, {"nodes": [*texts]}, client)
    for name in texts if nodes is None else nodes:
        said = texts.get(name, {})
        text, warnings = "\n".join(said), [text for text, warns in said.items() if warns]
        server.send_progress_text(html.escape(text, quote=False) or " ", name, client)
        server.send_sync(TEXT, {"node": name, "text": text, "warnings": warnings}, client)


def _client():
    """The page whose prompt the host executes, None for a script's."""
    return getattr(_server(), "client_id", None)


def _server() -> Any:
    """The host's server, None in a script."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


log.addHandler(_Canvas(logging.WARNING))
