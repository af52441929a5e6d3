"""Text from pictures, videos and speech: trained captioners and speech recognisers on new data."""

from __future__ import annotations

from typing import Any

from xmodal_jax.evaluation.text import LanguageModelConfig, TextGenerator, read_language_model
from xmodal_jax.inference.inputs import as_list
from xmodal_jax.inference.model import BATCH_SIZE, RestoredRun, TrainedModel
from xmodal_jax.models.seq2seq import Generation, GenerationConfig, Seq2SeqConfig
from xmodal_jax.models.towers import encoder_of, max_audio_seconds
from xmodal_jax.train.run import from_json


class TextModel(TrainedModel):
    """A trained model that generates a text for each input of one modality, ``source``."""

    def __init__(self, run: RestoredRun):
        """See `inference.load`."""
        metadata = run.checkpoint.metadata
        super().__init__(run, (metadata["source"],))
        self.source: str = metadata["source"]
        """The modality of the inputs."""
        self.config = from_json(Seq2SeqConfig, metadata["config"]["model"])
        """Configuration of the network."""
        self._default = from_json(Generation | None, metadata["config"]["generation"])
        if (
            self.source == "audio"
        ):  # recordings may be longer than those of training, if the encoder takes them
            limit = max_audio_seconds(encoder_of(self.config, self.source))
            self.format = self.format._replace(max_seconds=None).limit_audio(limit)
        language = from_json(LanguageModelConfig | None, metadata["config"].get("language"))
        self.language = read_language_model(self.path, language)
        """The language model that the decoder's search uses; None: there is none."""
        self._generators: dict[GenerationConfig | None, TextGenerator] = {}

    def generate(self, inputs: Any, generation: GenerationConfig | None = None) -> list[str]:
        """Generates a text for each input.

        Args:
          inputs: of the modality `source`, a list or a single one.
          generation: how texts are decoded, such as ``BeamSearchConfig(beams=8)`` or ``SamplingConfig(seed=1)``; None:
            as configured in the run.
        """
        inputs = as_list(self.source, inputs)
        if not len(inputs):
            return []
        chosen = self._default if generation is None else generation
        if not isinstance(chosen, GenerationConfig | None):
            raise TypeError(
                f"generation is one of xmodal_jax.models.seq2seq, such as BeamSearchConfig(beams=8), got {chosen!r}"
            )
        if chosen not in self._generators:
            self._generators[chosen] = TextGenerator(
                self.config,
                self.source,
                self.format.transform.tokenizer,
                length=self.metadata["length"],
                decodings={"chosen": chosen},
                batch_size=BATCH_SIZE,
                few_shapes=True,
                language=self.language,
            )
        return self._generators[chosen](self.params, self.read({self.source: inputs}), "chosen")


class Captioner(TextModel):
    """A trained captioner of pictures or videos.

    ::

        load("runs/captioning").caption(["a.png", "b.png"])  # ["a red star", "two blue rings"]
    """

    kind = "captioning"
    actions = ("caption",)

    def caption(self, inputs: Any, generation: GenerationConfig | None = None) -> list[str]:
        """Captions each picture or video. ``generation``: how texts are decoded, such as ``BeamSearchConfig(beams=8)``;
        None: as configured in the run."""
        return self.generate(inputs, generation)


class SpeechRecognizer(TextModel):
    """A trained speech recogniser.

    ::

        load("runs/speech_recognition").transcribe(["a.wav", (waveform, 16000)])  # ["a red star", ...]
    """

    kind = "speech_recognition"
    actions = ("transcribe",)

    def transcribe(self, audio: Any, generation: GenerationConfig | None = None) -> list[str]:
        """Transcribes each recording. ``generation``: how texts are decoded, such as ``BeamSearchConfig(beams=8)``;
        None: as configured in the run."""
        return self.generate(audio, generation)
