"""The examples of docs/flow.md run."""

import pathlib
import re

import jax

ROOT = pathlib.Path(__file__).parents[3]


def test_the_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "flow.md").read_text(), re.S)
    code = "\n".join(blocks)
    assert code.count("assert") >= 3
    with jax.numpy_rank_promotion("allow"):
        exec(compile(code, "docs/flow.md", "exec"), {})
