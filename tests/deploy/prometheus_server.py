"""A real Prometheus on a free port, and the questions that Grafana would ask it."""

import contextlib
import subprocess

import httpx
import yaml
from tests.conftest import free_port, poll
from tests.deploy.deployed import DEPLOY, RULE_FILES
from tests.tools import tool


class Prometheus:
    """Asks one server."""

    def __init__(self, address, log):
        self.http = httpx.Client(base_url=address, timeout=60)
        self._log = log

    def ready(self):
        """Whether it answers queries."""
        try:
            return self.http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, path, **parameters):
        """The data of an API call; an error or a warning of Prometheus fails the test."""
        answer = self.http.get(f"/api/v1/{path}", params=parameters)
        document = answer.json()
        assert document["status"] == "success", document
        assert not document.get("warnings"), document
        return document["data"]

    def query(self, expr):
        """[(labels, value)] now."""
        result = self.ask("query", query=expr)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def value(self, expr):
        """The only value, or None."""
        found = self.query(expr)
        assert len(found) <= 1, found
        return found[0][1] if found else None

    def graph(self, expr, start, end, step):
        """The series that a panel would draw."""
        return self.ask("query_range", query=expr, start=start, end=end, step=step)["result"]

    def log(self):
        """What it has written."""
        return self._log.read_text()


@contextlib.contextmanager
def prometheus(folder, target=None, *, extra_jobs=(), flags=(), seconds=1, rules=True):
    """Run Prometheus with the shipped configuration, scraping ``target`` every so many seconds."""
    port = free_port()
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(_config(target, extra_jobs, seconds, rules)))
    log = folder / "prometheus.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--storage.tsdb.retention.time=10y",
                *flags,
            ],
            stdout=output,
            stderr=output,
        )
        server = Prometheus(f"http://127.0.0.1:{port}", log)
        try:
            poll(lambda: process.poll() is not None or server.ready())
            assert process.poll() is None, log.read_text()
            yield server
        finally:
            server.http.close()
            process.terminate()
            process.wait(20)


def _config(target, extra_jobs, seconds, rules):
    """What is shipped, but for the address, the interval and the missing Alertmanager."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] |= {
        "scrape_interval": f"{seconds}s",
        "scrape_timeout": f"{seconds}s",
        "evaluation_interval": "1s",
    }
    config["rule_files"] = [str(path) for path in RULE_FILES if rules]
    del config["alerting"]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target] if target else []}]
    config["scrape_configs"] += extra_jobs
    return config
