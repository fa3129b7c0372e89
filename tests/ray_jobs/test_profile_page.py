"""The page of profiles: one self-contained, well-formed file that says plainly what is not stable and not known."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_io.anomaly import Reference
from data_io.buckets import BucketWriter
from data_io.segment_names import SegmentFacts
from data_io.store import SequenceStore
from model.segments import fit_segments
from ray_jobs.profile_config import ProfileSettings
from ray_jobs.profile_figures import agreement, histogram, profile_figures, verdicts
from ray_jobs.profile_page import number, write_profile_page
from ray_jobs.profile_survey import ProfilePlan
from tests.model.test_segments import make_groups
from tests.ray_jobs.test_quality_page import Elements

ODD_CATEGORY = "<b>tea & $x$</b>"


def make_plan() -> ProfilePlan:
    embeddings, _ = make_groups(3)
    segmentation, stability = fit_segments(embeddings, 3, 0, ())
    term = {"group": "category", "term": ODD_CATEGORY, "share": 0.5, "lift": 2.0, "z": 9.0}
    segments = [
        SegmentFacts(name=f"segment {n}", share=0.33, median_events=9.0, median_recency_days=2.0, terms=[term][: n % 2])
        for n in range(3)
    ]
    return ProfilePlan(
        segmentation=segmentation,
        stability=stability,
        segments=segments,
        reference=Reference(edges=[], quantiles={}, sizes={}),
        price_edges=[],
        mean_embedding=embeddings.mean(axis=0),
        num_sampled=len(embeddings),
        map_points=[[0.0, 1.0, 0], [1.0, 0.0, 2]],
    )


def make_rows() -> pl.DataFrame:
    """Six users without prices, categories or sellers."""
    unknown = dict.fromkeys(
        ("median_price", "price_sensitivity", "cheap_share", "new_category_share", "seller_burst", "surprise")
    )
    numbers = {name: pl.Series([None] * 6, dtype=pl.Float32) for name in unknown}
    lists = {name: pl.Series([None] * 6, dtype=pl.List(pl.String)) for name in ("top_categories", "top_brands")}
    return pl.DataFrame(
        {
            "user_id": ["usér-Ω7731", *"bcdef"],
            "segment": pl.Series([0, 0, 1, 1, 2, 2], dtype=pl.Int32),
            "price_band": pl.Series([None] * 6, dtype=pl.Int32),
            "top_device": [["<i>app</i>"]] * 6,
            "score_buy": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
            "new_item_share": [0.5] * 6,
            "self_information_bits": [3.0] * 6,
            "anomaly_score": [1.0, 1.1, 0.9, 1.0, 1.0, 4.0],
            "alerts": [[], [], [], [], [], ["bot"]],
            "alert_reasons": [[], [], [], [], [], ["events in all 24 hours of a day"]],
            **numbers,
            **lists,
        },
        schema_overrides={"alerts": pl.List(pl.String), "alert_reasons": pl.List(pl.String)},
    )


@pytest.fixture
def figures(tmp_path: Path) -> dict[str, Any]:
    facts = {
        "num_users": 6,
        "by_segment": [2, 2, 2],
        "by_alert": {"bot": 1, "brushing": 0, "takeover": 0, "unusual": 0},
        "num_alerted": 1,
        "by_hour": [1] * 24,
        "by_weekday": [2] * 7,
    }
    mark = BucketWriter(url=str(tmp_path), fingerprint="f").commit(0, 1, make_rows().to_arrow(), facts)
    store = SequenceStore(url="", manifest={})
    return profile_figures(store, make_plan(), [mark], str(tmp_path), ProfileSettings())


def test_the_page_is_whole_escapes_the_log_and_names_no_user(figures: dict[str, Any], tmp_path: Path) -> None:
    url = str(tmp_path / "index.html")
    write_profile_page(url, figures, make_plan().map_points)
    page = Path(url).read_text()
    elements = Elements()
    elements.feed(page)
    elements.close()
    assert (elements.faults, elements.open) == ([], [])
    assert not re.findall(r"<(?:script|link|img|iframe)\b|@import|src=", page)
    assert not re.findall(r"url\((?!#)|href=\"(?!#)", page)
    assert "Ω7731" not in page
    assert "&lt;b&gt;tea &amp; $x$&lt;/b&gt;" in page
    assert "&lt;i&gt;app&lt;/i&gt;" in page
    assert "events in all 24 hours of a day" in page
    sections = ["Segments", "Preferences", "Probabilities and amounts", "Novelty", "Anomalies and alerts"]
    assert re.findall(r"<h2>([^<]*)</h2>", page) == sections


def test_what_is_not_known_is_said(figures: dict[str, Any]) -> None:
    told = " ".join(figures["absent"])
    for what in ("Categories", "Brands", "Prices", "Price sensitivity", "Surprise", "Sellers"):
        assert what in told
    assert "There are no probabilities" not in told
    assert figures["price_sensitivity"]["agreement"] is None
    assert figures["price_bands"] == {}
    assert figures["top"] == {"top_device": {"<i>app</i>": 6}}


def test_segments_that_are_not_stable_are_called_so(figures: dict[str, Any], tmp_path: Path) -> None:
    assert figures["verdicts"][0].endswith(": stable")
    figures["stability"]["value"] = 0.41
    assert "NOT stable, it is below 0.6; do not build on these segments" in verdicts(figures)[0]
    write_profile_page(str(tmp_path / "page.html"), figures | {"verdicts": verdicts(figures)}, [])
    assert "These segments are not stable" in (tmp_path / "page.html").read_text()


def test_a_histogram_takes_extremes_into_its_outer_bins() -> None:
    found = histogram(pl.Series([0.0] * 50 + [1.0] * 50 + [1e9]))
    assert sum(found["counts"]) == found["num_known"] == 101
    assert histogram(pl.Series([None], dtype=pl.Float64))["counts"] == []


def test_agreement_is_a_rank_correlation() -> None:
    rows = pl.DataFrame({"price_sensitivity": [0.1, 0.2, 9.0, None], "cheap_share": [0.3, 0.4, 0.5, 0.1]})
    assert agreement(rows) == {"spearman": pytest.approx(1), "num_users": 3}
    assert agreement(rows.head(2)) is None


def test_numbers_are_written_for_people() -> None:
    assert [number(value) for value in (None, float("nan"), 1234.0, 0.126, -0.001)] == [
        "-",
        "-",
        "1,234",
        "0.13",
        "0.00",
    ]
