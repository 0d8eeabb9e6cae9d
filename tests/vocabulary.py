"""A prompt's tokenizer, tokens of CLIP's vocabulary, and results of the authors' aligner."""
import json
from pathlib import Path

import pytest

import tiny

ALIGNER = json.loads((Path(__file__).parent / "data" / "aligner.json").read_text(encoding="utf-8"))
CAT, PHOTO = 2368, 1125  # ids in CLIP's vocabulary
BOS, EOS = 49406, 49407


@pytest.fixture(scope="module")
def clip():
    return tiny.clip()
