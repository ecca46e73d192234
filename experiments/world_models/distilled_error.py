"""How far is one-step diffusion in one, two or four network calls from MuJoCo, distilled and not?

    python experiments/world_models/distilled_error.py --dataset runs/hopper_long/PolyGRAD-seed0 --seconds 600 \\
        --seeds 0 1 2 --jobs 2 --threads 1 --out results/world_models/distilled_error
    python experiments/world_models/distilled_error.py --out results/world_models/distilled_error --figure-only

Varied: the network calls per step of the student, of its teacher (which learns beside it), and of autoregressive
diffusion that was trained alone for the same seconds; the policy's std, from wide to nearly deterministic; the seed.
The null case of distilling is a teacher that is asked as often as the student: few steps of its reverse diffusion. The
teacher's rows are the stochastic reverse diffusion (eta = 1) in as many steps as calls; the student learns the
deterministic one in ``distilled.steps``. Parameters are those of the best five-step error, the student's in one call,
which are the teacher's best moment by chance alone; ``--newest`` measures the last ones. What is measured, and the
columns of ``distilled_error.csv``: ``experiments/harness/study.py``. Several datasets go to one CSV by one call each.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.harness import in_venv  # noqa: F401  first of all: it continues in the clone's .venv

# isort: split
from experiments.harness import figures, grid, statistics
from experiments.harness.study import Fields, Study, run

STEPS = 128
"""N, and the steps of the reverse diffusion that the student is to spare."""
FEW = (1, 2, 4)
MORE = (16, STEPS)
STDS = (1.0, 0.1, 0.02)
RATE = ("--denoiser.learning-rate", "3e-3", "--diffusion.num-steps", str(STEPS))
MODELS: dict[str, Fields] = {
    "distilled": ("--world-model", "distilled", *RATE),
    "autoregressive diffusion": ("--world-model", "autoregressive", "--diffusion.sampling-steps", str(STEPS), *RATE),
}


def asked(steps: int) -> Fields:
    """Return the fields of autoregressive diffusion of so many steps."""
    return ("--world-model", "autoregressive", "--diffusion.sampling-steps", str(steps))


WAYS: dict[str, dict[str, Fields]] = {
    "distilled": {f"calls {n}": ("--distilled.calls", str(n)) for n in FEW}
    | {f"teacher, calls {n}": asked(n) for n in (*FEW, *MORE)},
    "autoregressive diffusion": {f"calls {n}": asked(n) for n in (*FEW, *MORE)},
}
STYLES = {
    ("distilled", ""): ("#0072B2", "student"),
    ("distilled", "teacher, "): ("#D55E00", "its teacher"),
    ("autoregressive diffusion", ""): ("#009E73", "autoregressive diffusion alone"),
}
AHEAD = (1, 9)


def draw(out: Path) -> None:
    """Draw ``distilled_error.png``: the error against the network calls per step, one and nine steps ahead."""
    rows = [r for r in grid.read_csv(out / "distilled_error.csv") if r.get("network") in ("trained", "newest")]
    for r in rows:
        if r["finite"] != "1":
            print(f"distilled_error: {r['cell']}, {r['variant']}, std {r['policy_std']}: not finite, not drawn")
    rows = [r for r in rows if r["finite"] == "1"]
    tasks = sorted({r["env"] for r in rows})
    if not tasks:
        print("distilled_error: nothing that was trained is in distilled_error.csv: no figure")
        return
    size = (3.6 * len(STDS), 3.2 * len(tasks) + 0.4)
    with figures.figure(out / "distilled_error.png", len(tasks), len(STDS), size) as (_, axes):
        for line, task in zip(axes, tasks, strict=True):
            for axis, std in zip(line, STDS, strict=True):
                there = [r for r in rows if r["env"] == task and float(r["policy_std"]) == std]
                for (model, kind), (colour, name) in STYLES.items():
                    own = [r | {"calls": calls_of(r)} for r in there if r["model"] == model and kind_of(r) == kind]
                    for ahead in AHEAD:
                        at = [r for r in own if int(r["step"]) == ahead]
                        if at:
                            style, label = ".-" if ahead == max(AHEAD) else ".:", f"{name}, {ahead} ahead"
                            along = statistics.along(at, "calls", "mse")
                            figures.mean_and_range(axis, *along, style, label, colour, alpha=0.15)
                axis.set(xscale="log", yscale="log", xlabel="network calls per step", ylabel="squared error [var.]")
                axis.set_xticks((*FEW, *MORE), [f"{n}" for n in (*FEW, *MORE)], minor=False)
                axis.set_xticks((), minor=True)
                axis.set_title(f"{task}, policy's std {std:g}\n{grid.physics_of(there)}", fontsize=8)
        axes[0, 0].legend(fontsize=6)


def kind_of(row: grid.Row) -> str:
    """Return what comes before the number of calls in a variant."""
    return row["variant"].split("calls")[0]


def calls_of(row: grid.Row) -> int:
    """Return the number of calls of a variant."""
    return int(row["variant"].split("calls")[1])


if __name__ == "__main__":
    sys.exit(run(Study(Path(__file__), __doc__, MODELS, {}, draw, ways=WAYS, stds=STDS)))
