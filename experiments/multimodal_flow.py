"""Any modality from any others by flow matching: an autoencoder for each, and one flow over all of their codes.

    python experiments/multimodal_flow.py
    python experiments/multimodal_flow.py --recogniser RUN --missing 0.5 --model.flow.guidance 3
    python experiments/multimodal_flow.py --data poly:folder:PATH --views 5 --train-size 10000

The first command translates between images, sketches, captions and speech of the embedded data set's scenes with one
object. First the autoencoders are trained, whose codes are computed once; then the flow, on codes alone. A classifier
of each modality (judge) tells which class generated data show, a run of speech_recognition.py what speech says.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import tyro

from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader, numeric_fields
from xmodal_jax.data.splits import choose_batch_size
from xmodal_jax.evaluation import codes
from xmodal_jax.evaluation import latent as evaluation
from xmodal_jax.evaluation.latent_data import open_latent, with_modalities
from xmodal_jax.experiment import start, subtitle, write_report
from xmodal_jax.inference.translators import load_recognizer
from xmodal_jax.models.flow.multimodal import CodeFlowConfig, MultimodalFlowConfig, make_multimodal_flow
from xmodal_jax.models.vae.judges import make_judges
from xmodal_jax.models.vae.modalities import sizes_of
from xmodal_jax.report import figures
from xmodal_jax.report import latent as latent_report
from xmodal_jax.report.transfer import add_multimodal_flow
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import stack_scores
from xmodal_jax.transfer.autoencoders import LatentConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LatentConfig):
    """A flow over the codes of several modalities."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(train_size=20_000, max_seconds=3.0)
    """Options of the data set, such as its number of examples; their flags have no prefix (``--train-size``)."""
    steps: int = 4500
    """Training steps of the flow."""
    batch_size: int = 64
    """Examples per step of the flow, over all devices together."""
    autoencoder_steps: int = 1000
    """Training steps of the autoencoders."""
    autoencoder_batch_size: int = 64
    """Examples per step of the autoencoders and of the judges."""
    judge_steps: int = 500
    """Training steps of each judge, a classifier that evaluates the generated data of one modality."""
    recogniser: pathlib.Path | None = None
    """Directory of a run of speech_recognition.py, which transcribes generated speech; None: no transcripts."""
    model: MultimodalFlowConfig = MultimodalFlowConfig(flow=CodeFlowConfig(time_mean=-1.0, shift=2.0))
    """Autoencoders, and the flow over their codes."""
    optimizer: Optimizer = Optimizer("muon", learning_rate=5e-3, ema=0.999)
    """Update rule and learning-rate schedule of the flow."""
    autoencoder_optimizer: Optimizer = Optimizer("muon", learning_rate=1e-2)
    """Update rule and learning-rate schedule of the autoencoders."""
    evaluation: evaluation.LatentEvaluation = codes.EVALUATION
    """Numbers of examples and of samples in the evaluation of the trained model."""


def main(config: Config) -> None:
    config = with_modalities(config)
    config, run, timer, bad_examples, pretrained = start(config, shrink=codes.shrink_flow)
    model = config.model
    recognise = load_recognizer(config.recogniser, sample_rate=model.audio.sample_rate)

    # Data: examples whose class is known, which the judges need; speech as frames, computed once.
    with timer("data"):
        data = open_latent(config, model, bad_examples)
        speech = recognise and codes.SpeechEvaluator(recognise, model, data)
    batch_size = choose_batch_size(config.autoencoder_batch_size, data.source, bad_examples)
    loader = Loader(data.source, batch_size=batch_size, seed=config.seed, transform=data.transform)
    example = numeric_fields(loader.example())
    sizes = sizes_of(example, data.modalities, model, vocab_size=data.vocab_size, classes=data.classes)

    # The judges, and the autoencoders: trainings of their own within this run.
    flow, judges = make_multimodal_flow(model, sizes), make_judges(model, sizes, data.classes)
    judge_params = evaluation.fit_judges(judges, loader, config, run, timer, config.judge_steps)
    optimizer = pretrained.set_learning_rates(config.autoencoder_optimizer)
    method = pretrained.attach(flow.codes.method, sizes)
    steps = config.autoencoder_steps
    autoencoders = codes.fit_autoencoders(method, loader, config, optimizer, run, timer, steps)

    # The flow, on the codes of the training set.
    with timer("codes"):
        encoded = codes.encode_source(flow.codes, autoencoders, data.source, data.transform)
    loader = codes.make_code_loader(encoded, config, bad_examples)
    method = flow.method(autoencoders, encoded.statistics)
    evaluator = evaluation.LatentEvaluator(
        flow.as_vae(), model, judges, seed=config.seed, end_id=data.end_id, pad_id=data.pad_id
    )
    validate = codes.make_validation(evaluator, judge_params, data.validation) if config.eval_every else None
    optimizer, metadata = codes.freeze_trained(config.optimizer), codes.flow_metadata(sizes, data, example)
    result = fit(method, loader, config, optimizer, run, timer, evaluate=validate, metadata=metadata)

    # Test: generation across modalities and jointly.
    with timer("evaluation"):
        results = codes.evaluate_seeds(flow, evaluator, result, judge_params, data, config.evaluation, speech)
    metrics = stack_scores([each.metrics for each in results])
    if not run.writes:
        return

    title, details = "Any modality from any others", subtitle(config, result, "flow matching")
    with write_report(run, title, details, metrics, timer, bad_examples, result) as report:
        latent_report.add_coherence_tables(report, metrics, classes=data.classes)
        add_multimodal_flow(report, flow, evaluator, result.params[0], data, results[0], run.path)
        report.add_figure("Training curves", figures.curves(run.read_metrics()))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
