"""Settings: the environment wins over what `visionloop up` wrote, and unknown names are refused."""

from pathlib import Path

import pytest

from visionloop.errors import ConfigError
from visionloop.settings import env_file, load_settings, to_environ


def test_the_environment_wins_over_the_stack_s_file(tmp_path: Path) -> None:
    env_file(tmp_path).parent.mkdir(parents=True)
    env_file(tmp_path).write_text("VISIONLOOP_STORE=s3://from-file\nVISIONLOOP_MLFLOW_URL=http://m\nOTHER=x\n")
    settings = load_settings({"VISIONLOOP_HOME": str(tmp_path), "VISIONLOOP_STORE": "s3://from-environment"})
    assert settings.store == "s3://from-environment"
    assert settings.mlflow_url == "http://m"
    assert load_settings(to_environ(settings)) == settings


def test_an_unknown_variable_is_refused() -> None:
    with pytest.raises(ConfigError, match="VISIONLOOP_STROE"):
        load_settings({"VISIONLOOP_STROE": "s3://x"})


def test_nothing_set_is_fine_until_it_is_needed(tmp_path: Path) -> None:
    settings = load_settings({"VISIONLOOP_HOME": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"VISIONLOOP_RAY_URL is not set.*`visionloop up`"):
        settings.need("ray_url")


def test_a_stack_that_runs_without_it_is_not_denied(tmp_path: Path) -> None:
    """As after `up --only s3`: one runs, and `up` alone would not mend it."""
    env_file(tmp_path).parent.mkdir(parents=True)
    env_file(tmp_path).write_text("VISIONLOOP_STORE=s3://b\n")
    settings = load_settings({"VISIONLOOP_HOME": str(tmp_path)})
    assert settings.need("store") == "s3://b"
    with pytest.raises(ConfigError) as caught:
        settings.need("mlflow_url")
    assert str(caught.value) == (
        f"VISIONLOOP_MLFLOW_URL is not set and the embedded stack in {tmp_path} was started without what sets it: "
        "`visionloop down`, then `visionloop up`, or set the variable"
    )


@pytest.mark.parametrize("runs", [True, False])
def test_a_file_that_no_stack_makes_is_to_be_named(tmp_path: Path, runs: bool) -> None:
    home = tmp_path / "my home"
    if runs:
        env_file(home).parent.mkdir(parents=True)
        env_file(home).write_text("VISIONLOOP_STORE=s3://b\n")
    with pytest.raises(ConfigError) as caught:
        load_settings({"VISIONLOOP_HOME": str(home)}).need("endpoint_keys")
    assert str(caught.value) == (
        "VISIONLOOP_ENDPOINT_KEYS is not set: name the file first, "
        f"as in `export VISIONLOOP_ENDPOINT_KEYS='{home}/endpoint-keys'`"
    )


def test_files_of_keys_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = {"VISIONLOOP_HOME": str(tmp_path)}
    found = load_settings({**home, "VISIONLOOP_ENDPOINT_KEYS": "keys"})
    assert found.endpoint_keys == found.own_key_file == tmp_path / "keys"
    found = load_settings({**home, "VISIONLOOP_ENDPOINT_KEYS": "keys", "VISIONLOOP_ENDPOINT_KEY": "own"})
    assert found.own_key_file == tmp_path / "own"
    assert load_settings(home).own_key_file is None
