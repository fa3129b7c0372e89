"""The report page: one self-contained file that shows every figure and hides none."""

import re
from pathlib import Path
from typing import Any

import jinja2
import pytest

from ray_jobs.config import Settings
from ray_jobs.protocol import describe_protocol
from ray_jobs.report import plot_calibration, plot_ranking, plot_recall, plot_roc, write_report


def make_interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def make_next_item() -> dict[str, Any]:
    metrics = ("recall_at_5", "ndcg_at_5", "recall_at_10", "ndcg_at_10")
    values = {"encoder": 0.25, "popularity": 0.1, "own_history": 0.2}
    rankers: dict[str, Any] = {
        name: {metric: make_interval(value) for metric in metrics} for name, value in values.items()
    }
    rankers["encoder"]["gain_over"] = {"popularity": make_interval(0.15), "own_history": make_interval(0.05)}
    figures = {"num_users": 1_234, "headline": "ndcg_at_10", "best_baseline": "own_history", "rankers": rankers}
    return figures | {"slices": [make_slice("head items", 1_000, 0.3), make_slice("tail items", 0, float("nan"))]}


def make_slice(name: str, num_users: int, value: float) -> dict[str, Any]:
    metrics = {metric: make_interval(value) for metric in ("ndcg_at_10", "recall_at_10")}
    rankers = {ranker: dict(metrics) for ranker in ("encoder", "popularity", "own_history")}
    rankers["encoder"] = rankers["encoder"] | {"ndcg_at_10": make_interval(value + 0.1), "gain_over": {}}
    facts = {"by": "popularity of the target", "name": name, "num_users": num_users}
    return facts | {"best_baseline": "popularity", "rankers": rankers}


def make_lists() -> dict[str, Any]:
    values = {"coverage": 0.1234, "novelty_bits": 7.5, "popularity_percentile": 91.5}
    histories = {"histories_novelty_bits": 8.5, "histories_popularity_percentile": 80.0}
    return {"k": 10, "rankers": {"encoder": values, "popularity": values | {"coverage": float("nan")}}} | histories


def make_outcome() -> dict[str, Any]:
    return {
        "num_users": 800,
        "rate": 0.125,
        "auc": make_interval(0.75),
        "log_loss": 0.31,
        "mean_rate_log_loss": 0.37,
        "best_feature": {"name": "recency_days", "validation_auc": 0.7, "auc": make_interval(0.71)},
        "calibration_error": 0.04,
        "calibration": [{"predicted": 0.1, "observed": 0.05}, {"predicted": 0.2, "observed": 0.25}],
        "curve": [(0.0, 0.0), (0.2, 0.7), (1.0, 1.0)],
        "feature_curve": [(0.0, 0.0), (0.3, 0.6), (1.0, 1.0)],
    }


def make_answers() -> dict[str, Any]:
    classes = {"accuracy": make_interval(0.4), "in_first_3": make_interval(0.6), "log_loss": make_interval(2.0)}
    numbers = {"explained_variance": make_interval(0.3), "predicted_over_true": 1.02}
    return {
        "customer_next": {
            "kind": "next_category",
            "answer": "classes",
            "classes": ["fruit", "<i>bread</i>"],
            "num_users": 90,
            "rankers": {"task": classes, "most frequent": classes | {"log_loss": make_interval(float("nan"))}},
        },
        "customer_spend": {
            "kind": "spend",
            "answer": "amount",
            "classes": [],
            "num_users": 91,
            "rankers": {"task": numbers, "trees": numbers},
        },
        "customer_all": {
            "kind": "categories",
            "answer": "labels",
            "classes": ["fruit"],
            "num_users": 92,
            "mean_auc": 0.7123,
            "areas": {"fruit": 0.7123},
            "rates": {"fruit": 0.5},
        },
    }


def make_responses() -> dict[str, Any]:
    rankers = {"task": {"auc": 0.7012, "log_loss": 0.3123}, "mean rate": {"auc": 0.5, "log_loss": 0.3456}}
    figures = {"num_pairs": 1_212, "num_users": 77, "rate": 0.115, "calibration_error": 0.02, "rankers": rankers}
    return {"buy": figures | {"gain_over": {"mean rate": make_interval(0.0333)}}}


def make_report(**parts: Any) -> dict[str, Any]:
    data = {"num_users": 2_469, "num_events": 90, "num_items": 33, "num_rows": 100, "num_quarantined": 7}
    data |= {
        "num_duplicates": 3,
        "num_truncated": 0,
        "num_forgotten": 0,
        "reasons": {"empty_user_id": 7},
        "actions": {"<b>buy</b>": 90},
    }
    report = {
        "verdicts": ["encoder loses to own_history in ndcg_at_10: 0.1 against 0.2"],
        "next_item": make_next_item(),
        "outcomes": {"purchase_7d": make_outcome()},
        "answers": make_answers(),
        "responses": make_responses(),
        "lists": make_lists(),
        "protocol": describe_protocol(Settings(), None, "left out: too many pairs"),
        "data": data,
        "models": {"encoder": {"fingerprint": "c0ffee"}},
        "settings": {"run_dir": "runs/x"},
    }
    return report | parts


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of `make_report`."""
    path = tmp_path_factory.mktemp("report") / "index.html"
    write_report(str(path), make_report())
    return path.read_text()


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    assert not re.findall(r"<(?:script|link|img|iframe)\b|@import|url\(\s*[\"']?https?:|src=", page)


def test_the_page_shows_figures_with_their_intervals(page: str) -> None:
    assert '0.2500 <span class="interval">[0.2400, 0.2600]</span>' in page
    assert "1,234 users with history" in page
    assert "2,469 users" in page
    assert "c0ffee" in page


def test_the_page_says_what_is_worse(page: str) -> None:
    assert "<li>encoder loses to own_history in ndcg_at_10: 0.1 against 0.2</li>" in page


def test_slices_show_each_ranker_and_the_best_of_a_column_is_bold(page: str) -> None:
    section = page.split("<h3>By popularity of the target</h3>")[1].split("</table>")[0]
    assert "head items<br><small>1,000 users" in section
    assert "tail items<br><small>0 users" in section
    assert '<td>encoder</td><td><b>0.4000</b> <span class="interval">[0.3900, 0.4100]' in section
    assert "<td>own_history</td><td>0.3000 " in section
    assert "nan" not in page


def test_lists_stand_beside_histories(page: str) -> None:
    assert "<td>encoder</td><td>12.34</td><td>7.50</td><td>91.5</td><td>+11.5</td>" in page
    assert "<td>(histories)</td><td></td><td>8.50</td><td>80.0</td>" in page


def test_the_protocol_says_in_words_what_was_done(page: str) -> None:
    section = page.split('<h2 id="protocol">')[1].split("</dl>")[0]
    for words in (
        "Leave-one-out",
        "seen items kept",
        "Items of equal score go by",
        "item_knn: left out: too many pairs",
    ):
        assert words in section
    assert re.search(r"1000 bootstrap resamples.*Seed</dt><dd>0,", section, re.DOTALL)


def test_models_of_other_runs_are_named_with_their_folders(page: str, tmp_path: Path) -> None:
    settings = Settings.model_validate({"evaluation": {"rivals": {"last_month": "s3://shop/may/encoder"}}})
    write_report(str(tmp_path / "index.html"), make_report(protocol=describe_protocol(settings, None, None)))
    assert "<dd>last_month: s3://shop/may/encoder, evaluated on" in (tmp_path / "index.html").read_text()
    assert "Models of other runs" not in page


def test_tables_scroll_in_a_box_of_their_own(page: str) -> None:
    assert page.count("<table>") == page.count('<div class="wide"><table>') > 4


def test_rows_add_up_on_the_page(page: str) -> None:
    assert "100 rows = 90 kept + 7 quarantined + 3 duplicates + 0 truncated. Quarantined: empty_user_id 7." in page


def test_an_outcome_has_its_section_its_baselines_and_its_plots(page: str) -> None:
    section = page.split("<h2>Outcome: purchase_7d</h2>")[1].split("<h2>")[0]
    assert "800 users at the test cutoff, 12.5 % with the outcome" in section
    assert "best single feature: recency_days" in section
    assert "0.3700" in section, "log loss of the mean rate"
    assert section.count("<svg") == 2
    assert page.count("<svg") == 4


def test_responses_stand_beside_what_they_are_held_against(page: str) -> None:
    section = page.split("<h2>Response: buy</h2>")[1].split("<h2>")[0]
    assert "1,212 items shown to 77 users with history after the test cutoff, 11.5 %" in section
    for expected in ("0.7012", "0.3123", "<td>mean rate</td>", "0.0333", "[0.0233, 0.0433]"):
        assert expected in section


def test_names_from_the_log_are_escaped(page: str) -> None:
    assert "&lt;b&gt;buy&lt;/b&gt;" in page
    assert "<b>buy" not in page


def test_a_run_without_outcomes_has_no_section_for_them(tmp_path: Path) -> None:
    write_report(str(tmp_path / "index.html"), make_report(outcomes={}))
    assert "Outcome:" not in (tmp_path / "index.html").read_text()


def test_a_figure_that_is_missing_is_an_error_and_not_a_blank(tmp_path: Path) -> None:
    with pytest.raises(jinja2.UndefinedError, match="ranking"):
        write_report(str(tmp_path / "index.html"), make_report(protocol={"interval": "none"}, outcomes={}))
    assert not (tmp_path / "index.html").exists()


def test_equal_figures_give_an_equal_plot() -> None:
    assert plot_roc(make_outcome()) == plot_roc(make_outcome())


def test_plots_name_every_ranker_and_the_metric() -> None:
    ranking, recall = plot_ranking(make_next_item()), plot_recall(make_next_item())
    for name in ("encoder", "popularity", "own_history"):
        assert f"<!-- {name} -->" in ranking
        assert f"<!-- {name} -->" in recall
    assert "ndcg_at_10" in ranking
    assert "recall at K" in recall


def test_figures_that_are_no_numbers_can_be_drawn() -> None:
    nothing = dict.fromkeys(("value", "low", "high"), float("nan"))
    figures = make_next_item()
    figures["rankers"]["encoder"] = dict.fromkeys(("recall_at_5", "recall_at_10", "ndcg_at_10"), nothing)
    outcome = make_outcome() | {"auc": nothing, "curve": [(0.0, 0.0)], "calibration": []}
    drawn = (plot_ranking(figures), plot_recall(figures), plot_roc(outcome), plot_calibration(outcome))
    assert all(plot.startswith("<svg") for plot in drawn)


def test_an_interval_that_misses_its_value_by_chance_can_be_drawn() -> None:
    """Few resamples of skewed values do that, and a report must not fail after all the work is done."""
    figures = make_next_item()
    figures["rankers"]["encoder"]["ndcg_at_10"] = {"value": 0.30, "low": 0.31, "high": 0.40}
    assert plot_ranking(figures).startswith("<svg")


def test_answers_that_are_not_whether_have_a_table_each(tmp_path: Path) -> None:
    write_report(str(tmp_path / "index.html"), make_report())
    page = (tmp_path / "index.html").read_text()
    for expected in ("Answer: customer_next", "0.4000", "Answer: customer_spend", "1.020", "0.7123", "&lt;i&gt;bread"):
        assert expected in page
