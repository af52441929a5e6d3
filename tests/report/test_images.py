from xmodal_jax.report.images import add_scores
from xmodal_jax.report.page import Report


def test_the_cards_of_a_judge_have_the_chance_of_r_precision(tmp_path):
    metrics = {
        "test/factor_accuracy": 0.5, "test/precision": 0.1, "test/r_precision_of_10": [0.75, 0.25],
        "test/judge_kernel_distance": 0.2, "test/judge_frechet_distance": 3.0,
    }  # fmt: skip
    report = Report("t")
    add_scores(report, metrics)
    assert report.headline == ["test/factor_accuracy", "test/r_precision_of_10", "test/judge_kernel_distance"]
    report.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count('<span class="chance">chance 0.100</span>') == 1
    assert "judge_frechet_distance" in page
