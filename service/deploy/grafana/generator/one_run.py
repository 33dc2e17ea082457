"""One run: what is wrong, since when, in which layer, and which threshold is advised."""

from board import RUN, dashboard, row
from panels import heatmap, link, stat, state_timeline, table, target, timeseries

_RATE = "[$__rate_interval]"
_TO_LAYER = link(
    "Open the layer",
    "/d/gradwatch-layers?var-datasource=${datasource}&var-project=${__field.labels.project}"
    "&var-run=${__field.labels.run}&var-group=${__field.labels.group}",
)


def _share(prefix: str, labels: str) -> str:
    part = f"rate(gradwatch_{prefix}_clipped_elements_total{{{labels}}}{_RATE})"
    return f"{part} / (rate(gradwatch_{prefix}_elements_total{{{labels}}}{_RATE}) > 0)"


_TOP = row(
    "",
    4,
    (
        stat(
            "State",
            "How the run is doing now.",
            [target(f"gradwatch_run_state{{{RUN}}} == 1", "{{state}}")],
            text="name",
        ),
        4,
    ),
    (
        stat(
            "Open incidents",
            "Faults of the gradient that are going on. The table below names the layer and the step.",
            [target(f"sum(gradwatch_run_incidents_active{{{RUN}}})", "open")],
            limits=[(1, "red")],
            zero="none",
        ),
        4,
    ),
    (
        stat(
            "Threshold in force",
            "Clipping threshold at the last step; empty when the run does not clip.",
            [target(f"gradwatch_run_clip_threshold{{{RUN}}}", "in force")],
        ),
        4,
    ),
    (
        stat(
            "Recommended threshold",
            "Norm threshold that the service recommends, and how firm it is: provisional after 3 "
            "steps, estimated after 32 when narrow, validated when it did what it promised.",
            [
                target(f"gradwatch_run_recommended_clip_threshold{{{RUN}}}", "norm"),
                target(f"gradwatch_run_recommendation_status{{{RUN}}} == 1", "{{status}}"),
            ],
            text="value_and_name",
        ),
        6,
    ),
    (
        stat(
            "Overhead",
            "Share of the training time that gradwatch takes.",
            [
                target(
                    f"rate(gradwatch_client_overhead_seconds_total{{{RUN}}}{_RATE})"
                    f" / (rate(gradwatch_run_training_seconds_total{{{RUN}}}{_RATE}) > 0)",
                    "overhead",
                )
            ],
            unit="percentunit",
        ),
        3,
    ),
    (
        stat(
            "Last report",
            "Time since the last report. Minutes, on a run that is not finished: it is dead or cut off.",
            [target(f"time() - gradwatch_run_last_report_timestamp_seconds{{{RUN}}}", "ago")],
            unit="s",
            limits=[(60, "orange"), (300, "red")],
        ),
        3,
    ),
)

_WHAT = row(
    "",
    5,
    table(
        "What is wrong",
        "Incidents within the time shown: their kind, since which step, and in which tensor they "
        "began. Empty is good.",
        [
            target(
                "max by (kind, severity, first_tensor)"
                f" (last_over_time(gradwatch_run_incident_onset_step{{{RUN}}}[$__range]))",
                instant=True,
            )
        ],
        columns={
            "kind": ("Kind", "string"),
            "severity": ("Severity", "string"),
            "first_tensor": ("First in", "string"),
            "Value": ("Since step", "none"),
        },
    ),
    state_timeline(
        "Since when",
        "The run's state over time; the marks on the other panels are incidents (red) and changed "
        "thresholds (blue).",
        [target(f"gradwatch_run_state{{{RUN}}} == 1", "{{run}}: {{state}}")],
    ),
)

_NORMS = row(
    "",
    10,
    timeseries(
        "Gradient norm and thresholds",
        "Global L2 norm before and after clipping, its largest value within a minute, the threshold "
        "in force and the recommended one. A gap in the norm: the step was not finite.",
        [
            target(f"gradwatch_run_gradient_norm{{{RUN}}}", "norm"),
            target(f"gradwatch_run_clipped_gradient_norm{{{RUN}}}", "norm after clipping"),
            target(f"gradwatch_run_gradient_norm_window_max{{{RUN}}}", "largest in 60 s"),
            target(f"gradwatch_run_clip_threshold{{{RUN}}}", "threshold"),
            target(f"gradwatch_run_recommended_clip_threshold{{{RUN}}}", "recommended threshold"),
        ],
        log=True,
    ),
    heatmap(
        "Every step's norm",
        "How many steps had a norm in each range: spikes between two scrapes are in here.",
        f"sum by (le) (increase(gradwatch_run_gradient_norm_per_step_bucket{{{RUN}}}{_RATE}))",
    ),
)

_CLIPPING = row(
    "",
    8,
    timeseries(
        "Clipped share",
        "Share of steps and of elements that clipping changed. Most steps clipped: the threshold is "
        "the learning rate's second knob, not a safety net.",
        [
            target(
                f"rate(gradwatch_run_clipped_steps_total{{{RUN}}}{_RATE})"
                f" / (rate(gradwatch_run_steps_total{{{RUN}}}{_RATE}) > 0)",
                "steps",
            ),
            target(_share("run", RUN), "elements"),
        ],
        unit="percentunit",
        low=0,
        high=1,
    ),
    timeseries(
        "Typical and rare norms",
        "Median and 99th percentile of the steps' norms, from the histogram.",
        [
            target(
                f"histogram_quantile({q}, sum by (le)"
                f" (rate(gradwatch_run_gradient_norm_per_step_bucket{{{RUN}}}{_RATE})))",
                name,
            )
            for q, name in ((0.5, "p50"), (0.99, "p99"))
        ],
        log=True,
    ),
    timeseries(
        "Non-finite and skipped steps",
        "Steps with a NaN or infinite gradient, and steps that changed no weight. A few under mixed "
        "precision are usual; many are not.",
        [
            target(f"increase(gradwatch_run_nonfinite_steps_total{{{RUN}}}{_RATE})", "non-finite"),
            target(f"increase(gradwatch_run_skipped_steps_total{{{RUN}}}{_RATE})", "skipped"),
        ],
        low=0,
        points=True,
    ),
)

_LAYERS = row(
    "Layers",
    9,
    timeseries(
        "Norm by group",
        "Which layers the gradient is in. Click a group for its details.",
        [target(f"gradwatch_group_gradient_norm{{{RUN}}}", "{{group}}")],
        log=True,
        links=[_TO_LAYER],
    ),
    timeseries(
        "Clipped share by group",
        "Where clipping bites.",
        [target(_share("group", RUN), "{{group}}")],
        unit="percentunit",
        low=0,
        links=[_TO_LAYER],
    ),
)

_TRAINING = row(
    "Training",
    7,
    timeseries(
        "Loss",
        "As logged by the job.",
        [target(f"gradwatch_run_loss{{{RUN}}}", "loss")],
    ),
    timeseries(
        "Learning rate",
        "A jump here just before an incident is its usual cause.",
        [target(f"gradwatch_run_learning_rate{{{RUN}}}", "learning rate")],
        log=True,
    ),
    timeseries(
        "Steps per second",
        "Optimizer steps per second.",
        [target(f"rate(gradwatch_run_steps_total{{{RUN}}}{_RATE})", "steps")],
        low=0,
    ),
    timeseries(
        "Dropped by the client",
        "Steps that the client gave up reporting, by reason; training was not affected.",
        [
            target(
                f"sum by (reason) (increase(gradwatch_client_dropped_reports_total{{{RUN}}}{_RATE}))",
                "{{reason}}",
            )
        ],
        low=0,
        points=True,
    ),
)

BOARD = dashboard(
    "run",
    "Run",
    "One run: what is wrong, since when, in which layer, and which threshold is advised.",
    [_TOP, _WHAT, _NORMS, _CLIPPING, _LAYERS, _TRAINING],
    variables=("project", "run"),
    annotations=True,
)
