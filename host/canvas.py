"""Warnings on the canvas: while a graph runs, each of the log's appears on the node that it concerns.

The host's `send_progress_text` shows one text on a node, which stays until the next. So what was said of a node is kept
by the node that executed then; where that one executes again, or samples again, what no longer holds goes.
"""
import logging
import sys
from contextlib import contextmanager
from contextvars import ContextVar

from comfy_execution.graph_utils import is_link
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

PREFIX = "Palimpsest"  # of the pack's node ids
QUEUED = "queued"  # who speaks before any node executes
_about = ContextVar("palimpsest.about", default=None)
_said = {}  # (node, its class): {who spoke: (prompt, [texts])}
log = logging.getLogger("palimpsest")


def here() -> "tuple | None":
    """(id, class) of the node that the host executes, None outside a graph."""
    context = get_executing_context()
    if context is None:
        return None
    node = get_progress_state().dynprompt.get_display_node_id(context.node_id)  # of one that another node made
    return (node, _class(_graph(), node)) if node in _graph() else None


@contextmanager
def about(place):
    """What is logged inside concerns the node at this place, as `here` told it. It may be None, and another graph may
    have taken its output from the host's cache and hold no such node: then what is logged concerns the executing
    one."""
    token = _about.set(place)
    try:
        yield
    finally:
        _about.reset(token)


def afresh():
    """Takes back what the executing node said when it executed for an earlier prompt."""
    speaker = here()
    if speaker is not None:
        prompt = get_executing_context().prompt_id
        for place, spoken in list(_said.items()):
            if speaker in spoken and spoken[speaker][0] != prompt:
                del spoken[speaker]
                if _holds(_graph(), place):
                    _show(place)


def watch_queue():
    """Has every prompt that the server is asked for looked through for editors whose MODEL nobody samples."""
    server = _server()
    if server is not None and _queued not in server.on_prompt_handlers:
        server.add_on_prompt_handler(_queued)


def survey(prompt: dict) -> tuple:
    """Of a prompt, (id, class) of the pack's editors whose MODEL no node samples that the host is to execute, and (id,
    class) of the nodes that an editor's MODEL reaches."""
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
        for place, spoken in list(_said.items()):
            # a sampler that lost its editors does not take back itself what it said
            gone = [speaker for speaker in spoken
                    if (place not in silent if speaker == QUEUED else _holds(prompt, speaker)
                    and not _ours(prompt, speaker[0]) and speaker not in reached)]
            for speaker in gone:
                del spoken[speaker]
            if gone and _holds(prompt, place):
                _show(place, client)
        for place in silent:
            text = f"No sampler takes the MODEL of {place[1]} (node {place[0]}), so it changes nothing: connect it, or mute it."
            log.warning(text)
            _said.setdefault(place, {})[QUEUED] = None, [text]
            _show(place, client)
    return asked


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


def _ours(prompt, name):
    return _class(prompt, name).startswith(PREFIX)


def _holds(prompt, place):
    return place[0] in prompt and _class(prompt, place[0]) == place[1]


class _Canvas(logging.Handler):
    def emit(self, record):
        try:
            speaker, place = here(), _about.get()
            if speaker is not None:
                prompt = get_executing_context().prompt_id
                place = place if place and _holds(_graph(), place) else speaker
                spoken = _said.setdefault(place, {})
                if spoken.get(speaker, (None,))[0] != prompt:
                    spoken[speaker] = prompt, []
                spoken[speaker][1].append(record.getMessage())
                _show(place)
        except Exception:
            self.handleError(record)


def _show(place, client=None):
    """Shows what holds of a node; the frontend keeps the last text where it is sent an empty one."""
    server = _server()
    client = client or getattr(server, "client_id", None)
    if client is not None:
        texts = dict.fromkeys(text for _, spoken in _said[place].values() for text in spoken)
        server.send_progress_text("\n".join(texts) or " ", place[0], client)


def _server():
    """The host's server, None in a script."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


log.addHandler(_Canvas(logging.WARNING))
