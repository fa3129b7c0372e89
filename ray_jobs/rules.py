"""Rules of recommendation: from settings to the arrays a ranker reads (`model.eligibility`).

What a rule says of items is one bit for each item, worked out once; which rules hold for a user is known bucket by
bucket, and users under the same rules make a class. Invariant: rule r of `ScoringSettings.rule_names` is bit r.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_io import storage
from data_io.config import SettingsError
from data_io.examples import Examples
from data_io.schema import FIRST_INDEX, ITEM_ID, USER_ID
from data_io.scores import history_places
from data_io.sequences import Sequences
from data_io.splits import DAY_US
from data_io.store import SequenceStore
from model.eligibility import ItemRules, Pairs, make_pairs
from ray_jobs.progress import say
from ray_jobs.scoring_config import Condition, ItemRule, ScoringSettings, SeenRule

NO_GROUP = -1


@dataclass(frozen=True)
class RulePlan:
    """The rules of a run with what they say of items; the same for all users."""

    rules: tuple[ItemRule, ...]
    seen: tuple[SeenRule, ...]
    seen_actions: tuple[np.ndarray | None, ...]
    """Indices of the actions of each seen rule; None: all."""
    user_values: tuple[pa.Array | None, ...]
    """Values of the condition on users of each rule; None: it has a range, or there is none."""
    matches: np.ndarray
    """[V] uint32, whose bits say which rules an item matches; none for padding and unknown."""
    group: np.ndarray
    """[V] int32 group of the cap, `NO_GROUP` where there is none; empty: there is no cap."""
    most_of_group: int
    names: tuple[str, ...]

    def of_size(self, num_items: int) -> "RulePlan":
        """The plan for a model that knows the first V items."""
        return replace(self, matches=self.matches[:num_items], group=self.group[:num_items])

    def digest(self) -> str:
        """A hash of what rules say of items and users, files of values read."""
        users = [None if values is None else values.to_pylist() for values in self.user_values]
        content = self.matches.tobytes() + self.group.tobytes() + repr(users).encode()
        return hashlib.sha256(content).hexdigest()[:16]

    @cached_property
    def _bits(self) -> dict[str, np.uint32]:
        """Rules of each effect, as bits."""
        effects: dict[str, int] = {"deny": 0, "only": 0, "boost": 0}
        for number, rule in enumerate(self.rules):
            effects[rule.effect] |= 1 << number
        return {effect: np.uint32(bits) for effect, bits in effects.items()}

    def of_classes(self, classes: np.ndarray) -> ItemRules:
        """What holds for classes of users, each given by the bits of the rules that are for it [C]."""
        held = classes.astype(np.uint32)[:, None]
        allowed = held & self._bits["only"]
        denied = (self.matches & held & self._bits["deny"]) | (~self.matches & allowed)
        boosted_by = self.matches & held & self._bits["boost"]
        boost = np.zeros(boosted_by.shape, np.float32)
        for number, rule in enumerate(self.rules):
            if rule.effect == "boost":
                boost += ((boosted_by >> np.uint32(number)) & np.uint32(1)) * np.float32(math.log(rule.factor))
        num_classes = {effect: len(classes) if bits else 0 for effect, bits in self._bits.items()}
        return ItemRules(
            num_rules=len(self.names),
            denied=denied[: max(num_classes["deny"], num_classes["only"])],
            boost=boost[: num_classes["boost"]],
            boosted_by=boosted_by[: num_classes["boost"]],
            group=self.group,
            most_of_group=self.most_of_group,
            cap=max(len(self.names) - 1, 0),
        )

    def held_by(self, user_ids: pa.Array, attributes: Callable[[], pa.Table]) -> np.ndarray:
        """[U] uint32 bits of the rules about items that are for each user.

        Args:
            user_ids: of the users.
            attributes: gives their rows of the user table; called only where a rule needs it.
        """
        held = np.zeros(len(user_ids), np.uint32)
        table: pa.Table | None = None
        for number, (rule, values) in enumerate(zip(self.rules, self.user_values, strict=True)):
            if rule.users is None:
                held |= np.uint32(1 << number)
                continue
            if rule.users.column != USER_ID and table is None:
                table = attributes()
            column = user_ids if table is None or rule.users.column == USER_ID else table.column(rule.users.column)
            held[_matches(rule.users, values, column)] |= np.uint32(1 << number)
        return held

    def seen_pairs(self, sequences: Sequences, examples: Examples) -> Pairs:
        """Items of the histories of examples that are not recommended, by the row of the example."""
        row, places = history_places(sequences, examples)
        rules = np.zeros(len(row), np.uint32)
        for number, (rule, actions) in enumerate(zip(self.seen, self.seen_actions, strict=True), len(self.rules)):
            counts = np.ones(len(row), bool)
            if actions is not None:
                counts &= np.isin(sequences.action_index[places], actions)
            if rule.within_days is not None:
                since = examples.now[row] - int(rule.within_days * DAY_US)
                counts &= sequences.event_time[places] >= since
            rules[counts] |= np.uint32(1 << number)
        kept = rules > 0
        return make_pairs(row[kept], sequences.item_index[places[kept]], rules[kept])


def plan_rules(scoring: ScoringSettings, store: SequenceStore) -> RulePlan:
    """The rules of a run.

    Raises:
        SettingsError: a rule names an action or a column that there is not, or values that the column cannot have.
    """
    size = store.vocabulary.size
    matches = np.zeros(size, np.uint32)
    columns = {rule.items.column for rule in scoring.rules} | ({scoring.cap.column} if scoring.cap.column else set())
    items = _item_columns(store, columns)
    for number, rule in enumerate(scoring.rules):
        where = f"scoring.rules {rule.name}: items.{rule.items.column}"
        column = items[rule.items.column]
        values = _values_of(rule.items, column.type, where)
        if values is not None and rule.items.column == ITEM_ID:
            _tell_unknown(values, column, rule)
        matches[FIRST_INDEX:][_matches(rule.items, values, column)] |= np.uint32(1 << number)
    group = np.zeros(0, np.int32)
    if scoring.cap.column is not None:
        group = np.concatenate([np.full(FIRST_INDEX, NO_GROUP, np.int32), _groups(items[scoring.cap.column])])
    return RulePlan(
        rules=tuple(scoring.rules),
        seen=tuple(scoring.exclude_seen),
        seen_actions=tuple(store.action_indices(rule.actions) for rule in scoring.exclude_seen),
        user_values=tuple(_user_values(rule, store) for rule in scoring.rules),
        matches=matches,
        group=group,
        most_of_group=scoring.cap.most,
        names=tuple(scoring.rule_names),
    )


def _item_columns(store: SequenceStore, names: set[str]) -> dict[str, pa.ChunkedArray]:
    """Columns [V - 2] of the items, in the order of the vocabulary."""
    found = {ITEM_ID: pa.chunked_array([store.vocabulary.item_ids])}
    wanted = sorted(names - {ITEM_ID})
    if wanted:
        table = store.read_items(wanted)
        missing = sorted(set(wanted) - set(table.column_names))
        if missing:
            raise SettingsError(f"scoring: the item table has no column {missing[0]}; declare it in items.features")
        found |= {name: table.column(name) for name in wanted}
    return found


def _user_values(rule: ItemRule, store: SequenceStore) -> pa.Array | None:
    if rule.users is None:
        return None
    empty = store.read_sequences(0).user_id.slice(0, 0)
    where = f"scoring.rules {rule.name}: users.{rule.users.column}"
    if rule.users.column == USER_ID:
        return _values_of(rule.users, empty.type, where)
    table = store.read_user_table(0, empty)
    if rule.users.column not in table.column_names:
        raise SettingsError(f"{where}: the user table has no such column; it has {', '.join(table.column_names[2:])}")
    return _values_of(rule.users, table.schema.field(rule.users.column).type, where)


def _values_of(condition: Condition, kind: pa.DataType, where: str) -> pa.Array | None:
    """The values that match, in the type of the column; None: it is a range.

    Raises:
        SettingsError: they do not fit the column.
    """
    own = kind.value_type if _is_list(kind) else kind
    if condition.is_in is None and condition.file is None:
        if not (pa.types.is_integer(own) or pa.types.is_floating(own)):
            raise SettingsError(f"{where} is {own} and has no range; give is_in")
        return None
    values: list[object] = list(condition.is_in or [])
    lines = _read_values(condition.file, condition.column) if condition.file is not None else []
    try:
        values += [int(str(line)) for line in lines] if pa.types.is_integer(own) else lines
        return pa.array(values, own)
    except (ValueError, TypeError, OverflowError) as error:  # those of Arrow are among them
        raise SettingsError(f"{where} is {own}, and is_in or file has another type of values ({error})") from None


def _read_values(file: str, column: str) -> list[object]:
    """Values of a Parquet file's column, or the lines of a text."""
    url = storage.absolute(file)
    if url.endswith(".parquet"):
        return storage.read_parquet(url, columns=[column]).column(column).to_pylist()
    lines = (line.strip() for line in storage.read_bytes(url).decode().splitlines())
    return [line for line in lines if line]


def _matches(condition: Condition, values: pa.Array | None, column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """[N] whether a condition holds; not where the column is null."""
    if _is_list(column.type):
        flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        parents = pc.call_function("list_parent_indices", [flat]).to_numpy()
        inner = _matches(condition, values, pc.call_function("list_flatten", [flat]))
        return np.bincount(parents[inner], minlength=len(flat)) > 0
    if values is not None:
        found = pc.call_function("is_in", [column], pc.SetLookupOptions(values, skip_nulls=True))
        return found.to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else found.to_numpy()
    numbers = column.cast(pa.float64())
    numbers = (
        numbers.to_numpy(zero_copy_only=False) if isinstance(numbers, pa.Array) else numbers.to_numpy()
    )  # null is NaN, which lies in no range
    low, high = condition.at_least, condition.at_most
    return (numbers >= (-math.inf if low is None else low)) & (numbers <= (math.inf if high is None else high))


def _groups(column: pa.ChunkedArray) -> np.ndarray:
    """[N] int32 numbers of the values of a column, of a path of categories those of the last level."""
    flat = column.combine_chunks()
    if _is_list(flat.type):
        lengths = pc.call_function("list_value_length", [flat]).fill_null(0).to_numpy(zero_copy_only=False)
        ends = flat.offsets.to_numpy()[1:]
        flat = flat.values.take(pa.array(ends - 1, mask=lengths == 0))
    codes = flat.dictionary_encode().indices
    return codes.fill_null(NO_GROUP).to_numpy(zero_copy_only=False).astype(np.int32)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _tell_unknown(values: pa.Array, item_ids: pa.ChunkedArray, rule: ItemRule) -> None:
    known = pc.call_function("is_in", [values], pc.SetLookupOptions(item_ids.combine_chunks(), skip_nulls=True))
    num_unknown = len(values) - int(pc.call_function("sum", [known.cast(pa.int64())]).as_py() or 0)
    if num_unknown:
        say(f"score_users: {num_unknown:,} of {len(values):,} item ids of rule {rule.name} are not in the vocabulary")
