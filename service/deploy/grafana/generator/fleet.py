"""All runs: which one needs a look."""

from board import SCOPE, dashboard, row
from panels import link, stat, state_timeline, table, target, timeseries

_RATE = "[$__rate_interval]"
_SHARE = (
    f"rate(gradwatch_run_clipped_elements_total{{{SCOPE}}}{_RATE})"
    f" / (rate(gradwatch_run_elements_total{{{SCOPE}}}{_RATE}) > 0)"
)
_BY_RUN = "by (job, instance, project, run)"
_TO_RUN = link(
    "Open the run",
    "/d/gradwatch-run?var-datasource=${datasource}&var-project=${__data.fields.Project}"
    "&var-run=${__data.fields.Run}",
)
_TO_SERIES_RUN = link(
    "Open the run",
    "/d/gradwatch-run?var-datasource=${datasource}&var-project=${__field.labels.project}"
    "&var-run=${__field.labels.run}",
)

_RUNS = table(
    "Runs",
    "Every run of the last day, those with open incidents first. Click a run to open it. "
    "A reported age of minutes on a run that is not finished: look at its machine.",
    [
        target(f"gradwatch_run_info{{{SCOPE}}}", instant=True),
        target(f"sum {_BY_RUN} (gradwatch_run_incidents_active{{{SCOPE}}})", instant=True),
        target(f"max {_BY_RUN} (gradwatch_run_gradient_norm{{{SCOPE}}})", instant=True),
        target(f"max {_BY_RUN} (gradwatch_run_clip_threshold{{{SCOPE}}})", instant=True),
        target(
            f"max {_BY_RUN} (gradwatch_run_recommended_clip_threshold{{{SCOPE}}})", instant=True
        ),
        target(f"max {_BY_RUN} (gradwatch_run_last_step{{{SCOPE}}})", instant=True),
        target(
            f"time() - max {_BY_RUN} (gradwatch_run_last_report_timestamp_seconds{{{SCOPE}}})",
            instant=True,
        ),
    ],
    columns={
        "project": ("Project", "string"),
        "run": ("Run", "string"),
        "name": ("Name", "string"),
        "policy": ("Policy", "string"),
        "Value #B": ("Open incidents", "short"),
        "Value #C": ("Gradient norm", "sci"),
        "Value #D": ("Threshold", "short"),
        "Value #E": ("Recommended", "short"),
        "Value #F": ("Step", "none"),
        "Value #G": ("Last report", "s"),
    },
    links={"Run": _TO_RUN},
    worst="Open incidents",
)

BOARD = dashboard(
    "fleet",
    "Fleet",
    "All runs at a glance: what is wrong, and in which run. Click a run for its curves.",
    [
        row(
            "",
            4,
            stat(
                "Runs by state",
                "Runs of the last day by state. Anything but healthy and finished wants a look.",
                [
                    target(
                        'sum by (state) (gradwatch_runs{job=~"$job",instance=~"$instance"}) > 0',
                        "{{state}}",
                    )
                ],
                text="value_and_name",
            ),
            (
                stat(
                    "Open incidents",
                    "Exploding, vanishing, oscillating or non-finite gradients right now.",
                    [
                        target(
                            f"sum by (kind) (gradwatch_run_incidents_active{{{SCOPE}}})", "{{kind}}"
                        )
                    ],
                    limits=[(1, "red")],
                    text="value_and_name",
                ),
                12,
            ),
        ),
        row(
            "",
            8,
            state_timeline(
                "States",
                "What state each run was in. A purple row is a run that stopped reporting without "
                "saying goodbye.",
                [target(f"gradwatch_run_state{{{SCOPE}}} == 1", "{{run}}: {{state}}")],
            ),
        ),
        row("", 9, _RUNS),
        row(
            "",
            8,
            timeseries(
                "Most clipped runs",
                "Share of gradient elements that clipping changed, ten largest. Above a quarter for "
                "long, the threshold trains the model: compare with the recommended one.",
                [target(f"topk(10, {_SHARE})", "{{run}}")],
                unit="percentunit",
                low=0,
                links=[_TO_SERIES_RUN],
            ),
            timeseries(
                "Norm over threshold",
                "Gradient norm as a multiple of the threshold in force, ten largest. Far above 1: "
                "most of the gradient is cut away.",
                [
                    target(
                        f"topk(10, gradwatch_run_gradient_norm{{{SCOPE}}}"
                        f" / (gradwatch_run_clip_threshold{{{SCOPE}}} > 0))",
                        "{{run}}",
                    )
                ],
                log=True,
                links=[_TO_SERIES_RUN],
            ),
            timeseries(
                "Steps per second",
                "Optimizer steps per second by project. A drop without a finished run: a job hangs.",
                [
                    target(
                        f"sum by (project) (rate(gradwatch_run_steps_total{{{SCOPE}}}{_RATE}))",
                        "{{project}}",
                    )
                ],
                low=0,
            ),
        ),
    ],
    variables=("project",),
)
