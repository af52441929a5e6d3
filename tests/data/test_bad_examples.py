"""What is said of data that have bad examples, or examples that are worth a note, are whole sentences."""

import ast
import pathlib
import re

import pytest

from xmodal_jax.data.bad_examples import BadExamples

PACKAGE = pathlib.Path(__file__).parents[2] / "xmodal_jax"


@pytest.mark.parametrize("count, text", [(1, "1 caption"), (2, "2 captions"), (1000, "1000 captions")])
def test_a_note_has_its_count_in_the_sentence(count, text):
    bad_examples = BadExamples()
    bad_examples.note("Texts are cut, which shortens {captions}.", count)
    assert bad_examples.summary() == f"Texts are cut, which shortens {text}."


def test_counts_add_up_unless_the_same_is_found_again():
    bad_examples = BadExamples()
    for _ in range(2):
        bad_examples.note("Cut: {captions}.", 3)
        bad_examples.note("The column is in {lines}.", 5, once=True)
        bad_examples.note("There are {examples}.", 0)
    assert bad_examples.summary() == "Cut: 6 captions.\nThe column is in 5 lines."


def test_bad_examples_are_counted_in_a_sentence():
    bad_examples = BadExamples("skip")
    assert bad_examples.summary() == ""
    bad_examples.add("a.csv", 3, "no picture")
    assert bad_examples.summary() == "1 bad example was left out: a.csv:3: no picture"
    bad_examples.add("a.csv", 5, "no text")
    assert bad_examples.summary() == "2 bad examples were left out, the first: a.csv:3: no picture"


def sentences():
    """The first argument of every call of ``note`` in the package, as ``(place, text)`` with {} for what varies."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        texts = {
            target.id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "note" and call.args:
                sentence = call.args[0]
                sentence = texts[sentence.id] if isinstance(sentence, ast.Name) else sentence
                parts = sentence.values if isinstance(sentence, ast.JoinedStr) else [sentence]
                text = "".join(part.value if isinstance(part, ast.Constant) else "X" for part in parts)
                yield f"{path.name}:{call.lineno}", text


@pytest.mark.parametrize("place, text", list(sentences()))
def test_every_note_is_a_sentence_with_its_number(place, text):
    assert re.fullmatch(r"[A-Z].*\.", text), f"{place}: {text}"
    assert len(re.findall(r"\{\w+s\}", text)) <= 1, f"{place}: {text}"


def test_the_notes_of_the_package_are_found():
    assert len(list(sentences())) >= 7


def test_recounted_notes_keep_the_larger_count():
    bad_examples = BadExamples()
    for count in (44, 44, 12):
        with bad_examples.recount():
            bad_examples.note("Recordings are cut, which shortens {recordings}.", count - 4)
            bad_examples.note("Recordings are cut, which shortens {recordings}.", 4)
    assert bad_examples.summary() == "Recordings are cut, which shortens 44 recordings."
