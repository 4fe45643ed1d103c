"""Makes `pieces.json`: small SentencePiece models as GGUF files hold them, and what SentencePiece makes of some texts.

    pip install sentencepiece
    python tests/reference/make_pieces.py
"""

import io
import json
from pathlib import Path

import sentencepiece

OUT = Path(__file__).parent / "pieces.json"
CORPUS = """The sea is calm tonight. The tide is full, the moon lies fair upon the straits.
Listen! you hear the grating roar of pebbles which the waves draw back, and fling,
at their return, up the high strand, begin, and cease, and then again begin,
with tremulous cadence slow, and bring the eternal note of sadness in.
def add(a, b):
    return a + b
Die See ist ruhig heute nacht. Für 12,50 Euro und 1999 Zeichen."""
TEXTS = [
    "the sea is calm",
    " the  waves   draw back",
    "tremulous cadences, and 1999 strands",
    "def f(x):\n    return x\n\n\tü 海 🙂",
    "",
    "  ",
    "Zürich",
]
# llama.cpp's kinds of pieces.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

CASES = {
    "like_llama": dict(add_dummy_prefix=True),
    "like_gemma": dict(add_dummy_prefix=False, user_defined_symbols=["\n\n", "▁▁", "▁▁▁▁", "<turn>"]),
}


def kind(model, id: int) -> int:
    if model.IsUnknown(id):
        return UNKNOWN
    if model.IsControl(id):
        return CONTROL
    if model.IsByte(id):
        return BYTE
    return USER_DEFINED if model.IdToPiece(id) in CASES["like_gemma"]["user_defined_symbols"] else NORMAL


def make_case(options: dict) -> dict:
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS.split("\n")), model_writer=trained, model_type="bpe", vocab_size=420,
        byte_fallback=True, remove_extra_whitespaces=False, normalization_rule_name="identity", **options,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    ids = range(model.GetPieceSize())
    return {
        "tokens": [model.IdToPiece(id) for id in ids],
        "scores": [model.GetScore(id) for id in ids],
        "kinds": [kind(model, id) for id in ids],
        "texts": [{"text": text, "ids": model.EncodeAsIds(text)} for text in TEXTS + ["a<turn>b"]],
    }


if __name__ == "__main__":
    OUT.write_text(json.dumps({name: make_case(options) for name, options in CASES.items()}, ensure_ascii=False) + "\n")
