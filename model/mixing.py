"""Items that are chosen in other ways than by the softmax, scored and put among the best that a scan found.

An item without such a choice is scored by its dot product alone, so the order of those is the scan's; the others, few
for each user, are left out of the scan, scored one by one, and put where they belong. Invariant: what comes out is what
ranking the whole mixture would give.
"""

import numpy as np
import torch
from torch import Tensor

from model.eligibility import ItemRules, Personal, Scanned, find_rules, make_pairs, unite
from model.queries import Queries


class Choices:
    """The choices of B users beside the softmax.

    Args:
        queries: of the users.
        items: [V, D] vectors of items.
        personal: what is for each user.
        rules: of the items.
    """

    def __init__(self, queries: Queries, items: Tensor, personal: Personal, rules: ItemRules) -> None:
        self.queries, self.items, self.rules = queries, items, rules
        self.kinds = personal.class_of
        self.log_share = queries.log_share.double().cpu().numpy()
        row, item = queries.row.cpu().numpy(), queries.item_index.cpu().numpy()
        keys, places = np.unique(row * len(items) + item, return_inverse=True)
        self.row, self.item = keys // len(items), keys % len(items)
        self.probability = np.bincount(places, weights=queries.probability.double().cpu().numpy(), minlength=len(keys))
        out, self.kept_out_by = find_rules(personal.pairs, self.row, self.item)
        if len(rules.denied):
            denied = rules.denied[self.kinds[self.row], self.item]
            out, self.kept_out_by = out | (denied > 0), self.kept_out_by | denied
        if personal.full.shape[1]:
            group = rules.group[self.item]
            out = out | ((group >= 0) & personal.full[self.row, group])
        self.eligible = ~out
        own = make_pairs(self.row, self.item, np.zeros(len(keys), np.uint32))
        self.others = personal._replace(pairs=unite(personal.pairs, own)) if len(keys) else personal
        """What is left to the scan."""

    def among(self, scanned: Scanned) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items [B, L] and log-probabilities [B, L] of the best, best first; and the best [B, R] each rule kept out."""
        shift = (self.log_share - scanned.normaliser).astype(np.float32)
        item, score, kept_out = scanned.item, scanned.score + shift[:, None], scanned.kept_out + shift[:, None]
        length = item.shape[1]
        if len(self.row):
            chosen = self._scores(shift)
            for rule in range(self.rules.num_rules):
                by = (self.kept_out_by >> np.uint32(rule)) & np.uint32(1) == 1
                np.maximum.at(kept_out[:, rule], self.row[by], chosen[by])
            item, score = self._appended(item, score, chosen)
        order = np.lexsort((item, -score), axis=1)[:, :length]
        return np.take_along_axis(item, order, 1), np.take_along_axis(score, order, 1), kept_out

    def _scores(self, shift: np.ndarray) -> np.ndarray:
        """[P] log-probabilities of the chosen items under the mixture, boosts added."""
        device = self.items.device
        row, item = torch.from_numpy(self.row).to(device), torch.from_numpy(self.item).to(device)
        dots = torch.empty(len(self.row))
        for first in range(0, len(row), 1 << 16):
            part = slice(first, first + (1 << 16))
            dots[part] = (self.queries.users[row[part]].float() * self.items[item[part]]).sum(dim=1).cpu()
        scores = np.logaddexp(dots.numpy() + shift[self.row], np.log(self.probability)).astype(np.float32)
        return scores + self.rules.boost[self.kinds[self.row], self.item] if len(self.rules.boost) else scores

    def _appended(self, item: np.ndarray, score: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        row = self.row[self.eligible]
        counts = np.bincount(row, minlength=len(item))
        place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        more = int(counts.max(initial=0))
        items, scores = np.zeros((len(item), more), np.int32), np.full((len(item), more), -np.inf, np.float32)
        items[row, place], scores[row, place] = self.item[self.eligible], chosen[self.eligible]
        return np.concatenate([item, items], axis=1), np.concatenate([score, scores], axis=1)
