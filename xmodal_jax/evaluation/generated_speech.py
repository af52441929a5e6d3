"""Speech that a model of several modalities generates, transcribed by a recogniser that it was not trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.data.source import Source
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.views import Subset
from xmodal_jax.evaluation.embeddings import predict_all, take_evenly
from xmodal_jax.evaluation.latent import LatentEvaluator, present_matrix
from xmodal_jax.evaluation.latent_data import LatentData
from xmodal_jax.evaluation.speech import TranscribedSpeech
from xmodal_jax.models.vae.modalities import ModalityConfigs
from xmodal_jax.types import kind_of

EXAMPLES = 100
"""Largest number of test examples, and of joint samples, whose generated speech is transcribed."""


def complete_examples(evaluator: LatentEvaluator, source: Source) -> Source | None:
    """The examples of ``source`` that have all modalities of the model; None: there is none."""
    indices = np.flatnonzero(present_matrix(evaluator, source).all(axis=1))
    return Subset(source, indices) if len(indices) else None


class SpeechEvaluator:
    """Generates speech from what test examples hold and jointly, and has it transcribed.

    Args:
      recognizer: a function from waveforms to texts, see `inference.translators.load_recognizer`.
      configs: of the model's modalities.
      data: the data set; its texts are what generated speech should say.

    Raises:
      ValueError: the data have no speech, or no text that says what the speech says.
    """

    def __init__(
        self,
        recognizer: Callable[[list[np.ndarray]], list[str]],
        configs: ModalityConfigs,
        data: LatentData,
    ):
        """See the class for the arguments."""
        first = lambda kind: next((m for m in data.modalities if kind_of(m) == kind), None)
        self.speech, self.text = first("audio"), first("text")
        if self.speech is None or self.text is None:
            raise ValueError(
                f"--recogniser needs the modalities audio and text, and the data have {', '.join(data.modalities)}: "
                "leave it out"
            )
        self.recognizer, self.audio = recognizer, configs.for_modality(self.speech)
        self.tokenizer = data.tokenize.tokenizer
        self._programs: dict[str, Callable] = {}

    def __call__(
        self,
        evaluator: LatentEvaluator,
        params: Any,
        source: Source,
        draws: np.ndarray,
        *,
        examples: int = EXAMPLES,
    ) -> dict[str, TranscribedSpeech]:
        """Speech by what it was generated from.

        The keys are: the name of each other modality, from which alone it was generated; ``others``, all of them (if
        they are several); ``joint``, with a text that was generated together with it, and that it should say;
        ``reconstruction``, from the example's own speech; and ``recordings``, the examples' own spectrograms as sound,
        which no generated speech can surpass.

        Args:
          evaluator: the model.
          params: its parameters.
          source: test examples, of which those with all modalities are used.
          draws: latents of joint samples ``[N, D]``.
          examples: largest number of test examples, and of joint samples.
        """
        speech, complete = {}, complete_examples(evaluator, source)
        if complete is not None:
            chosen = take_evenly(complete, examples)
            options = dict(batch_size=evaluator.batch_size, transform=evaluator.transform)
            frames, ids, mask = predict_all(self._program(evaluator, "generate"), params, chosen, **options)
            texts = self.tokenizer.decode_batch(ids, mask)
            for name, of_origin in zip(self.origins(evaluator), np.moveaxis(frames, 1, 0), strict=True):
                speech[name] = self._transcribe(of_origin, texts)
        shared = ArraySource({"shared": np.asarray(draws[:examples], np.float32)})
        joint = self._program(evaluator, "joint")
        frames, ids, mask = predict_all(joint, params, shared, batch_size=evaluator.batch_size)
        return speech | {"joint": self._transcribe(frames, self.tokenizer.decode_batch(ids, mask))}

    def origins(self, evaluator: LatentEvaluator) -> list[str]:
        """What speech is generated from, in the order of `_observed`; and the recordings."""
        others = [m for m in evaluator.modalities if m != self.speech]
        return [*others, *(["others"] if len(others) > 1 else []), "reconstruction", "recordings"]

    def _observed(self, evaluator: LatentEvaluator) -> np.ndarray:
        """The modalities that speech is generated from, a row for each of `origins` but the recordings."""
        is_speech = np.array([m == self.speech for m in evaluator.modalities])
        single = np.eye(len(is_speech), dtype=bool)[~is_speech]
        together = [~is_speech] if len(single) > 1 else []
        return np.stack([*single, *together, is_speech])

    def _program(self, evaluator: LatentEvaluator, name: str) -> Callable:
        """The function ``name`` of a batch, the same object in every call, so that it is compiled once."""
        if name not in self._programs:
            function = {"generate": self._generate, "joint": self._generate_jointly}[name]
            self._programs[name] = lambda params, batch: function(evaluator, params, batch)
        return self._programs[name]

    def _generate(self, evaluator: LatentEvaluator, params: Any, batch: Any):
        """Log-mel frames ``[B, origins, F, mels]``, and the batch's texts with their mask."""
        latents = evaluator.vae.infer(params, batch, self._observed(evaluator), evaluator.key).z
        generated = jax.lax.map(lambda z: evaluator.decode_sample(params, z)[self.speech], latents)
        recordings = self.audio.to_frames(batch[self.speech], batch[f"{self.speech}_mask"])
        frames = jnp.concatenate([generated, self.audio.to_log_mel(recordings)[None]])
        return jnp.moveaxis(frames, 0, 1), batch[self.text], batch[f"{self.text}_mask"]

    def _generate_jointly(self, evaluator: LatentEvaluator, params: Any, batch: Any):
        """Log-mel frames, and texts with their mask, generated from the latents ``batch["shared"] [B, D]``."""
        key = jax.random.fold_in(evaluator.key, batch["index"][0])
        z = evaluator.vae.decoder_latents(params, batch["shared"], key)
        generated = evaluator.decode_sample(params, z)
        return generated[self.speech], generated[self.text], generated[f"{self.text}_mask"]

    def _transcribe(self, frames: np.ndarray, texts: list[str]) -> TranscribedSpeech:
        """Log-mel frames as sound, and what the recogniser hears in it."""
        source = ArraySource({"frames": np.asarray(frames)})
        waves, mask = predict_all(self._to_waves, {}, source, batch_size=50)
        waves = self.audio.cut_waveforms(np.clip(waves, -1.0, 1.0), mask)
        return TranscribedSpeech(waves, self.recognizer(waves), texts)

    def _to_waves(self, params: Any, batch: Any):
        """The waveforms of the batch's ``frames``, and which frames are not the silence at the end."""
        return self.audio.waveforms(batch["frames"]), self.audio.speech_mask(batch["frames"])


def speech_metrics(speech: dict[str, TranscribedSpeech]) -> dict[str, float]:
    """``speech_from_<origin>/wer`` and ``/cer`` of generated speech, ``speech_joint`` of speech that is generated
    together with its text, ``speech_reconstruction`` and ``speech_recordings``. See `SpeechEvaluator`."""
    not_modalities = ("joint", "reconstruction", "recordings")
    prefix = lambda name: f"speech_{name}" if name in not_modalities else f"speech_from_{name}"
    return {f"{prefix(name)}/{k}": v for name, each in speech.items() for k, v in each.rates.items()}
