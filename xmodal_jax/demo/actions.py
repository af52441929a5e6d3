"""What the tabs of a demo do, as functions of a model and of what the page holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from xmodal_jax.demo.limits import MAX_CLASSES, MAX_PICTURES, MAX_RESULTS
from xmodal_jax.demo.photos import Photos
from xmodal_jax.demo.widgets import NOTHING, check_text, enlarge, label_of, read_value, widget_of
from xmodal_jax.inference.autoencoders import LatentModel
from xmodal_jax.inference.contrastive import ContrastiveModel
from xmodal_jax.inference.fusion import FusionModel, overlay
from xmodal_jax.inference.images import ImageSynthesizer
from xmodal_jax.inference.inputs import InputFormat
from xmodal_jax.inference.speech import SpeechSynthesizer
from xmodal_jax.inference.text import TextModel
from xmodal_jax.inference.vocoder import Vocoder
from xmodal_jax.types import kind_of

Shown = list[tuple[Image.Image, str]]
"""Pictures with what stands below them."""
SPEECH_CONTROLS = {"speed": (0.5, 2.0), "pitch": (-12.0, 12.0), "energy": (-12.0, 12.0)}
"""Lowest and highest speed of speech, change of its pitch in semitones, and of its energy in decibels."""
TRAVERSED = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
"""Values of a latent dimension that a traversal shows."""


class ComponentValues(list):
    """The values of several components, in order. Any other result of an action is the value of one."""


def require_value(value: Any, format: InputFormat, modality: str) -> Any:
    """The input of a model that a component holds; raises ValueError where it is empty."""
    content = read_value(value, format, modality)
    if content is None:
        raise ValueError(f"{label_of(modality)}: it is empty; give one first")
    return content


def read_values(format: InputFormat, modalities: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """The inputs by modality that the components hold, without the empty ones; raises ValueError if all are."""
    contents = {m: read_value(value, format, m) for m, value in zip(modalities, values, strict=True)}
    contents = {m: content for m, content in contents.items() if content is not None}
    if not contents:
        raise ValueError(f"give at least one of: {', '.join(map(label_of, modalities))}")
    return contents


def clip_number(value: Any, low: int, high: int) -> int:
    """A whole number from low to high; raises ValueError where there is no number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"a number from {low} to {high} is needed")
    return min(max(int(value), low), high)


def search(model: ContrastiveModel, photos: Photos, modality: str, value: Any, count: Any) -> Shown:
    """The pictures that are the most similar to a text, picture or sound, with their similarities."""
    query = require_value(value, model.format, modality)
    pictures = next(m for m in model.format.modalities if kind_of(m) == "image")
    k = clip_number(count, 1, MAX_RESULTS)
    result = model.search(photos.index, k, pictures, **{modality: [query]})
    hits = zip(result.indices[0].tolist(), result.names[0], result.scores[0].tolist(), strict=True)
    return [(enlarge(photos.thumbnail(n)), f"{name}  {score:.2f}") for n, name, score in hits]


def classify(model: ContrastiveModel, modality: str, value: Any, names: str) -> dict[str, float]:
    """The score of each class that is typed, one in a line or with commas between them."""
    content = require_value(value, model.format, modality)
    lines = check_text(names or "").replace(",", "\n").splitlines()
    classes = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise ValueError(f"2 to {MAX_CLASSES} classes are needed, with commas between them")
    result = model.classify(classes, **{modality: [content]})
    return dict(zip(result.classes, result.scores[0].tolist(), strict=True))


def write(model: TextModel, value: Any) -> str:
    """The text that a captioner or recogniser writes."""
    (text,) = model.generate([require_value(value, model.format, model.source)])
    return text or NOTHING


def speak(
    model: SpeechSynthesizer, text: Any, voice: str, speed: Any, *shifts: Any
) -> tuple[int, np.ndarray]:
    """Speech of a text, as the page plays it. ``shifts``: of what the model has of pitch and energy, in this order;
    those that are left out are 0."""
    content = require_value(text, model.format, "text")
    controls = dict(zip(("speed", *model.config.prosody), (speed, *shifts), strict=False))
    for name, value in controls.items():
        low, high = SPEECH_CONTROLS[name]
        if not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"the {name} is a number from {low:g} to {high:g}")
    (sound,) = model.synthesize([content], voice, **controls)
    return widget_of("audio").show(sound)


def resynthesize(model: Vocoder, value: Any) -> tuple[int, np.ndarray]:
    """A recording that a vocoder turns into log-mel frames and back, as the page plays it."""
    (sound,) = model.reconstruct([require_value(value, model.format, "audio")])
    return widget_of("audio").show(sound)


def draw(model: ImageSynthesizer, condition: Any, seed: Any, count: Any) -> Shown:
    """Pictures of one text or class from the noise of a seed."""
    number = clip_number(count, 1, MAX_PICTURES)
    seed = clip_number(seed, 0, 2**31 - 1)
    if model.reads_text:
        text = require_value(condition, model.format, "text")
        pictures = model.synthesize([text] * number, seed=seed)
    elif model.class_names:
        pictures = model.synthesize([condition] * number, seed=seed)
    else:
        pictures = model.synthesize(count=number, seed=seed)
    return number_pictures(pictures)


def answer(model: FusionModel, modalities: Sequence[str], *values: Any) -> ComponentValues:
    """The probabilities of each target's classes, then where the model looks in each picture (None: it cannot say)."""
    inputs = {m: [x] for m, x in read_values(model.format, modalities, values).items()}
    results = model.classify(**inputs)
    probabilities = [dict(zip(r.classes, r.scores[0].tolist(), strict=True)) for r in results.values()]
    pictures = pictures_of(model)
    if not pictures:
        return ComponentValues(probabilities)
    (attended,) = model.attention(**inputs)
    looked_at = [enlarge(overlay(*attended[m])) if m in attended else None for m in pictures]
    return ComponentValues([*probabilities, *looked_at])


def pictures_of(model: FusionModel) -> list[str]:
    """The pictures of a classifier that can say where it looks."""
    if "attention" not in model.actions:
        return []
    return [m for m in model.format.modalities if kind_of(m) == "image"]


def generate(model: LatentModel, modalities: Sequence[str], *values: Any) -> ComponentValues:
    """Every modality from those that the page holds."""
    inputs = {m: [x] for m, x in read_values(model.format, modalities, values).items()}
    return show_outputs(model, model.reconstruct(**inputs))


def show_outputs(model: LatentModel, outputs: Mapping[str, list[Any]]) -> ComponentValues:
    """The first example of generated data, for the components of the modalities in order."""
    return ComponentValues(widget_of(m).show(outputs[m][0]) for m in model.format.modalities)


def _classes(model: LatentModel, name: str | None) -> dict[str, Any]:
    """The keyword of the class, for a conditional model."""
    return {"classes": [name]} if model.class_names else {}


def encode(model: LatentModel, sliders: int, first: Any, name: str | None, *values: Any) -> ComponentValues:
    """The latents of an example, the sliders that show ``sliders`` of its dimensions from ``first`` on, and what is
    decoded from them."""
    modalities = model.format.modalities
    inputs = {m: [x] for m, x in read_values(model.format, modalities, values).items()}
    latents = model.encode(**inputs, **_classes(model, name))
    outputs = model.decode(latents, **_classes(model, name))
    shown = slider_values(model, latents[0], sliders, first)
    return ComponentValues([latents[0], *shown, *show_outputs(model, outputs)])


def slider_values(model: LatentModel, latents: Any, sliders: int, first: Any) -> ComponentValues:
    """The values of the dimensions from ``first`` on that the sliders show."""
    latents = np.zeros(model.dim, np.float32) if latents is None else latents
    start = clip_number(first, 0, model.dim - sliders)
    return ComponentValues(round(float(x), 2) for x in latents[start : start + sliders])


def move(model: LatentModel, latents: Any, first: Any, name: str | None, *values: float) -> ComponentValues:
    """The latents with the sliders' values in place of the dimensions that they show, and what is decoded."""
    latents = np.zeros(model.dim, np.float32) if latents is None else np.array(latents)
    start = clip_number(first, 0, model.dim - len(values))
    latents[start : start + len(values)] = values
    return ComponentValues(
        [latents, *show_outputs(model, model.decode(latents[None], **_classes(model, name)))]
    )


def sample(model: LatentModel, name: str | None, seed: Any, count: Any) -> ComponentValues:
    """Samples of the prior for the components of the modalities in order: pictures side by side, a text in each line,
    and of other kinds the first sample alone."""
    number = clip_number(count, 1, MAX_PICTURES)
    seed = clip_number(seed, 0, 2**31 - 1)
    outputs = model.sample(number, seed=seed, classes=name if model.class_names else None)
    return ComponentValues(_show_samples(m, outputs[m]) for m in model.format.modalities)


def _show_samples(modality: str, samples: list[Any]) -> Any:
    """Samples of one modality, for the component that shows several of its kind."""
    if kind_of(modality) == "image":
        return number_pictures(samples)
    if kind_of(modality) == "text":
        return "\n".join(f"{k + 1}  {text or NOTHING}" for k, text in enumerate(samples))
    return widget_of(modality).show(samples[0])


def number_pictures(pictures: Sequence[Image.Image]) -> Shown:
    """Pictures with their numbers below them."""
    return [(enlarge(picture), f"{k + 1}") for k, picture in enumerate(pictures)]


def traverse(model: LatentModel, modality: str, latents: Any, dim: Any, name: str | None) -> Shown:
    """Pictures along one dimension of the latents; without an example, around the origin."""
    latents = np.zeros(model.dim, np.float32) if latents is None else latents
    number = clip_number(dim, 0, model.dim - 1)
    classes = name if model.class_names else None
    (row,) = model.traverse(latents, [number], TRAVERSED, classes=classes)[modality]
    return [(enlarge(picture), f"{value:g}") for picture, value in zip(row, TRAVERSED, strict=True)]
