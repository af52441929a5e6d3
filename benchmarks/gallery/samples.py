"""What the gallery makes with each kind of run, and how it is shown.

The functions that take ``model`` are what a user types: their code stands on the page. ``test`` holds the test
examples (`read_test_examples`); further arguments are other runs. Each has a function beside it that turns its result
into the rows of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.gallery.cells import Cell, Marked, Picture, enlarge, heard, show_speech, spectrogram, strip
from xmodal_jax.data.shapes.grammar import mark_wrong_words, match_factors, parse
from xmodal_jax.inference import overlay
from xmodal_jax.metrics.text import align_words

Examples = Mapping[str, list[Any]]
"""See `read_test_examples`."""
Rows = list[list[Cell]]
MISTAKES = 4
"""Rows of a table of mistakes."""


def example_picture(test: Examples, k: int) -> Picture:
    """The picture of a test example."""
    return Picture(enlarge(test["image"][k]), f"Test picture {k + 1}")


def compare(text: str, right: str) -> Marked:
    """A text whose words should be these, with wrong ones marked; missing ones are in brackets."""
    words = align_words(text, right)
    return Marked([(f"[{word}]" if state == "missing" else word, state != "right") for word, state in words])


def mark(text: str, test: Examples, k: int) -> Cell:
    """A caption of a test example, its wrong words marked where the data set says what is right."""
    return Marked(mark_wrong_words(text, test["meaning"][k])) if "meaning" in test else text


# contrastive.py


def search_by_sentence(model, test):
    index = model.index(images=test["image"])
    return model.search(index, texts=test["text"][:5], k=6)


def search_by_many(model, test):
    index = model.index(images=test["image"])
    return model.search(index, texts=test["text"][:100], k=6)


def rows_of_misses(result, test: Examples) -> Rows:
    """The first sentences whose picture is not found first."""
    missed = [k for k, row in enumerate(result.indices) if row[0] != k]
    return [[test["text"][k], *found_pictures(test, k, result.indices[k])] for k in missed[:MISTAKES]]


def search_by_speech(model, test):
    index = model.index(images=test["image"])
    return model.search(index, audio=test["audio"][:4], k=6)


def search_sentences(model, test):
    index = model.index(texts=test["text"])
    return model.search(index, images=test["image"][:5], k=3)


def find_place(indices: np.ndarray, right: int) -> tuple[int | None, str]:
    """The place of the right example among those that were found, from 0 (None: it is none of them), and the same in
    words, from 1."""
    places = np.flatnonzero(indices == right)
    return (int(places[0]), f"{places[0] + 1}") if len(places) else (None, f"not in the first {len(indices)}")


def found_pictures(test: Examples, k: int, indices: np.ndarray) -> list[Cell]:
    """The pictures that were found for test example k, the right one in a frame, and its place."""
    place, words = find_place(indices, k)
    alt = f"The {len(indices)} most similar pictures; place of the right one: {words}"
    return [strip([test["image"][i] for i in indices], alt, right=place), words]


def rows_of_sentences(result, test: Examples) -> Rows:
    return [[test["text"][k], *found_pictures(test, k, row)] for k, row in enumerate(result.indices)]


def rows_of_speech(result, test: Examples) -> Rows:
    queries = [[heard(test["audio"][k]), test["text"][k]] for k in range(len(result.indices))]
    return [queries[k] + found_pictures(test, k, row) for k, row in enumerate(result.indices)]


def rows_of_pictures(result, test: Examples) -> Rows:
    rows = []
    for k, row in enumerate(result.indices):
        rows.append([example_picture(test, k), *(test["text"][i] for i in row), find_place(row, k)[1]])
    return rows


# captioning.py


def caption(model, test):
    return model.caption(test["image"][:8])


def rows_of_captions(captions: Sequence[str], test: Examples) -> Rows:
    return [
        [example_picture(test, k), mark(text, test, k), test["text"][k]] for k, text in enumerate(captions)
    ]


def caption_all(model, test):
    return model.caption(test["image"])


def find_mistakes(captions: Sequence[str], test: Examples) -> list[int]:
    """The captions that do not say everything right."""
    matches = [match_factors(parse(c), m) for c, m in zip(captions, test["meaning"], strict=True)]
    return [k for k, x in enumerate(matches) if any(right < facts for right, facts in x.values())]


def rows_of_mistakes(captions: Sequence[str], test: Examples) -> Rows:
    """The first captions that do not say everything right."""
    rows = rows_of_captions(captions, test)
    return [rows[k] for k in find_mistakes(captions, test)[:MISTAKES]]


# fusion.py


def answer(model, test):
    pictures, questions = test["image"][:10], test["text"][:10]
    answers = model.answer(image=pictures, text=questions)
    attention = model.attention(image=pictures, text=questions)
    return answers, [overlay(*example["image"]) for example in attention]


def rows_of_answers(result, test: Examples) -> Rows:
    rows = []
    for k, (text, attended) in enumerate(zip(*result, strict=True)):
        images = strip([test["image"][k], attended], "The picture, and where the model looks")
        right = test["answer"][k]
        rows.append([images, test["text"][k], Marked([(text, text != right)]), right])
    return rows


def answer_all(model, test):
    return model.answer(image=test["image"], text=test["text"])


def rows_of_wrong_answers(answers: Sequence[str], test: Examples) -> Rows:
    """The first answers that are wrong."""
    wrong = [k for k, (text, right) in enumerate(zip(answers, test["answer"], strict=True)) if text != right]
    return [
        [example_picture(test, k), test["text"][k], Marked([(answers[k], True)]), test["answer"][k]]
        for k in wrong[:MISTAKES]
    ]


# speech_recognition.py


def transcribe_unseen_voices(model, test, voices):
    return model.transcribe(voices["audio"])


def rows_of_wrong_transcripts(transcripts: Sequence[str], voices: Examples) -> Rows:
    """The first transcripts that are not what was said."""
    wrong = [k for k, (x, y) in enumerate(zip(transcripts, voices["text"], strict=True)) if x != y][:MISTAKES]
    first = {m: [voices[m][k] for k in wrong] for m in ("audio", "text")}
    return rows_of_transcripts([transcripts[k] for k in wrong], first)


def transcribe(model, test):
    return model.transcribe(test["audio"][:5])


def rows_of_transcripts(transcripts: Sequence[str], test: Examples) -> Rows:
    rows = []
    for k, text in enumerate(transcripts):
        sound, right = test["audio"][k], test["text"][k]
        rows.append([show_speech(sound, f"Spectrogram: {right}"), compare(text, right), right])
    return rows


# speech_synthesis.py


def speak(model, test):
    return model.synthesize(test["text"][:4], test["voice"][:4])


def rows_of_synthesis(sounds, test: Examples) -> Rows:
    rows = []
    for k, sound in enumerate(sounds):
        cells: list[Cell] = [f"{test['text'][k]} (voice {test['voice'][k]})"]
        for what, each in (("synthesis", sound), ("recording", test["audio"][k])):
            cells.append(show_speech(each, f"Spectrogram of the {what}: {test['text'][k]}"))
        rows.append(cells)
    return rows


def speak_and_listen(model, test, recogniser):
    sounds = model.synthesize(test["text"], test["voice"])
    return recogniser.transcribe(sounds)


def rows_of_listening(transcripts: Sequence[str], test: Examples) -> Rows:
    return [[right, compare(text, right)] for text, right in zip(transcripts, test["text"], strict=True)]


# text_to_image_gan.py


def draw(model, test):
    noise = np.random.default_rng(0).standard_normal((6, model.noise))
    return [model.synthesize([text] * 6, noise=noise) for text in test["text"][:6]]


def move_noise(model, test):
    start, end = np.random.default_rng(0).standard_normal((2, model.noise))
    angles = np.linspace(0, np.pi / 2, 8)[:, None]
    noise = np.cos(angles) * start + np.sin(angles) * end
    return [model.synthesize([text] * 8, noise=noise) for text in test["text"][:3]]


def rows_of_drawings(pictures, test: Examples) -> Rows:
    rows = []
    for k, row in enumerate(pictures):
        text = test["text"][k]
        rows.append([text, example_picture(test, k), strip(row, f"{len(row)} pictures drawn for: {text}")])
    return rows


def draw_and_describe(model, test, captioner):
    pictures = model.synthesize(test["text"], seed=0)
    return pictures, captioner.caption(pictures)


def rows_of_wrong_drawings(result, test: Examples) -> Rows:
    """The first drawn pictures in which the captioner does not read everything that was asked for."""
    wrong = find_mistakes(result[1], test)[:MISTAKES]
    rows = rows_of_descriptions(result, test, count=None)
    return [rows[k] for k in wrong]


def rows_of_descriptions(result, test: Examples, count: int | None = 8) -> Rows:
    return [
        [test["text"][k], Picture(enlarge(picture), f"Drawn for: {test['text'][k]}"), mark(text, test, k)]
        for k, (picture, text) in enumerate(list(zip(*result, strict=True))[:count])
    ]


# text_to_image_flow.py


def edit(model, test):
    pictures, texts = test["image"][:6], test["text"][1:7]
    return [model.edit(pictures, texts, strength=strength, seed=0) for strength in (0.25, 0.5, 0.75, 1.0)]


def rows_of_edits(pictures, test: Examples) -> Rows:
    """A row for each picture: the text that it is changed toward, and the picture for each strength."""
    by_example = [list(row) for row in zip(*pictures, strict=True)]
    return [
        [example_picture(test, k), test["text"][k + 1], strip(row, f"Changed toward: {test['text'][k + 1]}")]
        for k, row in enumerate(by_example)
    ]


def inpaint(model, test):
    pictures = test["image"][:6]
    mask = np.zeros(pictures[0].shape[:2], bool)
    mask[:, mask.shape[1] // 2 :] = True
    return [model.inpaint(pictures, mask, test["text"][:6], seed=seed) for seed in range(4)]


def rows_of_inpainting(pictures, test: Examples) -> Rows:
    by_example = [list(row) for row in zip(*pictures, strict=True)]
    return [
        [test["text"][k], example_picture(test, k), strip(row, f"Right half drawn anew: {test['text'][k]}")]
        for k, row in enumerate(by_example)
    ]


# gan_zoo.py


def draw_with_each(model, test):
    return {name: gan.synthesize(test["text"], seed=0) for name, gan in model.items()}


def rows_of_objectives(pictures, test: Examples) -> Rows:
    rows: Rows = [["real pictures", strip(test["image"], "; ".join(test["text"]))]]
    return rows + [[name, strip(row, f"The same captions, by {name}")] for name, row in pictures.items()]


# vae.py


def reconstruct(model, test):
    return model.reconstruct(image=test["image"])["image"]


def rows_of_reconstructions(images, test: Examples) -> Rows:
    return [
        ["test pictures", strip(test["image"], "Test pictures")],
        ["reconstructed", strip(images, "Their reconstructions")],
    ]


def interpolate(model, test):
    pairs = zip(test["image"][0:6:2], test["image"][1:6:2], strict=True)
    return [model.interpolate({"image": a}, {"image": b}, steps=8)["image"] for a, b in pairs]


def rows_of_interpolations(pictures, test: Examples) -> Rows:
    names = [f"{2 * k + 1} to {2 * k + 2}" for k in range(len(pictures))]
    return [[name, strip(row, f"Test picture {name}")] for name, row in zip(names, pictures, strict=True)]


def sample_prior(model, test):
    return model.sample(16, seed=0)["image"]


def rows_of_samples(images, test: Examples) -> Rows:
    return [[strip(images[k : k + 8], "Samples of the prior")] for k in range(0, len(images), 8)]


# multimodal_vae.py


def translate_pictures(model, test):
    pictures = test["image"][:4]
    return {m: model.translate(m, image=pictures) for m in ("image_sketch", "text", "audio")}


def translate_sentences(model, test):
    sentences = test["text"][:4]
    pictures = model.translate("image", text=sentences, count=4, seed=0)
    return {"image": pictures, "audio": model.translate("audio", text=sentences)}


def translate_speech(model, test):
    recordings = test["audio"][:4]
    pictures = model.translate("image", audio=recordings, count=4, seed=0)
    return {"image": pictures, "text": model.translate("text", audio=recordings)}


def sample_jointly(model, test):
    return model.sample(4, seed=0)


def rows_of_outputs(*given: str, sounds: bool = False) -> Callable[[Any, Examples], Rows]:
    """``rows(result, test)`` of what was generated by modality: the modalities ``given`` of the test example, then all
    that was generated. ``sounds``: whether speech can be listened to, besides its spectrogram."""

    def rows(result: Mapping[str, list[Any]], test: Examples) -> Rows:
        count = len(next(iter(result.values())))
        return [
            [show(m, test[m][k], sounds=True) for m in given]
            + [show(m, outputs[k], sounds=sounds) for m, outputs in result.items()]
            for k in range(count)
        ]

    return rows


def show(modality: str, content: Any, *, sounds: bool) -> Cell:
    """An input or output of a multimodal model as a cell: a text, a picture or several, a spectrogram with or without
    its sound."""
    if modality.startswith("text"):
        return content
    if modality.startswith("audio"):
        return (show_speech if sounds else spectrogram)(content, "Spectrogram")
    return strip(content if isinstance(content, list) else [content], modality)
