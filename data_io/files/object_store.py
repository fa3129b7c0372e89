"""S3: its clients, how often they try, and what went wrong in words.

Arrow's client reads and writes; s3fs does what Arrow's cannot: create only where nothing stands yet, and delete without
leaving empty objects that stand for folders. Invariant: throttling, server errors, time-outs and broken connections are
tried again after jittered, growing waits, by the clients themselves; refusals and missing objects are not.
"""

import errno
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
from pyarrow import fs

from data_io.config import SettingsError

S3_SCHEME = "s3://"

ATTEMPTS = 10
"""Of each request. The waits between them are drawn from 0 to 1, 2, 4, 8, 16 and then 20 seconds: measured, 84 to 97 s
until the last attempt fails, and S3 takes minutes, not seconds, to spread a prefix that it throttles."""

CONNECT_TIMEOUT_S = 10
REQUEST_TIMEOUT_S = 30
"""Of silence. An endpoint that accepts connections and never answers is given up after ATTEMPTS times this and the
waits: 7 minutes."""

_SINGLE_REQUEST_BYTES = 4 * 1024 * 1024
"""What is not larger is put in one request; Arrow makes parts of 5 MB and more."""

_UNREAD_ANSWER = "Failed to flush response stream"

_ARROW_ERROR = re.compile(
    r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during (\w+) operation(?:.*ExceptionName: (\w+))?"
)
_MISSING = {"nosuchkey", "resourcenotfound"}
_REFUSED = {
    "accessdenied",
    "expiredtoken",
    "invalidaccesskeyid",
    "invalidclienttokenid",
    "invalidsignature",
    "invalidtoken",
    "missingauthenticationtoken",
    "nocredentials",
    "requestexpired",
    "signaturedoesnotmatch",
    "unrecognizedclient",
}
_TRANSIENT = {
    "internalerror",
    "internalfailure",
    "networkconnection",
    "requesttimeout",
    "serviceunavailable",
    "slowdown",
    "throttling",
}


_T = TypeVar("_T")


class StorageError(Exception):
    """The object store refused or did not answer; nothing is known of the data.

    Not an OSError: code that reads a file takes those as signs that the file is torn.
    """


class Failure(NamedTuple):
    """What an object store said, whichever client it was said to."""

    code: str
    """In lower case, without underscores."""
    status: int
    """Of HTTP; 0 where unknown."""
    operation: str


def s3_filesystem(*, single_request: bool = False) -> fs.S3FileSystem:
    """Arrow's client for the endpoint and the credentials in the environment.

    One for each use, not one for all: attempts are drawn from a quota that the operations of a client share. Pickled,
    it forgets its attempts and makes 3.

    Args:
        single_request: write what fits in one part by one request instead of three. Never for what may need more:
            where such a client cannot begin an upload of parts, it puts the rest as if it were the whole.
    """
    # tests/benchmarks/storage.py measures Arrow's client against s3fs.
    return fs.S3FileSystem(
        region=_region(),
        endpoint_override=_endpoint(),
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=single_request,
    )


def put_object(url: str, content: bytes | pa.Buffer) -> None:
    """Put a whole object; what stood there before stays until the last byte has arrived.

    Raises:
        StorageError: the store refuses, or does not answer in time.
    """
    with explained(url):
        try:
            _put(url, content)
        except OSError as error:
            # The upload was completed, the answer was lost and it was completed again: not every store lets that pass.
            if "NO_SUCH_UPLOAD" not in str(error):
                raise
            _put(url, content)


def _put(url: str, content: bytes | pa.Buffer) -> None:
    filesystem = s3_filesystem(single_request=len(content) <= _SINGLE_REQUEST_BYTES)
    with filesystem.open_output_stream(url.removeprefix(S3_SCHEME)) as sink:
        sink.write(content)


def read_again(read: Callable[[], _T]) -> _T:
    """What `read` returns, called again where Arrow's client cannot see that it should.

    It reads an answer into a buffer of the size it expects. Where an error's text is longer than a small object, the
    client sees neither the error nor that another attempt is due.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return read()
        except OSError as error:
            if _UNREAD_ANSWER not in str(error):
                raise
        _pause(attempt)
    return read()


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0, min(2**attempt, 20)))


def create_object(url: str, content: bytes) -> bool:
    """Whether this call made the object; False where one stands there already. See `storage.create_bytes`.

    Raises:
        StorageError: the store refuses, or does not answer in time.
    """
    bucket, key = _split(url)
    started = time.monotonic()
    for attempt in range(ATTEMPTS):
        try:
            _ask(url, "put_object", Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
        except FileExistsError:
            return _holds(url, content)
        except BlockingIOError:  # somebody else is creating it at this very moment and may yet fail
            _pause(attempt)
        else:
            return True
    waited = time.monotonic() - started
    raise StorageError(
        f"{url}: others were creating it in each of {ATTEMPTS} attempts over {waited:.0f} s; run it again"
    )


def _holds(url: str, content: bytes) -> bool:
    """Whether what stands there is what we sent: then a first attempt had arrived and only its answer was lost."""

    def compare() -> bool:
        with s3_filesystem().open_input_file(url.removeprefix(S3_SCHEME)) as source:
            return source.size() == len(content) and source.read() == content

    try:
        with explained(url):
            return read_again(compare)
    except FileNotFoundError:  # deleted again since
        return False


def delete_object(url: str) -> None:
    """Remove an object; nothing happens where there is none.

    Raises:
        StorageError: the store refuses, or does not answer in time.
    """
    bucket, key = _split(url)
    _ask(url, "delete_object", Bucket=bucket, Key=key)


def delete_objects_below(url: str) -> None:
    """Remove all objects below a folder, and the empty one that stands for it, a thousand at a time.

    Raises:
        SettingsError: the URL is that of a whole bucket.
        StorageError: the store refuses, or does not answer in time.
    """
    bucket, key = _split(url)
    if not key:
        raise SettingsError(f"{url}: a whole bucket is never deleted; name a folder in it")
    while True:
        page = _ask(url, "list_objects_v2", Bucket=bucket, Prefix=f"{key}/")
        found = [{"Key": item["Key"]} for item in page.get("Contents", ())]
        if not found:
            return
        answer = _ask(url, "delete_objects", Bucket=bucket, Delete={"Objects": found, "Quiet": True})
        if kept := answer.get("Errors"):
            raise StorageError(
                f"{S3_SCHEME}{bucket}/{kept[0].get('Key')}: the object store does not delete it "
                f"({kept[0].get('Code')}: {kept[0].get('Message')}; {len(kept)} such objects); "
                "give the credentials in the environment the right to delete"
            )


def _ask(url: str, operation: str, **arguments: Any) -> dict[str, Any]:
    """The answer to one request of S3's own interface, through s3fs: Arrow's client has neither of those we need."""
    # Imported here: it takes half a second, and few processes create or delete.
    import s3fs
    from botocore.exceptions import BotoCoreError, NoCredentialsError

    client = s3fs.S3FileSystem(
        use_listings_cache=False,
        client_kwargs={"region_name": _region(), "endpoint_url": _endpoint()},
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": REQUEST_TIMEOUT_S,
            "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
        },
    )
    client.retries = 1  # botocore tries again; s3fs's own five attempts would multiply with that
    with explained(url):
        try:
            answer: Any = client.call_s3(operation, **arguments)  # a dict; fsspec's wrapper has no type
            return answer
        except NoCredentialsError as error:
            raise OSError(f"AWS Error NO_CREDENTIALS during {operation} operation: {error}") from error
        except BotoCoreError as error:
            raise OSError(f"AWS Error NETWORK_CONNECTION during {operation} operation: {error}") from error


@contextmanager
def explained(url: str) -> Iterator[None]:
    """A block in which errors of an object store are put into words; other errors pass as they are.

    Raises:
        FileNotFoundError: the store has no such object.
        FileExistsError: something stands where nothing may.
        StorageError: the store refuses the credentials, knows no such bucket, or did not answer in ATTEMPTS attempts.
    """
    started = time.monotonic()
    try:
        yield
    except OSError as error:
        failure = _failure(error)
        if failure is None:
            raise
        raise _in_words(url, failure, str(error), time.monotonic() - started) from error


def _failure(error: OSError) -> Failure | None:
    """What the store said; None where the error is none of an object store."""
    response = getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        code, status = response["Error"].get("Code", ""), response["ResponseMetadata"].get("HTTPStatusCode", 0)
        return Failure(code.lower(), status, getattr(error.__cause__, "operation_name", ""))
    match = _ARROW_ERROR.search(str(error))
    if match is None:
        return None
    code, status, operation, named = match.groups()
    return Failure((named or code).replace("_", "").lower(), int(status or 0), operation)


def _in_words(url: str, failure: Failure, said: str, seconds: float) -> Exception:
    code, status, operation = failure
    # An answer to HEAD has no body that could name the reason, and expired credentials are a 400.
    unnamed = status == 400 and operation == "HeadObject"
    if code in _MISSING:
        return FileNotFoundError(errno.ENOENT, "no such object", url)
    if code == "preconditionfailed":
        return FileExistsError(errno.EEXIST, "something stands here already", url)
    if code == "conditionalrequestconflict":
        return BlockingIOError(errno.EAGAIN, "somebody else is creating this object", url)
    if code in _REFUSED or status in (401, 403) or unnamed:
        return StorageError(
            f"{url}: the object store refused the credentials in the environment ({said}); they are wrong, lack the "
            "right, or have expired: renew them on every node and run the same command again"
        )
    if code == "nosuchbucket":
        return StorageError(f"{url}: there is no bucket {_split(url)[0]}; create it or correct the URL")
    if code in _TRANSIENT or status in (408, 429) or status >= 500:
        return StorageError(
            f"{url}: the object store did not do this in {ATTEMPTS} attempts over {seconds:.0f} s (the last time: "
            f"{said}); see to the store or the network and run the same command again"
        )
    return StorageError(f"{url}: the object store refused this ({said}); correct the URL, the region or the endpoint")


def _region() -> str:
    return os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _split(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix(S3_SCHEME).partition("/")
    return bucket, key.strip("/")
