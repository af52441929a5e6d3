"""Every experiment at its smallest size, and whether two versions of the code gave the same numbers.

    python -m tests.smoke RUNS                         # all of them, two at a time
    python -m tests.smoke RUNS --only contrastive vae  # some, with what they need
    python -m tests.smoke RUNS --sixty                 # and 60 steps of the default contrastive run
    python -m tests.smoke RUNS --compare OTHER_RUNS    # no run: prints every number that differs

A finished run in RUNS is kept, so that an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = ("config.json", "metrics.jsonl", "result.json", "report.html")
"""What every run leaves."""
WITHOUT_RUN = ("compare", "data", "rate", "export", "embed", "search", "classify", "evaluate", "demo")
"""Scripts that train nothing; `.ci/run` runs them after the others."""


class Smoke(NamedTuple):
    """One run: a script with flags, in which ``{runs}`` is the folder of all runs and ``{hf}`` that of the pretrained
    encoders that are made for it."""

    script: str
    flags: str = ""
    needs: tuple[str, ...] = ()
    """Runs that come before it."""
    optimised: bool = False
    """Whether the compiler optimises the machine code. That takes most of the time of a short run, and pays where a run
    computes much."""


def pretrained(**encoders: str) -> str:
    """The flags of pretrained encoders, by modality."""
    return " ".join(f"--{modality}-encoder hf:{{hf}}/{name}" for modality, name in encoders.items())


SMOKES = {
    "multimodal_vae": Smoke("multimodal_vae"),
    "vae_without_prior": Smoke(
        "multimodal_vae", "--model mmvm --missing 0.3 --modalities image image_sketch"
    ),
    "multimodal_flow": Smoke("multimodal_flow", optimised=True),
    "contrastive": Smoke("contrastive"),
    "captioning": Smoke("captioning"),
    "speech_recognition": Smoke("speech_recognition"),
    "speech_synthesis": Smoke("speech_synthesis"),
    "fusion": Smoke("fusion"),
    "voice_command": Smoke("fusion", "--task commands"),
    "vae": Smoke("vae"),
    "vocoder": Smoke("vocoder"),
    "clip": Smoke(
        "contrastive",
        f"--modalities text image --model.head own --lora.rank 2 {pretrained(text='clip', image='clip')}",
    ),
    "bert": Smoke(
        "contrastive", f"--modalities text image --lora.rank 2 {pretrained(text='bert', image='vit')}"
    ),
    "gpt2": Smoke("captioning", f"--text-decoder hf:{{hf}}/gpt2 {pretrained(image='vit')}"),
    "speech_of_bert": Smoke("speech_synthesis", pretrained(text="bert")),
    "vae_of_vit": Smoke("multimodal_vae", f"--modalities text image {pretrained(text='bert', image='vit')}"),
    "text_to_image_gan": Smoke(
        "text_to_image_gan",
        "--judge {runs}/captioning --redescribe {runs}/captioning --read-with {runs}/contrastive",
        ("captioning", "contrastive"),
    ),
    "stackgan": Smoke(
        "text_to_image_gan",
        "--image-size 64 --model.generator stackgan --model.reconstruction none --model.features none "
        "--optimizer.pretrain-fraction 0",
    ),
    "text_to_image_flow": Smoke(
        "text_to_image_flow", "--judge {runs}/captioning", ("captioning",), optimised=True
    ),
    "gan_of_bert": Smoke("text_to_image_gan", pretrained(text="bert", image="vit")),
    "gan_zoo": Smoke("gan_zoo", "--judge {runs}/captioning", ("captioning",), optimised=True),
    "translate": Smoke(
        "translate",
        "--from 'a red circle' --to speech --runs {runs}/captioning {runs}/speech_recognition "
        "{runs}/speech_synthesis",
        ("captioning", "speech_recognition", "speech_synthesis"),
    ),
}
SIXTY = {"sixty_steps": Smoke("contrastive", "--steps 60", optimised=True)}
"""Longer than a smoke run: without ``--smoke``."""


def chosen(names: list[str] | None, sixty: bool) -> dict[str, Smoke]:
    """The runs of these names (None: all) and those that they need, in the order of the table."""
    table = SMOKES | (SIXTY if sixty else {})
    wanted = set(table if names is None else names)
    if unknown := wanted - set(table):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; one of {', '.join(table)}")
    for name in list(wanted):
        wanted |= set(table[name].needs)
    return {name: smoke for name, smoke in table.items() if name in wanted}


def run_one(name: str, smoke: Smoke, runs: pathlib.Path) -> str | None:
    """Runs a script into ``runs/name``; what went wrong, or None."""
    folder, start = runs / name, time.monotonic()
    if (folder / "result.json").is_file():
        print(f"smoke: {name}, there already", flush=True)
        return None
    shutil.rmtree(folder, ignore_errors=True)
    # Quoted, as a shell would read it.
    flags = smoke.flags.format(runs=runs, hf=runs / "pretrained")
    size = "" if name in SIXTY else "--smoke "
    command = f"{sys.executable} experiments/{smoke.script}.py {size}--run-dir {folder} {flags}"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    if not smoke.optimised:
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    done = subprocess.run(
        command, shell=True, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        return f"{done.stdout}\n{name} failed: {command}"
    missing = [file for file in FILES if not (folder / file).is_file() or not (folder / file).stat().st_size]
    if missing:
        return f"{name} left no {', '.join(missing)}"
    if "This report is incomplete" in (folder / "report.html").read_text(encoding="utf-8"):
        return f"{name}: an error cut its report short"
    print(f"smoke: {name}, {time.monotonic() - start:.0f} s", flush=True)
    return None


def run_all(smokes: dict[str, Smoke], runs: pathlib.Path, jobs: int) -> list[str]:
    """Runs all, those that need others after them; what went wrong."""
    runs.mkdir(parents=True, exist_ok=True)
    if not (runs / "pretrained").is_dir():
        command = [sys.executable, "-m", "tests.pretrained.checkpoints", str(runs / "pretrained")]
        subprocess.run(command, cwd=ROOT, check=True)
    failures = []
    for later in (False, True):
        part = {name: smoke for name, smoke in smokes.items() if bool(smoke.needs) == later}
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            failures += [f for f in pool.map(lambda item: run_one(*item, runs), part.items()) if f]
    return failures


def numbers_of(folder: pathlib.Path) -> dict[str, object]:
    """Everything that a run measured, by name: all but times."""
    found: dict[str, object] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found |= {f"step {row['step']} {name}": value for name, value in row.items() if name != "step"}
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    return found | {f"result {name}": value for name, value in metrics.items()}


def compare(ours: pathlib.Path, theirs: pathlib.Path) -> int:
    """Prints, for each run that both folders have, how many numbers are equal to the last bit; how many are not."""
    different = 0
    for folder in sorted(theirs.iterdir()):
        if not (folder / "metrics.jsonl").is_file() or not (ours / folder.name / "result.json").is_file():
            continue
        a, b = numbers_of(ours / folder.name), numbers_of(folder)
        unlike = [k for k in sorted(a.keys() | b.keys()) if a.get(k, "none") != b.get(k, "none")]
        print(f"{folder.name:20} {len(b):5} numbers, {len(unlike)} differ")
        for name in unlike[:20]:
            print(f"    {name}: {a.get(name, 'none')} here, {b.get(name, 'none')} there")
        different += len(unlike)
    return different


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=pathlib.Path, help="folder of the runs")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these and what they need")
    parser.add_argument(
        "--sixty", action="store_true", help="run 60 steps of the default contrastive run too"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--compare", type=pathlib.Path, metavar="OTHER_RUNS", help="compare, run nothing")
    args = parser.parse_args()
    if args.compare is not None:
        raise SystemExit(1 if compare(args.runs, args.compare) else 0)
    smokes = chosen(args.only, args.sixty)
    scripts = {path.stem for path in (ROOT / "experiments").glob("*.py")} - set(WITHOUT_RUN)
    if args.only is None and (left := scripts - {smoke.script for smoke in smokes.values()}):
        raise SystemExit(f"no smoke run of {', '.join(sorted(left))}: add one to tests/smoke.py")
    failures = run_all(smokes, args.runs.resolve(), args.jobs)
    if failures:
        raise SystemExit("\n\n".join(failures))


if __name__ == "__main__":
    main()
