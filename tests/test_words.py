"""Names are the field's words: none of the private ones that earlier versions used is an identifier again."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FORBIDDEN = frozenset(
    """
    given told settled far watch Stopwatch Watcher eyes see seen looked sight rehearse rehearsal again
    rebuilt rebuilding Problem Problems Terms Member Seen Said Reading Writing Written Writer Script
    Describer Speaker Spoken Listened Artist Studio Diary Exhibition Panel sheet Exam examine Examined
    Explorer Showcase everything lonely alone hear how own of there apart alike kept Kept found asked
    """.split()
)
"""Participles that stand alone, riddles and theatre; each meant several things. The field's word says what it holds:
``observed``, ``targets``, ``timer``, ``features``, ``reconstruction_loss``, ``unimodal``, ``generated``."""
FILES = sorted(path for folder in ("xmodal_jax", "experiments") for path in (ROOT / folder).rglob("*.py"))


def identifiers(tree):
    """``(name, line)`` of everything that code names: definitions, arguments, variables, fields, keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg, node.value.lineno
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_are_the_fields_words(path):
    names = [f"line {line}: {name}" for name, line in identifiers(ast.parse(path.read_text()))
             if name in FORBIDDEN]  # fmt: skip
    assert not names, f"{path.relative_to(ROOT)} names something {', '.join(names)}: say what it holds"


def test_a_private_word_is_noticed():
    tree = ast.parse(
        "import sys as there\nclass Diary:\n    def look(self, told=None):\n        self.seen = f(how=1)\n"
        "        own = 2\ntry:\n    pass\nexcept OSError as again:\n    pass\n"
    )
    private_words = {"there", "Diary", "told", "seen", "how", "own", "again"}
    assert {name for name, _ in identifiers(tree)} & FORBIDDEN == private_words
