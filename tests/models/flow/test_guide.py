"""The examples of docs/flow.md run."""

import pathlib
import re

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[3]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "flow.md").read_text(), re.S)
SEVERAL = "make_multimodal_flow"
"""What the example with several modalities calls, which compiles two more trainings."""


def run(blocks, asserts):
    code = "\n".join(blocks)
    assert code.count("assert") >= asserts
    with jax.numpy_rank_promotion("allow"):
        exec(compile(code, "docs/flow.md", "exec"), {})


def test_the_examples_run():
    run([block for block in BLOCKS if SEVERAL not in block], asserts=3)


@pytest.mark.slow
def test_the_example_with_several_modalities_runs():
    """After the others, whose data it takes."""
    assert sum(SEVERAL in block for block in BLOCKS) == 1
    run(BLOCKS, asserts=5)
