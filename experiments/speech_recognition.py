"""Speech to text, by attention, by CTC or by both.

    python experiments/speech_recognition.py
    python experiments/speech_recognition.py --model.objective ctc
    python experiments/speech_recognition.py --data folder:PATH --tokenizer bpe --vocab-size 260
    python experiments/speech_recognition.py --data folder:PATH --init-from runs/speech_recognition-20250131-101500
    python experiments/speech_recognition.py --data folder:PATH --text-cleanup whisper --language.lines words.txt

Only sentences that do not occur in training are scored (--no-unseen: all). The report also compares the other decodings
that the trained model allows, such as greedy and beam search.
"""

from __future__ import annotations

import dataclasses

from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.splits import fit_tokenizer, open_splits
from xmodal_jax.evaluation.text import ReferenceTexts, TextGenerationConfig, TextGenerator, source_modality
from xmodal_jax.experiment import evaluate_seeds, make_loader, start, subtitle, write_report
from xmodal_jax.models.seq2seq import JointObjective, Seq2SeqConfig, make_seq2seq
from xmodal_jax.models.towers import Augmentation, precompute_spectrograms
from xmodal_jax.report import figures
from xmodal_jax.report import text as panels
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.config import DataFlags
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextGenerationConfig):
    """Text from speech."""

    input: DataFlags = DataOptions(train_size=8000, modalities=("text", "audio"))
    steps: int = 900
    batch_size: int = 64
    eval_every: int = 300
    unseen: bool = True
    """Whether to score only sentences that are not among the training sentences."""
    model: Seq2SeqConfig = Seq2SeqConfig(
        objective=JointObjective(), augment=Augmentation(time_masks=2, frequency_masks=2)
    )
    """Encoder, decoder and objective."""
    optimizer: Optimizer = Optimizer(name="muon", learning_rate=5e-3)
    """Update rule and learning-rate schedule."""


def main(config: Config) -> None:
    config, run, timer, bad_examples, pretrained = start(config)
    model = config.model

    # Data: sentences and their speech, whose spectrogram is computed once.
    with timer("data"):
        splits = open_splits(config.data, config.input, bad_examples)
        source_modality(splits.train, ("audio",))
        tokenize, captions = fit_tokenizer(splits.train, bad_examples, **config.text_options)
        tokenizer, known = tokenize.tokenizer, set(captions) if config.unseen else set()
        to_frames = precompute_spectrograms(model.features, model.augment)
        loader = make_loader(config, splits.train, tokenize, bad_examples=bad_examples, once=to_frames)
        validation = ReferenceTexts(splits.validation, tokenize.clean)
        references = {
            name: ReferenceTexts(split, tokenize.clean, exclude=known) for name, split in splits.tests.items()
        }

    # The method: an encoder with a decoder, a CTC head or both. "test" is the decoding that was asked for.
    sizes = dict(length=tokenize.max_length)
    method = make_seq2seq(model, "audio", vocab_size=tokenizer.vocab_size, **sizes)
    method = pretrained.attach(method, tokenizer)
    optimizer = pretrained.set_learning_rates(config.optimizer, method)
    requested = config.generation or model.decodings[0]
    others = {other.name: other for other in model.decodings if other.name != requested.name}
    decodings = {"test": requested, **others}
    options = dict(decodings=decodings, seed=config.seed, language=config.language.fit(tokenize, run))
    generate = TextGenerator(model, "audio", tokenizer, **options, **sizes)
    fastest = next(name for name in ("ctc", "greedy", "test") if name in decodings)

    def validate(params):
        """Error rates of the fastest decoding; the checkpoint with the highest word accuracy is the best."""
        transcripts = generate(params, validation.source, decoding=fastest)
        scores = validation.error_rates(transcripts, prefix="validation/")
        return scores | {"validation/word_accuracy": 1 - scores["validation/wer"]}

    source = {"kind": "speech_recognition", "source": "audio", "target": "text", "shape": ()}
    metadata = source | {"tokenizer": tokenizer.files(), **sizes}
    result = fit(
        method, loader, config, optimizer, run, timer,
        evaluate=validate, monitor="validation/word_accuracy", metadata=metadata,
    )  # fmt: skip

    # Test: every split, and the last one, which is the hardest, with all other decodings.
    hardest = list(references)[-1]

    def test(params):
        """``(metrics, transcripts of the hardest split)``."""
        metrics, transcripts = {}, {}
        for name, split in references.items():
            transcripts[name] = generate(params, split.source, decoding="test")
            metrics |= split.error_rates(transcripts[name], prefix=f"{name}/")
        for decoding in others:
            texts = generate(params, references[hardest].source, decoding)
            metrics |= references[hardest].error_rates(texts, prefix=f"{hardest}_{decoding}/")
        return metrics, transcripts[hardest]

    metrics, transcripts = evaluate_seeds(test, result, timer)
    if not run.writes:
        return
    title, details = "Speech to text", subtitle(config, result, model.objective.name, shown="transcripts")
    with write_report(run, title, details, metrics, timer, bad_examples, result) as report:
        panels.add_scores(report, metrics, headline=[k for k in metrics if k.endswith("/wer")][:6])
        quality, marks = panels.transcript_quality(references[hardest], transcripts)
        options = dict(measure="word accuracy")
        panels.add_generated_texts(report, references[hardest], "audio", quality, marks, **options)
        panels.add_attention(report, generate, result.params[0], references[hardest], transcripts)
        report.add_figure("Training curves", figures.curves(run.read_metrics()))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
