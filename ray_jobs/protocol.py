"""The protocol of the report: in words, all that a reader needs to know how its figures came about."""

from typing import Any

from data_io.splits import Cutoffs, LastTargets, Split
from ray_jobs.config import EvaluationSettings, Settings


def describe_protocol(settings: Settings, split: Split, without_item_knn: str | None) -> dict[str, Any]:
    """What was measured, by subject.

    Args:
        settings: of the run.
        split: as it was resolved.
        without_item_knn: why that baseline is left out; None: it is not.
    """
    options, k = settings.evaluation, settings.evaluation.headline_k
    return {
        "split": settings.split.model_dump(mode="json") | (split.describe() if isinstance(split, Cutoffs) else {}),
        "split_in_words": _split_in_words(split),
        "ranking": f"full catalogue; the target is {_target_in_words(settings, split)}"
        + (", seen items left out" if options.exclude_seen else ", seen items kept"),
        "seen": _seen_in_words(options),
        "ties": "Items of equal score go by their place in the vocabulary: by falling number of events in the log the "
        "store was built from, then by id; items that came later follow. A target that a ranker cannot name (an item "
        "it was not trained with, or one outside the vocabulary) counts as missed.",
        "baselines": _baselines_in_words(options, split, without_item_knn),
        "slices": "Length of history: quarters of the users by events before the target. Popularity of the target: "
        "head are the fewest top items that hold half of the training events, middle the next up to 90 %, tail the "
        f"rest. Training events of the target: none is new, up to {options.rare_events} rare, else known. Training "
        "events are those before the validation cutoff"
        + _training_in_words(split)
        + " In each slice a model is held against the baseline that is best there, and against the models after it.",
        "lists": f"First {k} items of each user's ranking"
        + (" without those of the user's history" if options.exclude_seen else "")
        + ". Coverage: share of the catalogue that stands in any list. Novelty: mean of -log2 of an item's share of "
        "the training events, in bits; an item without any counts as one with a single event. Popularity: mean "
        "percentile of the items in the catalogue by training events (100 is the most popular, 50 the mean of the "
        "catalogue), beside that of all events in the same users' histories.",
        "interval": f"95 %, {options.num_resamples} bootstrap resamples of users",
        "interval_in_words": "Percentiles of the resampled means; gains are differences of the same user's values, "
        "resampled together. A model is held against each baseline and each model after it in the table; it beats one "
        "of them, or loses to it, where that interval leaves out 0. Intervals are not corrected for the number of "
        "comparisons and leave out what another seed of training would change. Intervals of AUC are those of DeLong et "
        "al. 1988, of both scores on the same users.",
        "rivals": options.rivals,
        "seed": settings.seed,
    }


def _training_in_words(split: Split) -> str:
    match split:
        case Cutoffs():
            return "."
        case LastTargets():
            return " (of each user, those before the last but one of the events that are predicted)."
        case None:
            return " (of each user, all but the last two)."


def _split_in_words(split: Split) -> str:
    if isinstance(split, LastTargets):
        return (
            "Leave-one-out: the target is the last event of each user that has an action to be predicted, the history "
            "all before; the last but one of these events serves validation, and training ends before it. A user with "
            "fewer than two is trained on only. There is no moment in time that divides the log, so what other users "
            "did later is known to models and baselines alike."
        )
    if split is None:
        return (
            "Leave-one-out: the target is the last event of each user, the history all before; the event before the "
            "last serves validation. There is no moment in time that divides the log, so what other users did later is "
            "known to models and baselines alike."
        )
    times = split.describe()
    return (
        f"By time, UTC: models are trained on events before {times['validation']}, histories end before the test "
        f"cutoff {times['test']}, targets lie from there to {times['end']}. No event at or after a cutoff enters a "
        "history."
    )


def _target_in_words(settings: Settings, split: Split) -> str:
    actions = f" and an action among {', '.join(settings.target_actions)}" if settings.target_actions else ""
    if isinstance(split, LastTargets):
        return f"the last event of a user that has an item{actions}"
    if split is None:
        return f"the last event of a user, if it has an item{actions}"
    return f"the first event after the cutoff that has an item{actions}"


def _seen_in_words(options: EvaluationSettings) -> str:
    if not options.exclude_seen:
        return "Items of the user's own history stay in the ranking, of every ranker."
    return (
        "Items of the user's own history are left out of the ranking, of every ranker; so the target is one that the "
        "user did not have before, and a user without such a target is not asked."
    )


def _baselines_in_words(options: EvaluationSettings, split: Split, without_item_knn: str | None) -> dict[str, str]:
    knn = options.item_knn
    by_time = isinstance(split, Cutoffs)
    moment = "test cutoff" if by_time else "end of the log"
    neighbours = (
        f"the {knn.num_neighbours} nearest items of each of the user's newest {knn.num_events} events, by the cosine "
        "of the users who had both in training history, summed with weight 1 for the newest event and "
        f"{knn.decay:g} times as much for each one before; items without a sum follow by popularity"
    )
    return {
        "popularity": "events of an item in all histories" + (" before the test cutoff" if by_time else ""),
        "recent_popularity": f"those of the last {options.recent_days:g} days before the {moment}, then by popularity",
        "own_history": "how often the user had the item, then by popularity",
        "item_knn": without_item_knn or neighbours,
    }
