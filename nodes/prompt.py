"""Prompt Edit."""
from comfy_api.latest import io

from ..attention.alignment import PromptEdit, align
from ..host.canvas import log, note
from ..host.tokens import encode, tokenize_rows
from ..miniature import scenes
from ..miniature.model import unknown
from .search import aliases

MODES = {"auto": "auto", "word swap": "replace", "refinement": "refine"}


class PalimpsestPromptEdit(io.ComfyNode):
    UNREAD = {0: ("target", "mode")}  # inputs that an output does not read, for Settings Sheet

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="PalimpsestPromptEdit",
            display_name="Prompt Edit",
            category="palimpsest/prompt",
            description="Encodes the source prompt and the target prompts, and aligns their words.",
            **aliases("change a word", "replace a word", "word swap", "rewrite prompt", "edit image with text",
                      "edit photo with words", "image editing", "source and target prompt", "before and after prompt"),
            inputs=[
                io.Clip.Input("clip"),
                io.String.Input("source", multiline=True, tooltip=(
                    "What the picture shows. Write one line for all targets, or one line per target. It may be "
                    "empty.")),
                io.String.Input("target", multiline=True, tooltip=(
                    "What the edited picture should show. One prompt per line: n lines make a batch of n. Weights "
                    "such as (word:1.3) work. Empty lines are ignored.")),
                io.Combo.Input("mode", options=list(MODES), default="auto", tooltip=(
                    "How words are aligned. word swap: word by word, for equal word counts. refinement: matches the "
                    "words that both prompts have. Added words have no match. auto: word swap if the counts are "
                    "equal and a word differs, else refinement. The paper chooses by hand.")),
            ],
            outputs=[
                io.Conditioning.Output("source_conditioning", display_name="source"),
                io.Conditioning.Output("target_conditioning", display_name="target"),
                io.Custom("PROMPT_EDIT").Output("prompt_edit", display_name="prompt edit"),
            ],
        )

    @classmethod
    def execute(cls, clip, source, target, mode):
        sources, targets = _prompts(source) or [""], _prompts(target)
        if not targets:
            raise ValueError(f'The target prompt is empty and the source is "{sources[0]}": write what the edited '
                             "picture should show, one prompt per line.")
        if len(sources) not in (1, len(targets)):
            raise ValueError(f"There are {len(sources)} source prompts and {len(targets)} target prompts: write one "
                             "source line for all targets, or one per target.")
        if len(set(sources)) == 1:
            sources = sources[:1]
        sources, targets = tokenize_rows(clip, sources), tokenize_rows(clip, targets)
        pairs = tuple(align(sources[i % len(sources)], tokens, MODES[mode]) for i, tokens in enumerate(targets))
        for pair in pairs if mode == "auto" else ():
            known, wanted = ({word.name for word in prompt.named} for prompt in (pair.source, pair.target))
            if min(len(known), len(wanted)) > 1 and not known & wanted:
                log.warning('Prompt Edit: "%s" shares no word with the source\'s "%s", so no word says what to keep: '
                            "repeat the source's words, or choose a mode.", pair.target.text, pair.source.text)
        for pair in pairs:
            _say_unknown(clip, pair)
        return io.NodeOutput(encode(clip, sources), encode(clip, targets), PromptEdit(pairs))


def _say_unknown(clip, pair):
    """Says which words the miniature does not know, and warns where they are all that changes."""
    both = [(tokens, unknown(clip, tokens.ids)) for tokens in (pair.source, pair.target)]
    lost = ", ".join(dict.fromkeys(word.name for tokens, gone in both for word in tokens.named
                                   if any(gone[i] for i in word.positions)))
    if not lost:
        return
    known = ", ".join((*scenes.SHAPES, *scenes.COLOURS, *scenes.MATERIALS, *scenes.GROUNDS, *scenes.STYLES,
                       *scenes.POSES))
    read = [[None if no else token for *token, no in zip(tokens.ids, tokens.weights, gone)] for tokens, gone in both]
    if read[0] == read[1]:
        log.warning("The miniature does not know %s and reads both prompts as one: change a word that it knows (%s), "
                    "or load a checkpoint of your own.", lost, known)
    else:
        note("The miniature does not know %s, which says nothing to it unless it was learned. It knows %s.", lost,
             known)


def _prompts(text):
    return [line.strip() for line in text.split("\n") if line.strip()]
