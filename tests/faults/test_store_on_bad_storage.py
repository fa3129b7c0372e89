"""Jobs of the store while the storage fails them (T12, T21, T22, T23): changing logs, bad answers, full disks.

Whatever happens, readers see the store as it was until a whole new snapshot stands, and the same command goes on.
"""

import re
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import s3fs

from data_io import storage
from data_io.scan import EventLog
from data_io.schema import DataContractError
from data_io.store import SequenceStore
from ray_jobs import append, build_sequences, compact
from ray_jobs.config import Settings
from ray_jobs.failures import find_expected
from tests.s3_faults import FaultyS3
from tests.store_jobs import run_job
from tests.undisturbed import Stores, check_finished, check_outcome, tree_of

pytestmark = pytest.mark.usefixtures("joined")

ON_THREADS, IN_TASKS = 100_000, 100
BUCKET = "clickformer-stores"


def with_log(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"events": settings.events.model_copy(update={"path": url})})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1_000])


def replace(file: Path) -> None:
    pq.write_table(pq.read_table(file).slice(5), file)


def delete(file: Path) -> None:
    file.unlink()


def flip_a_bit(file: Path) -> None:
    """In the values of a column; the file is as long as it was and its footer as good."""
    column = pq.read_metadata(file).row_group(0).column(0)
    content = bytearray(file.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (cut, "bytes when it was scanned and now"),
    "replaced": (replace, "bytes when it was scanned and now"),
    "deleted": (delete, "the file is gone since it was scanned"),
    "a bit flipped": (flip_a_bit, "CRC checksum verification failed"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("job", [pytest.param("build_sequences"), "append"])
def test_a_file_of_the_log_that_changes_while_the_job_runs(
    job: str, damage: str, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = {"build_sequences": build_sequences, "append": append}[job]
    settings = stores.begin(job, tmp_path / "run", IN_TASKS if job == "build_sequences" else ON_THREADS)
    settings = with_log(settings, str(shutil.copytree(settings.events_url, tmp_path / "log")))
    file = sorted((tmp_path / "log").iterdir())[3]
    whole, (hurt, problem), scan = file.read_bytes(), DAMAGES[damage], module.scan_log

    def scan_then_hurt(*arguments: Any, **named: Any) -> EventLog:
        log = scan(*arguments, **named)
        hurt(file)
        return log

    monkeypatch.setattr(module, "scan_log", scan_then_hurt)
    with pytest.raises(Exception, match=problem) as caught:
        module.run(settings)
    monkeypatch.undo()
    error = find_expected(caught.value)
    assert isinstance(error, DataContractError)
    assert str(error).startswith(f"{file}, row group 0: ")
    before = stores.around(job)[0]
    if before is None:
        with pytest.raises(DataContractError, match="nothing is published here yet"):
            SequenceStore.open(settings.store_url)
    else:
        check_outcome(settings.store_url, before)
    file.write_bytes(whole)
    module.run(settings)
    check_finished(settings.store_url, stores.outcomes[job])


@pytest.fixture
def remote(s3_endpoint: str, stores: Stores) -> str:
    """A folder of an object store with the log, old and new."""
    s3fs.S3FileSystem(endpoint_url=s3_endpoint, use_listings_cache=False).makedirs(BUCKET, exist_ok=True)
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    for part in ("old", "new"):
        storage.upload_folder(stores.place / part, storage.join(url, part))
    return url


def remote_settings(stores: Stores, url: str, job: str, rows_per_run: int = ON_THREADS) -> Settings:
    settings = stores.settings(Path("unused"), job, rows_per_run)
    log = storage.join(url, "old" if job == "build_sequences" else "new")
    return with_log(settings, log).model_copy(update={"run_dir": storage.join(url, "run")})


STUTTER = ("503", "500", "reset", "reset_mid_body", "lost")


@pytest.mark.faults
def test_build_append_and_compact_on_a_store_that_stutters(
    stores: Stores, remote: str, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    with faulty_s3(kinds=STUTTER, rate=0.04, seed=11) as faults:
        for module, name in ((build_sequences, "build_sequences"), (append, "append"), (compact, "compact")):
            settings = remote_settings(stores, remote, name)
            module.run(settings)
            check_finished(settings.store_url, stores.outcomes[name])
    assert set(faults.injected) == set(STUTTER), "each kind of fault came up"


def put_on_s3(stores: Stores, url: str) -> Settings:
    """Settings of an append to a store that stands on S3."""
    build_sequences.run(remote_settings(stores, url, "build_sequences"))
    return remote_settings(stores, url, "append")


def test_snapshots_whose_answers_are_lost_are_published_once(stores: Stores, remote: str, faulty_s3: FaultyS3) -> None:
    settings = put_on_s3(stores, remote)
    key = settings.store_url.removeprefix("s3://")
    with faulty_s3(kinds=("lost",), methods=("PUT",), prefix=f"{key}/_", limit=6) as faults:
        append.run(settings)
    assert any("_snapshots/00000001.json" in request for request in faults.requests)
    assert len(storage.list_files(storage.join(settings.store_url, "_snapshots"))) == 2
    check_finished(settings.store_url, stores.outcomes["append"])


@pytest.mark.parametrize(
    "below", ["bucket", *(pytest.param(below, marks=pytest.mark.faults) for below in ("", "_snapshots/", "_work/"))]
)
def test_a_store_that_refuses_for_good(
    below: str, stores: Stores, remote: str, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    settings = put_on_s3(stores, remote)
    before = tree_of(settings.store_url)
    key = settings.store_url.removeprefix("s3://")
    with faulty_s3(kinds=("403",), methods=("PUT",) if below else (), prefix=f"{key}/{below}"):
        code, said = run_job("append", settings, tmp_path)
    assert "the object store refused the credentials in the environment" in said
    assert f"{settings.store_url}/{below}" in said
    assert code == 2, said
    after = tree_of(settings.store_url)
    assert {name: after[name] for name in before if "_lock/" not in name}.items() <= before.items(), "all stands"
    check_readers_saw_nothing(settings, stores)
    append.run(settings)
    check_finished(settings.store_url, stores.outcomes["append"])


def check_readers_saw_nothing(settings: Settings, stores: Stores) -> None:
    assert SequenceStore.open(settings.store_url).manifest["snapshot"] == 0
    check_outcome(settings.store_url, stores.outcomes["build_sequences"])


@pytest.mark.parametrize("most_file_bytes", [2_000, 30_000])
def test_an_append_whose_files_may_not_grow(most_file_bytes: int, stores: Stores, tmp_path: Path) -> None:
    settings = stores.begin("append", tmp_path / "run", ON_THREADS)
    code, said = run_job("append", settings, tmp_path, most_file_bytes=most_file_bytes)
    assert code == 2, said
    assert re.search(rf"clickformer: {settings.store_url}/\S+: no room for its [\d,]+ bytes \(File too large;", said)
    check_readers_saw_nothing(settings, stores)
    append.run(settings)
    check_finished(settings.store_url, stores.outcomes["append"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("job", "rows_per_run", "free_bytes"),
    [
        pytest.param("build_sequences", IN_TASKS, 60_000, marks=pytest.mark.faults),
        ("append", ON_THREADS, 20_000),
        ("append", ON_THREADS, 200_000),
        ("append", ON_THREADS, 280_000),
    ],
)
def test_a_disk_that_fills_up(
    job: str, rows_per_run: int, free_bytes: int, stores: Stores, small_disk: Path, tmp_path: Path
) -> None:
    settings = stores.begin(job, small_disk / "run", rows_per_run)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (shutil.disk_usage(small_disk).free - free_bytes))
    code, said = run_job(job, settings, tmp_path, in_tasks=job == "build_sequences")
    assert code == 2, said
    assert re.search(rf"{settings.store_url}/\S+: no room for its [\d,]+ bytes \(No space left on device;", said)
    if job == "append":
        check_readers_saw_nothing(settings, stores)
    ballast.unlink()
    code, said = run_job(job, settings, tmp_path)
    assert code == 0, said
    check_finished(settings.store_url, stores.outcomes[job])
