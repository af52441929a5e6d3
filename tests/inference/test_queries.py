"""Queries and files of a command line."""

import numpy as np
import pytest

from tests.inference.runs import plain_picture
from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.inference.queries import (
    embed_queries,
    find_files,
    keep_readable,
    load_for_index,
    parse_queries,
    query_content,
)


def test_a_query_is_a_text_unless_it_is_a_file(tmp_path):
    modalities = ("text", "text_es", "image")
    plain_picture("red").save(tmp_path / "a.png")
    (tmp_path / "red").mkdir()
    picture, word, sentence = parse_queries(
        [str(tmp_path / "a.png"), str(tmp_path / "red"), "what is a .png"], modalities
    )
    assert picture.modality == "image" and picture.content == tmp_path / "a.png"
    assert (word.modality, word.content) == ("text", str(tmp_path / "red"))
    assert sentence.modality == "text"
    spanish = parse_queries(["una rana", str(tmp_path / "a.png")], modalities, "text_es")
    assert [query.modality for query in spanish] == ["text_es", "image"]
    with pytest.raises(FileNotFoundError, match="--query b.png: there is no such file"):
        parse_queries(["b.png"], modalities)
    with pytest.raises(ValueError, match="--query .*a.png: this is image, and the run has text"):
        parse_queries([str(tmp_path / "a.png")], ("text",))
    with pytest.raises(ValueError, match="a query is empty"):
        parse_queries([" "], modalities)
    with pytest.raises(ValueError, match="--query-modality text_de: the run has"):
        parse_queries(["a"], modalities, "text_de")
    with pytest.raises(ValueError, match="--query-modality image: no query is image"):
        parse_queries(["a"], modalities, "image")
    (tmp_path / "a.xyz").write_bytes(b"")
    with pytest.raises(ValueError, match="a.xyz: this file is no picture, sound or video by its suffix"):
        parse_queries([str(tmp_path / "a.xyz")], modalities)
    assert parse_queries(["a. " * 5000 + ".png"], modalities)[0].modality == "text"  # too long for a path


def test_queries_of_several_modalities_keep_their_order(model, tmp_path):
    plain_picture("#d00000").save(tmp_path / "a.png")
    queries = parse_queries(["red", str(tmp_path / "a.png"), "blue"], model.format.modalities)
    embeddings = embed_queries(model, queries)
    np.testing.assert_allclose(embeddings[[0, 2]], model.embed(texts=["red", "blue"]), atol=1e-6)
    np.testing.assert_allclose(embeddings[1:2], model.embed(images=tmp_path / "a.png"), atol=1e-6)
    assert query_content(queries[0], model.format) == "red"
    assert query_content(queries[1], model.format).shape == (8, 8, 3)


def test_the_checkpoint_is_found_by_the_digest(model):
    assert load_for_index(model.path, model.digest).digest == model.digest
    with pytest.raises(ValueError, match="made by another checkpoint than those of .* of step 60"):
        load_for_index(model.path, "0" * 32)


def test_files_are_of_one_kind_and_readable(model, tmp_path):
    for name in ("b.png", "a.png", "deeper/c.jpg", "deeper/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        plain_picture("red").save(tmp_path / name, "PNG")
    modality, files = find_files([tmp_path], ("text", "image"))
    assert modality == "image" and [f.name for f in files] == ["a.png", "b.png", "c.jpg"]
    (tmp_path / "b.png").write_bytes(b"no picture")
    bad_examples = BadExamples("skip")
    readable = keep_readable(files, model.format, "image", bad_examples)
    assert [f.name for f in readable] == ["a.png", "c.jpg"] and len(bad_examples) == 1
    with pytest.raises(BadExampleError, match="b.png"):
        keep_readable(files, model.format, "image", BadExamples())
    with pytest.raises(ValueError, match="1 bad example was left out"):
        keep_readable(files[1:2], model.format, "image", BadExamples("skip"))
    with pytest.raises(FileNotFoundError, match="none.png does not exist"):
        find_files([tmp_path / "none.png"], ("image",))
    with pytest.raises(ValueError, match="is image, and the run has text, audio"):
        find_files(files, ("text", "audio"))
    (tmp_path / "d.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="files of one kind are needed"):
        find_files([tmp_path], ("image", "audio"))
    with pytest.raises(ValueError, match=r"notes.md is no picture, sound or video by its suffix"):
        find_files([tmp_path / "deeper" / "notes.md"], ("image",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: there is no picture, sound or video"):
        find_files([tmp_path / "empty"], ("image",))
