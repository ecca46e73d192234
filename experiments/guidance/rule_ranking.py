"""Which guidance rule with how few steps is as right as the best one? The tables of ``guidance_error.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.guidance.rules_tried import OF_SCORE
from experiments.harness import grid
from experiments.harness.opened_runs import NUM_STEPS
from polygrad_jax.runs import physics

HORIZONS = (1, 5, 9, 24, 49)
"""Steps ahead, as far as the model's horizon goes."""


def steps_ahead(rows: list[dict[str, str]]) -> list[int]:
    """Return those of HORIZONS that were measured."""
    return [h for h in HORIZONS if f"closed_h{h}" in rows[0]]


def against_best(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Compare every rule and K with the best rule at K = 128, per task, sigma and steps ahead; means over seeds.

    Rules that keep another's z are left out: their actions are not the policy's. ``ratio_exact`` is against the best of
    the rules whose actions are the policy's by construction, those of ``correlated``.

    ``ratio`` is the closed-loop error over that of the best; ``spread`` is the std over seeds over the mean (0 of one).
    """
    errors: dict[tuple, list[float]] = {}
    for r in (r for r in rows if r.get("denoiser") == "fitted" and not r["rule"].endswith(OF_SCORE)):
        for h in steps_ahead(rows):
            there = (r["env"], r["sigma"], h, r["rule"], int(r["sampling_steps"]))
            errors.setdefault(there, []).append(float(r[f"closed_h{h}"]))
    means = {there: float(np.mean(x)) for there, x in errors.items()}
    table = []
    for (env, sigma, h, rule, steps), mean in means.items():
        at_full = {t[3]: x for t, x in means.items() if t[:3] == (env, sigma, h) and t[4] == NUM_STEPS}
        if not at_full:  # --steps left them out
            continue
        best = min(at_full, key=at_full.get)
        row = {"env": env, "sigma": sigma, "step": h, "rule": rule, "sampling_steps": steps, "error": mean}
        row |= {"spread": float(np.std(errors[env, sigma, h, rule, steps])) / mean, "best_rule": best}
        exact = min((x for name, x in at_full.items() if name.startswith("correlated")), default=float("nan"))
        table.append(row | {"ratio": mean / at_full[best], "ratio_exact": mean / exact})
    return table


def matched(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return the error of a rule that keeps the z of ``score`` over that of ``score``: mean and range over seeds."""
    errors, ratios = {}, {}
    for r in (r for r in rows if r.get("denoiser") == "fitted"):
        for h in steps_ahead(rows):
            errors[r["env"], r["sigma"], h, r["rule"], int(r["sampling_steps"]), r["seed"]] = float(r[f"closed_h{h}"])
    for (env, sigma, h, rule, steps, seed), error in errors.items():
        if rule.endswith(OF_SCORE):
            there = (env, sigma, h, rule.removesuffix(OF_SCORE), steps)
            ratios.setdefault(there, []).append(error / errors[env, sigma, h, "score", steps, seed])
    names = ("env", "sigma", "step", "rule", "sampling_steps")
    return [
        dict(zip(names, there, strict=True)) | {"ratio": float(np.mean(x)), "least": min(x), "largest": max(x)}
        for there, x in ratios.items()
    ]


def summarised(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return per rule and K the worst and median ratio over tasks, sigmas and steps, and how many are within a tenth.

    Those measured in the most settings come first, each group with the least worst ratio in front.
    """
    found = []
    for rule, steps in dict.fromkeys((r["rule"], r["sampling_steps"]) for r in table):
        ratios = [r["ratio"] for r in table if (r["rule"], r["sampling_steps"]) == (rule, steps)]
        exact = [r["ratio_exact"] for r in table if (r["rule"], r["sampling_steps"]) == (rule, steps)]
        found.append(
            {
                "rule": rule,
                "sampling_steps": steps,
                "worst_ratio": max(ratios),
                "median_ratio": float(np.median(ratios)),
                "within_a_tenth": sum(x <= 1.1 for x in ratios),
                "worst_exact": max(exact),
                "within_a_tenth_exact": sum(x <= 1.1 for x in exact),
                "settings": len(ratios),
            }
        )
    return sorted(found, key=lambda row: (-row["settings"], row["worst_ratio"]))


def tabulate(out: Path) -> None:
    """Write ``against_best.csv``, ``summary.csv`` and ``matched.csv``, from the CSV alone and as far as it goes."""
    found = grid.read_csv(out / "guidance_error.csv")
    table = against_best(found)
    summary = summarised(table)
    for name, rows in (("against_best", table), ("summary", summary), ("matched", matched(found))):
        if rows:  # --rules and --steps may have left out what is compared
            version = {physics.COLUMN: physics.versions_of_rows(found)}
            grid.write_csv(out / f"{name}.csv", [grid.rounded(row, digits=4) | version for row in rows])
    for row in summary[:3]:
        print(
            f"{row['rule']}, K = {row['sampling_steps']}: at most {row['worst_ratio']:.2f} times the best rule's error "
            f"at K = {NUM_STEPS}; within a tenth of it in {row['within_a_tenth']} of {row['settings']} settings"
        )
