"""Mistakes on the command line of every script: one line, exit status 2, and nothing left behind."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

from tests.inference.runs import save_run
from xmodal_jax.train.command_line import choose_class, run_script

ROOT = pathlib.Path(__file__).parents[2]
TRAINING = (
    "captioning contrastive fusion gan_zoo multimodal_flow multimodal_vae speech_recognition speech_synthesis "
    "text_to_image_flow text_to_image_gan vae vocoder"
).split()
SHARED = """
    --nonsense 1
    --step 10
    --steps ten
    --steps
    --steps -1
    --batch-size 0
    --seed -1
    --parallel cluster
    --patience 3 --eval-every 0
    --on-bad-example ignore
    --modalities smell
    --train-size -5
    --optimizer.nonsense 1
    --smoke yes
    stray
    --data nowhere
    --data folder:nowhere
    --data folder:empty
    --data npz:damaged.npz
    --run-dir full
    --run-dir full --resume
    --run-dir emptied --resume
    --run-dir file
    --run-dir file/below
    --run-dir gs://bucket/run
    --resume
"""
OF_SCRIPT = {
    "captioning": "--init-from nowhere\n--image-encoder nonsense\n--model.image nonsense\n--gallery 0",
    "contrastive": "--init-from full\n--model.objective nonsense\n--model.embed-dim 0\n--layer-decay 2",
    "fusion": "--task nonsense\n--model.fusion nonsense\n--unimodal-steps -1\n--lora.rank 4",
    "gan_zoo": "--image-size 30\n--first-stage nowhere\n--objectives nonsense\n--objectives\n"
    "--model.generator nonsense\n--on-divergence maybe",
    "multimodal_flow": "--model nonsense\n--missing 2\n--autoencoder-steps ten\n--evaluation.examples 0",
    "multimodal_vae": "--model nonsense\n--model.beta nan\n--missing 2\n--evaluation.examples 0",
    "speech_recognition": "--model.objective nonsense\n--generation nonsense\n--model.features.mels 0\n--lora.rank 3",
    "speech_synthesis": "--recogniser nowhere\n--examples 0\n--model.floor 0\n--text-encoder hf:nowhere",
    "text_to_image_flow": "--model.condition.dropout 2\n--model.sampler jump\n--model.objective nonsense",
    "text_to_image_gan": "--learning.steps -1\n--learning.ratios nan\n"
    "--redescribe nowhere\n--read-with full\n--model.d-steps 0\n--model.penalty nonsense\n"
    "--first-stage nowhere\n--model.generator stackgan --model.reconstruction none --first-stage nowhere",
    "vocoder": "--recogniser nowhere\n--examples 0\n--model.floor 0\n--model.window 100\n--model.kernel 4",
    "vae": "--evaluation.latents 19\n--model nonsense\n--model.samples 0\n--critic.name nonsense\n--model.latent 0",
}
OTHERS = {
    "translate": """
        --from words
        --to text
        --from words --to smell --runs full
        --from nothing.png --to text --runs full
        --from words --to speech --runs nowhere
        --from words --to speech --runs full
        --from words --to speech --runs
        --from empty --to text --runs full
        --from file --to text --runs full
        --from words --to text --runs full --copies 0
        --from words --to text --runs full --speed fast
        --from words --to text --runs full --generation nonsense
        --from words --to text --runs full --on-bad-example ignore
        --from words --to text --runs full --run-dir gs://bucket/run
        --from words --to text --runs gs://bucket/run
        --from words --to text --runs full --as image_sketch
        --from words --to text --runs full --with nothing.png
        --from words --to text --runs full --with file
        --from words --to text --runs full --candidates nowhere
        --from words --to text --runs full --candidates empty
        --from words --to text --runs full --nonsense
    """,
    "data": """

        nothing
        folder:nowhere
        folder:empty
        folder:full
        npz:damaged.npz
        tfds:nothing --data-dir empty
        shapes more
        shapes --train-size 0
        shapes --train-size few
        shapes --modalities smell
        shapes --examples 0
        shapes --shown none
        shapes --vocab-size few
        shapes --run-dir gs://bucket/run
        --data shapes
    """,
    "export": """

        full
        full out more
        full out --best
        full out --bset
        full out --seed one
        full out --seed 1
        full out --seed
        nowhere out
        file out
        gs://bucket/run out
        full gs://bucket/out
        --run full
    """,
    "rate": """

        nonsense
        page
        page --sources a
        page --sources a=full
        page --sources a=full a=empty
        page --sources a=full b=empty
        page --sources a=nowhere b=full
        page --sources a=full b=empty --mode nonsense
        page --sources a=full b=empty --count 0
        page --sources a=full b=empty --nonsense
        page --sources a=full b=empty --seed one
        rates
        rates answers.csv
        rates answers.csv --key
        rates answers.csv --key nowhere.key.json
        rates file --key file
    """,
}


EARLY = {
    "gan_zoo": "--judge", "text_to_image_flow": "--judge", "text_to_image_gan": "--judge",
    "multimodal_flow": "--recogniser", "speech_synthesis": "--recogniser", "vocoder": "--recogniser",
}  # fmt: skip
"""The scripts that a trained run judges, and the flag that names it."""


@pytest.fixture(scope="module")
def scripts():
    """The modules of the scripts, by name."""
    modules = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments"))  # where a script finds another that it builds on
        for name in (*TRAINING, *OTHERS):
            file = ROOT / "experiments" / f"{name}.py"
            spec = importlib.util.spec_from_file_location(f"mistaken_{name}", file)
            modules[name] = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, spec.name, modules[name])
            spec.loader.exec_module(modules[name])
        yield modules


def run(name, module):
    if name == "rate":
        config_class = module.Page | module.Rates
    elif name == "fusion":
        config_class = choose_class("--task", {"questions": module.Config, "commands": module.CommandConfig})
    else:
        config_class = module.Config
    run_script(module.main, config_class, module.__doc__)


@pytest.mark.parametrize("name", [*TRAINING, *OTHERS])
def test_every_mistake_is_one_line_and_leaves_nothing(name, scripts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XMODAL_CONFIGURE", "0")
    for folder in ("empty", "full", "emptied"):
        (tmp_path / folder).mkdir()
    for file, content in (
        ("file", ""), ("full/photo", ""), ("emptied/config.json", ""), ("damaged.npz", "PK\x03\x04 and no end"),
    ):  # fmt: skip
        (tmp_path / file).write_text(content)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    lines = lambda text: [line.strip() for line in text.strip("\n ").splitlines()]
    if name in OTHERS:
        mistakes = lines(OTHERS[name])
    else:  # every second one of the shared mistakes, which takes half the time
        mistakes = lines(SHARED)[TRAINING.index(name) % 2 :: 2] + lines(OF_SCRIPT[name])
    assert len(mistakes) >= 12
    for words in mistakes:
        monkeypatch.setattr(sys, "argv", [f"experiments/{name}.py", *words.split()])
        with pytest.raises(SystemExit) as exit:
            run(name, scripts[name])
        message = capsys.readouterr().err
        assert (exit.value.code, message.count("\n")) == (2, 1), (words, message)
        assert "Traceback" not in message and len(message) > 10, words
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files, words
        assert not any((tmp_path / "runs").glob("*")), words


@pytest.mark.parametrize("name", EARLY)
def test_a_wrong_judge_is_told_before_the_data_are_read(name, scripts, tmp_path, monkeypatch, capsys):
    """Of two mistakes, the one in the judge is told: the data take longer to read than a checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XMODAL_CONFIGURE", "0")
    save_run(tmp_path / "other", {}, {"w": np.ones(2, np.float32)}, kind="contrastive")
    for judge, expected in (("nowhere", "checkpoint"), ("other", "give a run of")):
        words = [EARLY[name], judge, "--data", "folder:absent"]
        monkeypatch.setattr(sys, "argv", [f"experiments/{name}.py", *words])
        with pytest.raises(SystemExit) as exit:
            run(name, scripts[name])
        message = capsys.readouterr().err
        assert (exit.value.code, message.count("\n")) == (2, 1), message
        assert f"{EARLY[name]}: " in message, message
        assert expected in message and "absent" not in message, message
        assert not any((tmp_path / "runs").glob("*")), words
