"""Reports: the HTML page of a run, its figures, and what each kind of experiment shows.

::

    from xmodal_jax.report import Report, curves

    report = Report("Image-text retrieval", "shapes, 4 seeds")
    report.add_metrics(metrics, headline=["image_to_text/recall@1"])
    report.add_figure("Training curves", curves(run.read_metrics()))
    report.write(run.path / "report.html")

The modules `alignment`, `classification`, `text` and `speech` add the sections of one kind of experiment each.
"""

from xmodal_jax.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "classification_figures": "AttentionExample accuracy_bars attention",
        "comparison": "ComparedRun add_comparison read_run read_samples steps_of_equal_time",
        "figures": "confusion_matrix curves embedding_map image_grid project_2d rank_histogram similarity_matrix "
        "spectrogram to_png video_strip",
        "page": "Audio Hit Item MarkedText Report png uri",
        "text_figures": "image_attention spectrogram_attention",
    },
)
