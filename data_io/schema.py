"""The contracts of the data: names, types and the error that says one was broken.

Every other module takes its column names from here. Invariant: nothing in this module depends on a log, a run or a
setting.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa


class DataContractError(Exception):
    """Data does not keep the contract; the message names the file, the column, the rule and the remedy."""


CONTRACT_VERSION: Final = 1
"""Version of the event contract and of the store's columns; it stands in every manifest."""

USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
ACTION: Final = "action"
EVENT_TIME: Final = "event_time"
SESSION_ID: Final = "session_id"
QUERY: Final = "query"
PRICE: Final = "price"
QUANTITY: Final = "quantity"
RATING: Final = "rating"
EVENT_ID: Final = "event_id"
"""What the log calls an event, to recognise it when it comes again; null: it has no id. It does not enter the store."""

ITEM_INDEX: Final = "item_index"
ACTION_INDEX: Final = "action_index"
COUNT: Final = "count"

NUM_EVENTS: Final = "num_events"
FIRST_EVENT_TIME: Final = "first_event_time"
LAST_EVENT_TIME: Final = "last_event_time"

SOURCE_FILE: Final = "source_file"
SOURCE_ROW: Final = "source_row"
REASON: Final = "reason"

SEARCH_ACTION: Final = "search"
"""The one action whose events may have no item."""

PADDING_INDEX: Final = 0
"""Index of padding, and of the item of an event that has none (a search)."""
UNKNOWN_INDEX: Final = 1
"""Index of an item or action that is not in the vocabulary."""
FIRST_INDEX: Final = 2
"""First index of a real vocabulary entry."""

TIME_TYPE: Final = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True, kw_only=True)
class EventColumn:
    """What the event contract says of one column."""

    name: str
    kinds: tuple[str, ...]
    """Families of Arrow types that are taken: string, int, float, timestamp."""
    required: bool
    """Whether every file must have the column."""
    nullable: bool = True
    """Whether a row may have no value in it; one that must not and has none is quarantined."""


EVENT_COLUMNS: Final = (
    EventColumn(name=USER_ID, kinds=("string", "int"), required=True, nullable=False),
    EventColumn(name=ITEM_ID, kinds=("string", "int"), required=True),  # null for a search only
    EventColumn(name=ACTION, kinds=("string",), required=True, nullable=False),
    EventColumn(name=EVENT_TIME, kinds=("timestamp",), required=True, nullable=False),
    EventColumn(name=SESSION_ID, kinds=("string", "int"), required=False),
    EventColumn(name=QUERY, kinds=("string",), required=False),
    EventColumn(name=PRICE, kinds=("float", "int"), required=False),
    EventColumn(name=QUANTITY, kinds=("float", "int"), required=False),
    EventColumn(name=RATING, kinds=("float", "int"), required=False),
    EventColumn(name=EVENT_ID, kinds=("string", "int"), required=False),
)
"""The event contract: one row of the log. Times are UTC; a time without zone is read as UTC."""

STORED_TYPES: Final[dict[str, pa.DataType]] = {"string": pa.large_string(), "float": pa.float32()}
"""Type in the store of a column that travels there as it is, by its kind. A missing value is null."""

CARRIED_KINDS: Final[dict[str, str]] = {
    SESSION_ID: "string",
    QUERY: "string",
    PRICE: "float",
    QUANTITY: "float",
    RATING: "float",
}
"""Optional contract columns that travel into the store as they are, with their kind there."""

CARRIED_TYPES: Final[dict[str, pa.DataType]] = {name: STORED_TYPES[kind] for name, kind in CARRIED_KINDS.items()}
"""The same columns with their type."""

FEATURE_COLUMNS: Final[dict[str, EventColumn]] = {
    "categorical": EventColumn(name="categorical", kinds=("string", "int"), required=True),
    "numeric": EventColumn(name="numeric", kinds=("float", "int"), required=True),
}
"""What the contract says of a declared feature, by what it is declared as."""

FEATURE_KINDS: Final[dict[str, str]] = {"categorical": "string", "numeric": "float"}
"""The kind a declared feature has in the store, by what it is declared as."""

RESERVED_COLUMNS: Final = frozenset(
    [column.name for column in EVENT_COLUMNS]
    + [ITEM_INDEX, ACTION_INDEX, COUNT, NUM_EVENTS, FIRST_EVENT_TIME, LAST_EVENT_TIME]
    + [SOURCE_FILE, SOURCE_ROW, REASON]
    + ["bucket", "item_code", "action_code", "moment"]  # folders of the store, and columns of `sequences`
)
"""Names a declared feature may not have."""


def kind_of(data_type: pa.DataType) -> str:
    """The family a type belongs to: string, int, float, timestamp, or the type's own name."""
    if pa.types.is_dictionary(data_type):
        return kind_of(data_type.value_type)
    if pa.types.is_string(data_type) or pa.types.is_large_string(data_type) or pa.types.is_string_view(data_type):
        return "string"
    if pa.types.is_integer(data_type):
        return "int"
    if pa.types.is_floating(data_type) or pa.types.is_decimal(data_type):
        return "float"
    if pa.types.is_timestamp(data_type):
        return "timestamp"
    return str(data_type)


def canonical_type(column: str, kind: str) -> pa.DataType:
    """The type a contract column has after reading, for the family found in the log."""
    if column in CARRIED_TYPES:
        return CARRIED_TYPES[column]
    if kind == "timestamp":
        return TIME_TYPE
    return pa.int64() if kind == "int" else pa.large_string()


def store_schema(user_kind: str, carried: Mapping[str, str]) -> pa.Schema:
    """Schema of the sequence store: one row per user, events in order, all lists of a row of equal length.

    Args:
        user_kind: family of the user ids, string or int.
        carried: columns that travel into the store as they are, each with its kind, string or float.
    """
    fields = [
        pa.field(USER_ID, canonical_type(USER_ID, user_kind), nullable=False),
        pa.field(NUM_EVENTS, pa.int32(), nullable=False),
        pa.field(FIRST_EVENT_TIME, TIME_TYPE, nullable=False),
        pa.field(LAST_EVENT_TIME, TIME_TYPE, nullable=False),
        pa.field(ITEM_INDEX, pa.large_list(pa.int32()), nullable=False),
        pa.field(ACTION_INDEX, pa.large_list(pa.int16()), nullable=False),
        pa.field(EVENT_TIME, pa.large_list(TIME_TYPE), nullable=False),
    ]
    fields += [pa.field(name, pa.large_list(STORED_TYPES[kind]), nullable=False) for name, kind in carried.items()]
    return pa.schema(fields)
