"""Image, compose, systemd, Kubernetes and mixin: what can be checked without a container engine."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import _jsonnet
import pytest
import yaml
from tests.deploy.deployed import DEPLOY, ROOT, alerts, dashboards, rules

from gradwatch_service.exposition.page import Limits

DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
REQUIREMENTS = (DEPLOY / "requirements.txt").read_text()


def tool_of_the_environment(name, *arguments):
    """Run a program that pip installed beside this Python."""
    program = Path(sys.executable).with_name(name)
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def stages():
    """Dockerfile stage by name, with the stage it is built on."""
    found = re.findall(
        r"^FROM (\S+) AS (\S+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL
    )
    return {name: (base, text) for base, name, text in found}


def test_hadolint_finds_nothing_to_say():
    checked = tool_of_the_environment("hadolint", str(ROOT / "Dockerfile"))

    assert (checked.returncode, checked.stdout) == (0, "")


def test_the_compose_file_keeps_to_its_schema():
    checked = tool_of_the_environment(
        *("check-jsonschema", "--builtin-schema", "vendor.compose-spec"),
        str(ROOT / "docker-compose.yml"),
    )

    assert checked.returncode == 0, checked.stdout


def test_the_image_of_the_service_never_sees_torch():
    known = stages()
    assert list(known)[-1] == "service", "what `docker build .` makes"

    assert "--from=build " in known["service"][1]
    for name in ("build", "base", "service"):
        assert not re.search(r"\btorch\b", known[name][1].split("#")[0].lower())
    assert not re.search(r"^(torch|triton|nvidia)", REQUIREMENTS, re.MULTILINE)


def test_the_image_runs_as_nobody_in_particular_and_says_when_it_is_unwell():
    known = stages()

    assert "USER 10001:10001" in known["base"][1]
    assert "HEALTHCHECK" in known["service"][1]
    assert 'ENTRYPOINT ["gradwatch"]' in known["service"][1]
    assert "--insecure" not in DOCKERFILE.split("CMD [")[-1], "the image alone is not open"
    assert "@sha256" not in DOCKERFILE + (ROOT / "docker-compose.yml").read_text()


def test_everything_the_image_copies_exists_and_is_not_ignored():
    allowed = set((ROOT / ".dockerignore").read_text().split())
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            parts = [source, *map(str, Path(source).parents)]
            assert any(f"!{part}" in allowed for part in parts), source


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_everything_the_image_installs_has_its_hashes(name):
    text = (DEPLOY / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip()]

    assert lines
    for line in lines:
        assert re.match(r"[a-z0-9-]+(?:\[[a-z]+\])?==\S+ ", line), line
        assert "--hash=sha256:" in line, line
    assert "index-url" not in text
    assert "http" not in re.sub(r"\b(httptools|httpcore|httpx)", "", text)


def test_the_image_installs_everything_the_service_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    for wanted in extras["service"] + extras["notify"]:
        name = re.match(r"[a-z0-9-]+", wanted)[0]
        assert re.search(rf"^{name}==", REQUIREMENTS, re.MULTILINE), (
            f"{name}: run scripts/lock-requirements"
        )


def test_every_service_is_hardened_and_bounded():
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["mem_limit"], name
        tag = service["image"].rpartition(":")[2]
        assert re.search(r"\d|local", tag), f"{name}: an image without a version"


def test_ports_are_bound_to_loopback():
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert re.match(r"127\.0\.0\.1:|\$\{STACK_TLS_BIND:-127\.0\.0\.1\}:", port), port


def test_profiles_are_the_two_extras_and_the_rest_comes_up_by_itself():
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}

    assert profiles.pop("demo") == ["demo"]
    assert profiles.pop("caddy") == ["tls"]
    assert set(profiles) == {"gradwatch", "prometheus", "grafana", "alertmanager"}
    assert not any(profiles.values())


def test_whoever_waits_for_health_waits_for_a_service_that_tells_it():
    for service in SERVICES.values():
        for needed, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[needed] or needed == "gradwatch", needed


def test_every_mounted_file_is_there_and_read_only():
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source, _, rest = volume.partition(":")
            if source.startswith("."):
                assert (ROOT / source).exists(), source
                assert rest.endswith(":ro"), volume
            else:
                assert source in COMPOSE["volumes"], source
    for secret in COMPOSE["secrets"].values():
        default = re.search(r":-(.+)}", secret["file"])[1]
        assert (ROOT / default).read_text() == ""


def test_grafana_finds_its_data_source_and_dashboards_where_compose_puts_them():
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/gradwatch.yml").read_text())[
        "datasources"
    ]
    (provider,) = yaml.safe_load((provisioning / "dashboards/gradwatch.yml").read_text())[
        "providers"
    ]
    mounts = {v.split(":")[1]: v.split(":")[0] for v in SERVICES["grafana"]["volumes"]}
    scraping = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())

    assert source["uid"]
    assert source["jsonData"]["timeInterval"] == scraping["global"]["scrape_interval"]
    assert source["url"].strip("${}") in SERVICES["grafana"]["environment"]
    folder = ROOT / mounts[provider["options"]["path"]]
    assert {path.stem for path in folder.glob("*.json")} == set(dashboards())
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (folder / Path(home).name).exists()


def test_gradwatch_leaves_something_out_before_prometheus_drops_the_scrape():
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    kubernetes = list(yaml.safe_load_all((DEPLOY / "kubernetes/gradwatch.yaml").read_text()))
    monitor = next(d for d in kubernetes if d["kind"] == "ServiceMonitor")

    assert job["sample_limit"] > Limits().series + 10_000
    assert job["label_value_length_limit"] > 128
    assert monitor["spec"]["sampleLimit"] == job["sample_limit"]
    assert "honor_labels" not in job
    assert "honor_timestamps" not in job


def test_the_kubernetes_example_hangs_together():
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes/gradwatch.yaml").read_text()))
    by_kind = {document["kind"]: document for document in documents}
    pod = by_kind["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]

    assert by_kind["Service"]["spec"]["selector"] == pod["metadata"]["labels"]
    monitored = by_kind["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= by_kind["Service"]["metadata"]["labels"].items()
    assert by_kind["Deployment"]["spec"]["strategy"]["type"] == "Recreate"
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    claim = next(v for v in pod["spec"]["volumes"] if v["name"] == "data")["persistentVolumeClaim"]
    assert claim["claimName"] == by_kind["PersistentVolumeClaim"]["metadata"]["name"]
    # The rules speak of job="gradwatch", which is the Service's name.
    assert by_kind["Service"]["metadata"]["name"] == "gradwatch"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_understands_the_unit(tmp_path):
    unit = (DEPLOY / "systemd" / "gradwatch.service").read_text()
    here = tmp_path / "gradwatch.service"
    # The program is wherever this test runs; all else is as shipped.
    here.write_text(unit.replace("/opt/gradwatch/bin/gradwatch", sys.executable))

    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(here)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (checked.returncode, checked.stderr) == (0, "")


def test_every_option_that_deployment_gives_is_one_of_gradwatch_serve():
    told = subprocess.run(
        [sys.executable, "-m", "gradwatch_cli", "serve", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "PATH": ""},
    ).stdout
    unit = (DEPLOY / "systemd/gradwatch.service").read_text()
    kubernetes = (DEPLOY / "kubernetes/gradwatch.yaml").read_text()
    commands = [
        *SERVICES["gradwatch"]["command"],
        re.search(r"^ExecStart=.*$", unit, re.MULTILINE)[0],
        *re.findall(r"^ +- (--[a-z-]+)", kubernetes, re.MULTILINE),
        re.search(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[1],
    ]

    given = set(re.findall(r"(?<![\w-])--[a-z-]+", " ".join(commands).replace(":---", ":- --")))
    assert len(given) >= 5
    assert all(re.search(rf"{option}\s", told) for option in given), given


def test_the_mixin_is_the_same_dashboards_and_rules():
    source = (
        f"local m = (import '{DEPLOY / 'mixin' / 'mixin.libsonnet'}') + "
        "{ _config+:: { runbookURLPattern: 'https://books.example/%s' } };"
        "{ alerts: m.prometheusAlerts, rules: m.prometheusRules, boards: m.grafanaDashboards }"
    )

    mixin = json.loads(_jsonnet.evaluate_snippet("test", source))

    shown = {r["alert"]: r for g in mixin["alerts"]["groups"] for r in g["rules"]}
    assert set(shown) == set(alerts())
    for name, alert in alerts().items():
        assert shown[name]["expr"] == alert["expr"]
        url = f"https://books.example/docs/runbooks/{name}.md"
        assert shown[name]["annotations"]["runbook_url"] == url
    recorded = {r["record"] for g in mixin["rules"]["groups"] for r in g["rules"]}
    assert recorded == {rule["record"] for rule in rules() if "record" in rule}
    assert {board["uid"]: board for board in mixin["boards"].values()} == dashboards()
