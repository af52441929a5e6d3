"""Captions to token ids and back: tokenizers trained on the captions, or a Hugging Face tokenizer from a folder."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from xmodal_jax.core.text_files import normalise, parse_json, read_text, shorten, surrogate_in
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.source import RawBatch

PAD, BOS, EOS, UNK = SPECIAL_TOKENS = ("[pad]", "[bos]", "[eos]", "[unk]")
"""The special tokens of a trained tokenizer, with ids 0, 1, 2 and 3."""

WORD = r"\w+(?:[-'\u2019]\w+|(?<=\d)[.,]\d\w*)*|[^\w\s]"
"""Regular expression of a word or a punctuation mark."""


def clean_text(text: str, *, lower: bool = True, stop_words: Iterable[str] = ()) -> str:
    """The text with single spaces, in lower case (``lower``) and without ``stop_words``, which are compared in lower
    case and without punctuation."""
    text = " ".join(text.split())
    if lower:
        text = text.lower()
    stop = {w.lower() for w in stop_words}
    if stop:
        text = " ".join(w for w in text.split() if re.sub(r"\W", "", w).lower() not in stop)
    return text


class Tokenizer:
    """Converts captions to token ids and back.

    ::

        tokenizer = train_tokenizer(["a red circle", "a blue square"], "word")
        ids, mask = tokenizer.encode_batch(["a blue circle"], max_length=6)
        tokenizer.decode_batch(ids, mask)  # ["a blue circle"]

    ``pad_id``, ``bos_id``, ``eos_id`` and ``unk_id`` are the ids of the special tokens for padding, begin, end and
    unknown, -1 where the tokenizer has none. Batches are padded with 0 even if ``pad_id`` is another id: the mask is
    False on padding. ``truncated`` counts the captions cut so far.

    Args:
      backend: a tokenizer of the package ``tokenizers``.
      special: the token for each of ``pad``, ``bos``, ``eos`` and ``unk``, or None.
      truncation_side: where texts that are too long lose tokens, at their end ("right") or at their beginning ("left").
      max_tokens: the most tokens of a text that the tokenizer was made for; None: any number. `encode_batch` does not
        look at it.

    Raises:
      ValueError: ``truncation_side`` is neither.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special: dict[str, str | None],
        truncation_side: str = "right",
        max_tokens: int | None = None,
    ):
        if truncation_side not in ("right", "left"):
            raise ValueError(f"truncation_side must be right or left, got {truncation_side!r}")
        self.truncation_side, self.max_tokens = truncation_side, max_tokens
        self._backend, self._special = backend, dict(special)
        backend.no_padding()  # `encode_batch` pads and cuts
        backend.no_truncation()
        # -1: the tokenizer has no such token, or it is not in the vocabulary.
        ids = {k: -1 if t is None else backend.token_to_id(t) for k, t in special.items()}
        self.pad_id, self.bos_id, self.eos_id, self.unk_id = (
            -1 if ids[k] is None else ids[k] for k in ("pad", "bos", "eos", "unk")
        )
        self.truncated = 0
        self._lock = threading.Lock()  # guards `truncated`: batches are encoded in several threads

    @property
    def has_word_zero(self) -> bool:
        """Whether id 0, which fills batches, is also a token that texts can contain."""
        return 0 not in (self.pad_id, self.bos_id, self.eos_id)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included: the number of rows of an embedding table."""
        return max(self._backend.get_vocab().values()) + 1

    def vocabulary(self) -> dict[str, int]:
        """The id of each token."""
        return self._backend.get_vocab()

    def token(self, token_id: int) -> str | None:
        """The token of an id; None: there is none."""
        return self._backend.id_to_token(token_id)

    def tokens(self, caption: str, max_length: int | None = None) -> list[str]:
        """The tokens of a caption as text, special tokens included, one for each of its ids; at most ``max_length``
        (None: all), cut as `encode_batch` does."""
        if not caption:
            return []
        encoding = self._backend.encode(caption)
        if max_length is None or len(encoding.ids) <= max_length:
            return encoding.tokens
        return [
            self.token(k) or "" for k in self._cut(encoding.ids, encoding.special_tokens_mask, max_length)
        ]

    def text_ids(self, caption: str) -> list[int]:
        """The ids of a caption's tokens without the special ones, such as begin and end."""
        return self._backend.encode(caption, add_special_tokens=False).ids

    @property
    def has_unknown_token(self) -> bool:
        """Whether there are words that the tokenizer does not know. Byte-level ones know all; some call their end token
        the unknown one."""
        return self.unk_id not in (-1, self.pad_id, self.bos_id, self.eos_id)

    def unknown_words(self, caption: str) -> list[str]:
        """The parts of a caption whose token is ``unk``, as they are written in it."""
        encoding = self._backend.encode(caption)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        return [caption[start:end] for token_id, (start, end) in spans if token_id == self.unk_id]

    def lengths(self, captions: Sequence[str]) -> np.ndarray:
        """Tokens per caption, special tokens included, int64 ``[N]``."""
        return np.array([len(e.ids) for e in self._backend.encode_batch_fast(list(captions))], np.int64)

    def fit_length(self, captions: Sequence[str], *, cover: float = 1.0) -> int:
        """The shortest length in tokens that cuts at most a fraction ``1 - cover`` of the captions.

        Raises:
          ValueError: no captions.
        """
        lengths = np.sort(self.lengths(captions))
        if not lengths.size:
            raise ValueError("fit_length needs at least one caption.")
        return int(lengths[max(0, int(np.ceil(cover * lengths.size)) - 1)])

    def encode_batch(
        self, captions: Sequence[str], max_length: int, *, bad_examples: BadExamples | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """``(ids, mask)``: token ids int32 ``[B, max_length]``, padded with 0, and bool of the same shape, False on
        padding.

        A caption that is too long is cut, on the tokenizer's ``truncation_side``, but keeps its begin and end tokens;
        it is counted in ``truncated`` and noted in ``bad_examples``. An empty caption is a missing text: its mask is
        False everywhere.
        """
        ids = np.zeros((len(captions), max_length), np.int32)
        mask = np.zeros((len(captions), max_length), bool)
        truncated = 0
        captions = list(captions)
        if damaged := next((text for text in captions if surrogate_in(text)), None):
            raise ValueError(f"the text {shorten(damaged)} has no tokens: {surrogate_in(damaged)}")
        for i, encoding in enumerate(self._backend.encode_batch_fast(captions)):
            tokens = encoding.ids if captions[i] else []
            if len(tokens) > max_length:
                truncated += 1
                tokens = self._cut(tokens, encoding.special_tokens_mask, max_length)
            ids[i, : len(tokens)] = tokens
            mask[i, : len(tokens)] = True
        if truncated:
            with self._lock:
                self.truncated += truncated
                if bad_examples is not None:
                    bad_examples.note(
                        f"Texts are cut to {max_length} tokens, with their end token, which shortens {{captions}} "
                        "(--text-length changes the number, up to what a pretrained text model takes).",
                        truncated,
                    )
        return ids, mask

    def _cut(self, tokens: list[int], is_added: list[int], length: int) -> list[int]:
        """``length`` tokens of a text that has more: those before its end token, or after its begin token if the
        ``truncation_side`` is "left". ``is_added``: 1 for each token that is not of the text, such as begin and end."""
        if self.truncation_side == "left":
            before = min(
                is_added.index(0) if 0 in is_added else length, length
            )  # tokens before those of the text
            return tokens[:before] + tokens[len(tokens) - length + before :]
        ends_with_eos = tokens[-1] == self.eos_id
        last = tokens[-1:] if ends_with_eos else tokens[length - 1 : length]
        return tokens[: length - 1] + last

    def decode(self, ids: Sequence[int] | np.ndarray, mask: np.ndarray | None = None) -> str:
        """The text of one sequence of ids ``[L]`` up to its first end token, without special tokens.

        ``mask``: bool ``[L]``, False on padding. It is needed where ``pad_id`` is -1: padding is 0, which then is an
        ordinary token. None: there is no padding but that of ``pad_id``.
        """
        text_ids = []
        ids = np.asarray(ids)
        for i in (ids if mask is None else ids[np.asarray(mask, bool)]).tolist():
            # Before any text it is the begin token: GPT-2 has one token for both.
            if i == self.eos_id and text_ids:
                break
            if i not in (self.pad_id, self.bos_id, self.eos_id):
                text_ids.append(i)
        return self._backend.decode(text_ids, skip_special_tokens=True)

    def decode_batch(self, ids: np.ndarray, mask: np.ndarray | None = None) -> list[str]:
        """The text of each sequence of ids ``[B, L]``, with the mask ``[B, L]`` of `encode_batch`; see `decode`."""
        masks = [None] * len(ids) if mask is None else mask
        return [self.decode(*row) for row in zip(ids, masks, strict=True)]

    def files(self) -> dict[str, str]:
        """The whole tokenizer as the contents of two files, ``tokenizer.json`` and ``special_tokens.json``; not
        ``max_tokens``."""
        side = {} if self.truncation_side == "right" else {"truncation_side": self.truncation_side}
        return {
            "tokenizer.json": self._backend.to_str(pretty=True),
            "special_tokens.json": json.dumps(self._special | side),
        }

    def save(self, folder: str | Path) -> None:
        """Write the `files` into a folder, which is made if it does not exist."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (folder / name).write_text(content, encoding="utf-8")


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote.

    Raises:
      FileNotFoundError: the folder lacks one of its files.
    """
    folder = Path(folder)
    for name in ("tokenizer.json", "special_tokens.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}: it is not the folder of a saved tokenizer. "
                "For a Hugging Face tokenizer use load_hf_tokenizer."
            )
    return tokenizer_from_files({p.name: read_text(p) for p in folder.glob("*.json") if p.is_file()}, folder)


def tokenizer_from_files(
    files: dict[str, str], where: str | Path = "the checkpoint's tokenizer"
) -> Tokenizer:
    """The tokenizer whose `Tokenizer.files` these are, as a checkpoint holds them.

    Args:
      files: the contents by the name of the file.
      where: what holds the files, for messages: a folder.

    Raises:
      ValueError: a file is missing or damaged, or does not fit the other.
    """
    for name in ("tokenizer.json", "special_tokens.json"):
        if not isinstance(files.get(name), str):
            raise ValueError(f"{where} has no {name}: it is not a saved tokenizer")
    try:
        backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"])
    except Exception as error:  # the package raises plain exceptions
        raise ValueError(f"{where}: tokenizer.json is damaged, or of another version: {error}") from error
    _check_vocabulary(backend, where)
    try:
        special = parse_json(files["special_tokens.json"])
    except ValueError as error:
        raise ValueError(f"{where}: special_tokens.json is {error}") from error
    side = special.pop("truncation_side", "right") if isinstance(special, dict) else "right"
    if not isinstance(special, dict) or set(special) != {"pad", "bos", "eos", "unk"}:
        raise ValueError(f"{where}: special_tokens.json does not name the tokens pad, bos, eos and unk")
    for name, token in special.items():
        if token is not None and (not isinstance(token, str) or backend.token_to_id(token) is None):
            raise ValueError(
                f"{where}: special_tokens.json: {name!r} is {shorten(token)}, which is no token of tokenizer.json"
            )
    if side not in ("right", "left"):
        raise ValueError(
            f"{where}: special_tokens.json: truncation_side is {shorten(side)}, not right or left"
        )
    return Tokenizer(backend, special, side)


MAX_TOKEN_ID = 2**24
"""Token ids must be smaller: an embedding table has a row for each id, and one damaged id would make it huge."""


def _check_vocabulary(backend: tokenizers.Tokenizer, where: str | Path) -> None:
    """Raises ValueError if a tokenizer has no tokens, or a token with an id that no embedding table has.

    ``where``: what holds it, for the message.
    """
    vocabulary = backend.get_vocab()
    if not vocabulary:
        raise ValueError(f"{where}: tokenizer.json has an empty vocabulary")
    token = max(vocabulary, key=vocabulary.__getitem__)
    if vocabulary[token] >= MAX_TOKEN_ID:
        raise ValueError(
            f"{where}: tokenizer.json gives {shorten(token)} the id {vocabulary[token]}, expected below {MAX_TOKEN_ID}"
        )


def load_hf_tokenizer(folder: str | Path) -> Tokenizer:
    """A Hugging Face tokenizer from a local folder (nothing is downloaded).

    Raises:
      FileNotFoundError: no such folder.
      ValueError: the tokenizer has no fast version, or its files are missing or damaged.
    """
    from transformers import AutoTokenizer  # takes seconds to import

    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder with a Hugging Face tokenizer (tokenizer.json, ...)."
        )
    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and its parser raise many types for a damaged file
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"{folder}: its tokenizer cannot be loaded: {reason}. Fetch tokenizer.json and tokenizer_config.json again."
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{folder}: the tokenizer has no fast version (tokenizer.json).")
    _check_vocabulary(backend, folder)
    special = {
        "pad": loaded.pad_token,
        "bos": loaded.bos_token or loaded.cls_token,
        "eos": loaded.eos_token or loaded.sep_token,
        "unk": loaded.unk_token,
    }
    begin, end = loaded.bos_token, loaded.eos_token
    if special["eos"] is None:  # a language model may name its tokens elsewhere
        special = _generation_tokens(Path(folder), backend) | {k: v for k, v in special.items() if v}
        special = {name: special.get(name) for name in ("pad", "bos", "eos", "unk")}
        begin, end = special["bos"] or special["eos"], special["eos"]
    if begin and end and not backend.encode("a").special_tokens_mask[0]:
        # The tokenizer has begin and end tokens but adds neither (GPT-2). The text models here need both.
        ids = [(token, backend.token_to_id(token)) for token in dict.fromkeys((begin, end))]
        backend.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=ids)
    longest = loaded.model_max_length  # a huge number where tokenizer_config.json has none
    is_limit = isinstance(longest, int) and 0 < longest < MAX_TOKEN_ID
    return Tokenizer(backend, special, loaded.truncation_side, longest if is_limit else None)


def _generation_tokens(folder: Path, backend: tokenizers.Tokenizer) -> dict[str, str]:
    """The tokens "pad", "bos" and "eos" that ``generation_config.json`` of a language model names by their ids, for a
    tokenizer that does not name them; of several end tokens the first. Empty if there is no such file.

    Raises:
      ValueError: the file is no JSON object, or an id is none of the tokenizer's.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        settings = parse_json(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is {error}: fetch it again") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is not a JSON object: fetch it again")
    tokens = {}
    for name in ("pad", "bos", "eos"):
        token_id = settings.get(f"{name}_token_id")
        token_id = token_id[0] if isinstance(token_id, list) and token_id else token_id
        if token_id is None:
            continue
        token = backend.id_to_token(token_id) if type(token_id) is int and token_id >= 0 else None
        if token is None:
            raise ValueError(
                f"{path}: {name}_token_id is {shorten(token_id)}, which is no token of the tokenizer"
            )
        tokens[name] = token
    return tokens


def _word_backend(model) -> tokenizers.Tokenizer:
    """A tokenizer that splits texts into words and punctuation marks; decoding joins them with spaces, none before
    punctuation. A hyphen or an apostrophe within a word is part of it: if it were a token, no decoding could tell
    "t-shirt" from "t - shirt"."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(WORD), behavior="removed", invert=True)
    backend.decoder = decoders.WordPiece()
    return backend


def _train_bpe(texts: list[str], options: dict) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer; ``options``: arguments of the trainer (see `train_tokenizer`)."""
    if options["vocab_size"] < 256 + len(SPECIAL_TOKENS):
        raise ValueError(
            f"a byte-level BPE needs vocab_size >= 260 (256 bytes + 4 special), got {options['vocab_size']}."
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(texts, trainers.BpeTrainer(initial_alphabet=alphabet, **options))
    return backend


def _train_wordpiece(texts: list[str], options: dict) -> tokenizers.Tokenizer:
    """A WordPiece tokenizer, the same in every run; ``options``: arguments of the trainer (see `train_tokenizer`)."""
    backend = _word_backend(models.WordPiece(unk_token=UNK))
    # The trainer numbers the pieces "##x" that continue a word in the order of a randomly seeded hash table, and breaks
    # ties between merges by these numbers. Listing the pieces as special tokens fixes their numbers.
    words = {w for t in texts for w, _ in backend.pre_tokenizer.pre_tokenize_str(t)}
    pieces = {"##" + character for word in words for character in word[1:]}
    options = {**options, "special_tokens": [*SPECIAL_TOKENS, *sorted(pieces)]}
    backend.train_from_iterator(texts, trainers.WordPieceTrainer(**options))
    # The pieces are not special tokens in use: build a tokenizer with this vocabulary and the true special tokens.
    backend = _word_backend(models.WordPiece(vocab=backend.get_vocab(), unk_token=UNK))
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return backend


def _train_word(texts: list[str], options: dict) -> tokenizers.Tokenizer:
    backend = _word_backend(models.WordLevel(unk_token=UNK))
    backend.train_from_iterator(texts, trainers.WordLevelTrainer(**options))
    return backend


_TRAINERS = {"bpe": _train_bpe, "wordpiece": _train_wordpiece, "word": _train_word}


def train_tokenizer(
    captions: Iterable[str], kind: Literal["bpe", "wordpiece", "word"] = "bpe", vocab_size: int = 1000
) -> Tokenizer:
    """A tokenizer trained on captions; the same captions in any order give the same one.

    Ids 0..3 are `SPECIAL_TOKENS`; each caption becomes ``[bos] ... [eos]``.

    Args:
      captions: the training texts.
      kind: ``bpe``, byte-level, so that no text is unknown; ``wordpiece``, pieces of words; or ``word``, the most
        frequent words and punctuation marks, the rest unknown.
      vocab_size: number of tokens at most, special tokens included.

    Raises:
      ValueError: no captions, another kind, or too few tokens: fewer than 260 for ``bpe``, fewer than 5 for the others.
    """
    # In one order and one Unicode form: ties between equally frequent pairs must not depend on the order of the data.
    texts = sorted(normalise(c) for c in captions)
    if not texts:
        raise ValueError("train_tokenizer needs at least one caption.")
    if kind not in _TRAINERS:
        raise ValueError(f"kind must be bpe, wordpiece or word, not {kind!r}.")
    if vocab_size <= len(SPECIAL_TOKENS):
        raise ValueError(
            f"vocab_size must be above {len(SPECIAL_TOKENS)}, the number of special tokens; got {vocab_size}."
        )
    options = {"vocab_size": vocab_size, "special_tokens": list(SPECIAL_TOKENS), "show_progress": False}
    backend = _TRAINERS[kind](texts, options)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(t, backend.token_to_id(t)) for t in (BOS, EOS)]
    )
    return Tokenizer(backend, dict(zip(("pad", "bos", "eos", "unk"), SPECIAL_TOKENS, strict=True)))


def caption_fields(batch: RawBatch) -> list[str]:
    """The names of the fields of a batch that hold captions: ``caption``, ``caption_NAME``."""
    return [name for name in batch if name == "caption" or name.startswith("caption_")]


class TokenizeTransform:
    """A transform of batches that adds the token ids of captions.

    ``caption`` object ``[B]`` adds ``text`` int32 ``[B, L]`` and ``text_mask`` bool ``[B, L]``, and ``caption_NAME``
    adds ``text_NAME`` and ``text_NAME_mask``. Several captions to each example, ``[B, Q]``, give ``[B, Q, L]``. An
    empty caption is a missing text.

    ::

        loader = Loader(source, batch_size=64, seed=0, transform=TokenizeTransform(tokenizer, max_length=16))

    Args:
      tokenizer: converts the captions.
      max_length: tokens per text, L; longer captions are cut.
      clean: a function that is applied to each caption first (such as `clean_text`); None: captions stay as they are.
      bad_examples: notes the captions that are cut; None: they are only counted, by the tokenizer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_length: int,
        *,
        clean: Callable[[str], str] | None = None,
        bad_examples: BadExamples | None = None,
    ):
        """See the class for the arguments."""
        self.tokenizer, self.max_length = tokenizer, max_length
        self.clean, self.bad_examples = clean, bad_examples

    def __call__(self, batch: RawBatch) -> RawBatch:
        """The batch with token ids and masks added for each of its caption fields."""
        texts = {}
        for field in caption_fields(batch):
            shape = np.shape(batch[field])
            captions = np.ravel(batch[field]).tolist()
            if self.clean is not None:
                captions = [self.clean(c) for c in captions]
            ids, mask = self.tokenizer.encode_batch(captions, self.max_length, bad_examples=self.bad_examples)
            modality = field.replace("caption", "text", 1)
            texts[modality] = ids.reshape(*shape, self.max_length)
            texts[f"{modality}_mask"] = mask.reshape(*shape, self.max_length)
        return {**batch, **texts} if texts else batch
