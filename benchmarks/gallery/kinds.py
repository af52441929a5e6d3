"""The kinds of runs that the gallery shows, each an entry of `KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gallery import samples as s
from benchmarks.gallery.cells import Picture
from benchmarks.gallery.samples import Examples, Rows
from xmodal_jax.inference import load
from xmodal_jax.report.comparison import read_result


class Sample(NamedTuple):
    """A table of what a run makes of test examples."""

    title: str
    columns: tuple[str, ...]
    use: Callable[..., Any]
    """What a user types: ``use(model, test)``, with the test examples ``test``; its code stands on the page. Further
    arguments are other runs, by their names in `OTHER_RUNS`, and the examples of other splits, by their names in
    `OTHER_SPLITS`. Without these runs the sample is left out."""
    rows: Callable[[Any, Examples], Rows]
    """``rows(result of use, test)``: what ``use`` returned, as the rows of the table; ``test`` are the examples of the
    other split, if ``use`` takes one."""
    note: str = ""
    needs: tuple[str, ...] = ("image", "text")
    """Modalities, and other entries of the examples, without which the sample is left out."""


class Kind(NamedTuple):
    """What is shown of the runs of one experiment."""

    title: str
    summary: str
    scores: Mapping[str, str]
    """The main metrics of ``result.json`` and what each says; a star stands for any characters, and those that a run
    lacks are left out."""
    samples: tuple[Sample, ...]
    panel: Callable[[list[Rows]], tuple[Picture, str]]
    """The picture and the line of text that stand for the kind in the strip, of the rows of its samples."""
    examples: int = 8
    """Number of test examples that are read."""
    implied: Mapping[str, Any] = {}
    """Options, by dotted names, that the script sets itself; the page leaves them out of the command."""
    load: Callable[[Path], Any] = load


LATENT = ("image", "image_sketch", "text", "audio")
"""The modalities of multimodal_vae.py on the embedded data set."""
OTHER_RUNS = {"recogniser": "speech_recognition", "captioner": "captioning"}
"""The kind of run that each further argument of `Sample.use` stands for."""
OTHER_SPLITS = {"voices": 300}
"""The test splits that `Sample.use` may take as further arguments, and the number of examples that are read."""


def load_each(run: str | Path) -> dict[str, Any]:
    """The GANs that a run of gan_zoo.py compares, by objective; of several seeds the first."""
    models = {}
    for file in sorted(Path(run).glob("*/config.json")):
        seeds = read_result(file.parent).get("seeds", [])
        models[file.parent.name] = load(file.parent, seed=seeds[0] if len(seeds) > 1 else None)
    return models


DRAWING_SCORES = {
    "test/factor_accuracy": "of all sizes, colours, textures, shapes, numbers, places and relations in the "
    "captions, those that the judge, a captioner that took no part in the training, reads in the pictures",
    "compositions/factor_accuracy": "the same, for captions with pairs of shape and colour that training never "
    "showed",
    "test/judge_kernel_distance": "kernel distance of the pictures from real ones in the judge's features",
    "test/judge_kernel_distance_real": "the same between two halves of the real pictures, in theory 0",
}
"""The scores of runs that draw pictures of sentences."""

KINDS = {
    "contrastive": Kind(
        "One space for pictures, sentences and speech",
        "A picture, a sentence and a recording of the same scene get similar vectors, so that each finds the others.",
        {
            "text_to_image/recall@1": "sentences that find their picture at the first place among 500 (chance 0.002)",
            "text_to_image/recall@5": "the same, among the first five (chance 0.01)",
            "audio_to_image/recall@1": "recordings that find their picture at the first place (chance 0.002)",
            "audio_to_text/recall@1": "recordings that find their sentence at the first place (chance 0.002)",
        },
        (
            Sample(
                "Sentences find pictures", ("sentence", "the six most similar of 500 pictures", "right one at"),
                s.search_by_sentence, s.rows_of_sentences,
                "The first five test sentences, among the first 500 test pictures. A frame marks the right one.",
            ),
            Sample(
                "Sentences whose picture is not the first",
                ("sentence", "the six most similar of 500 pictures", "right one at"),
                s.search_by_many, s.rows_of_misses, "The first ones of 100 test sentences.",
            ),
            Sample(
                "Spoken sentences find pictures",
                ("recording", "what it says", "the six most similar of 500 pictures", "right one at"),
                s.search_by_speech, s.rows_of_speech, "The model hears the recording alone.",
                ("image", "text", "audio"),
            ),
            Sample(
                "Pictures find sentences", ("picture", "first", "second", "third", "right one at"),
                s.search_sentences, s.rows_of_pictures, "Among 500 sentences.",
            ),
        ),
        lambda tables: (tables[0][0][1], tables[0][0][0]),
        examples=500,
    ),
    "captioning": Kind(
        "Pictures to sentences",
        "The captions are parsed with the grammar of the data set: wrong words are marked.",
        {
            "test/factor_accuracy": "of all sizes, colours, textures, shapes, numbers, places and relations in the "
            "scenes, those that the captions have right",
            "test/exact_accuracy": "captions that have all of them right",
            "compositions/factor_accuracy": "the first score, for scenes with pairs of shape and colour that training "
            "never showed",
            "test/bleu": "BLEU with five references, out of 100; there are many more right captions than five",
        },
        (
            Sample("Captions", ("picture", "generated", "caption of the data"), s.caption, s.rows_of_captions),
            Sample(
                "Captions that miss something", ("picture", "generated", "caption of the data"),
                s.caption_all, s.rows_of_mistakes, "The first ones among the captions of 100 test pictures.",
                ("image", "text", "meaning"),
            ),
        ),
        lambda tables: (tables[0][0][0], _text(tables[0][0][1])),
        examples=100,
    ),
    "fusion": Kind(
        "Questions about pictures",
        "The model answers with one of a list of words. The second picture is bright where it looks.",
        {
            "test/accuracy": "right answers about unseen scenes",
            "test/relation_accuracy": "right answers about what is left of, right of, above or below what",
            "compositions/accuracy": "right answers about scenes with pairs of shape and colour that training never "
            "showed",
            "given_text/accuracy": "right answers where the picture is missing",
        },
        (
            Sample("Answers", ("picture, attention", "question", "answer", "right"), s.answer, s.rows_of_answers),
            Sample(
                "Wrong answers", ("picture", "question", "answer", "right"), s.answer_all, s.rows_of_wrong_answers,
                "The first ones among the answers to 100 test questions.",
            ),
        ),
        lambda tables: (tables[0][0][0], f"{tables[0][0][1]}? {_text(tables[0][0][2])}"),
        examples=100,
    ),
    "speech_recognition": Kind(
        "Speech to text",
        "Synthetic voices read sentences that training never had.",
        {
            "test/wer": "word error rate on unseen sentences",
            "voices/wer": "word error rate on unseen sentences in voices that training never had",
            "compositions/wer": "word error rate on sentences with pairs of shape and colour that training never had",
        },
        (
            Sample(
                "Transcripts", ("recording", "transcript", "spoken sentence"),
                s.transcribe, s.rows_of_transcripts, needs=("text", "audio"),
            ),
            Sample(
                "Mistakes", ("recording", "transcript", "spoken sentence"),
                s.transcribe_unseen_voices, s.rows_of_wrong_transcripts,
                "The first ones among 300 recordings in voices that training never had. Missing words are in brackets.",
                ("text", "audio"),
            ),
        ),
        lambda tables: (tables[0][0][0].picture, _text(tables[0][0][1])),
    ),
    "speech_synthesis": Kind(
        "Text to speech",
        "The model generates a spectrogram, and the Griffin-Lim algorithm turns it into sound.",
        {
            "test/mel_distance": "mean absolute difference between the log-mel spectrograms of synthesis and recording "
            "after time warping, in nats",
            "test/length_error": "mean relative difference of their lengths; recordings of one voice vary by up to 8% "
            "themselves",
            "test/wer": "word error rate of a recogniser that never heard synthesised speech",
        },
        (
            Sample(
                "Speech", ("sentence", "synthesised", "recording"),
                s.speak, s.rows_of_synthesis, "In the voice of the recording.", ("text", "audio"),
            ),
            Sample(
                "What a recogniser hears", ("sentence", "transcript of the synthesised speech"),
                s.speak_and_listen, s.rows_of_listening, needs=("text", "audio"),
            ),
        ),
        lambda tables: (tables[0][0][1].picture, tables[0][0][0].partition(" (")[0]),
    ),
    "text_to_image_gan": Kind(
        "Sentences to pictures, by a GAN",
        "The sentence determines what the objects are, the noise where they are. The captioner that takes part in the "
        "training (--redescribe) is another run than the judge: captioning.py --seed 1.",
        DRAWING_SCORES,
        (
            Sample(
                "Captions and noise", ("caption", "real picture", "drawn"), s.draw, s.rows_of_drawings,
                "Each column of drawn pictures has the same noise.",
            ),
            Sample("From one noise to another", ("caption", "real picture", "drawn"), s.move_noise, s.rows_of_drawings),
            Sample(
                "What a captioner reads in drawn pictures", ("caption", "drawn", "read"),
                s.draw_and_describe, s.rows_of_descriptions,
            ),
            Sample(
                "Drawn pictures that miss something", ("caption", "drawn", "read"),
                s.draw_and_describe, s.rows_of_wrong_drawings,
                "The first ones of 100, as the captioner reads them, which is seldom wrong itself.",
                ("image", "text", "meaning"),
            ),
        ),
        lambda tables: (tables[0][0][2], tables[0][0][0]),
        examples=100,
    ),
    "text_to_image_flow": Kind(
        "Sentences to pictures, by flow matching",
        "A network moves noise along a flow to a picture.",
        DRAWING_SCORES,
        (
            Sample(
                "Captions and noise", ("caption", "real picture", "drawn"), s.draw, s.rows_of_drawings,
                "Each column of drawn pictures has the same noise.",
            ),
            Sample(
                "What a captioner reads in drawn pictures", ("caption", "drawn", "read"),
                s.draw_and_describe, s.rows_of_descriptions,
            ),
            Sample(
                "Drawn pictures that miss something", ("caption", "drawn", "read"),
                s.draw_and_describe, s.rows_of_wrong_drawings,
                "The first ones of 100, as the captioner reads them, which is seldom wrong itself.",
                ("image", "text", "meaning"),
            ),
            Sample(
                "Changed pictures", ("picture", "changed toward", "with strength 0.25, 0.5, 0.75, 1"),
                s.edit, s.rows_of_edits, "Each picture is changed toward the caption of the next one.",
            ),
            Sample(
                "The right half drawn anew", ("caption", "picture", "four noises"),
                s.inpaint, s.rows_of_inpainting,
            ),
        ),
        lambda tables: (tables[0][0][2], tables[0][0][0]),
        examples=100,
    ),
    "gan_zoo": Kind(
        "Objectives of the GAN",
        "The same small network (DCGAN) with different objectives after the same few steps. None has converged.",
        {
            "*/judge_kernel_distance": "kernel distance of the pictures from real ones in the judge's features",
        },
        (
            Sample(
                "The same captions and noise", ("objective", "the first eight test captions"),
                s.draw_with_each, s.rows_of_objectives,
            ),
        ),
        lambda tables: (tables[0][1][1], _text(tables[0][1][0])),
        load=load_each,
    ),
    "vae": Kind(
        "Autoencoder of pictures",
        "A VAE of scenes with one object.",
        {
            "reconstruction_image/mse": "mean squared error of reconstructed pixels in 0 to 1",
            "reconstruction_image/ssim": "their structural similarity; 1 is equal",
            "likelihood/test": "log-likelihood of test pictures in nats, estimated from 100 importance samples",
            "latent/probe": "accuracy with which a linear classifier reads the shape off the latents (chance 0.125)",
        },
        (
            Sample(
                "Reconstructions", ("", "pictures"), s.reconstruct, s.rows_of_reconstructions, needs=("image",)
            ),
            Sample(
                "From one picture to another", ("test pictures", "along the straight line between their latents"),
                s.interpolate, s.rows_of_interpolations, needs=("image",),
            ),
            Sample(
                "Samples", ("decoded from samples of the prior",), s.sample_prior, s.rows_of_samples,
                needs=("image",),
            ),
        ),
        lambda tables: (tables[1][0][1], "from one picture to another"),
        implied={"input.modalities": ["image"]},
    ),
    "multimodal_vae": Kind(
        "One latent space for pictures, sketches, sentences and speech",
        "A multimodal VAE of scenes with one object: each modality from any others, or all from a sample. After these "
        "few steps places and some colours cross over, shapes hardly, and speech has no words.",
        {
            "cross/coherence@1": "how often what is generated from one modality has the right shape (chance 0.125)",
            "cross/coherence@3": "the same from three modalities",
            "reconstruction_image/ssim": "structural similarity of pictures reconstructed from all modalities",
            "reconstruction_text/token_accuracy": "right tokens of captions reconstructed from all modalities",
        },
        (
            Sample(
                "From a picture", ("given", "sketch", "sentence", "speech"),
                s.translate_pictures, s.rows_of_outputs("image"), needs=LATENT,
            ),
            Sample(
                "From a sentence", ("given", "pictures (four samples)", "speech"),
                s.translate_sentences, s.rows_of_outputs("text"), needs=LATENT,
            ),
            Sample(
                "From speech", ("given", "pictures (four samples)", "sentence"),
                s.translate_speech, s.rows_of_outputs("audio"), needs=LATENT,
            ),
            Sample(
                "Samples", ("picture", "sketch", "sentence", "speech"), s.sample_jointly,
                s.rows_of_outputs(sounds=True),
                "All modalities of a row are decoded from one sample of the prior.", LATENT,
            ),
        ),
        lambda tables: (tables[0][0][1], _text(tables[0][0][2])),
        implied={"input.modalities": list(LATENT)},
    ),
}  # fmt: skip
"""What the gallery shows, by the name of the script that trains such runs, in the order of the page."""


def _text(cell: Any) -> str:
    """The words of a cell that holds a text."""
    return cell if isinstance(cell, str) else " ".join(words for words, _ in cell.pieces)
