"""A run folder: what a run was told, where it ran, and whether it may go on there.

``config.json`` marks a folder as a run's; ``environment.json`` says on what it ran. Every file written here is
complete or absent, whatever kills the program.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import shlex
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from polygrad_jax.config import Config, ConfigError, from_dict, to_json
from polygrad_jax.runs import physics
from polygrad_jax.runs.console import announce

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
LOCK_FILE = ".lock"
DATA_FILE = "data.json"
"""The data that a world model alone was trained on (``polygrad fit``); a run of ``polygrad train`` has none."""
CHECKPOINTS = "checkpoints"
BEST_FILE = "best.npz"
"""Policy, world model and statistics of the best evaluation, as plain arrays."""
CARD_FILE = "card.json"
"""What is said of a run that comes with the package; others have none."""
TEMPORARY_SUFFIX = ".tmp"

FORMAT_VERSION = 3
"""Of checkpoints; raise it when the meaning of their arrays or JSON changes, or of what is derived from them."""
RESUMED_VERSIONS = (2, 3)
"""Checkpoints that training goes on from. In version 2 the floor of standard deviations was another one."""
LOOKED_AT_VERSIONS = (1, 2, 3)
"""Checkpoints that ``evaluate``, ``imagine`` and ``plot`` read."""

MAY_DIFFER_ON_RESUME = (
    "preset",  # a name for the record; what it stands for is in the other fields
    "preallocate_gpu_memory",
    "compilation_cache",
    "loop.total_env_steps",
    "loop.eval_every_env_steps",
    "loop.eval_episodes",
    "loop.error_trajectories",
    "loop.log_every_env_steps",
    "loop.checkpoint_every_env_steps",
    "loop.film_checkpoints",
)
"""Fields that change nothing in what has been learnt; neither does a checkpoint. A longer run goes on along the new
line of what changes evenly to its end (``a2c.final_target_change``, ``a2c.learning_rates falling``)."""

NEEDED_FOR_BIT_EXACTNESS = ("python", "packages", "device", "processor", "cores", "machine", "xla_flags")
"""Entries of ``environment.json`` that must agree for a resumed run to equal the uninterrupted one bit for bit."""
ONE_UNLESS_SAID = ("seeds_together", "devices_used")
"""Further ones, which are there only where they are not 1: they change the order in which sums are taken."""

SOURCE_TREE = Path(__file__).resolve().parents[2]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "mujoco", "gymnasium", "numpy")

_NO_ROOM = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
_NO_ACCESS = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "there is a file in its place",
    errno.EISDIR: "there is a folder in its place",
    errno.ELOOP: "there is a link to itself in its place",
    errno.ENAMETOOLONG: "the name is too long",
}


# --- writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def one_line_on_disk_trouble(path: Path | str) -> Iterator[None]:
    """Turns a full disk, or a place where one may not write, into a ConfigError of one line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        reason = _disk_trouble(error, Path(path))
        if reason is None:
            raise
        raise ConfigError(
            f"{path} cannot be written: {reason}; allowed: a folder with room and write permission"
        ) from error


def _disk_trouble(error: BaseException | None, path: Path) -> str | None:
    """Why the disk refused, or None; libraries wrap the system's error, so its causes and its words are looked at."""
    while error is not None:
        reason = (_NO_ROOM | _NO_ACCESS).get(getattr(error, "errno", None))
        if reason is None and _is_missing(error, path):
            reason = "a folder on the way to it is gone or cannot be made"
        if reason is None and os.strerror(errno.ENOSPC) in str(error):
            reason = _NO_ROOM[errno.ENOSPC]
        if reason is not None:
            return reason
        error = error.__cause__ or error.__context__
    return None


def _is_missing(error: BaseException, path: Path) -> bool:
    """Whether the system found ``path`` missing, something in it or a folder on the way to it."""
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, str | bytes | os.PathLike):
        return False
    missing, path = Path(os.fsdecode(error.filename)).absolute(), path.absolute()
    return missing.is_relative_to(path) or path.is_relative_to(missing)


def write_bytes_atomically(path: Path | str, content: bytes) -> None:
    """Writes a file that is complete or not there; an earlier one of that name stays until then."""
    path = Path(path)
    with one_line_on_disk_trouble(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~UMASK)  # mkstemp's files are for their owner only
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def write_text_atomically(path: Path | str, text: str) -> None:
    """Writes a text file that is complete or not there."""
    write_bytes_atomically(path, text.encode())


UMASK = os.umask(0)  # the only way to read it is to set it; once, here, since threads write files later
os.umask(UMASK)


# --- reading ---------------------------------------------------------------------------------------------------------

LARGEST_JSON = 2**20
"""Bytes of a JSON file that a person could read; parsed, JSON takes up to thirty times its size."""
LARGEST_HOST_JSON = 2**23
"""Bytes of what the host remembers in a checkpoint: the actions of the open episode are most of it."""


def read_json(path: Path, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """Read an object of JSON, of at most ``largest`` bytes, that somebody else may have written.

    Raises:
      FileNotFoundError: there is no such file.
      ConfigError: it cannot be read, is no JSON, no object, too large or too deep.
    """
    try:
        if not stat.S_ISREG((found := path.stat()).st_mode):  # a pipe would be waited for
            raise ValueError("it is no file")
        if (size := found.st_size) > largest:
            raise ValueError(f"{size:,} bytes; at most {largest:,} are read")
        saved = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(saved, dict):
            raise ValueError(f"a {type(saved).__name__} in place of an object")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); allowed: JSON as it was written") from error
    return saved


@contextlib.contextmanager
def _one_line_where_closed(folder: Path) -> Iterator[None]:
    """Turns a folder that the system does not let one look into into a ConfigError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"{folder} cannot be looked into ({why}); allowed: a folder that one may enter") from error


def step_folders(checkpoints: Path) -> list[int]:
    """Return the steps by which the folders of checkpoints are named, least first; none where there is no folder."""
    with _one_line_where_closed(checkpoints):
        if not checkpoints.is_dir():
            return []
        names = [path.name for path in checkpoints.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and len(name) <= 18)


def runs_in(folder: Path) -> list[str]:
    """Return the names of the run folders in a folder, in order."""
    try:
        return sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
    except OSError:
        return []


# --- where the program runs ------------------------------------------------------------------------------------------


def describe_environment(command: Sequence[str] | None = None) -> dict[str, Any]:
    """What results depend on beside the config: versions, device, cores, flags, revision, command line."""
    import jax  # here, so that a mistake in the config is reported before jax is loaded

    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": f"{device.platform}: {device.device_kind}",
        "device_count": jax.device_count(),
        "processor": processor(),
        "cores": cores(),
        "machine": f"{platform.system()} {platform.machine()}",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "git_revision": git_revision(),
        "command": shlex.join(sys.argv if command is None else command),
    }


def cores() -> int | None:
    """Return the number of cores that XLA computes on: those that the process may use, unless a variable says another.

    The order in which a CPU adds follows from it (``findings/jax_threads_follow_nproc.sh``).
    """
    for name in ("PJRT_NPROC", "NPROC"):
        told = os.environ.get(name, "").strip()
        if re.fullmatch("[+-]?[0-9]+", told) and -(2**31) <= int(told) < 2**31:
            return max(1, int(told))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor(told: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the processor's name where the system tells (Linux), with family and model.

    Virtual machines shorten names: generations that differ in speed and in rounding are all called "AMD EPYC".
    """
    try:
        pairs = (line.partition(":") for line in told.read_text().split("\n\n")[0].splitlines())
    except OSError:
        return None
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    name, family, model = (facts.get(key) for key in ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model})" if name and family and model else name


def git_revision(root: Path = SOURCE_TREE) -> str | None:
    """Return the commit of a source tree, ``+changes`` where files other than results differ; None outside a clone."""
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        revision = git("rev-parse", "HEAD")
        changed = revision and git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"{revision}+changes" if changed else revision or None


# --- going on --------------------------------------------------------------------------------------------------------


def _leaves(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= _leaves(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differing_fields(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Dotted names of the fields in which two nested configs conflict: all that differ, or are in one of the two
    only, except those of ``MAY_DIFFER_ON_RESUME``."""
    a, b = _leaves(saved), _leaves(current)
    absent = object()
    names = sorted(a.keys() | b.keys())
    return [n for n in names if n not in MAY_DIFFER_ON_RESUME and a.get(n, absent) != b.get(n, absent)]


def differing_environment(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """``name: saved -> current`` for every entry that bit-exactness needs and that is not the same."""
    a, b = (
        _leaves({n: facts.get(n) for n in NEEDED_FOR_BIT_EXACTNESS} | {n: facts.get(n, 1) for n in ONE_UNLESS_SAID})
        for facts in (saved, current)
    )
    named = a.get("processor")
    if named is not None and str(b.get("processor")).startswith(f"{named} (family "):
        b["processor"] = named  # saved before family and model were told
    return [f"{n}: {a.get(n)} -> {b.get(n)}" for n in sorted(a.keys() | b.keys()) if a.get(n) != b.get(n)]


def cannot_be_resumed(checkpoint: Path, version: Any) -> str:
    """Say in one line why a checkpoint of another format version is refused."""
    text, allowed = f"checkpoint {checkpoint} has format version {version}", ", ".join(map(str, RESUMED_VERSIONS))
    if version in LOOKED_AT_VERSIONS:
        return (
            f"{text} and cannot be resumed; allowed: {allowed}. Look at the run with polygrad evaluate, imagine or "
            "plot, or begin anew in another folder"
        )
    return f"{text}; allowed: {allowed}"


class RunFolder:
    """Where one run keeps its files. :meth:`check` writes nothing; :meth:`record` is for when all was accepted."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def holds_a_run(self) -> bool:
        """Whether a run was started here, so that starting again means going on."""
        return self._has(CONFIG_FILE)

    def is_pretrained(self) -> bool:
        """Whether the run came with the package, without checkpoints."""
        return self._has(CARD_FILE)

    def _has(self, name: str) -> bool:
        """Whether there is a file of that name.

        Raises:
          ConfigError: one may not look (where ``Path.is_file`` raises or says no, depending on Python).
        """
        with _one_line_where_closed(self.path):
            try:
                return stat.S_ISREG((self.path / name).stat().st_mode)
            except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no name has this character
                return False

    def check_has_policy(self) -> None:
        """Nothing for a run of ``polygrad train``, and for what is none.

        Raises:
          ConfigError: a world model alone was trained here, on recorded transitions.
        """
        if self._has(DATA_FILE):
            raise ConfigError(
                f"run folder {self.path} is of a world model alone ({DATA_FILE}); allowed: a folder of polygrad train"
            )

    def check_not_pretrained(self) -> None:
        """Nothing for a run of one's own.

        Raises:
          ConfigError: it came with the package, without what going on would need.
        """
        if self.is_pretrained():
            raise ConfigError(
                f"run folder {self.path} came with the package ({CARD_FILE}) and is not trained on; "
                "allowed: another folder"
            )

    def newest_step(self) -> int:
        """Environment steps of the newest checkpoint; 0 without one."""
        return max(step_folders(self.path / CHECKPOINTS), default=0)

    def format_version(self) -> Any:
        """Return the format version of the newest checkpoint; today's where there is none, or none that can be read."""
        try:
            return read_json(self._newest() / "host" / "metadata", LARGEST_HOST_JSON).get("format_version")
        except (FileNotFoundError, ConfigError):
            return FORMAT_VERSION

    def check_version(self) -> None:
        """Refuse to resume a checkpoint of another format version; one that cannot be read is left to the reader.

        Raises:
          ConfigError: the newest checkpoint is of another version.
        """
        version = self.format_version()
        if version not in RESUMED_VERSIONS:
            raise ConfigError(cannot_be_resumed(self._newest(), version))

    def _newest(self) -> Path:
        return self.path / CHECKPOINTS / str(self.newest_step())

    def saved_config(self) -> dict[str, Any]:
        """The config of the run, as nested dictionaries.

        Raises:
          ConfigError: there is none, or it cannot be read.
        """
        try:
            return read_json(self.path / CONFIG_FILE)
        except FileNotFoundError:
            inner = runs_in(self.path)
            one = f"one of the runs in it, as {self.path / inner[0]}" if inner else "the folder of a run"
            raise ConfigError(f"run folder {self.path} has no {CONFIG_FILE}; allowed: {one}") from None

    def saved_environment(self) -> dict[str, Any]:
        """What ``environment.json`` says; empty where it is missing, unreadable or of another form."""
        try:
            saved = read_json(self.path / ENVIRONMENT_FILE)
        except (FileNotFoundError, ConfigError):
            return {}
        earlier = saved.get("earlier", [])
        every = [*earlier, saved] if isinstance(earlier, list) else [None]
        whole = all(isinstance(one, dict) and isinstance(one.get("packages", {}), dict) for one in every)
        return saved if whole else {}

    def lock(self) -> IO[bytes]:
        """Keeps other processes from training here while the file that is returned is open.

        A file system without locks, as some clusters have, costs a line of warning and the lock.

        Raises:
          ConfigError: another process does.
        """
        with one_line_on_disk_trouble(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / LOCK_FILE, "ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ConfigError(
                f"run folder {self.path} is being trained in by another process; allowed: another folder, or wait"
            ) from None
        except OSError as error:
            why = error.strerror or error
            announce(f"warning: run folder {self.path} cannot be locked ({why}); let no other process train in it")
        return file

    def check(self, config: Config, environment: dict[str, Any], mixed_physics: bool = False) -> list[str]:
        """Lines of warning for going on here; none for a new folder.

        Args:
          environment: of this program. With an entry ``mujoco`` the run must have been simulated by the same version.
          mixed_physics: goes on whatever simulated the run.

        Raises:
          ConfigError: the folder is a file, holds something else than a run, or a run with another config or physics.
        """
        if not self.holds_a_run():
            self._check_empty()
            return []
        self.check_not_pretrained()
        self.check_version()
        # Both through JSON, so that a tuple and a list are the same. A field that an older version did not write has
        # the value that does what it did.
        saved, current = (json.loads(to_json(x)) for x in (from_dict(self.saved_config()), config))
        different = differing_fields(saved, current)
        if different:
            was, now = _leaves(saved), _leaves(current)
            conflicts = ", ".join(f"{n} ({was.get(n, 'absent')}, now {now.get(n, 'absent')})" for n in different)
            raise ConfigError(
                f"run folder {self.path} has another config in {conflicts}; allowed: the same values, or another folder"
            )
        before = self.saved_environment()
        if physics.COLUMN in environment and self.newest_step() > 0:
            self._check_physics(config, before, environment[physics.COLUMN], mixed_physics)
        changed = differing_environment(before, environment) if before else []
        if not changed:
            return []
        return [
            f"warning: {self.path} was run elsewhere ({'; '.join(changed)}); "
            "going on, but not bit for bit as the uninterrupted run would"
        ]

    def _check_physics(self, config: Config, before: dict[str, Any], version: str, mixed: bool) -> None:
        from polygrad_jax.envs.tasks import gymnasium_id  # here, as jax above

        task = config.env.name if version == physics.NO_MUJOCO else gymnasium_id(config.env)
        newest = (physics.versions_of_run(before) or [""])[-1]
        went_on = [physics.Used(task, newest, f"run folder {self.path}"), physics.Used(task, version, "installed")]
        physics.refuse_mixed(went_on, mixed)

    def _check_empty(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ConfigError(f"run folder {self.path} is a file; allowed: a folder, new, empty or of a run")
        # A program killed before config.json was complete leaves its lock and its temporary file.
        with _one_line_where_closed(self.path):
            left = [p.name for p in self.path.iterdir() if p.name != LOCK_FILE]
        strangers = sorted(name for name in left if not (name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)))
        if strangers:
            raise ConfigError(
                f"run folder {self.path} has no {CONFIG_FILE} but holds {', '.join(strangers[:3])}"
                f"{', ...' if len(strangers) > 3 else ''}; allowed: a folder that is new, empty or of a run"
            )

    def record(self, config: Config, environment: dict[str, Any]) -> None:
        """Makes the folder where it is new and writes what runs now; earlier environments are kept beside it."""
        before = self.saved_environment()
        earlier = before.pop("earlier", [])
        if before and before != environment:
            earlier = [*earlier, before]
        # config.json first: it marks the folder as a run's, environment.json may be missing.
        write_text_atomically(self.path / CONFIG_FILE, to_json(config))
        whole = {**environment, "earlier": earlier}
        write_text_atomically(self.path / ENVIRONMENT_FILE, json.dumps(whole, indent=2) + "\n")

