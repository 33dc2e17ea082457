"""The layers of one run, by group of tensors."""

from board import RUN, dashboard, row
from panels import heatmap, table, target, timeseries

_RATE = "[$__rate_interval]"
_GROUP = f'{RUN},group=~"$group"'


def _share(part: str) -> str:
    return (
        f"rate(gradwatch_group_{part}_elements_total{{{_GROUP}}}{_RATE})"
        f" / (rate(gradwatch_group_elements_total{{{_GROUP}}}{_RATE}) > 0)"
    )


BOARD = dashboard(
    "layers",
    "Layers",
    "Where in the model the gradient is large, small, zero, non-finite or turning around.",
    [
        row(
            "",
            9,
            timeseries(
                "Norm",
                "L2 norm by group. A group that falls by decades below its neighbours is vanishing; "
                "one that rises alone is where an explosion begins.",
                [target(f"gradwatch_group_gradient_norm{{{_GROUP}}}", "{{group}}")],
                log=True,
            ),
            timeseries(
                "Largest element",
                "Largest magnitude by group: what elementwise clipping cuts.",
                [target(f"gradwatch_group_gradient_max_abs{{{_GROUP}}}", "{{group}}")],
                log=True,
            ),
        ),
        row(
            "",
            8,
            timeseries(
                "Clipped share",
                "Share of the group's elements that clipping changed.",
                [target(_share("clipped"), "{{group}}")],
                unit="percentunit",
                low=0,
            ),
            timeseries(
                "Zero share",
                "Share of the group's elements that are exactly 0: dead units, or underflow in half "
                "precision.",
                [target(_share("zero"), "{{group}}")],
                unit="percentunit",
                low=0,
                high=1,
            ),
            timeseries(
                "Non-finite elements",
                "NaN and infinite elements by group: the first to show them is where to look.",
                [
                    target(
                        f"increase(gradwatch_group_nonfinite_elements_total{{{_GROUP}}}{_RATE})",
                        "{{group}}",
                    )
                ],
                low=0,
                points=True,
            ),
        ),
        row(
            "",
            8,
            timeseries(
                "Cosine to the step before",
                "1: the same direction as before; 0: unrelated, as usual; towards -1: the group goes "
                "back and forth, the learning rate is too high for it.",
                [target(f"gradwatch_group_gradient_cosine{{{_GROUP}}}", "{{group}}")],
                low=-1,
                high=1,
            ),
            timeseries(
                "Gradient over weights",
                "Norm of the gradient over that of the weights it will change.",
                [target(f"gradwatch_group_gradient_to_weight_ratio{{{_GROUP}}}", "{{group}}")],
                log=True,
            ),
        ),
        row(
            "",
            9,
            heatmap(
                "Magnitudes",
                "How many non-zero elements lie in each decade. A cloud that sinks towards 1e-8 will "
                "be zero in half precision.",
                f"sum by (le) (increase(gradwatch_group_gradient_magnitude_bucket{{{_GROUP}}}{_RATE}))",
            ),
            timeseries(
                "Share below 1e-8",
                "Share of the non-zero elements that half precision cannot hold.",
                [
                    target(
                        f'rate(gradwatch_group_gradient_magnitude_bucket{{{_GROUP},le="1e-08"}}{_RATE})'
                        " / on (job, instance, project, run, group)"
                        f" (rate(gradwatch_group_gradient_magnitude_count{{{_GROUP}}}{_RATE}) > 0)",
                        "{{group}}",
                    )
                ],
                unit="percentunit",
                low=0,
            ),
            table(
                "Largest now",
                "The twenty groups with the largest element at the last step.",
                [target(f"topk(20, gradwatch_group_gradient_max_abs{{{_GROUP}}})", instant=True)],
                columns={
                    "run": ("Run", "string"),
                    "group": ("Group", "string"),
                    "Value": ("Largest", "sci"),
                },
                worst="Largest",
            ),
        ),
    ],
    variables=("project", "run", "group"),
    annotations=True,
)
