"""Forgetting: users vanish from every file of the run but its log, stay away, and nobody else is touched."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_io import storage
from data_io.buckets import BucketWriter, bucket_of, iter_buckets
from data_io.config import SettingsError
from data_io.schema import DataContractError
from data_io.store import SequenceStore
from ray_jobs import append, build_sequences, compact, forget
from ray_jobs.config import Settings
from tests.integration.stores import (
    KEY_VARIABLE,
    change,
    check_buckets,
    check_conservation,
    files_with,
    kill_before_publishing,
    make_settings,
    simple_log,
    users_of,
    write_batch,
)

ITEMS = ["i0", "i1", "i2", None]
"""None of a view is a bad row."""
TEXTS = [f"user-{number}" for number in range(12)]
ODD = ["odd 7f3a/../=%é", "odd-91bc"]
ODD_NUMBERS = [987_654_321_012_345, -123_456_789_098_765]


def make_run(place: Path | str, ids: list[Any], odd: list[Any], **sections: Any) -> Settings:
    """A run with all that may hold a user: a store of two parts with quarantine, a killed append, scores, a report."""
    settings = make_settings(place, events={"max_bad_share": 0.5}, **sections)
    everyone = [*ids, *odd]
    write_batch(settings, "00", simple_log(everyone * 5, ITEMS))
    build_sequences.run(settings)
    write_batch(settings, "01", simple_log(everyone[::-1] * 3, ["i1", "n1", None], minute=100))
    append.run(settings)
    for output in ("scores", "report/users/next_item"):
        write_output(settings, output, everyone)
    write_batch(settings, "02", simple_log(everyone * 2, ["n2", None], minute=200))
    kill_before_publishing(change(settings, "store", rows_per_run=10))
    return settings


def write_output(settings: Settings, name: str, users: list[Any], *, is_published: bool = True) -> None:
    """Put rows of users where scores or results of an evaluation stand."""
    writer = BucketWriter(url=storage.absolute(settings.place(name)), fingerprint="f")
    ids = pa.array(users)
    bucket = bucket_of(ids, 4)
    parts = [pa.table({"user_id": ids.filter(pa.array(bucket == number))}) for number in range(4)]
    marks = [writer.commit(number, 4, part, {"num_users": part.num_rows}) for number, part in enumerate(parts)]
    if is_published:
        writer.publish(marks, {"num_buckets": 4, "num_users": len(users)})


def users_file(place: Path, ids: list[Any]) -> str:
    """A file of users to forget: text, or Parquet where they are numbers."""
    path = place.parent / "forget"
    if isinstance(ids[0], str):
        path.write_text("".join(f"{one}\n" for one in ids))
    else:
        pq.write_table(pa.table({"user_id": ids}), path)
    return str(path)


def remains(settings: Settings, ids: list[Any]) -> dict[str, Any]:
    """Files below the run folder, but for the log, that hold one of the ids."""
    return {
        name: held
        for name, held in files_with(storage.absolute(settings.run_dir), ids).items()
        if not name.startswith("events/")
    }


@pytest.mark.usefixtures("on_threads")
@pytest.mark.parametrize(("ids", "odd"), [(TEXTS, ODD), (list(range(12)), ODD_NUMBERS)], ids=["text", "numbers"])
def test_forgotten_users_vanish_and_stay_away(tmp_path: Path, ids: list[Any], odd: list[Any]) -> None:
    place = tmp_path / "run"
    settings = make_run(place, ids, odd)
    before = SequenceStore.open(settings.store_url)
    gone = [*odd, *ids[:2]]
    expected = {user: events for user, events in users_of(before).items() if user not in gone}
    held = {name.split("/")[1 if name.startswith("store/") else 0] for name in remains(settings, odd)}
    assert {"_work", "quarantine", "scores", "report"} <= held, "what is to vanish is there"
    settings = change(settings, "forget", users=users_file(place, [*gone, _unknown(ids)]))
    receipt = storage.read_json(forget.run(settings))
    assert remains(settings, odd) == {}
    store = SequenceStore.open(settings.store_url)
    assert users_of(store) == expected
    check_conservation(store)
    check_buckets(store)
    check_receipt(receipt, before, store, num_asked=5, num_found=4)
    for name in ("scores", "report/users/next_item"):
        left = pa.concat_tables(iter_buckets(storage.absolute(settings.place(name)))).column("user_id").to_pylist()
        assert sorted(left) == sorted(ids[2:])

    manifest = store.manifest
    again = storage.read_json(forget.run(settings))
    assert (again["num_users_found"], [output["files"] for output in again["outputs"]]) == (0, [[], [], []])
    assert SequenceStore.open(settings.store_url).manifest == manifest
    grown = append.run(settings)  # of the file whose append was killed
    assert not users_of(grown).keys() & set(gone)
    assert grown.manifest["num_forgotten"] == manifest["num_forgotten"] + 2 * len(gone)
    assert remains(settings, odd) == {}
    check_conservation(grown)
    check_buckets(compact.run(settings))


def _unknown(ids: list[Any]) -> Any:
    return "nobody" if isinstance(ids[0], str) else 4711


def check_receipt(
    receipt: dict[str, Any], before: SequenceStore, after: SequenceStore, *, num_asked: int, num_found: int
) -> None:
    """Hold what a receipt says against the store before and after."""
    assert (receipt["num_users_asked"], receipt["num_users_found"]) == (num_asked, num_found)
    assert len(receipt["user_digests"]) == num_asked
    assert before.num_users - after.num_users == num_found
    assert [output["num_users"] for output in receipt["outputs"]] == [num_found] * 3
    for output in receipt["outputs"]:
        for record in output["files"]:
            assert record["before"]["num_rows"] - record["num_rows"] == record["after"]["num_rows"] >= 0
            assert not storage.exists(storage.join(output["url"], record["before"]["name"]))
            assert storage.exists(storage.join(output["url"], record["after"]["name"]))
    names = ("num_events", "num_quarantined")
    lost = sum(before.manifest[name] - after.manifest[name] for name in names)
    assert after.manifest["num_forgotten"] == lost > 0


@pytest.fixture
def settings(tmp_path: Path, on_threads: None) -> Settings:
    """Settings of a run with a store of twelve users, of whom two are to be forgotten."""
    place = tmp_path / "run"
    users = users_file(place, TEXTS[2:4])
    settings = make_settings(place, events={"max_bad_share": 0.5}, forget={"users": users})
    write_batch(settings, "00", simple_log(TEXTS * 5, ITEMS))
    build_sequences.run(settings)
    return settings


def test_reasons_still_add_up(settings: Settings) -> None:
    forget.run(settings)
    manifest = SequenceStore.open(settings.store_url).manifest
    assert manifest["reasons"] == {"empty_item_id": manifest["num_quarantined"]}


def test_a_file_of_forgotten_users_only_goes_in_without_a_row(settings: Settings) -> None:
    forget.run(settings)
    before = users_of(SequenceStore.open(settings.store_url))
    write_batch(settings, "01", simple_log(TEXTS[2:4] * 4, ["i0"], minute=100))
    grown = append.run(settings)
    assert users_of(grown) == before
    assert grown.manifest["num_rows"] == 68
    check_conservation(grown)


def test_a_store_may_lose_all_its_users_and_get_others(settings: Settings) -> None:
    forget.run(change(settings, "forget", users=users_file(tmp_place(settings), TEXTS)))
    store = SequenceStore.open(settings.store_url)
    assert (store.num_users, store.manifest["num_events"]) == (0, 0)
    check_conservation(store)
    write_batch(settings, "01", simple_log(["new"] * 4, ["i0"], minute=100))
    grown = append.run(settings)
    assert list(users_of(grown)) == ["new"]
    check_conservation(grown)


def tmp_place(settings: Settings) -> Path:
    return Path(settings.run_dir)


def test_users_vanish_from_the_user_table_and_its_quarantine(settings: Settings, tmp_path: Path) -> None:
    table = {"user_id": [*ODD, "odd-no-events", TEXTS[5]], "age": [float("inf"), 30.0, 40.0, 50.0]}
    pq.write_table(pa.table(table), tmp_path / "users.parquet")
    users = {"path": str(tmp_path / "users.parquet"), "features": {"age": "numeric"}, "max_bad_share": 0.5}
    settings = Settings.model_validate(settings.model_dump() | {"users": users})
    write_batch(settings, "01", simple_log([*ODD, TEXTS[5]] * 4, ["i0"], minute=100))
    append.run(settings)
    gone = [*ODD, "odd-no-events"]
    assert len(remains(settings, gone)) >= 4, "what is to vanish is there"
    forget.run(change(settings, "forget", users=users_file(tmp_place(settings), gone)))
    store = SequenceStore.open(settings.store_url)
    (bucket,) = bucket_of(pa.array([TEXTS[5]]), 4)
    assert store.read_user_table(bucket, pa.array([TEXTS[5]])).column("age").to_pylist() == [50.0]
    assert remains(settings, gone) == {}


def test_users_vanish_from_scores_that_were_not_finished(settings: Settings) -> None:
    write_output(settings, "scores", [*TEXTS, *ODD], is_published=False)
    forget.run(change(settings, "forget", users=users_file(tmp_place(settings), ODD)))
    assert remains(settings, ODD) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; give the users to forget"),
        (b"\n \n", "holds no user id"),
        (b"\xff\xfe\n", "neither Parquet nor UTF-8 text"),
    ],
)
def test_files_that_name_nobody_are_refused_before_anything_is_done(
    settings: Settings, content: bytes | None, message: str
) -> None:
    file = tmp_place(settings).parent / "forget"
    file.unlink() if content is None else file.write_bytes(content)
    before = storage.list_tree(settings.run_dir)
    with pytest.raises(DataContractError, match=message):
        forget.run(settings)
    with pytest.raises(SettingsError, match=r"forget\.users: give the file of the users to forget"):
        forget.run(change(settings, "forget", users=None))
    assert storage.list_tree(settings.run_dir) == before


def test_a_line_is_an_id_whatever_stands_in_it(settings: Settings) -> None:
    strange = "one\u2028id\x0bof\x85a user"
    write_batch(settings, "01", simple_log([strange], ["i0"], minute=100))
    append.run(settings)
    receipt = forget.run(change(settings, "forget", users=users_file(tmp_place(settings), [strange])))
    assert storage.read_json(receipt)["num_users_found"] == 1


@pytest.mark.usefixtures("ray_cluster")
def test_a_store_with_pseudonyms_holds_no_raw_id_and_forgets_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(
        tmp_path / "run",
        events={"max_bad_share": 0.5},
        privacy={"pseudonym_key_variable": KEY_VARIABLE},
        users={"path": str(tmp_path / "users.parquet"), "features": {"age": "numeric"}, "max_bad_share": 0.5},
    )
    ages = [float("inf"), *range(13)]
    pq.write_table(
        pa.table({"user_id": [*ODD, *TEXTS], "age": pa.array(ages, pa.float64())}), tmp_path / "users.parquet"
    )
    write_batch(settings, "00", simple_log([*TEXTS, ODD[0]] * 4, ITEMS))
    store = build_sequences.run(settings)
    write_batch(settings, "01", simple_log([*TEXTS, *ODD] * 4, [*ITEMS, "i4"], minute=100))
    grown = append.run(settings)
    assert grown.num_users == store.num_users + 1 == 14
    check_conservation(grown)
    assert remains(settings, [*TEXTS, *ODD]) == {}

    write_batch(settings, "02", simple_log(TEXTS, ITEMS, minute=200))
    monkeypatch.setenv(KEY_VARIABLE, "another secret of more than sixteen bytes")
    with pytest.raises(SettingsError, match=r"has pseudonyms of key \w+, the environment holds key \w+"):
        append.run(settings)
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(SettingsError, match=f"{KEY_VARIABLE} is not set on this node"):
        append.run(settings)
    monkeypatch.undo()
    assert SequenceStore.open(store.url).manifest == grown.manifest

    settings = change(settings, "forget", users=users_file(tmp_place(settings), [ODD[0], TEXTS[3]]))
    receipt = storage.read_json(forget.run(settings))
    assert receipt["num_users_found"] == 2
    assert remains(settings, [*TEXTS, *ODD]) == {}
    after = append.run(settings)
    assert after.num_users == 12
    # Four rows of each of the two in each of two files, and one in the third.
    assert after.manifest["num_forgotten"] == 17
    check_conservation(after)


def test_a_build_that_was_killed_does_not_go_on_with_another_key(
    tmp_path: Path, on_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path, privacy={"pseudonym_key_variable": KEY_VARIABLE})
    write_batch(settings, "00", simple_log(TEXTS * 4, ["i0"]))
    kill_before_publishing(settings, build_sequences)
    monkeypatch.setenv(KEY_VARIABLE, "another secret of more than sixteen bytes")
    with pytest.raises((SettingsError, DataContractError)):
        build_sequences.run(settings)


@pytest.mark.usefixtures("on_threads", "s3_endpoint")
def test_everything_on_s3() -> None:
    import s3fs

    s3fs.S3FileSystem().mkdir("clickformer-forget")
    place = "s3://clickformer-forget/run"
    settings = make_run(place, TEXTS, ODD)
    compacted = compact.run(settings)
    expected = {user: events for user, events in users_of(compacted).items() if user not in ODD}
    storage.write_bytes("s3://clickformer-forget/users", "\n".join(ODD).encode())
    receipt = storage.read_json(forget.run(change(settings, "forget", users="s3://clickformer-forget/users")))
    assert receipt["num_users_found"] == 2
    assert remains(settings, ODD) == {}
    store = SequenceStore.open(settings.store_url)
    assert users_of(store) == expected
    grown = append.run(settings)
    assert grown.num_users == 12
    assert grown.manifest["num_forgotten"] == store.manifest["num_forgotten"] + 4
    check_conservation(grown)
    check_buckets(grown)
