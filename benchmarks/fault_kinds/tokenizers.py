"""Saved tokenizers that are damaged, and texts of all kinds for sound ones."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import unicodedata
from typing import Any

import numpy as np

from benchmarks.fault_kinds import REFUSED, Case, Kind, choose, cut, flip_bits
from xmodal_jax.data.text import Tokenizer, load_hf_tokenizer, load_tokenizer, train_tokenizer

TEXTS = ("a red circle above two blue squares", "naïve café", "it's 3.14, isn't it?", "日本の猫", "שלום עולם")
PIECES = ("a red circle", "  ", "\n", "日本", "שלום", "🙂👩‍👩‍👧", "e\u0301", "\u200b", "\x00",
          "<b>", "[eos]", "[pad]", "$^$", "x" * 5000, "1e999", "\u2028", "\ufeff", "\ufffd")  # fmt: skip


@functools.cache
def _trained(kind: str) -> Tokenizer:
    return train_tokenizer(TEXTS, kind, 300)


def _encode(tokenizer: Tokenizer, captions: list[str], length: int) -> Any:
    """What must hold of the ids, checked without the code under test: lengths, masks, ends, and the decoded text."""
    ids, mask = tokenizer.encode_batch(captions, length)
    lengths = mask.sum(1).tolist()
    prefix = all((mask[i, :n]).all() for i, n in enumerate(lengths))
    ends = [bool(ids[i, n - 1] == tokenizer.eos_id) if n else True for i, n in enumerate(lengths)]
    blank = bool((ids[~mask] == 0).all())
    in_range = bool(((0 <= ids) & (ids < tokenizer.vocab_size)).all())
    return prefix, all(ends), blank, in_range, [n > 0 for n in lengths], max(lengths) <= length


def _draw_texts(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    kind = choose(rng, ("bpe", "word", "wordpiece"))
    tokenizer = _trained(kind)
    pieces = lambda: [choose(rng, PIECES) for _ in range(int(rng.integers(0, 6)))]
    captions = ["".join(pieces()) for _ in range(4)]
    if rng.random() < 0.1:
        captions[int(rng.integers(4))] += choose(rng, ["\ud83d", "\udc00 a"])
        # Readers of data refuse such text with its file and line; here the message names the text.
        return Case(
            "text: half of a surrogate pair", lambda: _encode(tokenizer, captions, 8), REFUSED, ("\\ud",)
        )
    if kind == "bpe" and rng.integers(2):
        # Byte-level BPE loses nothing. Special tokens within a text are not text any more.
        plain = [unicodedata.normalize("NFC", c.replace("[eos]", "").replace("[pad]", "")) for c in captions]

        def round_trip() -> list[str]:
            ids, mask = tokenizer.encode_batch(plain, 30_000)
            return tokenizer.decode_batch(ids, mask)

        return Case("text: to ids and back", round_trip, plain)
    length = int(rng.integers(2, 12))
    expected = (True, True, True, True, [bool(caption) for caption in captions], True)
    return Case(f"text: {kind}", lambda: _encode(tokenizer, captions, length), expected)


def _set_special(value: Any):
    return lambda rng, files: files.update({"special_tokens.json": json.dumps(value).encode()})


def _change(change):
    """A damage of the content of ``tokenizer.json``."""

    def damage(rng, files):
        content = json.loads(files["tokenizer.json"])
        change(rng, content)
        files["tokenizer.json"] = json.dumps(content).encode()

    return damage


def _bytes_of(name: str, change):
    return lambda rng, files: files.update({name: change(rng, files[name])})


SPECIAL = {"pad": "[pad]", "bos": "[bos]", "eos": "[eos]", "unk": "[unk]"}
FILE_FAULTS = {
    "tokenizer.json cut": _bytes_of("tokenizer.json", cut),
    "special_tokens.json cut": _bytes_of("special_tokens.json", cut),
    "tokenizer.json not UTF-8": _bytes_of("tokenizer.json", lambda rng, x: x[:40] + b"\xff" + x[40:]),
    "special_tokens.json not UTF-8": _bytes_of("special_tokens.json", lambda rng, x: x[:-2] + b'\xff"}'),
    "tokenizer.json of another type": _bytes_of(
        "tokenizer.json", lambda rng, x: choose(rng, [b"[]", b"3", b"null", b"{}"])
    ),
    "special tokens of another type": _set_special([]),
    "special token not in the vocabulary": _set_special({**SPECIAL, "pad": "[nothing]"}),
    "special token missing": _set_special({"pad": "[pad]", "bos": "[bos]"}),
    "special token a number": _set_special({**SPECIAL, "pad": 3}),
    "model unknown": _change(lambda rng, x: x["model"].update(type="Unheard")),
    "model missing": _change(lambda rng, x: x.pop("model")),
    "vocabulary of another type": _change(
        lambda rng, x: x["model"].update(vocab=choose(rng, [[], 3, None, {"a": "b"}]))
    ),
    "vocabulary with a negative id": _change(lambda rng, x: x["model"]["vocab"].update(zz=-1)),
    "vocabulary with a huge id": _change(lambda rng, x: x["model"]["vocab"].update(zz=2**31)),
    "pipe": None,
    "file missing": None,
}  # fmt: skip


def _draw_files(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    kind, hugging_face = choose(rng, ("bpe", "word", "wordpiece")), rng.random() < 0.3
    tokenizer = _trained(kind)
    tokenizer.save(folder)
    if hugging_face:
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "[bos]", "eos_token": "[eos]",
                        "pad_token": "[pad]", "unk_token": "[unk]"})
        )  # fmt: skip
    load = load_hf_tokenizer if hugging_face else load_tokenizer
    names = [name for name in FILE_FAULTS if not (hugging_face and "special" in name)]
    fault = choose(rng, [*names, "good", "a bit flipped"])
    files = {name: (folder / name).read_bytes() for name in ("tokenizer.json", "special_tokens.json")}
    name = "special_tokens.json" if "special" in fault else "tokenizer.json"
    if fault == "a bit flipped":
        files[name] = flip_bits(rng, files[name], 1)
    elif FILE_FAULTS.get(fault):
        FILE_FAULTS[fault](rng, files)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    if fault in ("pipe", "file missing"):
        (folder / name).unlink()
        if fault == "pipe":
            os.mkfifo(folder / name)
    reader = "transformers" if hugging_face else "own"
    attempt = lambda: load(folder).vocab_size > 0
    if fault in ("good", "a bit flipped"):
        return Case(f"file, {reader}: {fault}", attempt, True, (str(folder),), may_refuse=fault != "good")
    return Case(f"file, {reader}: {fault}", attempt, REFUSED, (str(folder),))


def _draw(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    return (_draw_texts if rng.integers(2) else _draw_files)(rng, folder)


KIND = Kind("tokenizers", _draw, 1000, seconds=20.0)
