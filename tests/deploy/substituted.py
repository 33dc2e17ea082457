"""Grafana's variables, put in as Grafana would."""

import re

VALUES = {
    "job": ".+",
    "instance": ".+",
    "project": ".+",
    "group": ".+",
    "datasource": "prometheus",
}


def substitute(expr, *, run, interval, span):
    """The query as Prometheus gets it."""
    values = VALUES | {"run": run, "__rate_interval": interval, "__range": span}
    done = re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)
    assert "$" not in done
    return done
