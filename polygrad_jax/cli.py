"""The ``polygrad`` command. A mistake is one line and exit code 2, before any work is done.

jax is imported only once the command line is known to be sound, so that a mistake is reported at once.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from polygrad_jax import config as configs
from polygrad_jax.config import Config, ConfigError
from polygrad_jax.runs.run_folder import CONFIG_FILE, RunFolder

BAD_INPUT = 2
DIVERGED = 3
DEFAULT_ENV = "hopper"
DATASETS = Path("datasets")


class _Parser(argparse.ArgumentParser):
    """argparse, but its complaint is one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _train_parser(command: str = "train") -> argparse.ArgumentParser:
    parser = _Parser(prog=f"polygrad {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--env", default=None)
    parser.add_argument("--preset", default=None)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--run", type=Path, default=None)
    parser.add_argument("-h", "--help", action="store_true")
    return parser


def _option_names(config: Config) -> list[str]:
    return ["--" + name.replace("_", "-") for name, _ in configs.flatten(config)]


def override(config: Config, arguments: Sequence[str]) -> Config:
    """The config with fields replaced from the command line (``--a2c.gae-lambda 0.95``), by tyro.

    Raises:
      ConfigError: an unknown field (with the nearest known one) or a value of the wrong kind; one line.
    """
    import tyro

    known = _option_names(config)
    for argument in arguments:
        name = argument.split("=")[0].replace("_", "-")
        if name == "--env.name":  # the preset depends on it
            raise ConfigError("env.name is set by a field; allowed: --env NAME, which the preset is chosen for")
        # A switch is turned off by --group.no-switch.
        positive = ".".join(part.removeprefix("no-") for part in name.split(".")).replace("--no-", "--")
        if name.startswith("--") and not {name, positive} & {*known, "--help"}:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"unknown field {name}; allowed: "
                + (f"did you mean {near[0]}?" if near else "the fields that polygrad train --help lists")
            )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(complaint):
            return tyro.cli(Config, default=config, args=list(arguments), prog="polygrad train")
    except SystemExit as error:
        if error.code in (0, None):
            print(complaint.getvalue())
            raise
        words = " ".join(complaint.getvalue().translate({ord(c): " " for c in "│─╭╮╰╯\n"}).split())
        raise ConfigError(words.split("For full helptext")[0].strip()) from None


def build_config(options: argparse.Namespace, fields: Sequence[str], preset: str) -> Config:
    """Preset, then fields from the command line, then validation."""
    config = replace(configs.preset(preset, options.env or DEFAULT_ENV), seed=options.seed or 0)
    return configs.validate(override(config, fields))


def _goes_on(options: argparse.Namespace) -> bool:
    """Whether only a run folder was named, and a run is in it: then its own config is what is meant."""
    named = (options.env, options.preset, options.seed) != (None, None, None)
    return not named and options.run is not None and (options.run / CONFIG_FILE).is_file()


def _checked_early(options: argparse.Namespace, fields: Sequence[str]) -> Config:
    """The config of the preset asked for; without one, of whichever of the two that may be taken can be run."""
    if options.preset:
        return build_config(options, fields, options.preset)
    try:
        return build_config(options, fields, "cpu")
    except ConfigError:
        with contextlib.suppress(ConfigError):
            return build_config(options, fields, "paper")
        raise


def _cost_of_other(options: argparse.Namespace, fields: Sequence[str], preset: str) -> str:
    """The line on the preset that was not taken."""
    from polygrad_jax.runs import first_screen as opening

    other = "paper" if preset == "cpu" else "cpu"
    try:
        return opening.cost_of_other(build_config(options, fields, other))
    except ConfigError as error:
        return f"preset {other} does not go with these fields: {error}"


def _config_to_train(options: argparse.Namespace, fields: Sequence[str]) -> tuple[Config, str]:
    """``(config, why this preset)``; a mistake is reported before jax is even imported."""
    if _goes_on(options):
        config = configs.validate(override(configs.from_dict(RunFolder(options.run).saved_config()), fields))
        _check_task(config)
        return config, "the run folder's own"
    early = _checked_early(options, fields)
    _prepare_jax(early)  # choosing a preset starts jax
    _check_task(early)
    preset, why = (options.preset, "it was asked for") if options.preset else _choose_preset()
    return build_config(options, fields, preset), why


def _check_task(config: Config) -> None:
    """Refuses a task that there is not, or that the world model cannot do."""
    from polygrad_jax.envs import mujoco_state as simulator
    from polygrad_jax.envs import tasks as registry

    env = registry.make(config.env)
    if config.world_model == "simulator":
        simulator.require_state(env)
    env.close()


def default_run_folder(config: Config) -> Path:
    """``runs/<env>-<preset>-seed<seed>``."""
    return Path("runs") / f"{config.env.name.replace('/', '_')}-{config.preset}-seed{config.seed}"


def _prepare_jax(config: Config) -> None:
    """Settings that JAX reads when it starts; said aloud in :func:`polygrad_jax.runs.first_screen.describe`."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true" if config.preallocate_gpu_memory else "false"


def _choose_preset() -> tuple[str, str]:
    """``(preset, why)`` where none was asked for: paper where JAX finds an accelerator, cpu otherwise."""
    import jax

    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return "cpu", "JAX found no accelerator"
    return "paper", f"JAX found an accelerator ({device.device_kind})"


def train_command(arguments: Sequence[str]) -> int:
    """``polygrad train``: see the README."""
    parser = _train_parser()
    options, fields = parser.parse_known_args(arguments)
    if options.help:
        print(
            f"usage: polygrad train [--env ENV] [--preset {'|'.join(configs.PRESETS)}] [--seed SEED] [--run FOLDER] "
            "[--FIELD VALUE ...]\n\nThe fields, with the values of the preset:\n"
        )
        override(configs.preset(options.preset or "paper", options.env or DEFAULT_ENV), ["--help"])
    config, why = _config_to_train(options, fields)
    folder = options.run or default_run_folder(config)
    _prepare_jax(config)
    RunFolder(folder).check(config, {})  # before anything is compiled

    from polygrad_jax.data.transition_log import TransitionLogError
    from polygrad_jax.envs.collector import EnvRestartError, EnvStepError
    from polygrad_jax.runs import first_screen as opening
    from polygrad_jax.training.loop import NonFiniteError, train

    print(opening.describe(config, folder, why), flush=True)
    if options.preset is None and not RunFolder(folder).holds_a_run():
        print(_cost_of_other(options, fields, config.preset), flush=True)
    try:
        result = train(config, folder)
    except NonFiniteError as error:
        print(f"polygrad: {error}", file=sys.stderr)
        return DIVERGED
    except (EnvStepError, EnvRestartError, TransitionLogError) as error:
        print(f"polygrad: {error}", file=sys.stderr)
        return 1
    return _farewell(result, options, arguments)


def _farewell(result, options: argparse.Namespace, arguments: Sequence[str]) -> int:
    if result.stopped_by is None:
        last = "not evaluated" if result.last_return is None else f"last evaluation return {result.last_return:.1f}"
        print(f"finished: {result.env_steps:,} environment steps; {last}")
        print(f"look at it: {sys.argv[0]} imagine {result.folder}   or   make tensorboard RUN={result.folder}")
        return 0
    words = list(arguments) if options.run else [*arguments, "--run", str(result.folder)]
    print(f"\nstopped by {result.stopped_by} at {result.env_steps:,} environment steps; all is saved. Go on with:")
    print("  " + shlex.join([sys.argv[0], "train", *words]))
    return 128 + signal.Signals[result.stopped_by]


def dataset_command(arguments: Sequence[str]) -> int:
    """``polygrad dataset``: a run's transitions and final policy as a Minari dataset; trains it if there is none."""
    parser = _train_parser("dataset")
    parser.add_argument("--out", type=Path, default=DATASETS)
    options, fields = parser.parse_known_args(arguments)
    if options.help:
        print(
            "usage: polygrad dataset [--run FOLDER] [--out FOLDER] [--env ENV] [--preset PRESET] [--seed SEED] "
            f"[--FIELD VALUE ...]\n\nWrites below --out ({DATASETS}) what the run in --run left, as a Minari dataset. "
            "Where there is no\nrun, it is trained first, with the options of polygrad train. Needs the extra "
            "polygrad_jax[minari]."
        )
        return 0
    from polygrad_jax.data.minari_dataset import require_minari

    require_minari()  # before a run is trained for hours
    if options.run is not None and (options.run / CONFIG_FILE).is_file():
        if (options.env, options.preset, options.seed) != (None, None, None) or fields:
            raise ConfigError(f"--run {options.run} is a run already; allowed: no other option than --out beside it")
        return _export(options.run, options.out)
    config, _ = _config_to_train(options, fields)
    folder = options.run or default_run_folder(config)
    RunFolder(folder).check(config, {})
    total = config.loop.total_env_steps
    if _newest_step(folder) < total:
        there = "has not come to its end" if RunFolder(folder).holds_a_run() else "is not there"
        print(f"run {folder} {there}: it is trained first, to {total:,} environment steps", flush=True)
        code = train_command(_without_out(arguments))
        if code != 0:
            print(f"no dataset yet; go on with: {shlex.join([sys.argv[0], 'dataset', *arguments])}", file=sys.stderr)
            return code
    return _export(folder, options.out)


def _newest_step(folder: Path) -> int:
    """Environment steps of a run's newest checkpoint; 0 without one."""
    return max((int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()), default=0)


def _without_out(arguments: Sequence[str]) -> list[str]:
    """The words of ``polygrad dataset`` that ``polygrad train`` knows too."""
    words = [word for word in arguments if not word.startswith("--out=")]
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    return words


def _export(run: Path, out: Path) -> int:
    from polygrad_jax.analysis.dataset_export import export

    written = export(run, out)
    name = written.relative_to(out).as_posix()
    print(f"dataset {name} written to {written}")
    print(f'read it by MINARI_DATASETS_PATH={out} and minari.load_dataset("{name}")')
    return 0


def evaluate_command(arguments: Sequence[str]) -> int:
    """``polygrad evaluate RUN``: episodes with the mean action, and a video."""
    from polygrad_jax.analysis import reports as looking

    return looking.evaluate_command(arguments)


def imagine_command(arguments: Sequence[str]) -> int:
    """``polygrad imagine RUN``: imagined trajectories beside the simulator."""
    from polygrad_jax.analysis import reports as looking

    return looking.imagine_command(arguments)


def plot_command(arguments: Sequence[str]) -> int:
    """``polygrad plot RUN``: the training curves."""
    from polygrad_jax.analysis import reports as looking

    return looking.plot_run_command(arguments)


def tensorboard_command(arguments: Sequence[str]) -> int:
    """``polygrad tensorboard [RUN]``: TensorBoard on a run, or on all of ``runs``."""
    if len(arguments) > 1 or (arguments and not Path(arguments[0]).is_dir()):
        raise ConfigError(f"tensorboard was given {shlex.join(arguments)}; allowed: one run folder, or nothing")
    folder = arguments[0] if arguments else "runs"
    return subprocess.run([sys.executable, "-m", "tensorboard.main", "--logdir", folder], check=False).returncode


COMMANDS = {
    "train": train_command,
    "dataset": dataset_command,
    "evaluate": evaluate_command,
    "imagine": imagine_command,
    "plot": plot_command,
    "tensorboard": tensorboard_command,
}
USAGE = f"usage: polygrad {{{','.join(COMMANDS)}}} ...; train, dataset, evaluate, imagine and plot know --help"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``polygrad`` command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    try:
        if not arguments or arguments[0] not in COMMANDS:
            given = arguments[0] if arguments else "nothing"
            raise ConfigError(f"command is {given}; allowed: {', '.join(COMMANDS)}")
        return COMMANDS[arguments[0]](arguments[1:])
    except ConfigError as error:
        print(f"polygrad: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("polygrad: interrupted before it could save; a run folder keeps its last checkpoint", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
