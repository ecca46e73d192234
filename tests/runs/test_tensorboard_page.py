"""The page and the table that TensorBoard shows, read by TensorBoard's own plugins."""

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of what TensorBoard brings along
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.custom_scalar import custom_scalars_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups
    from tensorboard.plugins.scalar import scalars_plugin

from polygrad_jax import cli
from polygrad_jax import config as configs
from polygrad_jax.runs import tensorboard_page
from polygrad_jax.runs.metrics_log import MetricsLog

METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"
FIELDS = tensorboard_page.hyperparameters(
    configs.override(configs.preset("cpu", "hopper"), {"value_gradient.gamma": 0.9, "loop.side_by_side": False})
)


def served(folder):
    """What TensorBoard's plugins are given."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    plugins = {}
    context = base_plugin.TBContext(
        data_provider=provider, multiplexer=multiplexer, logdir=str(folder), plugin_name_to_instance=plugins
    )
    plugins["scalars"] = scalars_plugin.ScalarsPlugin(context)
    return context


@pytest.fixture
def two_runs(tmp_path):
    for name, fields, returns in (("a", FIELDS, (1.0, 7.0)), ("b", FIELDS | {"seed": 3}, (2.0, 5.0))):
        log = MetricsLog(tmp_path / name, hyperparameters=fields)
        for step, value in enumerate(returns, 1):
            log.write(step, {"error/observation_mse_005": value, "error/reward_mse": 1.0, "agent/std": 1.0})
            log.write_evaluation(step, {"return_mean": value, "length_mean": 10.0, "distance_mean": None})
        log.close()
    return tmp_path


def test_tensorboard_serves_every_point_and_every_film(tmp_path):
    """By TensorBoard itself, as ``polygrad tensorboard`` starts it: more than it keeps of its own accord."""
    log = MetricsLog(tmp_path / "run")
    for step in range(1_200):
        log.write(step, {"loss": step})
        if step < 12:
            log.write_film(step, "film", b"GIF89a", (1, 1))
    log.close()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path), "--port", "0", *cli.ALL_POINTS]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = next(word for line in server.stderr for word in line.split() if word.startswith("http://"))
            for plugin, tag, count in (("scalars/scalars", "loss", 1_200), ("images/images", "film", 12)):
                asked = {"tag": f"{tag} [x: env steps]", "run": "run", "sample": 0}
                assert points(f"{address}data/plugin/{plugin}?{urllib.parse.urlencode(asked)}", count) == count
        finally:
            server.terminate()


def points(address, wanted):
    """How many points are served; TensorBoard reads the files beside answering."""
    deadline, found = time.monotonic() + 60.0, 0
    while found < wanted and time.monotonic() < deadline:
        time.sleep(0.5)
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(address, timeout=30) as answer:
            found = len(json.load(answer))
    return found


def test_every_name_is_one_that_is_logged():
    logged = set(re.findall(r"^\| `(\S+)` \|", METRICS.read_text(), flags=re.MULTILINE))
    shown = [name for charts in tensorboard_page.PAGE.values() for names in charts.values() for name in names]
    assert len(shown) == len(set(shown))
    assert {*shown, *tensorboard_page.RESULTS} - logged == {tensorboard_page.ERRORS}
    assert any(name.startswith(tensorboard_page.ERRORS) for name in logged)


def test_the_page_has_a_chart_for_what_matters(two_runs):
    plugin = custom_scalars_plugin.CustomScalarsPlugin(served(two_runs))
    layout = json.loads(plugin.layout_impl(RequestContext(), ""))
    assert [category["title"] for category in layout["category"]] == list(tensorboard_page.PAGE)
    assert [[c["title"] for c in category["chart"]] for category in layout["category"]] == [
        list(charts) for charts in tensorboard_page.PAGE.values()
    ]  # once, however many runs there are
    patterns = {c["title"]: c["multiline"]["tag"] for category in layout["category"] for c in category["chart"]}

    def tags(title):
        found = [plugin.scalars_impl(RequestContext(), "a", pattern, "") for pattern in patterns[title]]
        return {tag for one in found for tag in one["tag_to_events"]}

    assert tags("return of evaluations (mean action)") == {"evaluation/return_mean [x: env steps]"}
    assert tags("squared error of observations, by steps ahead") == {"error/observation_mse_005 [x: env steps]"}
    assert tags("squared error of the first reward") == {"error/reward_mse [x: env steps]"}
    assert tags("std and entropy of the policy") == {"agent/std [x: env steps]"}
    assert tags("delta") == set()
    for title in patterns:  # a line is named "tag (run)", and its run is read off again like this
        for tag in tags(title):
            assert re.search(r"\((.*)\)$", f"{tag} (a)").group(1) == "a"


def test_the_table_has_the_fields_that_were_set_and_the_newest_evaluation(two_runs):
    served_runs = served(two_runs)
    context, request = backend_context.Context(served_runs), RequestContext()
    experiment = get_experiment.Handler(request, context, "", api_pb2.GetExperimentRequest()).run()
    named = {"env.name", "preset", "seed", "world_model", "agent"}
    changed = {"value_gradient.gamma", "loop.side_by_side"}
    assert {info.name for info in experiment.hparam_infos} == set(FIELDS) == named | changed
    asked = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=10,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING, api_pb2.STATUS_SUCCESS],
        col_params=[
            api_pb2.ColParams(metric=api_pb2.MetricName(tag="evaluation/return_mean [x: env steps]")),
            *(api_pb2.ColParams(hparam=name) for name in ("seed", "env.name")),
        ],
    )
    groups = list_session_groups.Handler(request, context, "", asked).run().session_groups
    rows = {}
    for group in groups:
        (metric,) = [m.value for m in group.metric_values if m.name.tag.startswith("evaluation/return_mean")]
        rows[group.hparams["seed"].number_value] = (group.hparams["env.name"].string_value, metric)
    assert rows == {0.0: ("hopper", 7.0), 3.0: ("hopper", 5.0)}


def test_a_resumed_run_says_it_once(two_runs):
    before = {path: path.read_bytes() for path in (two_runs / "a").iterdir()}
    log = MetricsLog(two_runs / "a", hyperparameters=FIELDS)
    log.truncate(1)
    log.write_evaluation(2, {"return_mean": 8.0})
    log.close()
    (first, *later) = sorted((two_runs / "a").glob("events*"))
    page = b"custom_scalars__config__"
    assert before[first].count(page) == first.read_bytes().count(page) == 1
    assert len(later) == 1 and page not in later[0].read_bytes()
