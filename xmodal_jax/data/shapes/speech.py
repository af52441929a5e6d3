"""Speech from text by eSpeak NG: voices, single utterances, and a disk cache of many."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

SAMPLE_RATE = 16_000
_VERSION = 1  # of the synthesis; a new version does not read the caches of older ones
_WORKER = Path(__file__).with_name("espeak.py")


@dataclass(frozen=True)
class Voice:
    """How a text is spoken.

    Raises:
      ValueError: a number outside its range.
    """

    name: str
    """An eSpeak NG language and variant, such as ``en-us+f2``."""
    speed: int = 220
    """Words per minute, 80..450."""
    pitch: int = 50
    """Pitch on the scale of eSpeak NG, 0..100."""
    pitch_range: int = 50
    """How much the pitch varies, 0..100."""

    def __post_init__(self):
        for field, low, high in (("speed", 80, 450), ("pitch", 0, 100), ("pitch_range", 0, 100)):
            if not low <= getattr(self, field) <= high:
                raise ValueError(f"Voice.{field} must lie in {low}..{high}, got {getattr(self, field)}")


def _voices(
    names: str, speeds: Sequence[int], pitches: Sequence[int], ranges: Sequence[int]
) -> tuple[Voice, ...]:
    """One voice for each of ``names``, separated by spaces; speeds, pitches and pitch ranges are taken in turn."""
    return tuple(
        Voice(name, speeds[i % len(speeds)], pitches[i % len(pitches)], ranges[i % len(ranges)])
        for i, name in enumerate(names.split())
    )


TRAIN_VOICES = _voices(
    "en-us en-us+m1 en-us+m2 en-us+m3 en-us+m5 en-us+f1 en-us+f2 en-us+f4 "
    "en-gb-x-rp en-gb-x-rp+m1 en-gb-x-rp+m3 en-gb-x-rp+m7 en-gb-x-rp+f1 en-gb-x-rp+f2 en-gb-x-rp+f4 "
    "en-gb-scotland en-gb-scotland+m2 en-gb-scotland+m5 en-gb-scotland+f1 en-gb-scotland+f4 "
    "en-029+m1 en-029+m7 en-029+f2 en-029+f4",
    (215, 235, 225, 245, 220), (50, 40, 60), (50, 65, 40, 55),
)  # fmt: skip
UNSEEN_VOICES = _voices(
    "en-us+m4 en-us+f3 en-us+f5 en-gb-x-rp+m6 en-gb-x-rp+f5 en-gb-scotland+m4 en-gb-scotland+f3 "
    "en-gb-x-gbcwmd+m6",
    (225, 240, 215), (45, 58), (45, 60, 52),
)  # fmt: skip
"""Voices of variants that no training voice has."""
VOICES = (*TRAIN_VOICES, *UNSEEN_VOICES)
"""All voices of English; a speaker is an index into them."""


class Voices(NamedTuple):
    """The voices of a language."""

    train: tuple[Voice, ...]
    """Voices of training."""
    unseen: tuple[Voice, ...]
    """Voices of variants that no training voice has."""

    def choose(self, draws: np.ndarray, *, unseen: bool) -> np.ndarray:
        """Speakers int32 ``[N]``, indices into ``(*train, *unseen)``, from random ``draws`` ``[N]`` in [0, 1).

        ``unseen``: whether they are chosen among the unseen voices rather than those of training.
        """
        pool, offset = (self.unseen, len(self.train)) if unseen else (self.train, 0)
        return (offset + np.floor(draws * len(pool))).astype(np.int32)

    def vary(self, speakers: np.ndarray, pitch: np.ndarray, speed: np.ndarray) -> list[Voice]:
        """The voices of ``speakers`` ``[N]`` with pitch and speed varied a little.

        ``pitch`` and ``speed``: random numbers ``[N]`` in [0, 1). 0.5 is the speaker's usual pitch or speed; the range
        is 8 steps of pitch, or 8% of speed, to both sides.
        """
        voices, varied = (*self.train, *self.unseen), []
        for speaker, p, s in zip(speakers.tolist(), pitch.tolist(), speed.tolist(), strict=True):
            usual = voices[speaker]
            speed_of_voice = round(usual.speed * (0.92 + 0.16 * s))
            varied.append(replace(usual, pitch=usual.pitch + round(16 * p - 8), speed=speed_of_voice))
        return varied


ENGLISH = Voices(TRAIN_VOICES, UNSEEN_VOICES)


def voices_of(language: str) -> Voices:
    """The voices of a language by its name in eSpeak NG, such as ``es``; ``en``: those of several dialects of English.

    Another language has eight variants of its voice, and four more as unseen voices. eSpeak NG names the languages that
    it does not have when it speaks.
    """
    if language == "en":
        return ENGLISH
    names = lambda variants: " ".join(f"{language}+{variant}" for variant in variants.split())
    varied = (215, 235, 225, 245, 220), (50, 40, 60), (50, 65, 40, 55)
    return Voices(_voices(names("m1 m2 m3 m5 m7 f1 f2 f4"), *varied), _voices(names("m4 m6 f3 f5"), *varied))


def default_cache_dir() -> Path:
    """The folder of synthesised speech: ``$XMODAL_CACHE``, else ``~/.cache/xmodal_jax``."""
    return Path(os.environ.get("XMODAL_CACHE") or Path.home() / ".cache" / "xmodal_jax")


def _request(text: str, voice: Voice, max_seconds: float | None) -> dict:
    """The request that `espeak.utter` takes. Cache folders are named by a hash of it, so its keys must not change."""
    limit = None if max_seconds is None else int(max_seconds * SAMPLE_RATE)
    return {
        "text": text, "voice": voice.name, "rate": voice.speed, "pitch": voice.pitch,
        "pitch_range": voice.pitch_range, "max_samples": limit,
    }  # fmt: skip


class _EspeakProcess:
    """A process that runs ``espeak.py``: requests go in, samples come out."""

    def __init__(self, stdin=subprocess.PIPE):
        """Starts the process, which reads requests from ``stdin``: a pipe, or a file that holds all of them."""
        # -P: the script's folder must not shadow modules. The process loads neither JAX nor this package.
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)], stdin=stdin, stdout=subprocess.PIPE, stderr=self.errors
        )

    def _read(self, count: int) -> bytes:
        """``count`` bytes of the process's output; RuntimeError with its error messages if it ended before."""
        data = self.process.stdout.read(count)
        if len(data) < count:
            self.process.wait()
            self.errors.seek(0)
            tail = self.errors.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"the eSpeak NG process ended (status {self.process.returncode}):\n{tail}")
        return data

    def receive(self) -> bytes:
        """The samples of the next request; raises ValueError with the message if it failed."""
        count = int.from_bytes(self._read(4), "little", signed=True)  # of the bytes that follow
        if count < 0:  # they are an error message
            raise ValueError(self._read(-count).decode())
        return self._read(count)

    def ask(self, request: dict) -> bytes:
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return self.receive()

    def close(self) -> None:
        """End the process, also if it is still speaking."""
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()


_process: _EspeakProcess | None = None
_process_owner = 0
"""The id of the process that started it: a fork must start another."""
_process_lock = threading.Lock()


def synthesize(text: str, voice: Voice, *, max_seconds: float | None = None) -> np.ndarray:
    """Speech from text: int16 ``[T]`` at 16 kHz, silence trimmed, peak-normalised; the same in every call.

    A text that would take longer than ``max_seconds`` is spoken faster.

    Raises:
      ValueError: a voice that eSpeak NG does not have, or a text that does not fit at the highest speed.
    """
    global _process, _process_owner
    with _process_lock:
        # One eSpeak process serves all calls. Start another one if it has ended, or if this process is a fork of the
        # one that started it.
        if _process is not None and _process_owner == os.getpid() and _process.process.poll() is not None:
            _process.close()
            _process = None
        if _process is None or _process_owner != os.getpid():
            _process, _process_owner = _EspeakProcess(), os.getpid()
            atexit.register(_process.close)
        return np.frombuffer(_process.ask(_request(text, voice, max_seconds)), np.int16)


class Utterances:
    """Many utterances in one file, read as they are used: ``utterances[i]`` is int16 ``[T_i]`` at 16 kHz.

    Raises:
      ValueError: the files are damaged.
      FileNotFoundError: they are missing.
    """

    def __init__(self, folder: Path):
        """Opens a cache folder that `synthesize_all` wrote; the samples are memory-mapped."""
        try:
            header = json.loads((folder / "header.json").read_text())
            checksums = {name: int(header[name]) for name in ("offsets", "samples")}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{folder / 'header.json'} is damaged") from error
        self.folder = folder
        for name, checksum in checksums.items():  # first: NumPy raises many types for a damaged header
            if _checksum(folder / f"{name}.npy") != checksum:
                raise ValueError(f"{folder / name}.npy is damaged")
        self.offsets = np.load(folder / "offsets.npy")
        self._samples = np.load(folder / "samples.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self._samples[self.offsets[i] : self.offsets[i + 1]]

    def padded(self, indices: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """``(audio, mask)`` of the utterances ``indices``: int16 ``[B, seconds * 16000]``, padded with zeros, and bool
        of the same shape, False on padding."""
        audio = np.zeros((len(indices), int(seconds * SAMPLE_RATE)), np.int16)
        mask = np.zeros(audio.shape, bool)
        for b, i in enumerate(indices.tolist()):
            wave = self[i]
            audio[b, : len(wave)], mask[b, : len(wave)] = wave, True
        return audio, mask

    @property
    def lengths(self) -> np.ndarray:
        """Samples in each utterance, int64 ``[N]``."""
        return np.diff(self.offsets)


def add_noise(audio: np.ndarray, mask: np.ndarray, level: float, seeds: np.ndarray) -> None:
    """Adds white noise to int16 ``audio`` ``[N, T]`` where ``mask`` is True, in place.

    ``level``: RMS of the noise over RMS of the speech. ``seeds``: uint64 ``[N]``, a random seed for each recording.
    """
    for i, seed in enumerate(seeds.tolist()):
        wave = audio[i, mask[i]]
        rms = level * np.sqrt(np.mean(np.square(wave, dtype=np.float32)))
        white = np.random.Generator(np.random.Philox(seed)).standard_normal(len(wave), np.float32)
        audio[i, mask[i]] = np.clip(np.rint(wave + rms * white), -32768, 32767)


def _checksum(path: Path) -> int:
    """The CRC-32 of a file's content."""
    crc = 0
    with path.open("rb") as file:
        while data := file.read(1 << 22):  # 4 MiB at a time
            crc = zlib.crc32(data, crc)
    return crc


def _open_or_none(folder: Path) -> Utterances | None:
    try:
        return Utterances(folder)
    except (OSError, ValueError):
        return None


def synthesize_all(
    texts: Sequence[str],
    voices: Sequence[Voice],
    cache_dir: Path | None = None,
    *,
    workers: int | None = None,
    max_seconds: float | None = None,
) -> Utterances:
    """``texts[i]`` spoken in ``voices[i]``, from the cache on disk or else synthesised into it.

    The cache is a folder under ``cache_dir`` named by a hash of texts, voices and ``max_seconds``. It is written
    completely or not at all. Its checksum is verified when it is opened, and a damaged cache is written again. If
    several processes need the same cache, the first one writes it while the others wait.

    Args:
      texts, voices: of the same length.
      cache_dir: None: `default_cache_dir`.
      workers: number of processes that synthesise speech in parallel; None: one per CPU core. It does not change the
        samples.
      max_seconds: see `synthesize`.

    Raises:
      ValueError: as `synthesize`; different lengths; or ``workers`` below 1.
    """
    if len(texts) != len(voices):
        raise ValueError(f"texts and voices must have the same length, got {len(texts)} and {len(voices)}")
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    requests = [json.dumps(_request(t, v, max_seconds)) for t, v in zip(texts, voices, strict=True)]
    digest = hashlib.sha256(
        f"{_VERSION} {SAMPLE_RATE}\n".encode() + "\n".join(requests).encode()
    ).hexdigest()[:24]
    root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"speech-{digest}"
    utterances = _open_or_none(folder)
    if utterances is not None:
        return utterances
    with (root / f"speech-{digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        utterances = _open_or_none(folder)  # another process may have made it meanwhile
        if utterances is None:
            _remove_left_overs(root, digest)
            with tempfile.TemporaryDirectory(dir=root, prefix=f"speaking-{digest}-") as work:
                # At least 16 utterances per worker, since each has to start an eSpeak process.
                _write(requests, Path(work), min(workers, max(1, len(requests) // 16)))
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(Path(work) / "cache", folder)
            utterances = Utterances(folder)
    return utterances


def _remove_left_overs(root: Path, digest: str) -> None:
    """Removes the temporary folders of processes that were killed: those whose lock nobody holds, and those of the
    speech ``digest``, whose lock this process holds."""
    for folder in root.glob("speaking-*-*"):
        owner = folder.name.split("-")[1]
        with (root / f"speech-{owner}.lock").open("a") as lock:
            try:
                if owner != digest:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its process is speaking
            shutil.rmtree(folder, ignore_errors=True)


def _write(requests: list[str], work: Path, workers: int) -> None:
    """Synthesises the requests into the folder ``work/cache``, in the format that `Utterances` reads.

    Each worker speaks a contiguous part of the requests into a file of its own; then the files are joined in order.
    """
    bounds = np.linspace(0, len(requests), workers + 1).astype(int)
    lengths = np.zeros(len(requests), np.int64)
    errors: list[BaseException] = []
    with tqdm(total=len(requests), desc="speaking", unit="utterance", disable=len(requests) <= 500) as bar:
        threads = [
            threading.Thread(
                target=_speak_part, args=(requests, lo, hi, work / f"{lo}.raw", lengths, errors, bar.update)
            )
            for lo, hi in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:
            errors.append(error)  # tells the other threads to stop
            for thread in threads:
                thread.join()  # they write to the folder that is about to be removed
            raise
    if errors:
        raise errors[0]
    cache = work / "cache"
    cache.mkdir()
    np.save(cache / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
    with (cache / "samples.npy").open("wb") as out:
        header = {"descr": "<i2", "fortran_order": False, "shape": (int(lengths.sum()),)}
        np.lib.format.write_array_header_1_0(out, header)
        for lo in bounds[:-1].tolist():
            with (work / f"{lo}.raw").open("rb") as part:
                shutil.copyfileobj(part, out, 1 << 22)
    checks = {name: _checksum(cache / f"{name}.npy") for name in ("offsets", "samples")}
    (cache / "header.json").write_text(
        json.dumps({"version": _VERSION, "sample_rate": SAMPLE_RATE, **checks})
    )


def _speak_part(
    requests: list[str], lo: int, hi: int, path: Path, lengths: np.ndarray, errors: list, progress: Callable
) -> None:
    """Writes the speech of requests ``lo`` to ``hi - 1`` to the file ``path``, one utterance after the other.

    Sets their ``lengths`` (in samples), appends an error to ``errors``, and calls ``progress(1)`` after each utterance.
    """
    with tempfile.TemporaryFile() as lines, path.open("wb") as out:
        lines.write("".join(r + "\n" for r in requests[lo:hi]).encode())
        lines.seek(0)
        process = _EspeakProcess(stdin=lines)
        try:
            for i in range(lo, hi):
                if errors:  # another part has failed
                    return
                data = process.receive()
                out.write(data)
                lengths[i] = len(data) // 2  # 2 bytes per sample
                progress(1)
        except Exception as error:
            errors.append(error)
        finally:
            process.close()
