"""The ``polygrad`` command: parsing and exit codes of its verbs. A mistake is one line and exit code 2.

jax is imported only once the command line is known to be sound, so that a mistake is reported at once.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

from polygrad_jax import config as configs
from polygrad_jax.config import Config, ConfigError, EnvConfig, EnvSpec
from polygrad_jax.config.extras import require_extra
from polygrad_jax.runs import pretrained
from polygrad_jax.runs.run_folder import BEST_FILE, RunFolder
from polygrad_jax.runs.seed_folders import LARGEST_SEED, check_folder_of_seeds, seed_folder, seeds_in

if TYPE_CHECKING:
    from polygrad_jax.analysis.opened_run import OpenedRun
    from polygrad_jax.training.loop import Result

BAD_INPUT = 2
DIVERGED = 3
FAILED = 1
DEFAULT_ENV = "hopper"
ENVS = "hopper, walker2d, halfcheetah, inverted_pendulum, a Gymnasium id, or module:id, which imports the module first"
PRESET_HELP = ", ".join(configs.PRESETS)
RUNS, DATASETS = Path("runs"), Path("datasets")
MOST_COUNTED = 1_000_000
"""Episodes and trajectories that a verb is asked for."""
MOST_SEEDS = 256
"""That learn in one program."""
MOST_DIGITS = 19
LARGEST_PORT = 65535
LONGEST_LINE = 900
"""Characters of a complaint."""
FIT_DELTA_LR = 3e-2
"""Of log delta where a model is trained alone (official code): it must settle within an evaluation."""
ALL_POINTS = ("--samples_per_plugin", "scalars=1000000,images=1000")
"""For TensorBoard, which unasked keeps a random 1,000 points of a series: more points than a run has. Asked for 0 it
keeps none, although its Python reader takes 0 for all."""
JAX_DID_NOT_START = "Unable to initialize backend"
"""How JAX begins to say so, which names the platform and how to do without (``JAX_PLATFORMS``)."""
SAVING = ("train", "fit", "dataset")
"""Commands that train in a run folder, which keeps its last checkpoint when they are interrupted."""


# --- parsing ---------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse, but its complaint is one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _count(text: str, most: int = MOST_COUNTED) -> int:
    value = int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else 0
    if not 1 <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: how many, from 1 to {most:,}")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal() or len(text) > MOST_DIGITS or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: from 0 to {LARGEST_SEED}")
    return int(text)


def _address(text: str) -> str:
    if re.fullmatch(r"[\w.:\[\]-]+:[1-9]\d{0,4}", text) is None or int(text.rpartition(":")[2]) > LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: ADDRESS:PORT, as in 10.0.0.1:8476")
    return text


def _path(text: str) -> Path:
    """A path that the system can look up, whether or not something is there."""
    try:
        os.stat(text)
    except FileNotFoundError as error:
        if not text:
            raise argparse.ArgumentTypeError(f"{text!r}; allowed: the name of a file or folder") from error
    except (OSError, ValueError) as error:  # ValueError: a character that no name may have
        why = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"{text!r} ({why}); allowed: the name of a file or folder") from error
    return Path(text)


def _dataset(text: str) -> str:
    """The name of a dataset as it was given: an id is more than a path."""
    _path(text)
    return text


def _train_parser(command: str = "train") -> argparse.ArgumentParser:
    parser = _Parser(prog=f"polygrad {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--env", default=None)
    parser.add_argument("--preset", default=None)
    parser.add_argument("--seed", type=int, default=None)
    if command == "train":
        parser.add_argument("--seeds", type=partial(_count, most=MOST_SEEDS), default=None)
        parser.add_argument("--devices", type=_count, default=1)
        parser.add_argument("--hosts", type=_count, default=None)
        parser.add_argument("--host", type=_seed, default=None)
        parser.add_argument("--coordinator", type=_address, default=None)
        parser.add_argument("--show-config", action="store_true")
    parser.add_argument("--run", type=_path, default=None)
    parser.add_argument("--mixed-physics", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    return parser


def _policy_parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser for what is shown of a run of one's own or of one that comes with the package."""
    parser = _Parser(prog=f"polygrad {command}", description=description, allow_abbrev=False)
    parser.add_argument("run", type=_path, nargs="?", metavar="RUN", help="folder of a run")
    shipped = f"a run that comes with the package, copied to {RUNS}: {', '.join(pretrained.names())}"
    parser.add_argument("--pretrained", metavar="NAME", help=shipped)
    which = "parameters of the newest checkpoint (default) or of the best evaluation (pretrained runs: always these)"
    parser.add_argument("--which", choices=("newest", "best"), help=which)
    seed = f"seed of all random numbers, from 0 to {LARGEST_SEED} (default 0)"
    parser.add_argument("--seed", type=_seed, default=0, help=seed)
    return parser


def _parse_policy(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse what :func:`_policy_parser` knows; ``run`` is the folder in either case."""
    options = parser.parse_args(arguments)
    if (options.run is None) == (options.pretrained is None):
        given = "neither" if options.run is None else f"{options.run} and --pretrained {options.pretrained}"
        raise ConfigError(f"RUN or --pretrained is {given}; allowed: one of them")
    if options.pretrained is not None:
        options.run = RUNS / f"pretrained-{pretrained.find(options.pretrained).name}"
    if RunFolder(options.run).is_pretrained() or options.pretrained is not None:
        if options.which == "newest":
            raise ConfigError("which is newest; allowed for a run that comes with the package: best")
        options.which = "best"
    options.which = options.which or "newest"
    return options


def override(config: Config, arguments: Sequence[str]) -> Config:
    """Replace fields of the config from the command line (``--a2c.gae-lambda 0.95``), by tyro.

    Raises:
      ConfigError: an unknown field (with the nearest known one), a removed one (with what replaced it), or a value of
        the wrong kind; one line.
    """
    if not arguments:
        return config
    import tyro

    known = ["--" + name.replace("_", "-") for name, _ in configs.flatten(config)]
    for argument in arguments:
        name = argument.split("=")[0].replace("_", "-")
        if name in ("--env", "--env.name"):  # the preset depends on it
            allowed = "--env NAME of train and dataset, ENV of check; fit takes the task of its dataset"
            raise ConfigError(f"{name} is no field that can be set; allowed: {allowed}")
        # A switch is turned off by --group.no-switch.
        positive = ".".join(part.removeprefix("no-") for part in name.split(".")).replace("--no-", "--")
        if name.startswith("--") and not {name, positive} & {*known, "--help"}:
            if (instead := configs.removed_field(name)) is not None:
                raise ConfigError(instead)
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"unknown field {name}; allowed: "
                + (f"did you mean {near[0]}?" if near else "the fields that polygrad train --help lists")
            )
    _check_rule(arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(complaint):
            return tyro.cli(Config, default=config, args=list(arguments), prog="polygrad train")
    except SystemExit as error:
        if error.code in (0, None):
            print(complaint.getvalue())
            raise
        raise ConfigError(_in_one_line(complaint.getvalue())) from None


def _check_rule(arguments: Sequence[str]) -> None:
    """Refuse by name a guidance rule that the package no longer has."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    if ("--guidance.rule", "preconditioned") in itertools.pairwise(words):
        rules = ", ".join(get_args(configs.GuidanceRule))
        raise ConfigError(
            f"guidance.rule is preconditioned, which was removed (experiments/guidance registers it); allowed: {rules}"
        )


def _in_one_line(complaint: str) -> str:
    """Return what tyro says of a mistake without its frame, its headings and the help that follows."""
    words = re.sub(r"[│─╭╮╰╯]|-{4,}", " ", complaint)
    words = re.split(r"Argument helptext|For full helptext", words)[0]
    heading = r"^(\w+ error|Invalid choice|Unrecognized options|Missing argument) "
    return re.sub(heading, "", " ".join(words.split()))


# --- which configuration ---------------------------------------------------------------------------------------------


def _env_of(options: argparse.Namespace) -> str:
    return DEFAULT_ENV if options.env is None else options.env


def build_config(options: argparse.Namespace, fields: Sequence[str], preset: str) -> Config:
    """Take the preset, then the fields of the command line, then validate."""
    config = replace(configs.preset(preset, _env_of(options)), seed=options.seed or 0)
    return configs.validate(override(config, fields))


def _resumes(options: argparse.Namespace) -> bool:
    """Whether only a run folder was named, and a run is in it: then its own config is meant."""
    named = (options.env, options.preset, options.seed) != (None, None, None)
    return not named and options.run is not None and RunFolder(options.run).holds_a_run()


def _checked_early(options: argparse.Namespace, fields: Sequence[str]) -> Config:
    """The config of the preset asked for; without one, of whichever of the two that may be taken can be run."""
    if options.preset is not None:
        return build_config(options, fields, options.preset)
    try:
        return build_config(options, fields, "cpu")
    except ConfigError:
        with contextlib.suppress(ConfigError):
            return build_config(options, fields, "paper")
        raise


def _config_to_train(options: argparse.Namespace, fields: Sequence[str]) -> tuple[Config, EnvSpec, str]:
    """``(config, sizes of the task, why this preset)``; a mistake is reported before jax is even imported."""
    if _resumes(options):
        folder = RunFolder(options.run)
        folder.check_has_policy()  # first: a world model alone may have learnt from data that belong to no task
        folder.check_version()
        config = configs.validate(override(configs.from_dict(folder.saved_config()), fields))
        return config, _check_task(config), "the run folder's own"
    early = _checked_early(options, fields)
    _prepare_jax(early)  # choosing a preset starts jax
    spec = _check_task(early)
    preset, why = _choose_preset() if options.preset is None else (options.preset, "asked for")
    return build_config(options, fields, preset), spec, why


def _check_task(config: Config) -> EnvSpec:
    """Refuse an unknown task, or one that the world model cannot do; return its sizes."""
    from polygrad_jax.envs import mujoco_state, tasks
    from polygrad_jax.envs.checked_task import EnvStepError

    env = tasks.make(config.env)
    if config.world_model == "simulator":
        mujoco_state.require_simulator_states(config.env, "world_model is simulator; ")
    spec = tasks.spec_of(env)
    try:
        env.close()
    except EnvStepError as error:
        raise ConfigError(f"env.name {error}; allowed: a task that closes") from error
    return spec


def _check_folder(folder: Path, config: Config, mixed_physics: bool) -> None:
    """Refuse a folder in which this run cannot begin or go on."""
    from polygrad_jax.runs import physics

    RunFolder(folder).check_has_policy()
    RunFolder(folder).check(config, {physics.COLUMN: physics.todays_mujoco(config.env)}, mixed_physics)


def default_run_folder(config: Config, seeds: Sequence[int] = ()) -> Path:
    """``runs/<env>-<preset>-seed<seed>``; of several that learn together, ``...-seeds<first>to<last>``."""
    which = f"seeds{seeds[0]}to{seeds[-1]}" if seeds else f"seed{config.seed}"
    return RUNS / f"{config.env.name.replace('/', '_')}-{config.preset}-{which}"


def _asked_for(options: argparse.Namespace, fields: Sequence[str]) -> tuple[Config, EnvSpec, str, list[int]]:
    """Like :func:`_config_to_train`, and the seeds that learn together; none for one run."""
    named = (options.env, options.preset, options.seed, options.seeds) != (None, None, None, None)
    if options.run is not None and not named and (seeds := seeds_in(options.run)):
        one_of_them = argparse.Namespace(**vars(options) | {"run": seed_folder(options.run, seeds[0])})
        return *_config_to_train(one_of_them, fields), seeds
    config, spec, why = _config_to_train(options, fields)
    seeds = [config.seed + number for number in range(options.seeds or 0)]
    if seeds and seeds[-1] > LARGEST_SEED:
        raise ConfigError(f"seeds are {seeds[0]} to {seeds[-1]}; allowed: from 0 to {LARGEST_SEED}")
    return config, spec, why, seeds


def _check_folders(folder: Path, config: Config, seeds: Sequence[int], mixed_physics: bool) -> None:
    """Refuse a folder in which this run, or one of these seeds, cannot begin or go on."""
    if not seeds:
        return _check_folder(folder, config, mixed_physics)
    check_folder_of_seeds(folder, seeds)
    for seed in seeds:
        _check_folder(seed_folder(folder, seed), replace(config, seed=seed), mixed_physics)


def _prepare_jax(config: Config) -> None:
    """Set what JAX reads when it starts."""
    _check_platforms()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true" if config.preallocate_gpu_memory else "false"


def _check_platforms() -> None:
    """Refuse to run without the CPU, where policies act whatever learns elsewhere."""
    named = os.environ.get("JAX_PLATFORMS", "")
    if named and "cpu" not in named.split(","):
        raise ConfigError(f"JAX_PLATFORMS is {named}; allowed: cpu among them, as in {named},cpu, or not set")


def _choose_preset() -> tuple[str, str]:
    """``(preset, why)`` where none was asked for: paper where JAX finds an accelerator, cpu otherwise."""
    import jax

    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return "cpu", "JAX found no accelerator"
    return "paper", f"JAX found an accelerator ({device.device_kind})"


# --- train -----------------------------------------------------------------------------------------------------------


def train_command(arguments: Sequence[str]) -> int:
    """``polygrad train``: Algorithm 3, in a run folder; the same command resumes."""
    parser = _train_parser()
    options, fields = parser.parse_known_args(arguments)
    if options.help:
        shown = "paper" if options.preset is None else options.preset
        print(
            f"usage: polygrad train [--env ENV] [--preset {'|'.join(configs.PRESETS)}] [--seed SEED] [--seeds COUNT] "
            "[--devices COUNT] [--hosts COUNT --host INDEX --coordinator ADDRESS:PORT] [--run FOLDER] [--show-config] "
            "[--mixed-physics] [--FIELD VALUE ...]\n\n"
            f"--env is {ENVS} (default {DEFAULT_ENV}).\n"
            "--preset is by default cpu, and paper where JAX finds an accelerator.\n"
            f"--seed is from 0 to {LARGEST_SEED} (default 0).\n"
            f"--run is by default {RUNS}/<env>-<preset>-seed<seed>. A run in it is resumed; named alone, with the "
            "folder's own configuration.\n"
            "--seeds trains SEED, SEED + 1 and so on as one program, each in a folder of its own, FOLDER/seed0: "
            f"from 1 to {MOST_SEEDS}.\n"
            "--devices shares trajectories and batches, or seeds, out among the devices of this machine (default 1).\n"
            "--hosts shares them out among all devices of several machines, each given the same command with its own "
            "--host from 0 up; host 0, at ADDRESS, keeps the run folder.\n"
            "--show-config prints the whole configuration, and neither trains nor writes anything.\n"
            "--mixed-physics resumes a run that another version of MuJoCo simulated.\n"
            f"The fields, with the values of the preset {shown} (those of another: --preset NAME --help):\n"
        )
        override(configs.preset(shown, _env_of(options)), ["--help"])
    if _join_hosts(options, fields):
        return 0
    with _others_let_go_on_error(options):
        config, spec, why, seeds = _asked_for(options, fields)
        folder = options.run or default_run_folder(config, seeds)
        _prepare_jax(config)
        _check_folders(folder, config, seeds, options.mixed_physics)  # before anything is compiled
        if options.devices > 1 or options.hosts:
            from polygrad_jax.training.devices import make_mesh

            make_mesh(options.devices, len(seeds) or 1)

    from polygrad_jax.data.transition_log import TransitionLogError
    from polygrad_jax.envs.collector import EnvRestartError, EnvStepError
    from polygrad_jax.runs import first_screen
    from polygrad_jax.runs.compilation_cache import use_compilation_cache
    from polygrad_jax.training.loop import train, train_seeds
    from polygrad_jax.training.step import NonFiniteError

    print(first_screen.describe(config, spec, folder, why, seeds), flush=True)
    if options.show_config:
        print(first_screen.whole_configuration(config), flush=True)
        return 0
    use_compilation_cache(config)
    try:
        if seeds:
            results = train_seeds(config, seeds, folder, options.mixed_physics, options.devices)
        else:
            results = [train(config, folder, options.mixed_physics, options.devices)]
    except NonFiniteError as error:
        return _say(error, DIVERGED)
    except (EnvStepError, EnvRestartError) as error:
        return _say(error, FAILED)
    except TransitionLogError as error:  # the folder is the input
        return _say(error, BAD_INPUT)
    return _say_how_it_ended(results, folder, arguments if options.run else [*arguments, "--run", str(folder)])


def _join_hosts(options: argparse.Namespace, fields: Sequence[str]) -> bool:
    """Wait for the other hosts where there are some; take part until their run ends and return True if one leads it.

    A configuration that is only shown takes one host.

    Raises:
      ConfigError: options that do not go together, or the hosts do not come together.
    """
    given = {name: getattr(options, name) for name in ("hosts", "host", "coordinator")}
    if all(value is None for value in given.values()):
        return False
    for name, value in given.items():
        if value is None:
            raise ConfigError(f"--{name} is missing; allowed: --hosts, --host and --coordinator together")
    if options.host >= options.hosts:
        raise ConfigError(f"--host is {options.host}; allowed: from 0 to {options.hosts - 1}, below --hosts")
    if options.show_config:
        return False
    _prepare_jax(Config())
    with contextlib.suppress(ConfigError):  # host 0 reports a mistake, and lets the others go
        _prepare_jax(override(Config(), fields))
    from polygrad_jax.training import hosts

    print(f"host {options.host} of {options.hosts}: waiting for the others at {options.coordinator}", flush=True)
    hosts.connect(options.hosts, options.host, options.coordinator)
    if options.host == 0:  # not asked of JAX, which would start before this host knows its configuration
        return False
    from polygrad_jax.training.loop import follow

    print("lending this machine's devices to host 0, which keeps the run folder", flush=True)
    follow()
    print("finished: host 0 has let this machine go")
    return True


@contextlib.contextmanager
def _others_let_go_on_error(options: argparse.Namespace) -> Iterator[None]:
    """Let other hosts go, where there are some, before a mistake is reported."""
    try:
        yield
    except BaseException:
        if options.hosts:
            from polygrad_jax.training import hosts

            hosts.let_go()
        raise


def _this_program() -> list[str]:
    """What a user types to start this program again: the file of a module (``python -m``) may not be executable."""
    started_as_module = Path(sys.argv[0]).name == Path(__file__).name
    return [sys.executable, "-m", "polygrad_jax.cli"] if started_as_module else [sys.argv[0]]


def _say_how_it_ended(results: Sequence[Result], folder: Path, arguments: Sequence[str]) -> int:
    """Print how a run, or several together, ended, and how to go on; return the exit code."""
    for result in results:
        which = "" if len(results) == 1 else f"{result.folder.name}: "
        last = "not evaluated" if result.last_return is None else f"last evaluation return {result.last_return:.1f}"
        if result.stopped_by is None:
            print(f"{which}finished: {result.env_steps:,} environment steps; {last}")
    stopped = [result for result in results if result.stopped_by is not None]
    if not stopped:
        one = shlex.quote(str(results[0].folder))
        program = shlex.join(_this_program())
        print(f"look at it: {program} imagine {one}   or   {program} tensorboard {shlex.quote(str(folder))}")
        return 0
    by, env_steps = stopped[0].stopped_by, min(result.env_steps for result in stopped)
    print(f"\nstopped by {by} at {env_steps:,} environment steps; all is saved. Resume with:")
    print("  " + shlex.join([*_this_program(), "train", *arguments]))
    return 128 + signal.Signals[by]


def _say(error: Exception, code: int) -> int:
    print(f"polygrad: {_as_one_line(str(error))}", file=sys.stderr)
    return code


def _as_one_line(text: str) -> str:
    """Return text as a line for a terminal: escapes for what does not print, and a gap in what is very long.

    What a message names may come from a file that somebody else wrote.
    """
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 3 :]}"


# --- check -----------------------------------------------------------------------------------------------------------


def check_command(arguments: Sequence[str]) -> int:
    """``polygrad check ENV``: one page on a task in some seconds, before anything is trained; nothing is written."""
    parser = _Parser(
        prog="polygrad check",
        usage="polygrad check ENV [--preset PRESET] [--FIELD VALUE ...]",  # a field's value before ENV is taken for it
        allow_abbrev=False,
        description="Step a task for some seconds and say what it is, and whether and how it can be trained on.",
        epilog="All further options are fields of the configuration, as for polygrad train.",
    )
    parser.add_argument("env", metavar="ENV", help=ENVS)
    parser.add_argument("--preset", default=None, help=f"{PRESET_HELP} (default cpu; paper with an accelerator)")
    options, fields = parser.parse_known_args(arguments)
    options.seed = options.run = None
    config, _, why = _config_to_train(options, fields)

    from polygrad_jax.analysis import task_page
    from polygrad_jax.envs.checked_task import EnvStepError

    try:
        print(*task_page.describe(config, why), sep="\n")
    except EnvStepError as error:  # here the task is the input
        return _say(error, BAD_INPUT)
    preset = [] if options.preset is None else ["--preset", options.preset]
    print(f"train: {shlex.join([*_this_program(), 'train', '--env', options.env, *preset, *fields])}")
    return 0


# --- fit -------------------------------------------------------------------------------------------------------------


def _fit_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="polygrad fit",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a world model alone on recorded transitions, to the least error five steps ahead.",
        epilog="All further options are fields of the configuration, as for polygrad train (polygrad train --help).\n"
        "Without --updates and --seconds: the paper's million updates. The same command resumes after a stop.",
    )
    parser.add_argument(
        "--dataset", type=_dataset, required=True, metavar="DATA",
        help="folder of a run or of a Minari dataset, id of a local Minari dataset, or the official code's .npy",
    )  # fmt: skip
    parser.add_argument("--preset", default=None, help=f"{PRESET_HELP} (default cpu; paper with an accelerator)")
    parser.add_argument("--seed", type=int, default=0, help=f"from 0 to {LARGEST_SEED} (default 0)")
    out = "folder of the fit (default runs/<dataset>-<world model>-<preset>-seed<seed>)"
    parser.add_argument("--out", type=_path, default=None, metavar="FOLDER", help=out)
    parser.add_argument("--updates", type=int, default=None, help="gradient steps at most")
    parser.add_argument("--seconds", type=float, default=None, help="seconds of gradient steps at most")
    on = "train to --updates or --seconds whatever the error, also where it cannot be measured"
    parser.add_argument("--no-early-stopping", dest="early_stopping", action="store_false", help=on)
    patience = "evaluations without a better error before it stops (default 10)"
    parser.add_argument("--patience", type=int, default=10, help=patience)
    every = "gradient steps from one measurement of the error to the next (default 5000)"
    parser.add_argument("--evaluate-every-updates", type=int, default=5_000, metavar="UPDATES", help=every)
    parser.add_argument("--contexts", type=int, default=500, help="initial states of the error (default 500)")
    rows = "gradient steps from one row of metrics.jsonl to the next (default 500)"
    parser.add_argument("--log-every-updates", type=int, default=500, metavar="UPDATES", help=rows)
    saved = "seconds from one checkpoint to the next (default 300)"
    parser.add_argument("--checkpoint-every-seconds", type=float, default=300.0, metavar="SECONDS", help=saved)
    return parser


def fit_config(options: argparse.Namespace, fields: Sequence[str], env: EnvConfig | None) -> Config:
    """Take the preset for the dataset's task, then the fields of the command line, then validate."""
    env = env or EnvConfig(name="recorded")
    preset = _choose_preset()[0] if options.preset is None else options.preset
    base = replace(configs.preset(preset, env.name), env=env, seed=options.seed)
    base = replace(base, guidance=replace(base.guidance, delta_lr=FIT_DELTA_LR))
    return configs.validate(override(base, fields))


def fit_command(arguments: Sequence[str]) -> int:
    """``polygrad fit --dataset DATA``: train a world model alone on recorded transitions (paper, Appendix C.1)."""
    options, fields = _fit_parser().parse_known_args(arguments)
    _prepare_jax(override(configs.smoke("recorded"), fields))  # choosing a preset starts jax
    fit_config(options, fields, None)  # a mistake is reported before the data are read

    from polygrad_jax.envs.collector import EnvStepError
    from polygrad_jax.runs.compilation_cache import use_compilation_cache
    from polygrad_jax.runs.console import clock_time
    from polygrad_jax.runs.recorded_data import open_data
    from polygrad_jax.training.fitting import Schedule, Training
    from polygrad_jax.training.step import NonFiniteError

    names = Schedule.__dataclass_fields__
    schedule = Schedule(**{name: getattr(options, name) for name in names}).checked()
    data = open_data(options.dataset)
    config = fit_config(options, fields, data.env)
    folder = options.out or RUNS / f"{data.name}-{config.world_model}-{config.preset}-seed{config.seed}"
    print(f"{config.world_model} on {data.name}: {len(data.transitions):,} transitions; folder {folder}", flush=True)
    use_compilation_cache(config)
    try:
        outcome = Training(data, config, folder, schedule).run()
    except NonFiniteError as error:
        return _say(error, DIVERGED)
    except EnvStepError as error:  # in the simulator that judges
        return _say(error, FAILED)
    at = outcome.at
    print(
        f"{at.updates:,} updates in {clock_time(at.training_seconds)} of training; beside it "
        f"{clock_time(at.compiling_seconds)} compiling, {clock_time(at.judging_seconds)} judging"
    )
    if at.best_error is not None:
        print(f"best five-step error {at.best_error:.4g} after {at.best_updates:,} updates: {folder / BEST_FILE}")
    if outcome.stopped_by is None:
        print(f"finished: {outcome.why}")
        return 0
    words = list(arguments) if options.out else [*arguments, "--out", str(folder)]
    print(f"stopped by {outcome.stopped_by}; all is saved. Resume with:")
    print("  " + shlex.join([*_this_program(), "fit", *words]))
    return 128 + signal.Signals[outcome.stopped_by]


# --- dataset ---------------------------------------------------------------------------------------------------------


def dataset_command(arguments: Sequence[str]) -> int:
    """``polygrad dataset``: write a run's transitions and final policy as a Minari dataset; train it if there is none.
    """
    parser = _train_parser("dataset")
    parser.add_argument("--out", type=_path, default=DATASETS)
    options, fields = parser.parse_known_args(arguments)
    if options.help:
        print(
            "usage: polygrad dataset [--run FOLDER] [--out FOLDER] [--env ENV] [--preset PRESET] [--seed SEED] "
            "[--mixed-physics] [--FIELD VALUE ...]\n\n"
            f"Writes below --out (default {DATASETS}) what the run in --run left so far, as a Minari dataset. Where "
            "there is no\nrun, or further options say which, it is first trained to its end, as by polygrad train, "
            "whose defaults and fields\nhold here too (polygrad train --help). Needs the extra polygrad_jax[minari]."
        )
        return 0
    from polygrad_jax.data.minari_dataset import require_minari

    require_minari()  # before a run is trained for hours
    named_alone = _names_a_run_alone(options, fields)
    if named_alone and RunFolder(options.run).holds_a_run():
        return _export(options.run, options.out)
    config, spec, _ = _config_to_train(options, fields)
    folder = options.run or default_run_folder(config)
    _check_folder(folder, config, options.mixed_physics)
    total = config.loop.total_env_steps
    if RunFolder(folder).newest_step() < total:
        from polygrad_jax.analysis.dataset_export import check_before_training

        check_before_training(config, spec, options.out)
        there = "has not come to its end" if RunFolder(folder).holds_a_run() else "is not there"
        print(f"run {folder} {there}: it is trained first, to {total:,} environment steps", flush=True)
        code = train_command(_without_out(arguments))
        if code != 0:
            # A run named alone would be written as it is.
            words = [*arguments, "--preset", config.preset] if named_alone else arguments
            again = shlex.join([*_this_program(), "dataset", *words])
            print(f"no dataset yet; go on with: {again}", file=sys.stderr)
            return code
    return _export(folder, options.out)


def _names_a_run_alone(options: argparse.Namespace, fields: Sequence[str]) -> bool:
    """Whether nothing beside a run folder says what is to be trained: then a run in it is written as it is."""
    named = (options.env, options.preset, options.seed) != (None, None, None)
    return options.run is not None and not (named or fields or options.mixed_physics)


def _without_out(arguments: Sequence[str]) -> list[str]:
    """The words of ``polygrad dataset`` that ``polygrad train`` knows too."""
    words = [word for word in arguments if not word.startswith("--out=")]
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    return words


def _export(run: Path, out: Path) -> int:
    from polygrad_jax.analysis.dataset_export import export
    from polygrad_jax.envs.collector import EnvStepError

    try:
        written = export(run, out)
    except EnvStepError as error:
        return _say(error, FAILED)
    name = written.relative_to(out).as_posix()
    print(f"dataset {name} written to {written}")
    print(f'read it by MINARI_DATASETS_PATH={shlex.quote(str(out))} and minari.load_dataset("{name}")')
    return 0


# --- looking at a run ------------------------------------------------------------------------------------------------


def _open(options: argparse.Namespace) -> OpenedRun:
    _check_platforms()
    # A training run may hold the accelerator's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from polygrad_jax.analysis.opened_run import open_run

    if options.pretrained is not None:
        pretrained.copy_to(options.pretrained, options.run)
    return open_run(options.run, options.which)


def evaluate_command(arguments: Sequence[str]) -> int:
    """``polygrad evaluate RUN`` or ``--pretrained NAME``: whole episodes with the mean action, and a video."""
    parser = _policy_parser("evaluate", "Whole episodes with the policy's mean action.")
    parser.add_argument("--episodes", type=_count, default=20, help="how many are played (default 20)")
    film = "file for a film of the first episode, .mp4 or .gif (default: no film)"
    parser.add_argument("--video", type=_path, default=None, help=film)
    options = _parse_policy(parser, arguments)
    if options.video is not None:
        from polygrad_jax.analysis.films import check_film_path

        check_film_path(options.video)
    run = _open(options)

    from polygrad_jax.analysis import reports
    from polygrad_jax.envs.collector import EnvStepError

    try:
        print(*reports.report_evaluation(run, options.episodes, options.seed, options.video), sep="\n")
    except EnvStepError as error:
        return _say(error, FAILED)
    return 0


def imagine_command(arguments: Sequence[str]) -> int:
    """``polygrad imagine RUN`` or ``--pretrained NAME``: imagined trajectories beside the simulator."""
    parser = _policy_parser("imagine", "Imagined trajectories beside the simulator replaying the same actions.")
    parser.add_argument("--trajectories", type=_count, default=100, help="how many are imagined (default 100)")
    parser.add_argument("--out", type=_path, default=None, help="folder for figures and tables (default RUN/imagined)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--video", dest="film", action="store_const", const="mp4", help="the film as .mp4")
    how.add_argument(
        "--gif", dest="film", action="store_const", const="gif", help="the film as .gif (default, where possible)"
    )
    how.add_argument("--no-video", dest="film", action="store_const", const="none", help="no film")
    parser.add_argument("--shown", type=_count, default=5, help="trajectories in the film (default 5)")
    options = _parse_policy(parser, arguments)
    out = options.out or options.run / "imagined"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out is {out}, which is a file; allowed: a folder")
    require_extra("figures", "polygrad imagine")
    if options.film == "mp4":
        require_extra("films", "--video")
    run = _open(options)

    from polygrad_jax.analysis import reports
    from polygrad_jax.envs.collector import EnvStepError

    film, no_film = reports.choose_film(run, options.film, out)
    shown = min(options.shown, options.trajectories)
    print(reports.title(run))
    try:
        print(*reports.report_imagination(run, out, options.trajectories, options.seed, film, shown), sep="\n")
    except EnvStepError as error:
        return _say(error, FAILED)
    if no_film:
        print(no_film)
    return 0


def plot_command(arguments: Sequence[str]) -> int:
    """``polygrad plot RUN``: the training curves."""
    parser = _Parser(prog="polygrad plot", description="Training curves of a run.", allow_abbrev=False)
    parser.add_argument("run", type=_path, metavar="RUN", help="folder of a run")
    out = "file of the figure, .png, .pdf or .svg (default RUN/training_curves.png)"
    parser.add_argument("-o", "--out", type=_path, default=None, help=out)
    options = parser.parse_args(arguments)
    require_extra("figures", "polygrad plot")

    from polygrad_jax.analysis.reports import plot
    from polygrad_jax.runs.saved_run import read_saved

    out = options.out or options.run / "training_curves.png"
    plot(read_saved(options.run), out)
    print(f"written: {out}")
    return 0


def _is_folder(text: str) -> bool:
    try:
        return _path(text).is_dir()
    except argparse.ArgumentTypeError:
        return False


def tensorboard_command(arguments: Sequence[str]) -> int:
    """``polygrad tensorboard [RUN]``: TensorBoard on a run, or on all of ``runs``, with every point of every series."""
    if list(arguments) in (["-h"], ["--help"]):
        print(
            "usage: polygrad tensorboard [RUN]\n\n"
            f"Shows the curves of the run folder RUN, or of all runs in {RUNS} (default), in the browser, with every "
            "point\nof every series. Ctrl-C ends it. Needs the extra polygrad_jax[tensorboard]."
        )
        return 0
    if len(arguments) > 1 or (arguments and not _is_folder(arguments[0])):
        raise ConfigError(f"tensorboard was given {shlex.join(arguments)}; allowed: one run folder, or nothing")
    require_extra("tensorboard", "polygrad tensorboard")
    folder = arguments[0] if arguments else str(RUNS)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder, *ALL_POINTS]
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:  # how it is ended
        return 0


# --- the door --------------------------------------------------------------------------------------------------------

COMMANDS = {
    "check": check_command,
    "train": train_command,
    "fit": fit_command,
    "dataset": dataset_command,
    "evaluate": evaluate_command,
    "imagine": imagine_command,
    "plot": plot_command,
    "tensorboard": tensorboard_command,
}
ABOUT = {
    "check": "look at a task before training on it",
    "train": "train a policy and its world model in a run folder; the same command resumes",
    "fit": "train a world model alone on recorded transitions",
    "dataset": "write a run's transitions as a Minari dataset",
    "evaluate": "play episodes with a run's policy, and film them",
    "imagine": "compare what a run imagines with MuJoCo: films, figures, arrays",
    "plot": "draw a run's training curves",
    "tensorboard": "show the curves of all runs in the browser",
}
USAGE = "\n".join(
    [
        "usage: polygrad COMMAND ...\n",
        *(f"  {name:<13}{about}" for name, about in ABOUT.items()),
        "\nEach has a --help. A mistake is one line and the exit code 2.",
    ]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``polygrad`` command; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()  # that the reader has gone may show only here: the buffer holds more than a help page
    except ConfigError as error:
        return _say(error, BAD_INPUT)
    except RuntimeError as error:
        if not str(error).startswith(JAX_DID_NOT_START):
            raise
        return _say(error, BAD_INPUT)
    except KeyboardInterrupt:
        kept = " before it could save; a run folder keeps its last checkpoint" if "".join(words[:1]) in SAVING else ""
        print(f"polygrad: interrupted{kept}", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # polygrad train --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered has nowhere to go at exit
        return 128 + signal.SIGPIPE


def _run(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        given = arguments[0] if arguments else "nothing"
        raise ConfigError(f"command is {given}; allowed: {', '.join(COMMANDS)}")
    return COMMANDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
