"""Users of the embedded Airflow: everybody whom a project file names, whatever the other files look like."""

import json
import os
from pathlib import Path

import pytest

from visionloop.settings import Settings
from visionloop.stack.airflow import new_users, prepare_api, refresh_api, users
from visionloop.stack.process import identity_of
from visionloop.stack.service import Context, Launch


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    settings = Settings(home=tmp_path / "home", projects=tmp_path / "projects")
    return Context(home=settings.home, repo=tmp_path, settings=settings, ports={"airflow-api.http": 8080})


def project(ctx: Context, name: str, text: str) -> None:
    path = ctx.settings.projects / name / "project.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_the_fixed_users_are_there_without_any_project(ctx: Context) -> None:
    assert users(ctx) == {"admin": "admin", "viewer": "viewer"}


def test_approvers_of_all_projects_are_users(ctx: Context) -> None:
    project(ctx, "a", "release: {approvers: [lea, sam]}")
    project(ctx, "b", "release: {approvers: [sam, ann@corp.example]}")
    assert users(ctx) == {
        "ann@corp.example": "user",
        "lea": "user",
        "sam": "user",
        "admin": "admin",
        "viewer": "viewer",
    }


@pytest.mark.parametrize(
    "text", ["release: [", "release: {approvers: 7}", "[]", "", "release: none", "release: {approvers: }", "\x00"]
)
def test_a_broken_project_file_names_nobody(ctx: Context, text: str) -> None:
    project(ctx, "good", "release: {approvers: [lea]}")
    project(ctx, "broken", text)
    assert set(users(ctx)) == {"lea", "admin", "viewer"}


def test_a_name_cannot_give_itself_a_role(ctx: Context) -> None:
    project(ctx, "a", 'release: {approvers: ["eve:admin", "x,eve:admin", admin, viewer, lea]}')
    assert users(ctx) == {"lea": "user", "admin": "admin", "viewer": "viewer"}


def test_passwords_stay_when_a_user_comes_in(ctx: Context) -> None:
    def step(launch: object) -> None:
        (ctx.home / "airflow" / "airflow.db").touch()

    prepare_api(ctx, step)
    before = ctx.secret_file("airflow-users.json").read_text()
    project(ctx, "a", "release: {approvers: [lea]}")
    prepare_api(ctx, step)
    first, second = json.loads(before), json.loads(ctx.secret_file("airflow-users.json").read_text())
    assert set(second) == {"lea", *first}
    assert all(second[name] == first[name] for name in first)
    assert len(set(second.values())) == 3


def test_the_database_is_migrated_once_per_version(ctx: Context) -> None:
    steps: list[object] = []

    def step(launch: object) -> None:
        steps.append(launch)
        (ctx.home / "airflow" / "airflow.db").touch()

    prepare_api(ctx, step)
    prepare_api(ctx, step)
    assert len(steps) == 1
    (ctx.home / "airflow" / "migrated").write_text("3.3.1")
    prepare_api(ctx, step)
    assert len(steps) == 2
    (ctx.home / "airflow" / "airflow.db").unlink()
    prepare_api(ctx, step)
    assert len(steps) == 3


def test_a_running_server_is_started_again_for_new_approvers_and_for_nothing_else(ctx: Context) -> None:
    """`up` on a running stack: the supervisor finds the reason, the next start takes it away."""

    def step(launch: Launch) -> None:
        (ctx.home / "airflow" / "airflow.db").touch()

    me = identity_of(os.getpid())
    assert me is not None
    project(ctx, "a", "release: {approvers: [lea]}")
    prepare_api(ctx, step)
    project(ctx, "b", "release: {approvers: [lea]}")
    project(ctx, "broken", "release: [")
    assert refresh_api(ctx, step)
    assert new_users(ctx, me) is None
    project(ctx, "c", "release: {approvers: [sam, lea, ann]}")
    assert not refresh_api(ctx, step)
    assert new_users(ctx, me) == "the project files name new users: ann, sam"
    prepare_api(ctx, step)
    assert new_users(ctx, me) is None
    assert refresh_api(ctx, step)
