"""300 command lines that no verb can accept, the same in every session: made from the declared fields and by hand."""

import random
from pathlib import Path
from typing import Literal, get_args, get_origin

from polygrad_jax.config.validate import OPEN_TABLES, declared_fields

COUNT = 300
DIGITS = "9" * 400  # more than a float64 holds, fewer than Python refuses to read
LONG_NAME = "n" * 300  # longer than a file's name may be
NO_NUMBERS = ("", " ", "x", "nan", "inf", "-inf", "1e999", "--", "1,5", "0x", "1 2", "\u221e", "None", "[1]", "1;2")
NO_WHOLE_NUMBERS = ("1.5", "1e3", DIGITS, "-" + DIGITS, str(2**31), str(2**63))
NO_SWITCHES = ("maybe", "", "2", "\u00bd")
NO_NAMES = ("", " ", "hoper", "Hopper", "no\nname", "\0", "\ud800", "\u202e", "\x1b[31m", "../hopper", "a" * 5000)
NO_COUNTS = ("0", "-1", "1.5", "x", "", "nan", "inf", "\u00b2", DIGITS, "9" * 5000, "1e3", str(10**12))
NO_SEEDS = ("-1", "1.5", "x", "", "nan", str(2**32), DIGITS, "9" * 5000, "\u00b2")
NO_DURATIONS = ("0", "-1", "nan", "inf", "-inf", "x", "", "1e999")

BY_HAND = [
    [],
    [""],
    ["--"],
    ["-"],
    ["Train"],
    ["train "],
    ["fly", "--help"],
    ["\u2028train"],
    ["train", "hopper"],
    ["train", "--", "--env", "hopper"],
    ["train", "-e", "hopper"],
    ["train", "--env"],
    ["train", "--preset"],
    ["train", "--seed"],
    ["train", "--run"],
    ["train", "--a2c.gamma"],
    ["train", "--a2c.gamma", "--seed", "1"],
    ["train", "--a2c:gamma", "0.9"],
    ["train", "--a2c/gamma", "0.9"],
    ["train", "--a2c..gamma", "0.9"],
    ["train", "--.gamma", "0.9"],
    ["train", "--a2c.gamma=0.9=0.8"],
    ["train", "--a2c.gamma:0.9"],
    ["train", "--a2c", "{}"],
    ["train", "--a2c.gamma", "0.9", "0.8"],
    ["train", "a2c.gamma", "0.9"],
    ["train", "--show-config=1"],
    ["train", "--mixed-physics", "yes"],
    ["train", "--env.name", "walker2d"],
    ["train", "--env.version", "3"],
    ["train", "--env", "Hopper-v5", "--env.hide-velocities"],
    ["train", "--agent", "dreamer"],
    ["train", "--loop.overlap"],
    ["train", "--learner", "latent"],
    ["train", "--guidance.rule", "preconditioned"],
    ["train", "--a2c.min-std", "2.0"],
    ["train", "--diffusion.sampling-steps", "999"],
    ["train", "--denoiser.token-dim", "7"],
    ["train", "--ensemble.elites", "99"],
    ["train", "--loop.total-env-steps", "10"],
    ["train", "--preset", "smoke", "--horizon", "1"],
    ["train", "--run", "file"],
    ["train", "--run", "file/below"],
    ["train", "--run", "folder"],
    ["train", "--run", LONG_NAME],
    ["train", "--run", "a\u0000b"],
    ["train", "--run", "loop/loop"],
    ["train", "--run", "broken"],
    ["fit"],
    ["fit", "--dataset"],
    ["fit", "--dataset", "data.npz", "--out"],
    ["fit", "--data", "data.npz"],
    ["fit", "data.npz"],
    ["check"],
    ["check", "hopper", "walker2d"],
    ["check", "--env", "hopper"],
    ["tensorboard", "absent"],
    ["tensorboard", "file"],
    ["tensorboard", "empty", "folder"],
    ["tensorboard", "--logdir", "empty"],
    ["tensorboard", "\u0000"],
    ["tensorboard", LONG_NAME],
    ["evaluate", "empty", "--video", "film.avi"],
    ["evaluate", "empty", "--video", "folder"],
    ["evaluate", "empty", "--video", ""],
    ["imagine", "empty", "--gif", "--video"],
    ["imagine", "empty", "--gif", "--no-video"],
    ["imagine", "empty", "--out", "file"],
    ["imagine", "empty", "--out", "file/below"],
    ["imagine", "empty", "--out", LONG_NAME],
    ["plot", "empty", "-o"],
    ["plot", "broken", "-o", "curves.docx"],
    ["plot", "empty", "--output", "x.png"],
]
"""``file``, ``folder`` (with something else in it), ``empty``, ``loop`` (a link to itself), ``broken`` (a folder whose
config.json is no JSON) and ``data.npz`` are in the working folder, see :func:`make_working_folder`."""


def make_working_folder(folder: Path) -> None:
    """Make what the command lines name."""
    (folder / "file").write_text("mine")
    (folder / "data.npz").write_bytes(b"PK")
    (folder / "loop").symlink_to("loop")
    for name in ("folder", "empty", "broken"):
        (folder / name).mkdir()
    (folder / "folder" / "thesis.tex").write_text("mine")
    (folder / "broken" / "config.json").write_text("{")


def commands() -> list[list[str]]:
    """Return the command lines, each once."""
    chance = random.Random(15)
    drawn = [*_of_fields(chance), *_of_options(), *_of_folders()]
    chance.shuffle(drawn)
    unique = {"\0\0".join(words): words for words in [*BY_HAND, *drawn]}
    return list(unique.values())[:COUNT]


def _of_fields(chance: random.Random) -> list[list[str]]:
    """Every field with one or two values that its declared type forbids, or with a letter changed."""
    lines = []
    for name, field in declared_fields().items():
        if name == "env.name":
            continue
        option = "--" + name.replace("_", "-")
        if field.kind is bool:
            values = [chance.choice(NO_SWITCHES)]
        elif get_origin(field.kind) is Literal:
            values = [chance.choice(NO_NAMES)] if name not in OPEN_TABLES else ["", "\u0000"]
            assert not set(values) & set(get_args(field.kind))
        elif field.kind is str:
            continue
        else:
            bad = NO_NUMBERS if field.kind is float else (*NO_NUMBERS, *NO_WHOLE_NUMBERS)
            values = chance.sample(bad, 2)
            values += ["-1"] if field.range is not None and not field.range.holds(-1) and chance.random() < 0.3 else []
        verb = chance.choice((["train"], ["check", "hopper"], ["fit", "--dataset", "data.npz", "--preset", "smoke"]))
        lines += [[*verb, f"{option}={value}"] for value in values]
        if chance.random() < 0.2:
            place = chance.randrange(3, len(option))
            lines.append(["train", option[:place] + "\u017f" + option[place:], "1"])
    return lines


def _of_options() -> list[list[str]]:
    """The verbs' own options with values that they forbid."""
    fit = ["fit", "--dataset", "data.npz", "--preset", "smoke"]
    lines = [["train", "--env", name] for name in NO_NAMES] + [["check", name] for name in NO_NAMES if name]
    lines += [["train", "--preset", name] for name in NO_NAMES] + [["train", f"--seed={seed}"] for seed in NO_SEEDS]
    lines += [["evaluate", "broken", f"--episodes={count}"] for count in NO_COUNTS]
    lines += [["evaluate", "broken", f"--seed={seed}"] for seed in NO_SEEDS]
    lines += [["evaluate", "broken", "--which", name] for name in ("", "Best", "newest ", "\u0000")]
    lines += [["imagine", "broken", f"--trajectories={count}"] for count in NO_COUNTS]
    lines += [["imagine", "broken", f"--shown={count}"] for count in NO_COUNTS[:4]]
    lines += [[*fit, f"--seed={seed}"] for seed in NO_SEEDS]
    for option in ("updates", "patience", "contexts", "evaluate-every-updates"):
        lines += [[*fit, f"--{option}={count}"] for count in NO_COUNTS]
    for option in ("seconds", "checkpoint-every-seconds"):
        lines += [[*fit, f"--{option}={value}"] for value in NO_DURATIONS]
    return lines


def _of_folders() -> list[list[str]]:
    """Folders and files that are no run and no dataset."""
    places = ("", "absent", "file", "file/below", "folder", "empty", "broken", "loop", LONG_NAME, "a\0b", "\udc80", "/")
    lines = [[verb, place] for verb in ("evaluate", "imagine", "plot") for place in places]
    return lines + [["fit", "--dataset", place, "--preset", "smoke"] for place in places]
