"""The page ``pretrained.md``: what the cards of the runs that come with the package say."""

from __future__ import annotations

from polygrad_jax.runs import pretrained

PAGE = """\
# Pretrained

Use a policy and its world model without training: these runs come with the package.

```bash
polygrad evaluate --pretrained hopper --video hopper.mp4
polygrad imagine --pretrained hopper
```

A command copies the run to `runs/pretrained-hopper` first and writes its results there. In a program:

```python
import jax

from polygrad_jax import open_pretrained

run = open_pretrained("hopper")
contexts = run.contexts(100, jax.random.key(0))  # 100 states of its replay
imagined = run.imagine(contexts, jax.random.key(1))  # observations [100, H, O], actions [100, H, A], rewards [100, H]
mean, std = run.policy(imagined.observations)
```

| name | task | return | distance | parameters after | trained with |
|---|---|---|---|---|---|
{rows}

Return and distance are means ± standard deviations over 20 episodes with the mean action, whose seeds are those of no
evaluation by which the parameters were chosen. Each run is one seed, and not a typical one: for spread see the
[results](results.md). Parameters are plain arrays, read without unpickling and compared with the SHA-256 of their
`card.json`, which also names versions and revision. Going on with the training is not possible: no optimiser comes
along.

Make one of your own: `python experiments/learning/export_pretrained.py RUN --name NAME`.
"""


def page() -> str:
    """Return the text of the page."""
    return PAGE.format(rows="\n".join(row(name) for name in pretrained.names()))


def row(name: str) -> str:
    """Return a line of the table."""
    card = pretrained.read_card(pretrained.find(name))
    metres = "" if card["distance_mean"] is None else f"{card['distance_mean']:.1f} m"
    cells = [
        f"`{name}`",
        f"{card['task']}, MuJoCo {card['mujoco']}",
        f"{card['return_mean']:,.0f} ± {card['return_std']:,.0f}",
        metres,
        f"{card['env_steps']:,} steps",
        f"`{card['command'].removeprefix('polygrad ')}`",
    ]
    return f"| {' | '.join(cells)} |"
