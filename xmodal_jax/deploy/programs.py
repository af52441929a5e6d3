"""What a trained run computes, as programs: functions of arrays alone, which other runtimes can hold."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.data.pipeline import numeric_fields
from xmodal_jax.data.source import RawBatch
from xmodal_jax.inference.model import TrainedModel
from xmodal_jax.models.seq2seq import (
    CTCBestPathConfig,
    GreedySearchConfig,
    make_text_generator,
    make_text_network,
)
from xmodal_jax.models.speech import make_synthesizer
from xmodal_jax.models.vocoder import make_vocode
from xmodal_jax.types import Tokens, kind_of

LONGEST_SECONDS = 30.0
"""Length of the recordings that a program takes where the run reads those of any length."""


class Field(NamedTuple):
    """An array that a program takes or gives, whose first axis is that of the examples of a batch."""

    shape: tuple[int, ...]
    """The shape of one example."""
    dtype: str
    """``uint8``, ``int32``, ``float32``, ``bool``, …"""
    meaning: str
    """What the values are, in words."""

    def struct(self, batch: Any) -> jax.ShapeDtypeStruct:
        """Shape and dtype of ``batch`` examples; ``batch``: a number, or a symbol of `jax.export`."""
        return jax.ShapeDtypeStruct((batch, *self.shape), self.dtype)


class Program(NamedTuple):
    """One function of a trained run."""

    name: str
    """Of its file, such as ``encode_image``."""
    meaning: str
    """What it computes, in words."""
    inputs: dict[str, Field]
    """The arrays it takes, by name."""
    outputs: dict[str, str]
    """What the arrays are that it gives, by name."""
    function: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    """``function(params, inputs)``: the outputs by name. ``params``: those of the run."""

    def output_fields(self, params: Any) -> dict[str, Field]:
        """The arrays it gives, by name."""
        inputs = {name: field.struct(1) for name, field in self.inputs.items()}
        shapes = jax.eval_shape(self.function, params, inputs)
        return {
            name: Field(shape.shape[1:], str(shape.dtype), self.outputs[name])
            for name, shape in shapes.items()
        }


def programs_of(model: TrainedModel) -> list[Program]:
    """The programs of a trained run, by its kind.

    Raises:
      ValueError: there are none for runs of this kind.
    """
    if model.kind not in PROGRAMS:
        raise ValueError(
            f"{model.path}: there are no programs of a run of {model.kind}, only of {', '.join(PROGRAMS)}"
        )
    return PROGRAMS[model.kind](model)


# Inputs


def prepare_inputs(model: TrainedModel, batch: RawBatch) -> RawBatch:
    """The fields of a batch as programs take them. Sounds stay waveforms, also where the model's own ``prepare`` makes
    frames of them: programs do that themselves."""
    return numeric_fields(TrainedModel.prepare(model, batch))


def input_fields(model: TrainedModel, modality: str) -> dict[str, Field]:
    """The fields of a batch that hold the inputs of one modality, as `prepare_inputs` makes them."""
    example = _EXAMPLES[kind_of(modality)](model, modality)
    source = model.read({modality: [example]})
    batch = prepare_inputs(model, source.batch(np.zeros(1, np.int64)))
    names = [name for name in (modality, f"{modality}_mask") if name in batch]
    return {name: _field(name, batch[name], _meaning(modality, name)) for name in names}


def _field(name: str, values: np.ndarray, meaning: str) -> Field:
    values = np.asarray(values)
    return Field(values.shape[1:], str(values.dtype), meaning)


def _pixels(model: TrainedModel, modality: str) -> np.ndarray:
    return np.zeros(model.format.shapes[modality], np.uint8)


def _silence(model: TrainedModel, modality: str) -> tuple[np.ndarray, int]:
    """A recording of the largest length that the run was trained for."""
    format = model.format
    trained = model.metadata["config"].get("input", {}).get("max_seconds")
    seconds = next(x for x in (format.max_seconds, trained, LONGEST_SECONDS) if x is not None)
    return np.zeros(round(seconds * format.sample_rate), np.float32), format.sample_rate


def _numbers(model: TrainedModel, modality: str) -> np.ndarray:
    return np.zeros(model.format.shapes[modality], np.float32)


_EXAMPLES: dict[str, Callable[[TrainedModel, str], Any]] = {
    "image": _pixels,
    "video": _pixels,
    "text": lambda model, modality: "",
    "audio": _silence,
    "vector": _numbers,
    "series": _numbers,
}
"""An input of each kind of modality, from which the shapes of a program's inputs follow."""
_MEANINGS: dict[str, str] = {
    "image": "pixels in 0..255, RGB or grey, made square as preprocessing.json says",
    "video": "pixels in 0..255 of evenly spaced frames, made square as preprocessing.json says",
    "text": "token ids of tokenizer.json, begin and end token included, padded behind the end",
    "audio": "samples in -32768..32767 at the rate of preprocessing.json, zeros behind the end",
    "vector": "numbers in standard units, (value - mean) / std of preprocessing.json, 0 where unknown",
    "series": "numbers in standard units, (value - mean) / std of preprocessing.json, 0 where unknown",
}
"""What the values of each kind of modality are."""


def _meaning(modality: str, name: str) -> str:
    """What the field ``name`` of a modality holds."""
    if name != modality:
        return f"True where {modality} holds values, False on padding"
    return _MEANINGS[kind_of(modality)]


def _batch(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs as a batch of the library: ``present_NAME`` becomes ``present[NAME]``, and examples are numbered."""
    first = next(iter(inputs.values()))
    batch: dict[str, Any] = {k: v for k, v in inputs.items() if not k.startswith("present_")}
    present = {k.removeprefix("present_"): v for k, v in inputs.items() if k.startswith("present_")}
    if present:
        batch["present"] = present
    return {**batch, "index": jnp.arange(first.shape[0], dtype=jnp.int32)}


def _with_presence(model: TrainedModel) -> dict[str, Field]:
    """The inputs of all modalities, and which of them each example has."""
    fields: dict[str, Field] = {}
    for modality in model.format.modalities:
        fields |= input_fields(model, modality)
        fields[f"present_{modality}"] = Field(
            (), "bool", f"whether the example has {modality}; where not, its values do not matter"
        )
    return fields


# Programs of each kind of run


def _contrastive(model: Any) -> list[Program]:
    """An encoder for each modality."""

    def encode(params, inputs, modality):
        return {"embedding": model.method.predict(params, _batch(inputs))[modality]}

    return [
        Program(
            f"encode_{modality}",
            f"the embedding of {modality} in the shared space",
            input_fields(model, modality),
            {"embedding": "unit vectors; the product of two is their cosine similarity"},
            functools.partial(encode, modality=modality),
        )
        for modality in model.format.modalities
    ]


def _text(model: Any) -> list[Program]:
    """Captioners and recognisers: the encoder, the decoder and the CTC head that there are, and whole texts."""
    tokenizer, source, length = model.format.transform.tokenizer, model.source, model.metadata["length"]
    sizes = {"vocab_size": tokenizer.vocab_size, "length": length}
    network = make_text_network(model.config, source, **sizes)
    generate_texts = make_text_generator(
        model.config, source, **sizes, begin=tokenizer.bos_id, end=tokenizer.eos_id,
        generation=GreedySearchConfig() if model.config.decodes else CTCBestPathConfig(), language=model.language,
    )  # fmt: skip

    def encode(params, inputs):
        tokens = network.encode(params, _batch(inputs))
        mask = jnp.ones(tokens.values.shape[:2], bool) if tokens.mask is None else tokens.mask
        return {"memory": tokens.values, "memory_mask": mask}

    def decode(params, inputs):
        memory = Tokens(inputs["memory"], inputs["memory_mask"])
        return {"logits": network.next_logits(params, inputs["ids"], memory)}

    def align(params, inputs):
        return {"logits": network.frame_logits(params, Tokens(inputs["memory"], inputs["memory_mask"]))}

    def generate(params, inputs):
        generated = generate_texts(params, _batch(inputs))
        return {"ids": generated.tokens, "ids_mask": generated.mask}

    about_memory = {
        "memory": f"the tokens of {source}, which the decoder reads",
        "memory_mask": "False on padding",
    }
    encoder = Program("encode", f"the tokens of {source}", input_fields(model, source), about_memory, encode)
    memory = encoder.output_fields(model.params)
    ids = Field(
        (length - 1,), "int32", "token ids so far, from the begin token; what follows does not matter"
    )
    logits = "[t]: of the token after ids[t], given those up to t"
    frames = "[n]: of the label at memory[n]; label 0 is the blank of CTC"
    parts = [encoder]
    if network.next_logits is not None:
        inputs = {"ids": ids, **memory}
        parts.append(Program("decode", "the next token of a text", inputs, {"logits": logits}, decode))
    if network.frame_logits is not None:
        parts.append(Program("align", "the labels of CTC at each token", memory, {"logits": frames}, align))
    outputs = {"ids": "token ids without begin and end", "ids_mask": "False behind the end"}
    way = "the most probable token at each step" if model.config.decodes else "the most probable alignment"
    return [*parts, Program("generate", f"a text by {way}", encoder.inputs, outputs, generate)]


def _synthesis(model: Any) -> list[Program]:
    """Speech of texts, in any of the voices."""
    tokenize, speakers = model.format.transform.tokenize, len(model.voices)
    synthesize_batch = make_synthesizer(
        model.config, vocab_size=tokenize.tokenizer.vocab_size, length=tokenize.max_length,
        frames=model.metadata["frames"], speakers=speakers,
    )  # fmt: skip

    def synthesize(params, inputs):
        speech = synthesize_batch(params, _batch(inputs))
        return {
            "log_mel": speech.log_mel,
            "log_mel_mask": speech.frame_mask,
            "waveform": speech.waveform,
            "waveform_mask": speech.mask,
        }

    voices = ", ".join(f"{k} {name}" for k, name in enumerate(model.voices))
    inputs = {**input_fields(model, "text"), "speaker": Field((), "int32", f"number of the voice: {voices}")}
    outputs = {
        "log_mel": "natural logarithm of mel frames, for a vocoder of your own",
        "log_mel_mask": "False behind the end of the speech",
        "waveform": f"in [-1, 1], {model.sample_rate} samples per second, by Griffin-Lim",
        "waveform_mask": "False behind the end of the speech",
    }
    return [Program("synthesize", "speech of a text", inputs, outputs, synthesize)]


def _vocoder(model: Any) -> list[Program]:
    """Sound of log-mel frames, as many as a recording of the training has."""
    config, vocode = model.config, make_vocode(model.config)
    samples = input_fields(model, "audio")["audio"].shape[0]
    frames = 1 + samples // config.features.hop

    def decode(params, inputs):
        waveform, mask = vocode(params, inputs["log_mel"], inputs["log_mel_mask"])
        return {"waveform": waveform, "waveform_mask": mask}

    inputs = {
        "log_mel": Field((frames, config.features.mels), "float32", "natural logarithm of mel frames"),
        "log_mel_mask": Field((frames,), "bool", "False behind the last frame"),
    }
    outputs = {
        "waveform": f"in [-1, 1], {model.sample_rate} samples per second",
        "waveform_mask": "False behind the end of the sound",
    }
    return [Program("decode", "the sound of log-mel frames", inputs, outputs, decode)]


def _image_conditions(model: Any) -> dict[str, Field]:
    """The inputs that say what an image is to show."""
    conditions = input_fields(model, "text") if model.reads_text else {}
    if model.class_names:
        classes = ", ".join(f"{k} {name}" for k, name in enumerate(model.class_names))
        conditions["label"] = Field((), "int32", f"number of the class: {classes}")
    return conditions


def _images(model: Any) -> list[Program]:
    """The generator."""

    def generate(params, inputs):
        return {"image": model.method.predict(params, _batch(inputs))}

    inputs = {"noise": Field((model.noise,), "float32", "standard normal")} | _image_conditions(model)
    outputs = {"image": "in [-1, 1]; the pixel is round((x + 1) * 127.5), clipped to 0..255"}
    return [Program("generate", "a picture", inputs, outputs, generate)]


def _flow(model: Any) -> list[Program]:
    """The generator with all steps of its sampler, and the velocity, for a sampler of one's own."""

    def velocity(params, inputs):
        batch = _batch(inputs)
        return {"velocity": model.flow.velocity(params, batch, inputs["state"], inputs["time"])}

    inputs = {
        "state": Field(model.flow.shape, "float32", "standard normal noise at the time 0, the picture at 1"),
        "time": Field((), "float32", "from 0 (noise) to 1 (picture)"),
    } | _image_conditions(model)
    outputs = {"velocity": "the derivative of the state with respect to the time, without guidance"}
    return [*_images(model), Program("velocity", "one step of a sampler", inputs, outputs, velocity)]


def _fusion(model: Any) -> list[Program]:
    """The probabilities of the classes of every target."""

    def classify(params, inputs):
        logits = model.method.predict(params, _batch(inputs)).logits
        return {target: jax.nn.softmax(x) for target, x in logits.items()}

    outputs = {target: f"probabilities of {', '.join(names)}" for target, names in model.classes.items()}
    return [Program("classify", "the classes of each target", _with_presence(model), outputs, classify)]


def _latent(model: Any) -> list[Program]:
    """Autoencoders: latents of any subset of the modalities, and every modality of latents."""
    label = {}
    if model.class_names:
        classes = ", ".join(f"{k} {name}" for k, name in enumerate(model.class_names))
        label = {"label": Field((), "int32", f"number of the class: {classes}")}

    def encode(params, inputs):
        batch = model.trace_frames(_batch(inputs))
        return {"latents": model.encode_batch({"model": params}, batch, None)[:, 0]}

    def decode(params, inputs):
        batch = _batch(inputs) | {"shared": inputs["latents"]}
        return {name: x[:, 0] for name, x in model.decode_batch({"model": params}, batch, None).items()}

    latents = Field((model.dim,), "float32", "latents, such as those of encode")
    generated = {}
    for modality in model.format.modalities:
        is_sound = kind_of(modality) == "audio"
        form = (
            "as log-mel frames, whose settings preprocessing.json has"
            if is_sound
            else "in the format of the inputs"
        )
        generated[modality] = f"the most probable {modality}, {form}"
        generated[f"{modality}_mask"] = "False on padding"
    return [
        Program(
            "encode", "the latents of an example from the modalities that it has",
            {**_with_presence(model), **label}, {"latents": "mean of the posterior"}, encode,
        ),
        Program("decode", "every modality of latents", {"latents": latents, **label}, generated, decode),
    ]  # fmt: skip


PROGRAMS: dict[str, Callable[[Any], list[Program]]] = {
    "captioning": _text,
    "contrastive": _contrastive,
    "fusion": _fusion,
    "multimodal_flow": _latent,
    "multimodal_vae": _latent,
    "speech_recognition": _text,
    "speech_synthesis": _synthesis,
    "text_to_image_flow": _flow,
    "text_to_image_gan": _images,
    "vae": _latent,
    "vocoder": _vocoder,
}
"""For each kind of run what makes its programs."""
