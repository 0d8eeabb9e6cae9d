"""What cannot be learned, said before anything is computed."""
from ..host.concept_files import encoder_lora_names, lora_names, word_exists
from ..host.sampling import prediction_type
from .concepts import SLOT, NewWord, PromptRows, WeightBasis

NODE = "Learn Concept"


def check(model, clip, images, trained, prior, batch, concept, notes):
    """ValueError on what cannot be learned, before anything is computed."""
    prediction_type(model)
    if not trained:
        raise ValueError(f"{NODE} has {len(images.examples)} pictures and nothing to train: connect a TRAINABLE, such "
                         "as LoRA Weights.")
    if not images.examples:
        raise ValueError(f"{NODE} has {len(trained)} things to train and no picture: connect Concept Images with "
                         "three to five of them.")
    words = [one for one in trained if isinstance(one, NewWord)]
    for one in trained:
        if one.lr <= 0 and not isinstance(one, PromptRows):
            raise ValueError(f"The learning rate of {type(one).__name__} is {one.lr:g}, with which it stays as it is: "
                             "set it above 0.")
    told = [one for one in trained if isinstance(one, PromptRows)]
    if told and (len(told) > 1 or words or prior or any(getattr(one, "text_encoder", False) for one in trained)):
        raise ValueError("An encoded prompt stands for every caption, so no word, no text encoder, no second prompt "
                         "and no class can learn beside it: train weights of the network alone.")
    lacking = [e.caption for e in images.examples if SLOT not in e.caption]
    if words and lacking:
        raise ValueError(f"{len(lacking)} of {len(images.examples)} captions have no *, which stands for the new "
                         f"word {words[0].name}; the first is {lacking[0]!r}: write it there.")
    for word in words:
        if word_exists(clip, word.name):
            raise ValueError(f"An embedding called {word.name} is in your embeddings folder, and the new word has this "
                             "name too: choose another name.")
    if len(words) > 1:
        raise ValueError(f"{NODE} has {len(words)} new words ({', '.join(word.name for word in words)}), and a caption "
                         "one * each: learn them one after the other, or give one word more vectors.")
    kept = {name: concept.notes.get(name) for name in notes} if concept else notes
    if concept and (concept.state is None or kept != notes):
        raise ValueError(f"The CONCEPT was learned by {kept}, this node trains {notes}: go on with the same, or learn "
                         "anew.")
    names, changed = lora_names(model), {}
    weights = dict(model.model.diffusion_model.named_parameters())
    for basis in (one for one in trained if isinstance(one, WeightBasis)):
        taken = [n for n, w in weights.items() if n in names and basis.takes(n, w)]
        if not taken:
            raise ValueError(f"{type(basis).__name__} finds none of its weights among the {len(names)} of this "
                             f"{type(model.model).__name__} MODEL: train LoRA Weights, which every family has.")
        twice = next((n for n in taken if n in changed), None)
        if twice:
            raise ValueError(f"{changed[twice]} and {type(basis).__name__} both train {twice}, and a LoRA file holds "
                             "one change of a weight: keep one of them.")
        changed |= dict.fromkeys(taken, type(basis).__name__)
        wrong = next((n for n in taken if not weights[n].is_floating_point() or weights[n].dtype.itemsize < 2), None)
        if wrong:
            raise ValueError(f"The MODEL's weight {wrong} is {weights[wrong].dtype}, quantised, and learning adds to "
                             "weights of 16 bits or more: load the checkpoint in fp16, bf16 or fp32.")
        if basis.text_encoder and not encoder_lora_names(clip):
            raise ValueError(f"{type(basis).__name__} trains the text encoder, and this CLIP has no weights that a "
                             "LoRA file could hold: turn text_encoder off.")
