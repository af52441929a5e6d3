"""Searches what embed.py has embedded: by words, pictures, sounds or videos.

    python experiments/search.py INDEX --query "a red star" "two blue circles"
    python experiments/search.py INDEX --query photo.png clip.wav --k 20
    python experiments/search.py INDEX --query "una rana" --query-modality text_es --modality audio

It prints names and similarities, and writes them to RUN_DIR/results.json and, with the pictures, sounds and texts that
were found, to RUN_DIR/report.html.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Annotated

import numpy as np
import tyro

from xmodal_jax.core import runtime
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.evaluation.embeddings import ordered
from xmodal_jax.experiment import write_report
from xmodal_jax.inference.embed_data import open_for_report
from xmodal_jax.inference.index import Index
from xmodal_jax.inference.queries import embed_queries, load_for_index, parse_queries, query_content
from xmodal_jax.report.page import Hit, Item
from xmodal_jax.report.search import read_items
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.run import Run, write_atomic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Search in an index."""

    index: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder that embed.py has written."""
    query: tuple[str, ...]
    """What to look for: words, or the path of a picture, sound or video. Several are several searches."""
    query_modality: str | None = None
    """Modality of the queries, such as text_es, where the run has several of a kind; None: the first one."""
    modality: str | None = None
    """Modality that is searched; None: the first that the index has of image, text, audio, video, others."""
    k: int = 10
    """Number of results of each query."""
    approximate: bool = False
    """Whether to search in a graph, faster among millions, which may miss some results. It is built once, and kept in
    the index's folder; needs requirements-search.txt."""
    run: pathlib.Path | None = None
    """Directory of the run that made the index; None: where it was when the index was made."""
    seed: int | None = None
    """Seed of the trained model, if the run has several; None: the run's only seed."""
    run_dir: pathlib.Path | None = None
    """Directory to write the results to; None: ``runs/search-<time>``."""

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"--k must be at least 1, got {self.k}")
        if not self.query:
            raise ValueError("--query: what is looked for?")


def main(config: Config) -> None:
    runtime.configure()
    timer, bad_examples = runtime.Timer(), BadExamples("skip", announce=print)
    with timer("restore"):
        index = Index.load(config.index)
        model = load_for_index(config.run or pathlib.Path(index.run), index.model, config.seed)
    modality = index.choose_modality(config.modality or ordered(index.modalities)[0])
    queries = parse_queries(config.query, model.format.modalities, config.query_modality)
    if config.approximate:
        with timer("graph"):
            index.build_graph(modality, announce=print)

    with timer("search"):
        options = dict(modality=modality, approximate=config.approximate)
        scores, indices = index.nearest(embed_queries(model, queries), config.k, **options)
    names = np.array(index.names, object)[indices]
    run = Run.create(config.run_dir, config, tensorboard=False)
    results = []
    for query, of_query, similarities, rows in zip(queries, names, scores, indices, strict=True):
        print(f"\n{query.text}")
        for rank, (name, similarity) in enumerate(zip(of_query, similarities, strict=True), start=1):
            print(f"{rank:4}  {similarity:.3f}  {name}")
        hits = zip(of_query, similarities.tolist(), index.example_numbers(rows), strict=True)
        records = [{"name": name, "similarity": value, "example": number} for name, value, number in hits]
        results.append({"query": query.text, "modality": query.modality, "results": records})
    write_atomic(run.path / "results.json", json.dumps(results, indent=1) + "\n")

    # The page shows what was found, if the data set is still there; otherwise names.
    source = open_for_report(model, index, bad_examples)
    metrics = {"search/queries": len(queries), "search/examples": int(index.has(modality).sum())}
    title, details = "Search", f"{metrics['search/examples']:,} examples with {modality} in {config.index}"
    with write_report(run, title, details, metrics, timer, bad_examples) as report:
        if source is None:
            items = [[Item(name) for name in of_query] for of_query in names.tolist()]
        else:
            numbers, shown = index.example_numbers(indices), dict(sample_rate=model.format.sample_rate)
            shown["standardise"] = model.format.transform.standardise
            items = read_items(source, modality, np.array(numbers), names, **shown)
        hits = [
            [
                Hit(item.content, None, value, item.caption)
                for item, value in zip(row, similarities, strict=True)
            ]
            for row, similarities in zip(items, scores.tolist(), strict=True)
        ]
        query_items = [
            Item(query_content(q, model.format), "" if isinstance(q.content, str) else q.text)
            for q in queries
        ]
        report.add_gallery("Results", query_items, hits, top=config.k)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
