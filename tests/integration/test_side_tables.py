"""The tables of items and users, from the shop's files to what readers of a store get."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_io import storage
from data_io.config import SettingsError
from data_io.schema import DataContractError
from data_io.store import SequenceStore
from ray_jobs import append, build_sequences, compact
from ray_jobs.config import Settings
from tests.integration.stores import change, make_settings, simple_log, write_batch

USERS = [f"u{number}" for number in range(10)]
ITEMS = ["common", "common", "often", "common", "often", "rare"]


def item_rows(**columns: Any) -> pa.Table:
    """Four items of the shop, one without events."""
    rows = {
        "item_id": ["rare", "common", "later", "no events"],
        "title": [f"title of {item}" for item in ("rare", "common", "later", "no events")],
        "price": [1.0, 2.0, 3.0, 4.0],
        "colour": ["red", None, "blue", "green"],
    }
    return pa.table(rows | columns)


def user_rows(users: Sequence[str | None], ages: Sequence[float | None]) -> pa.Table:
    return pa.table(
        {"user_id": pa.array(users, pa.string()), "age": ages, "region": [f"region of {user}" for user in users]}
    )


@pytest.fixture
def settings(tmp_path: Path, on_threads: None) -> Settings:
    """Settings of a run with both tables, its log in one file so far."""
    items, users = tmp_path / "items.parquet", tmp_path / "users.parquet"
    pq.write_table(item_rows(), items)
    # u3 comes twice, the last row counts; u77 has no events yet; u4 has an age that cannot be.
    ages = [30.0, 31.0, None, 33.0, 77.0, float("inf"), 39.0]
    pq.write_table(user_rows(["u1", "u3", None, "u3", "u77", "u4", "u9"], ages), users)
    attributes = {"age": "numeric", "region": "categorical"}
    settings = make_settings(
        tmp_path / "run",
        items={"path": str(items), "features": {"colour": "categorical"}},
        users={"path": str(users), "features": attributes, "sensitive": ["age"], "max_bad_share": 0.5},
        store={"num_buckets": 4, "min_item_count": 15},
    )
    write_batch(settings, "00", simple_log(USERS * 6, ITEMS))
    return settings


def items_of(store: SequenceStore) -> dict[str, dict[str, Any]]:
    """What a store knows of its items, after a look at their order."""
    table = store.read_items()
    assert table.column("item_id").to_pylist() == store.vocabulary.item_ids.to_pylist(), "row r is of index r + 2"
    return {row.pop("item_id"): row for row in table.to_pylist()}


def users_of(store: SequenceStore, **options: bool) -> dict[str, dict[str, Any]]:
    """What a store knows of its users, after a look at their order."""
    found = {}
    for bucket in range(store.num_buckets):
        ids = store.read_sequences(bucket).user_id
        table = store.read_user_table(bucket, ids, **options)
        assert table.column("user_id").to_pylist() == ids.to_pylist()
        found |= {row.pop("user_id"): row for row in table.to_pylist()}
    assert len(found) == store.num_users
    return found


def check_facts(store: SequenceStore, table: str) -> dict[str, Any]:
    """The facts of a side table, after a recount of its rows and its quarantine."""
    entry = store.manifest[table]
    facts = entry["facts"]
    joined = ("num_matched", "num_duplicates", "num_without_events", "num_forgotten")
    assert facts["num_rows"] == facts["num_quarantined"] + sum(facts[name] for name in joined)
    bad = [storage.read_parquet(storage.join(store.url, file["name"])) for file in entry["quarantine"]]
    assert sum(part.num_rows for part in bad) == facts["num_quarantined"] == sum(facts["reasons"].values())
    return facts


def quarantine_of(store: SequenceStore, table: str) -> pa.Table:
    files = store.manifest[table]["quarantine"]
    return pa.concat_tables([storage.read_parquet(storage.join(store.url, file["name"])) for file in files])


def test_items_stand_in_the_order_of_the_vocabulary_and_follow_it(settings: Settings) -> None:
    store = build_sequences.run(settings)
    found = items_of(store)
    assert list(found) == ["common", "often"], "rare has too few events"
    assert found["common"] | {"price_bucket": 0} == {
        "in_table": True,
        "title": "title of common",
        "category": None,
        "brand": None,
        "price": 2.0,
        "price_bucket": 0,
        "colour": None,
    }
    assert found["common"]["price_bucket"] > 0
    assert (found["often"]["in_table"], found["often"]["title"], found["often"]["price_bucket"]) == (False, None, 0)
    assert check_facts(store, "items")["num_without_events"] == 2

    write_batch(settings, "01", simple_log(USERS * 4, ["later", "rare"], minute=100))
    grown = append.run(settings)
    after = items_of(grown)
    assert list(after) == ["common", "often", "rare", "later"]
    assert [after[name]["title"] for name in after] == ["title of common", None, "title of rare", "title of later"]
    assert after["common"] == found["common"]
    prices = [after[name]["price_bucket"] for name in ("common", "rare", "later")]
    assert prices[1] <= prices[0] <= prices[2], "by the edges of the build"
    assert items_of(SequenceStore.open(store.url).seen_by(4, 9)) == found, "as a model of the build sees it"
    assert items_of(compact.run(settings)) == after


def test_items_stay_readable_after_an_append_without_the_table(settings: Settings) -> None:
    build_sequences.run(settings)
    write_batch(settings, "01", simple_log(USERS * 4, ["later", "rare"], minute=100))
    after = items_of(append.run(change(settings, "items", path=None)))
    assert list(after) == ["common", "often", "rare", "later"]
    assert after["common"]["title"] == "title of common"
    assert not after["later"]["in_table"]


def test_a_feature_declared_later_is_read_or_refused(settings: Settings) -> None:
    build_sequences.run(change(settings, "items", features={}))
    write_batch(settings, "01", simple_log(USERS, ITEMS, minute=100))
    try:
        grown = append.run(settings)
    except SettingsError as error:
        assert "items.features" in str(error)  # noqa: PT017
    else:
        assert "colour" in grown.read_items().column_names


def test_users_stand_beside_their_sequences_and_hide_what_is_sensitive(settings: Settings) -> None:
    store = build_sequences.run(settings)
    found = users_of(store)
    assert {user for user, row in found.items() if row["in_table"]} == {"u1", "u3", "u9"}
    assert found["u3"] == {"in_table": True, "region": "region of u3"}
    assert found["u4"] == {"in_table": False, "region": None}
    told = users_of(store, include_sensitive=True)
    assert {user: row["age"] for user, row in told.items() if row["age"]} == {"u1": 30.0, "u3": 33.0, "u9": 39.0}
    facts = check_facts(store, "users")
    assert facts["reasons"] == {"empty_user_id": 1, "infinite_age": 1}
    assert facts["num_duplicates"] == 1

    bad = quarantine_of(store, "users")
    assert "age" not in bad.column_names, "sensitive values stay out of the quarantine"
    assert sorted(zip(bad.column("source_row").to_pylist(), bad.column("reason").to_pylist(), strict=True)) == [
        (2, "empty_user_id"),
        (5, "infinite_age"),
    ]
    assert set(bad.column("source_file").to_pylist()) == {settings.users.path}


def test_users_who_come_later_and_a_table_that_changed(settings: Settings) -> None:
    build_sequences.run(settings)
    write_batch(settings, "01", simple_log(["u77", "u78"] * 3, ["common"], minute=100))
    grown = append.run(settings)
    found = users_of(grown)
    assert found["u77"] == {"in_table": True, "region": "region of u77"}
    assert found["u78"] == {"in_table": False, "region": None}

    pq.write_table(user_rows(["u77", "u78", "u1"], [1.0, 2.0, 3.0]), settings.users.path)
    write_batch(settings, "02", simple_log(["u1"], ["common"], minute=200))
    changed = append.run(settings)
    told = users_of(changed, include_sensitive=True)
    assert {user: row["age"] for user, row in told.items() if row["in_table"]} == {"u77": 1.0, "u78": 2.0, "u1": 3.0}
    assert check_facts(changed, "users")["num_quarantined"] == 0
    assert users_of(grown) == found, "a reader of the snapshot before sees the table of before"


def test_too_many_bad_rows_of_a_side_table_are_refused_and_no_store_is_published(settings: Settings) -> None:
    strict = change(settings, "users", max_bad_share=0.1)
    with pytest.raises(DataContractError, match=r"28\.57% of rows are bad .*more than users\.max_bad_share 10\.00%"):
        build_sequences.run(strict)
    with pytest.raises(DataContractError, match="nothing is published here yet"):
        SequenceStore.open(settings.store_url)
    assert build_sequences.run(settings).num_users == 10, "with another share it goes on"


def test_a_table_of_another_kind_of_id_is_refused_before_any_work(settings: Settings, tmp_path: Path) -> None:
    assert settings.items.path is not None
    pq.write_table(item_rows(item_id=[1, 2, 3, 4]), settings.items.path)
    message = r"column item_id \(item_id\) has type int64, expected string, as in the log"
    with pytest.raises(DataContractError, match=message):
        build_sequences.run(settings)
    assert not (tmp_path / "run/store").exists()


def test_a_store_without_tables_says_so(settings: Settings) -> None:
    bare = Settings.model_validate(settings.model_dump() | {"items": {}, "users": {}})
    store = build_sequences.run(bare)
    with pytest.raises(SettingsError, match=r"has no item table; give items\.path when it is built"):
        store.read_items()
    with pytest.raises(SettingsError, match=r"has no user table; give users\.path when it is built"):
        store.read_user_table(0, pa.array(["u1"]))
    write_batch(settings, "01", simple_log(["u1"] * 15, ["rare"], minute=100))
    grown = append.run(settings)
    assert items_of(grown)["rare"]["title"] == "title of rare"
    assert users_of(grown)["u9"]["region"] == "region of u9", "tables may come with an append"


@pytest.mark.usefixtures("ray_cluster")
def test_tables_by_ray(tmp_path: Path) -> None:
    pq.write_table(user_rows(USERS, [float(age) for age in range(10)]), tmp_path / "users.parquet", row_group_size=3)
    users = {"path": str(tmp_path / "users.parquet"), "features": {"age": "numeric"}}
    settings = make_settings(tmp_path / "run", users=users)
    write_batch(settings, "00", simple_log(USERS * 6, ITEMS))
    store = build_sequences.run(settings)
    assert {user: row["age"] for user, row in users_of(store).items()} == {f"u{age}": float(age) for age in range(10)}
    assert check_facts(store, "users")["num_matched"] == 10


def test_the_table_that_convert_wrote_is_called_source(settings: Settings) -> None:
    folder = Path(settings.run_dir) / "items"
    folder.mkdir(parents=True)
    pq.write_table(item_rows(), folder / "part-00000.parquet")
    store = build_sequences.run(change(settings, "items", path="source"))
    assert items_of(store)["common"]["title"] == "title of common"
