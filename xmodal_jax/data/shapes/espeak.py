"""A speaking process: reads requests as JSON lines from stdin, answers with samples on stdout (run as a
script).

It is started by path and imports nothing of the package, so that it starts fast and never loads JAX. eSpeak
NG keeps state from one utterance to the next (phases, flutter, random numbers), also over its own terminate
and initialise; so each utterance is spoken in a fork of the process as it was after initialising, and depends
on nothing said before. The process that forks is kept small, without NumPy, since a fork takes as long as the
process is large; its parent finishes what it says.

Answer: int32 n, then n bytes, int16 samples; or int32 -k, then a message of k bytes.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys

import espeakng_loader

SAMPLE_RATE = 16_000
PEAK = 26_000  # of 32767: headroom for added noise
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_MAX_RATE = 450  # words per minute, the fastest that eSpeak NG speaks

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class _Engine:
    def __init__(self):
        self.lib = lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self.chunks: list[bytes] = []
        self.callback = _Callback(self._receive)
        data = os.fsencode(espeakng_loader.get_data_path())
        self.rate = lib.espeak_Initialize(_SYNCHRONOUS, 0, data, _DONT_EXIT)
        if self.rate <= 0:
            raise RuntimeError("eSpeak NG could not be initialised")
        lib.espeak_SetSynthCallback(self.callback)
        lib.espeak_SetVoiceByName(b"en-us")  # loads the dictionary once, for all forks
        lib.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(1)

    def _receive(self, samples, count, events):
        if samples and count > 0:
            self.chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def _speak(self, text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> bytes:
        lib, data = self.lib, text.encode() + b"\0"
        if lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"eSpeak NG knows no voice {voice!r}")
        for what, value in ((_RATE, rate), (_VOLUME, 100), (_PITCH, pitch), (_RANGE, pitch_range)):
            lib.espeak_SetParameter(what, value, 0)
        size, zero = ctypes.c_size_t(len(data)), ctypes.c_uint(0)
        if lib.espeak_Synth(data, size, zero, 0, zero, ctypes.c_uint(_UTF8), None, None) != 0:
            raise RuntimeError(f"eSpeak NG could not speak {text!r}")
        return b"".join(self.chunks)

    def speak(self, *args) -> bytes:
        """Int16 samples at the engine's own rate."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(read)
                with os.fdopen(write, "wb") as pipe:
                    try:
                        pipe.write(b"+" + self._speak(*args))
                    except Exception as error:
                        pipe.write(b"-" + str(error).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        if status != 0 or answer[:1] != b"+":
            raise RuntimeError(answer[1:].decode() or f"speaking ended with status {status}")
        return answer[1:]


def _answer(out, make) -> bool:
    """Writes the bytes that ``make()`` gives, or what went wrong, as the module's docstring says; whether all went
    well."""
    try:
        good, content = True, make()
    except Exception as error:
        good, content = False, (str(error) or repr(error)).encode()
    size = len(content) if good else -len(content)
    out.write(size.to_bytes(4, "little", signed=True) + content)
    out.flush()
    return good


class _Speaking:
    """An engine in a process of its own, which is to be started before anything large is imported."""

    def __init__(self):
        requests, ask = os.pipe()
        answers, answer = os.pipe()
        if os.fork() == 0:
            try:
                os.close(ask)
                os.close(answers)
                with os.fdopen(requests, "rb") as lines, os.fdopen(answer, "wb") as out:
                    self._serve(lines, out)
            finally:
                os._exit(0)
        os.close(requests)
        os.close(answer)
        self.ask, self.answers = os.fdopen(ask, "wb"), os.fdopen(answers, "rb")
        self.rate = self._receive(int)

    @staticmethod
    def _serve(lines, out) -> None:
        engine = None

        def start():
            nonlocal engine
            engine = _Engine()
            return str(engine.rate).encode()

        if _answer(out, start):
            for line in lines:
                _answer(out, lambda line=line: engine.speak(*json.loads(line)))

    def _receive(self, kind: type):
        header = self.answers.read(4)
        count = int.from_bytes(header, "little", signed=True)
        content = self.answers.read(abs(count))
        if len(header) < 4 or len(content) < abs(count):
            raise RuntimeError("the eSpeak NG process ended")
        if count < 0:
            raise RuntimeError(content.decode())
        return kind(content)

    def speak(self, *args) -> bytes:
        """Int16 samples at the engine's own rate."""
        self.ask.write(json.dumps(args).encode() + b"\n")
        self.ask.flush()
        return self._receive(bytes)


def _finish(samples: bytes, rate: int):
    """16 kHz int16, trimmed to 10 ms around what is louder than 1% of the peak, peak-normalised."""
    import numpy as np  # here: see the module's docstring
    import soxr

    wave = np.frombuffer(samples, np.int16).astype(np.float32)
    wave = soxr.resample(wave, rate, SAMPLE_RATE, quality="HQ")
    peak = np.abs(wave).max(initial=0.0)
    loud = np.flatnonzero(np.abs(wave) > 0.01 * peak)
    if len(loud) == 0:
        return np.zeros(0, np.int16)
    margin = SAMPLE_RATE // 100
    wave = wave[max(0, loud[0] - margin) : loud[-1] + 1 + margin]
    return np.rint(wave * (PEAK / peak)).astype(np.int16)


def utter(engine: _Speaking, request: dict):
    """Int16 samples at 16 kHz. Speaks faster, not less, where the utterance is longer than ``max_samples``."""
    rate, limit = request["rate"], request["max_samples"]
    while True:
        args = request["text"], request["voice"], rate, request["pitch"], request["pitch_range"]
        wave = _finish(engine.speak(*args), engine.rate)
        if limit is None or len(wave) <= limit:
            return wave
        if rate >= _MAX_RATE:
            raise ValueError(
                f"{request['text']!r} takes {len(wave) / SAMPLE_RATE:.2f} s at the fastest rate, over the "
                f"limit of {limit / SAMPLE_RATE:.2f} s; raise max_seconds"
            )
        rate = min(_MAX_RATE, math.ceil(rate * max(1.03, len(wave) / limit)))


def main() -> None:
    engine, out = _Speaking(), sys.stdout.buffer
    for line in sys.stdin:
        _answer(out, lambda line=line: utter(engine, json.loads(line)).tobytes())


if __name__ == "__main__":
    main()
