"""A full disk (T23): said with path and bytes, what stood there stands, and nothing is left of the attempt."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_io import storage
from data_io.storage import OutOfDiskError

ATTEMPTS = {
    "write": "storage.write_bytes(url, b'x' * 5_000_000)",
    "create": "storage.create_bytes(f'{url}.new', b'x' * 5_000_000)",
    "write_parquet": "storage.write_parquet(url, pa.table({'number': np.random.default_rng(0).random(600_000)}))",
    "upload": "storage.upload_folder(Path(folder) / 'staged', f'{folder}/out')",
    "download": "storage.download_folder(f'{folder}/staged', Path(folder) / 'out')",
}


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_file_that_may_not_grow_so_large(attempt: str, tmp_path: Path) -> None:
    (tmp_path / "staged").mkdir()
    (tmp_path / "staged/large").write_bytes(b"x" * 5_000_000)
    storage.write_bytes(str(tmp_path / "old"), b"before")
    code = f"""
import resource, sys
from pathlib import Path
import numpy as np, pyarrow as pa
from data_io import storage
folder, url = sys.argv[1], sys.argv[1] + "/old"
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    {ATTEMPTS[attempt]}
except storage.OutOfDiskError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.startswith(f"{tmp_path}/")
    assert ": no room for its " in said
    assert "(File too large; the disk has " in said
    assert "5,000,000 bytes" in said or attempt == "write_parquet"
    assert names_in(tmp_path) == ["old", "staged/large"]
    assert (tmp_path / "old").read_bytes() == b"before"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_that_fills_up(small_disk: Path) -> None:
    url = str(small_disk / "run" / "old")
    storage.write_bytes(url, b"before" * 100_000)
    with pytest.raises(
        OutOfDiskError, match=r"run/old: no room for its 600,001 bytes \(No space left on device; the d"
    ):
        storage.write_bytes(url, b"x" * 600_001)
    with pytest.raises(OutOfDiskError, match=r"run/new: no room for its 700,000 bytes"):
        storage.create_bytes(str(small_disk / "run" / "new"), b"x" * 700_000)
    assert names_in(small_disk) == ["run/old"]
    assert storage.read_bytes(url) == b"before" * 100_000
    storage.write_bytes(str(small_disk / "run" / "fits"), b"x" * 300_000)
