"""The tabs of a demo: for each class of trained models what it can do, and the function that lays it out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from xmodal_jax.demo import actions
from xmodal_jax.demo.limits import MAX_PICTURES, MAX_RESULTS, ModelWorker, message_of
from xmodal_jax.demo.photos import Photos
from xmodal_jax.demo.widgets import label_of, label_of_input, show_picture_files, widget_of
from xmodal_jax.inference.autoencoders import LatentModel, MultimodalAutoencoder
from xmodal_jax.inference.contrastive import ContrastiveModel
from xmodal_jax.inference.fusion import FusionModel
from xmodal_jax.inference.images import ImageSynthesizer
from xmodal_jax.inference.model import TrainedModel
from xmodal_jax.inference.speech import SpeechSynthesizer
from xmodal_jax.inference.text import Captioner, SpeechRecognizer, TextModel
from xmodal_jax.inference.vocoder import Vocoder
from xmodal_jax.types import kind_of

SLIDERS = 8
"""Dimensions of the latents that have a slider at a time."""
QUERIES = ("text", "image", "audio")
"""Kinds of modalities that a search may begin with, in the order of the page."""


class TabContext(NamedTuple):
    """What a tab is built with."""

    gr: Any
    """The module Gradio."""
    worker: ModelWorker
    photos: Photos | None = None
    """The folder that is searched; None: there is none."""

    def connect(
        self,
        model: TrainedModel,
        triggers: Sequence[Any],
        action: Callable[..., Any],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        *,
        follows_slider: bool = False,
    ) -> None:
        """Computes ``action`` of the components ``inputs`` at the events ``triggers``, and shows the result in
        ``outputs``. A mistake in the input becomes a message on the page.

        ``follows_slider``: a slider triggers it, whose last value counts: it may move on while an earlier one is
        computed.
        """
        hidden = {str(model.path): "the run"}

        def respond(*values: Any) -> Any:
            try:
                result = self.worker.run(action, *values)
            except Exception as error:
                raise self.gr.Error(message_of(error, hidden), print_exception=False) from None
            return result[0] if isinstance(result, actions.ComponentValues) and len(outputs) == 1 else result

        # On a slider, the time and the word "Error" would hide its value.
        large = [x for x in outputs if not isinstance(x, self.gr.Slider)]
        self.gr.on(
            list(triggers), respond, list(inputs), list(outputs), concurrency_limit=1, concurrency_id="model",
            api_visibility="private", show_progress="minimal", show_progress_on=large or list(outputs[:1]),
            trigger_mode="always_last" if follows_slider else "once",
        )  # fmt: skip


class Tab(NamedTuple):
    """One ability."""

    title: str
    build: Callable[[Any, TabContext], None]
    """``build(model, context)``: lays out the components, within a tab of the page, and connects them."""
    can: Callable[[Any, TabContext], bool] = lambda model, context: True
    """``can(model, context)``: whether this model has the ability."""


def _columns(gr: Any) -> tuple[Any, Any]:
    """Two columns within a row, which stand below each other on a narrow screen."""
    return gr.Column(min_width=300), gr.Column(min_width=300)


def _gallery(gr: Any, label: str, columns: int, **options: Any) -> Any:
    """Pictures side by side, with what stands below each of them."""
    gallery = gr.Gallery(
        label=label, columns=columns, object_fit="contain", height="auto", interactive=False,
        buttons=["fullscreen", "download"], elem_classes="pictures", **options,
    )  # fmt: skip
    return show_picture_files(gallery)


def _modality(model: TrainedModel, kind: str) -> str | None:
    """The first modality of a kind; None: the model has none."""
    return next((m for m in model.format.modalities if kind_of(m) == kind), None)


def build_search(model: ContrastiveModel, context: TabContext) -> None:
    """A search in the folder by words, by a picture, or by a sound."""
    gr, photos = context.gr, context.photos
    gr.Markdown(f"{len(photos.files):,} pictures of the folder **{photos.folder.name}**")
    count = gr.Slider(1, MAX_RESULTS, value=min(8, len(photos.files)), step=1, label="Results", render=False)
    results = _gallery(gr, "Results, by cosine similarity", 4, render=False)
    with gr.Tabs():
        for modality in (m for kind in QUERIES for m in model.format.modalities if kind_of(m) == kind):
            with gr.Tab(f"By {label_of(modality).lower()}"):
                query = widget_of(modality).build_input(gr, label_of_input(model.format, modality))
                button = gr.Button("Search", variant="primary")
            triggers = [button.click, *([query.submit] if kind_of(modality) == "text" else [])]
            action = functools.partial(actions.search, model, photos, modality)
            context.connect(model, triggers, action, [query, count], [results])
    count.render()
    results.render()


def _can_classify(model: ContrastiveModel, context: TabContext) -> bool:
    return _modality(model, "image") is not None and _modality(model, "text") is not None


def build_zero_shot(model: ContrastiveModel, context: TabContext) -> None:
    """A picture among classes that are typed."""
    gr, modality = context.gr, _modality(model, "image")
    with gr.Row():
        left, right = _columns(gr)
        with left:
            picture = widget_of(modality).build_input(gr, label_of(modality))
            names = gr.Textbox(label="Classes, with commas between them", placeholder="red, green, blue")
            button = gr.Button("Classify", variant="primary")
        with right:
            scores = _scores(gr, "Class", model.scale is not None)
    action = functools.partial(actions.classify, model, modality)
    if model.scale is None:
        action = functools.partial(_as_lines, action)
    context.connect(model, [button.click, names.submit], action, [picture, names], [scores])


def _scores(gr: Any, label: str, are_probabilities: bool) -> Any:
    """The component that shows the scores of classes: bars, or text where they are no probabilities."""
    if are_probabilities:
        return gr.Label(label=label, num_top_classes=8)
    return gr.Textbox(label=f"{label}, with cosine similarities", lines=4, interactive=False)


def _as_lines(action: Callable[..., dict[str, float]], *values: Any) -> str:
    """The scores as text, the highest first."""
    scores = sorted(action(*values).items(), key=lambda item: -item[1])
    return "\n".join(f"{name}  {score:.3f}" for name, score in scores)


def build_writer(title: str, model: TextModel, context: TabContext) -> None:
    """A picture, video or sound, and the text about it. ``title``: of the button."""
    gr = context.gr
    with gr.Row():
        left, right = _columns(gr)
        with left:
            source = widget_of(model.source).build_input(gr, label_of_input(model.format, model.source))
            button = gr.Button(title, variant="primary")
        with right:
            text = gr.Textbox(label="Text", lines=3, interactive=False, buttons=["copy"])
    context.connect(model, [button.click], functools.partial(actions.write, model), [source], [text])


def build_synthesis(model: SpeechSynthesizer, context: TabContext) -> None:
    """A text, spoken."""
    gr = context.gr
    with gr.Row():
        left, right = _columns(gr)
        with left:
            text = widget_of("text").build_input(gr, "Text")
            voice = gr.Dropdown(list(model.voices), value=model.voices[0], label="Voice")
            labels = {"pitch": "Pitch, in semitones", "energy": "Energy, in decibels"}
            low, high = actions.SPEECH_CONTROLS["speed"]
            controls = [gr.Slider(low, high, value=1.0, step=0.05, label="Speed", buttons=[])]
            for name in model.config.prosody:
                low, high = actions.SPEECH_CONTROLS[name]
                controls.append(gr.Slider(low, high, value=0.0, step=0.5, label=labels[name], buttons=[]))
            button = gr.Button("Speak", variant="primary")
        with right:
            sound = widget_of("audio").build_output(gr, "Speech")
    action = functools.partial(actions.speak, model)
    context.connect(model, [button.click, text.submit], action, [text, voice, *controls], [sound])


def build_resynthesis(model: Vocoder, context: TabContext) -> None:
    """A recording, and the vocoder's copy of it."""
    gr = context.gr
    with gr.Row():
        left, right = _columns(gr)
        with left:
            source = widget_of("audio").build_input(gr, label_of_input(model.format, "audio"))
            button = gr.Button("Resynthesise", variant="primary")
        with right:
            copy = widget_of("audio").build_output(gr, "Copy")
    action = functools.partial(actions.resynthesize, model)
    context.connect(model, [button.click], action, [source], [copy])


def build_drawing(model: ImageSynthesizer, context: TabContext) -> None:
    """Pictures from a text, a class, or noise alone."""
    gr = context.gr
    with gr.Row():
        left, right = _columns(gr)
        with left:
            if model.reads_text:
                condition = widget_of("text").build_input(gr, label_of_input(model.format, "text"))
            elif model.class_names:
                condition = gr.Dropdown(list(model.class_names), value=model.class_names[0], label="Class")
            else:
                condition = gr.State(None)
            seed = gr.Slider(0, 999, value=0, step=1, label="Seed of the noise", buttons=[])
            count = gr.Slider(1, MAX_PICTURES, value=4, step=1, label="Pictures", buttons=[])
            button = gr.Button("Draw", variant="primary")
        with right:
            pictures = _gallery(gr, "Pictures", 2)
    triggers = [button.click, seed.input, *([condition.submit] if model.reads_text else [])]
    action = functools.partial(actions.draw, model)
    context.connect(model, triggers, action, [condition, seed, count], [pictures], follows_slider=True)


def _label_of_target(target: str) -> str:
    """The name of what a classifier predicts on the page; data with one target often name it ``label``."""
    return "Answer" if target == "label" else target.replace("_", " ").capitalize()


def build_answers(model: FusionModel, context: TabContext) -> None:
    """A picture and a question, or what else the classifier takes; its answers and where it looks."""
    gr, modalities = context.gr, model.format.modalities
    inputs, targets = {}, []
    with gr.Row():
        left, right = _columns(gr)
        with left:
            for modality in sorted(modalities, key=lambda m: kind_of(m) == "text"):
                label = label_of_input(model.format, modality)
                inputs[modality] = widget_of(modality).build_input(gr, label)
            button = gr.Button("Answer", variant="primary")
        with right:
            targets += [
                gr.Label(label=_label_of_target(target), num_top_classes=5) for target in model.classes
            ]
            targets += [
                widget_of(modality).build_output(gr, f"{label_of(modality)}, bright where the model looks")
                for modality in actions.pictures_of(model)
            ]
    submits = [inputs[m].submit for m in modalities if kind_of(m) == "text"]
    action = functools.partial(actions.answer, model, modalities)
    context.connect(model, [button.click, *submits], action, [inputs[m] for m in modalities], targets)


def build_translation(model: MultimodalAutoencoder, context: TabContext) -> None:
    """Every modality from any others."""
    gr, modalities = context.gr, model.format.modalities
    gr.Markdown("Give one or several; the others are generated, and those given are reconstructed.")
    with gr.Row():
        left, right = _columns(gr)
        with left:
            inputs = [widget_of(m).build_input(gr, label_of_input(model.format, m)) for m in modalities]
            button = gr.Button("Generate", variant="primary")
        with right:
            outputs = [widget_of(m).build_output(gr, label_of(m)) for m in modalities]
    action = functools.partial(actions.generate, model, modalities)
    context.connect(model, [button.click], action, inputs, outputs)


def build_samples(model: LatentModel, context: TabContext) -> None:
    """New examples, from the prior alone."""
    gr, modalities = context.gr, model.format.modalities
    with gr.Row():
        left, right = _columns(gr)
        with left:
            names = list(model.class_names)
            name = gr.Dropdown(names, value=names[0], label="Class") if names else gr.State(None)
            seed = gr.Slider(0, 999, value=0, step=1, label="Seed of the samples", buttons=[])
            count = gr.Slider(1, MAX_PICTURES, value=4, step=1, label="Samples", buttons=[])
            button = gr.Button("Sample", variant="primary")
        with right:
            outputs = [_samples_output(gr, modality) for modality in modalities]
    action = functools.partial(actions.sample, model)
    triggers = [button.click, seed.input]
    context.connect(model, triggers, action, [name, seed, count], outputs, follows_slider=True)


def _samples_output(gr: Any, modality: str) -> Any:
    """The component that shows the samples of one modality, or the first where they have no place."""
    if kind_of(modality) == "image":
        return _gallery(gr, label_of(modality), 2)
    if kind_of(modality) == "text":
        return gr.Textbox(label=label_of(modality), lines=4, max_lines=MAX_PICTURES, interactive=False)
    return widget_of(modality).build_output(gr, f"{label_of(modality)} of sample 1")


def _can_sample(model: LatentModel, context: TabContext) -> bool:
    return "sample" in model.actions


def build_latents(model: LatentModel, context: TabContext) -> None:
    """An example, its reconstruction, and what moves when single dimensions of its latents do."""
    gr, modalities = context.gr, model.format.modalities
    shown = min(SLIDERS, model.dim)
    latents = gr.State(None, time_to_live=3600)
    with gr.Row():
        left, right = _columns(gr)
        with left:
            inputs = [widget_of(m).build_input(gr, label_of_input(model.format, m)) for m in modalities]
            names = list(model.class_names)
            name = gr.Dropdown(names, value=names[0], label="Class") if names else gr.State(None)
            button = gr.Button("Reconstruct", variant="primary")
        with right:
            outputs = [widget_of(m).build_output(gr, f"{label_of(m)}, decoded") for m in modalities]
    with gr.Row():
        left, right = _columns(gr)
        with left:
            with gr.Accordion(f"Latent dimensions ({model.dim})", open=True):
                has_more = model.dim > shown
                first = gr.Slider(
                    0, max(1, model.dim - shown), value=0, step=1, visible=has_more, buttons=[],
                    label="First dimension with a slider",
                )  # fmt: skip
                sliders = [
                    gr.Slider(-5, 5, value=0, step=0.01, label=f"Dimension {k}", buttons=[])
                    for k in range(shown)
                ]
        with right:
            _build_traversal(model, context, latents, name)
    encode = functools.partial(actions.encode, model, shown)
    context.connect(model, [button.click], encode, [first, name, *inputs], [latents, *sliders, *outputs])
    show_values = functools.partial(_show_values, gr, model, shown)
    context.connect(model, [first.input], show_values, [latents, first], sliders, follows_slider=True)
    move = functools.partial(actions.move, model)
    triggers = [slider.input for slider in sliders]
    inputs = [latents, first, name, *sliders]
    context.connect(model, triggers, move, inputs, [latents, *outputs], follows_slider=True)


def _show_values(
    gr: Any, model: LatentModel, sliders: int, latents: Any, first: Any
) -> actions.ComponentValues:
    """The values of the dimensions from ``first`` on, and the sliders' labels, which say their dimensions."""
    values = actions.slider_values(model, latents, sliders, first)
    start = actions.clip_number(first, 0, model.dim - sliders)
    return actions.ComponentValues(
        gr.update(value=x, label=f"Dimension {start + k}") for k, x in enumerate(values)
    )


def _build_traversal(model: LatentModel, context: TabContext, latents: Any, name: Any) -> None:
    """The row of pictures along one dimension, where the model has pictures."""
    gr, modality = context.gr, _modality(model, "image")
    if modality is None:
        return
    dim = gr.Slider(0, model.dim - 1, value=0, step=1, label="Dimension to traverse", buttons=[])
    button = gr.Button("Traverse")
    row = _gallery(gr, f"{label_of(modality)}, by value", 4)
    action = functools.partial(actions.traverse, model, modality)
    context.connect(model, [button.click], action, [latents, dim, name], [row])


_LATENT_TABS = (Tab("Latent space", build_latents), Tab("Sample", build_samples, _can_sample))
TABS: dict[type[TrainedModel], tuple[Tab, ...]] = {
    ContrastiveModel: (
        Tab("Search", build_search, lambda model, context: context.photos is not None),
        Tab("Classify", build_zero_shot, _can_classify),
    ),
    Captioner: (Tab("Caption", functools.partial(build_writer, "Caption")),),
    SpeechRecognizer: (Tab("Recognise speech", functools.partial(build_writer, "Transcribe")),),
    SpeechSynthesizer: (Tab("Speak", build_synthesis),),
    Vocoder: (Tab("Resynthesise", build_resynthesis),),
    FusionModel: (Tab("Answer", build_answers),),
    ImageSynthesizer: (Tab("Draw", build_drawing),),
    MultimodalAutoencoder: (Tab("Translate", build_translation), *_LATENT_TABS),
    LatentModel: _LATENT_TABS,
}
"""By the class of the model what the page offers; a model has the tabs of the first class that it is of."""


def tabs_of(model: TrainedModel, context: TabContext) -> list[Tab]:
    """The tabs of a model: those of its class whose ability it has."""
    tabs = next((tabs for cls, tabs in TABS.items() if isinstance(model, cls)), ())
    return [tab for tab in tabs if tab.can(model, context)]
