"""The authors' tabular DoC on a bandit of tests/luck_and_skill.py, as it is and with one sign turned.

    python tests/parity/doc_on_bandits.py --code DICHOTOMY_OF_CONTROL    (a checkout of google-research's)

Needs tensorflow, tensorflow-probability and tf-keras, and nothing of ours. Their training step runs as it is for their
10,000 steps of 64 pulls. `turned`: z enters the energy's two terms with its gradient negated, so that the
encoder descends on the information while the energy climbs. Nothing else is changed. Writes
results/luck/authors_code.csv, a row for each data set: `better_arm` is the probability of the better arm by their policy, `information`
I(r; z | a) in nats by their encoder, the data's arms and the known p.
"""

import argparse
import csv
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np

# their class finds its variables with Keras 2 only
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import tensorflow as tf

OUT = Path(__file__).resolve().parents[2] / "results/luck/authors_code.csv"
SIGNS = {
    "pos_embeds * z_preds": "pos_embeds * against",
    "neg_embeds * z_preds[:, None, :]": "neg_embeds * against[:, None, :]",
    "      pos_indices =": "      against = 2 * tf.stop_gradient(z_preds) - z_preds\n      pos_indices =",
}
P, SHARE, PULLS, STEPS, BATCH = 0.7, 0.1, 1000, 10_000, 64


def their_class(code: Path, turned: bool) -> type:
    sys.modules["tf_agents"] = MagicMock()
    text = (code / "models/tabular_sdt.py").read_text(encoding="utf-8")
    for old, new in SIGNS.items() if turned else ():
        assert text.count(old) == 1, f"their code has changed: {old!r}"
        text = text.replace(old, new)
    scope: dict = {"__name__": "tabular_sdt"}
    exec(compile(text, "tabular_sdt.py", "exec"), scope)
    return scope["TabularSDT"]


def run(made: type, p: float, share: float, seed: int) -> tuple[float, float]:
    """(`better_arm`, `information`) after training on the data set that `counts` of tests/luck_and_skill.py has."""
    draw = np.random.default_rng(seed)
    arm = (draw.random(PULLS) < share).astype(np.int32)
    reward = (draw.random(PULLS) < np.where(arm == 1, p, 1 - p)).astype(np.float32)
    tf.random.set_seed(seed)
    up_to = SimpleNamespace
    model = made(up_to(observation=up_to(maximum=0), action=up_to(maximum=1)))
    model.rtg_prior = np.bincount(reward.astype(int), minlength=2).astype(np.float32) / PULLS
    batches = tf.data.Dataset.from_tensor_slices((arm, reward)).shuffle(PULLS, seed=seed).repeat()
    state = tf.zeros(BATCH, tf.int32)
    for a, r in batches.batch(BATCH, drop_remainder=True).take(STEPS):
        model.train_step((state, a, r, state, tf.ones(BATCH)))
    act, _ = model.get_policy()
    better_arm = float(act(tf.constant([0], tf.int64))[1]["distribution"][0, 1])
    q = tf.nn.softmax(tf.cast(model.posterior_net[0], tf.float64)).numpy()  # (arm, reward, z)
    paid = np.array([[p, 1 - p], [1 - p, p]])  # (arm, reward)
    given = (paid[..., None] * q).sum(1, keepdims=True)
    of_arm = (paid[..., None] * q * np.log(np.maximum(q / given, 1e-300))).sum((1, 2))
    return better_arm, float(np.bincount(arm, minlength=2) / PULLS @ of_arm)


def main() -> None:
    parser = argparse.ArgumentParser(description="the authors' tabular DoC on bandits")
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--data-sets", type=int, default=5)
    args = parser.parse_args()
    rows = []
    for turned in (False, True):
        made = their_class(args.code, turned)
        for seed in range(args.data_sets):
            better_arm, information = run(made, P, SHARE, seed)
            row = [["as it is", "turned"][turned], P, SHARE, seed, STEPS]
            rows.append([*row, f"{better_arm:.4g}", f"{information:.4g}"])
            print(*rows[-1], flush=True)
    with OUT.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow("code,p,share,data_set,updates,better_arm,information".split(","))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
