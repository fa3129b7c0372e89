"""What is made of published scores: one row an item, and the row of a person."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from data_io.buckets import BucketWriter, bucket_of
from data_io.config import SettingsError
from data_io.schema import DataContractError
from ray_jobs import export, lookup, rollback
from ray_jobs.config import Settings
from ray_jobs.export import long_form

NUM_BUCKETS = 3
LISTS = {"ann": ["x", "y"], "bob": [], "cem": ["z"], "dörte": ["y", "x", "z"]}


def rows(users: list[str], version: str) -> pa.Table:
    lists = [LISTS[user] for user in users]
    scores = [[-1.0 - rank for rank in range(len(items))] for items in lists]
    return pa.table(
        {
            "user_id": pa.array(users, pa.large_string()),
            "item_ids": pa.array(lists, pa.large_list(pa.large_string())),
            "scores": pa.array(scores, pa.large_list(pa.float32())),
            "source": ["model"] * len(users),
            "rules": pa.array([["adults"]] * len(users), pa.large_list(pa.string())),
            "score_churn": pa.array([0.25] * len(users), pa.float32()),
            "num_events": pa.array([7] * len(users), pa.int32()),
            "model_version": [version] * len(users),
        }
    )


def publish(settings: Settings, version: str) -> None:
    writer = BucketWriter(url=settings.place("scores"), fingerprint=version, folder=f"run={version}/")
    home = bucket_of(pa.array(list(LISTS), pa.large_string()), NUM_BUCKETS)
    marks = []
    for bucket in range(NUM_BUCKETS):
        users = [user for user, place in zip(LISTS, home, strict=True) if place == bucket]
        marks.append(writer.commit(bucket, NUM_BUCKETS, rows(users, version), {}))
    writer.publish(marks, {"num_buckets": NUM_BUCKETS, "num_users": len(LISTS)}, retain_hours=1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate({"run_dir": str(tmp_path)})


def change(settings: Settings, section: str, **values: object) -> Settings:
    return Settings.model_validate(settings.model_dump() | {section: values})


def test_the_long_form_has_a_row_for_each_user_and_item() -> None:
    assert long_form(rows(list(LISTS), "v")).to_pylist() == [
        {"user_id": user, "rank": rank, "item_id": item, "score": -float(rank)}
        for user, items in LISTS.items()
        for rank, item in enumerate(items, 1)
    ]
    assert long_form(rows([], "v")).num_rows == 0


def test_responses_stand_in_the_row_of_their_item() -> None:
    table = rows(list(LISTS), "v")
    long = long_form(table.append_column("response_buy", table.column("scores")))
    assert long.column_names == ["user_id", "rank", "item_id", "score", "response_buy"]
    assert long["response_buy"].to_pylist() == long["score"].to_pylist()


def test_a_user_is_looked_up(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    publish(settings, "v1")
    assert lookup.run(change(settings, "lookup", user="dörte"))["item_ids"] == LISTS["dörte"]
    said = capsys.readouterr().out
    assert "user dörte: 7 events, list from model, model v1" in said
    assert "rules that acted: adults" in said
    assert "churn: 0.250" in said
    assert "1    -1.000  y" in said


def test_nobody_and_nothing_are_told(settings: Settings) -> None:
    with pytest.raises(DataContractError, match="run clickformer score_users first"):
        lookup.run(change(settings, "lookup", user="ann"))
    publish(settings, "v1")
    with pytest.raises(DataContractError, match="there is no user zoe"):
        lookup.run(change(settings, "lookup", user="zoe"))
    with pytest.raises(SettingsError, match="lookup needs a user"):
        lookup.run(settings)


def test_readers_go_back_and_forth(settings: Settings) -> None:
    with pytest.raises(DataContractError, match="nothing is published here"):
        rollback.run(settings)
    publish(settings, "v1")
    with pytest.raises(DataContractError, match="no scores from before are kept"):
        rollback.run(settings)
    publish(settings, "v2")
    for version in ("v1", "v2"):
        assert rollback.run(settings) == version
        assert lookup.run(change(settings, "lookup", user="ann"))["model_version"] == version


def read_lance(url: str) -> pa.Table:
    lance = pytest.importorskip("lance")
    return lance.dataset(url).to_table()


def read_delta(url: str) -> pa.Table:
    deltalake = pytest.importorskip("deltalake")
    return pa.table(deltalake.DeltaTable(url).to_pyarrow_table())


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("to", "package", "read"), [("lance", "lance", read_lance), ("delta", "deltalake", read_delta)]
)
def test_a_lake_table_has_every_user_once_also_when_it_is_written_again(
    settings: Settings, tmp_path: Path, to: str, package: str, read: Callable[[str], pa.Table]
) -> None:
    pytest.importorskip(package)
    url = str(tmp_path / to)
    for version in ("v1", "v2"):
        publish(settings, version)
        export.run(change(settings, "export", to=to, url=url))
        found = sorted(read(url).to_pylist(), key=lambda row: row["user_id"])
        assert found == sorted(rows(list(LISTS), version).to_pylist(), key=lambda row: row["user_id"])


@pytest.mark.usefixtures("ray_cluster")
def test_an_iceberg_table_has_every_user_once_also_when_it_is_written_again(settings: Settings, tmp_path: Path) -> None:
    catalogs = pytest.importorskip("pyiceberg.catalog")
    catalog = {"name": "shop", "type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": str(tmp_path)}
    loaded = catalogs.load_catalog(**catalog)
    for version in ("v1", "v2"):
        publish(settings, version)
        export.run(change(settings, "export", to="iceberg", url="scores.users", catalog=catalog))
        found = sorted(loaded.load_table("scores.users").scan().to_arrow().to_pylist(), key=lambda row: row["user_id"])
        assert found == sorted(rows(list(LISTS), version).to_pylist(), key=lambda row: row["user_id"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "lance", "url": "x"}, r"needs the package pylance: pip install pylance"),
        ({"to": "delta"}, r"needs export\.url"),
        ({"to": "iceberg", "url": "users"}, r"export\.url users names no Iceberg table: give NAMESPACE\.TABLE"),
    ],
    ids=str,
)
def test_a_table_that_cannot_be_written_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], message: str
) -> None:
    publish(settings, "v1")
    has_package = options["to"] != "lance"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: has_package or None)
    with pytest.raises(SettingsError, match=message):
        export.run(change(settings, "export", **options))
