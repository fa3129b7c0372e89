"""Which failures are expected: their messages are for the person who runs a job, and trying again meets them again.

Light to import: errors are known by name.
"""

EXPECTED_ERRORS = (
    "CheckpointError",
    "ClusterError",
    "DataContractError",
    "DeviceMemoryError",
    "OutOfDiskError",
    "OutputLockedError",
    "PublishRefusedError",
    "SettingsError",
    "StorageError",
    "TrainingDivergedError",
    "WorkersLostError",
)


def find_expected(error: BaseException | None) -> BaseException | None:
    """The expected failure behind an exception, through what Ray wraps around it; None for a bug."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None) or error.__cause__
        for failure in getattr(error, "worker_failures", {}).values():
            inner = inner or failure
        if type(error).__name__ in EXPECTED_ERRORS and not hasattr(error, "as_instanceof_cause"):
            return error
        error = inner if isinstance(inner, BaseException) else None
    return None
