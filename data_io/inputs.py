"""Inputs: what a network may see of an event besides its item, by name and by kind.

A name is one of `OwnInput`, which every log has, or a column of the store: an optional one of the contract, or a
declared feature. Light to import: no Arrow, no NumPy. Invariant: names and kinds are all a network's shape depends on;
nothing is fitted to the values of a column.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final, Literal

from data_io.config import SettingsError


class OwnInput(StrEnum):
    """What the network may see of the event of any log."""

    ACTION = "action"
    """What happened."""
    GAP = "gap"
    """Time since the user's event before."""
    ELAPSED = "elapsed"
    """Time to the event after, or to the moment of prediction; asked with, so in the readout."""
    ASKED_ACTION = "asked_action"
    """Action of the event that is asked for; in the readout."""
    CALENDAR = "calendar"
    """Hour of the day and day of the week, UTC."""


ColumnKind = Literal["numeric", "categorical", "text"]
OWN: Final = "own"
"""What stands for a kind where an input is one of `OwnInput`."""
DEFAULT_INPUTS: Final[tuple[str, ...]] = (OwnInput.ACTION.value, OwnInput.GAP.value, OwnInput.ELAPSED.value)
"""What is seen unless the settings say otherwise, and what every model saw before they could."""
CONTRACT_COLUMNS: Final[dict[str, ColumnKind]] = {
    "session_id": "categorical",
    "query": "text",
    "price": "numeric",
    "quantity": "numeric",
    "rating": "numeric",
}
"""Optional columns of the event contract, each with its kind."""
_STORED: Final[dict[str, ColumnKind]] = {"string": "categorical", "float": "numeric"}


def check_inputs(names: Iterable[str], features: Iterable[str]) -> None:
    """Refuse inputs that no log could have.

    Args:
        names: as the settings give them.
        features: names declared in events.features.

    Raises:
        SettingsError: a name is unknown, given twice, or means two things.
    """
    given, own, declared = list(names), [entry.value for entry in OwnInput], list(features)
    known = [*own, *CONTRACT_COLUMNS, *declared]
    for name in given:
        if name not in known:
            raise SettingsError(f"encoder.inputs names {name}, which is unknown; known are {', '.join(known)}")
        if given.count(name) > 1:
            raise SettingsError(f"encoder.inputs names {name} twice")
        if name in own and name in declared:
            raise SettingsError(
                f"encoder.inputs names {name}, which is an input of every log and a feature of events.features too; "
                "rename the column in the log"
            )


def columns_of_store(carried: Mapping[str, str]) -> dict[str, ColumnKind]:
    """Kinds of the columns a store carries, from the kinds it stores them as (string or float)."""
    return {name: CONTRACT_COLUMNS.get(name, _STORED[kind]) for name, kind in carried.items()}


def with_kinds(names: Iterable[str], columns: Mapping[str, ColumnKind]) -> dict[str, str]:
    """Kind of each input: `OWN`, or that of a column of the store.

    Raises:
        SettingsError: the store has no such column.
    """
    own = [entry.value for entry in OwnInput]
    found: dict[str, str] = {}
    for name in names:
        if name not in own and name not in columns:
            raise SettingsError(
                f"encoder.inputs names {name}, a column that the log of this store did not have; besides "
                f"{', '.join(own)} there are: {', '.join(columns) or 'none'}"
            )
        found[name] = OWN if name in own else columns[name]
    return found


def columns_among(inputs: Mapping[str, str]) -> dict[str, str]:
    """The columns of the store among the inputs of a network, by name, with their kinds."""
    return {name: kind for name, kind in sorted(inputs.items()) if kind != OWN}
