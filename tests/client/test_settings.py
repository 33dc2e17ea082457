"""Argument over environment over default; a bad variable warns once and falls back."""

import warnings
from pathlib import Path

import pytest

from gradwatch import settings
from gradwatch.errors import WatchError
from gradwatch.settings import Settings, SettingsWarning, resolve


@pytest.fixture(autouse=True)
def _forget_warnings() -> None:
    settings._warned.clear()


def test_nothing_set_gives_the_defaults() -> None:
    assert resolve(environment={"XDG_CONFIG_HOME": "/nowhere"}) == Settings()


def test_every_variable_of_the_contract_is_read() -> None:
    environment = {
        "GRADWATCH_URL": "https://watch.example:8443/",
        "GRADWATCH_TOKEN": "secret",
        "GRADWATCH_MODE": "offline",
        "GRADWATCH_RUN": "lstm-1",
        "GRADWATCH_PROJECT": "speech",
        "GRADWATCH_DIR": "/spool",
        "GRADWATCH_EVERY": "5",
        "GRADWATCH_TIMEOUT": "2.5",
        "GRADWATCH_FLUSH_TIMEOUT": "1",
        "GRADWATCH_QUIET": "1",
        "GRADWATCH_INSECURE": "true",
        "GRADWATCH_KERNEL": "reference",
    }
    assert resolve(environment=environment) == Settings(
        url="https://watch.example:8443",
        token="secret",  # noqa: S106 - not a real one
        mode="offline",
        run="lstm-1",
        project="speech",
        directory=Path("/spool"),
        every=5,
        timeout=2.5,
        flush_timeout=1.0,
        quiet=True,
        insecure=True,
        kernel="reference",
    )


def test_an_argument_wins_over_the_environment() -> None:
    environment = {"GRADWATCH_MODE": "offline", "GRADWATCH_EVERY": "5", "GRADWATCH_DIR": "/x"}
    chosen = resolve(mode="disabled", every=1, spool="/y", environment=environment)
    assert (chosen.mode, chosen.every, chosen.directory) == ("disabled", 1, Path("/y"))


def test_the_token_of_the_users_own_service_on_this_machine_is_found(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    file = tmp_path / "gradwatch" / "token"
    file.parent.mkdir()
    file.write_text("local\n")
    file.chmod(0o600)
    assert resolve(environment=environment).token == "local"  # noqa: S105 - not a real one
    assert resolve(environment={**environment, "GRADWATCH_TOKEN": "x"}).token == "x"  # noqa: S105 - nor this
    assert resolve(url="http://10.0.0.1:8642", environment=environment).token is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("URL", "localhost:8642"),
        ("MODE", "onlin"),
        ("RUN", "-starts-badly"),
        ("PROJECT", "a\nb"),
        ("EVERY", "0"),
        ("EVERY", "two"),
        ("TIMEOUT", "nan"),
        ("FLUSH_TIMEOUT", "-1"),
        ("QUIET", "maybe"),
        ("KERNEL", "gpu"),
    ],
)
def test_a_bad_variable_is_named_once_and_the_default_stands_in(name: str, value: str) -> None:
    environment = {f"GRADWATCH_{name}": value, "XDG_CONFIG_HOME": "/nowhere"}
    with pytest.warns(SettingsWarning, match=f"GRADWATCH_{name}=") as caught:
        assert resolve(environment=environment) == Settings()
    assert repr(value) in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve(environment=environment)


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://x"},
        {"mode": "fast"},
        {"run": "a b"},
        {"project": ""},
        {"every": 0},
        {"every": True},
        {"spool": True},
    ],
)
def test_a_bad_argument_is_refused_and_named(wrong: dict[str, object]) -> None:
    (name,) = wrong
    with pytest.raises(WatchError, match=rf"watch\({name}="):
        resolve(environment={}, **wrong)  # type: ignore[arg-type]  # wrong on purpose
