"""How often does the drift test cry wolf when nothing has changed?

Windows are drawn from the same real rows as their reference, without drift, and held against it with the default
settings. A false alarm is any drifted column in a window. The stated rate is at most `alpha`; the effect floor makes
it much lower, so the table also shows the test alone (floor 0), which is where the rate is decided.
"""
import platform
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from mlgov_nb.dataset import prepare, read_rows
from mlgov_nb.drift import drift_table
from mlgov_nb.metrics import wilson
from mlgov_nb.profile import profile, profile_reference
from mlgov_nb.settings import card_path, load_card, load_params, project_root


def main(repeats=400):
    root = project_root(Path(__file__).parent)
    s, out = load_params(root/"params.yaml").audit, []
    for name in ("gss_wages", "acs_employment"):
        card = load_card(card_path(root, name))
        rows, _ = prepare(read_rows(root/"data/raw"/card.path), card)
        rows = rows[rows[card.time] <= card.split.train_until].reset_index(drop=True)
        for n in (100, 1000, 4000):
            rng, hits = np.random.default_rng(0), {0.0: 0, s.effect_floor: 0}
            for _ in range(repeats):
                i = rng.permutation(len(rows))
                half = min(len(rows) // 2, 8000)
                ref = profile_reference(rows.iloc[i[:half]], card.numeric, card.categorical)
                cur = profile(rows.iloc[i[half:half + n]], ref)
                for floor in hits: hits[floor] += bool((drift_table(ref, cur, s.alpha, floor, s.min_n, draws=2).drifted == True).any())  # noqa: E712
            for floor, k in hits.items(): out.append(dict(data=name, window=n, floor=floor, windows=repeats, alarms=k, rate=k / repeats, low=wilson(k, repeats)[0], high=wilson(k, repeats)[1]))
            print(f"{name} {n} done", file=sys.stderr)
    table = pd.DataFrame(out).round(4)
    print(f"False alarms of the drift test, alpha = {s.alpha}, Python {platform.python_version()}\n")
    print(table.to_string(index=False))


if __name__ == "__main__": main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
