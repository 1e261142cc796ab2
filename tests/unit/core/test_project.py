"""The project file: what is accepted, and that every fault names file, line, what was expected, and the nearest key."""

from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from visionloop.errors import ConfigError
from visionloop.project import Project, load_project, parse_project, period_seconds, project_file

FASHION = Path(__file__).parents[3] / "projects" / "fashion" / "project.yaml"
PATH = Path("projects/p/project.yaml")
MINIMAL = """\
project: p
task:
  classes: [a, b]
  image: {height: 28, width: 28, channels: 1}
suite:
  scenarios:
    - {name: overall, at_least: 0.5}
release:
  approvers: [lea]
"""


def faults(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_project(text, PATH)
    return str(caught.value)


def test_the_example_is_valid() -> None:
    project = load_project(FASHION)
    assert project.name == "fashion"
    assert len(project.task.classes) == 10


def test_a_minimal_file_gets_the_documented_defaults() -> None:
    project = parse_project(MINIMAL, PATH)
    assert project.training.start == "when_requested"
    assert project.release.approval == "required"
    assert (project.packaging.variants, project.packaging.max_loss) == (["fp32", "int8"], 0.005)


@pytest.mark.parametrize(
    ("wrong", "right", "line", "words"),
    [
        ("  class: [a, b]", "  classes: [a, b]", 3, ["unknown key `task.class`", "did you mean `classes`?"]),
        ("    - {name: overall, at_last: 0.5}", "    - {name: overall, at_least: 0.5}", 7, ["`at_least`"]),
        ("    - {name: overall, at_least: 1.5}", "    - {name: overall, at_least: 0.5}", 7, ["less than", "1.5"]),
        ("  classes: [a, a]", "  classes: [a, b]", 3, ["more than once: a"]),
        ("  approvers: []", "  approvers: [lea]", 8, ["name at least one Airflow user"]),
        ("packaging: {variants: [fp32, int4]}\nrelease:", "release:", 8, ["packaging.variants", "'int8'", "'int4'"]),
        ("packaging: {variants: [int8, int8]}\nrelease:", "release:", 8, ["packaging.variants", "more than once"]),
        ("packaging: {max_los: 0.1}\nrelease:", "release:", 8, ["`packaging.max_los`", "did you mean `max_loss`?"]),
        ("constrained-: 1\nrelease:", "release:", 8, ["unknown key `constrained-`, expected one of data,"]),
        ("  function-x: 1\n  image:", "  image:", 4, ["unknown key `task.function-x`, expected one of classes,"]),
        ("project: P!", "project: p", 1, ["project", "'P!'"]),
        (
            "  image: {height: big, width: 28, channels: 1}",
            "  image: {height: 28, width: 28, channels: 1}",
            4,
            ["task.image.height", "integer", "'big'"],
        ),
    ],
)
def test_a_fault_names_its_line(wrong: str, right: str, line: int, words: list[str]) -> None:
    assert right in MINIMAL
    message = faults(MINIMAL.replace(right, wrong))
    assert f"{PATH}:{line}:" in message
    for word in words:
        assert word in message


def test_a_missing_key_is_named() -> None:
    message = faults(MINIMAL.replace("  classes: [a, b]\n", ""))
    assert "expected the key `task.classes`, found nothing" in message


def test_every_fault_is_told_at_once() -> None:
    message = faults(MINIMAL.replace("classes: [a, b]", "klasses: [a, b]").replace("at_least", "at_lest"))
    assert len(message.splitlines()) == 3  # classes missing, klasses unknown, at_lest unknown


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b\n", "project: [unclosed"])
def test_what_is_no_mapping_is_refused_with_its_place(text: str) -> None:
    assert faults(text).startswith(f"{PATH}:")


def test_a_key_given_twice_is_refused() -> None:
    assert f"{PATH}:10: key `project` stands twice" in faults(MINIMAL + "project: q\n")


def test_a_batch_that_workers_cannot_share_is_refused() -> None:
    text = MINIMAL + "training: {batch_size: 10, workers: 3}\n"
    assert "batch_size 10 is not divisible by workers 3" in faults(text)
    assert parse_project(text.replace("3}", "2}"), PATH).training.workers == 2


@pytest.mark.parametrize(("train", "validation", "fine"), [(0.8, 0.19, True), (0.8, 0.2, False), (0.9, 0.2, False)])
def test_splits_leave_a_test_split(train: float, validation: float, fine: bool) -> None:
    text = MINIMAL + f"data: {{splits: {{train: {train}, validation: {validation}}}}}\n"
    if fine:
        assert parse_project(text, PATH).data.splits.train == train
    else:
        assert "leave no test split" in faults(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1.5m", 90), ("2h", 7200), ("0s", None), ("-1s", None), ("s", None), ("5", None), ("@daily", None)],
)
def test_periods(text: str, seconds: float | None) -> None:
    assert period_seconds(text) == seconds


def test_digest_changes_with_the_section_and_only_with_it() -> None:
    one = parse_project(MINIMAL, PATH)
    other = parse_project(MINIMAL + "training: {epochs: 9}\n", PATH)
    assert one.config_digest("task") == other.config_digest("task")
    assert one.config_digest("training") != other.config_digest("training")


def test_an_unknown_project_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "fashion").mkdir()
    (tmp_path / "fashion" / "project.yaml").write_text(MINIMAL)
    assert project_file(tmp_path, "fashion").is_file()
    with pytest.raises(ConfigError, match="did you mean fashion"):
        project_file(tmp_path, "fashon")
    with pytest.raises(ConfigError, match="cannot be a name"):
        project_file(tmp_path, "../etc")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
@example({"constrained-": None})
@example({"data": {"function-x": [1]}})
def test_no_document_breaks_the_parser(document: object) -> None:
    """Whatever YAML holds: a Project or a ConfigError that names the file, never another exception."""
    try:
        assert isinstance(parse_project(yaml.safe_dump(document), PATH), Project)
    except ConfigError as error:
        assert str(error).startswith(f"{PATH}:")


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("@hourly", True),
        ("@foo", False),
        ("0 3 * * 1", True),
        ("*/15 8-18 * jan-mar MON,FRI", True),
        ("a b c d e", False),
        ("0 3 * *", False),
        ("30s", True),
        ("infs", False),
    ],
)
def test_a_schedule_that_airflow_would_not_read_is_refused_here(text: str, fine: bool) -> None:
    given = MINIMAL + f"schedule: {{data: '{text}'}}\n"
    if fine:
        assert parse_project(given, PATH).schedule.data == text
    else:
        assert f"{PATH}:10: schedule.data" in faults(given)


def test_a_name_that_is_no_path_segment_is_refused() -> None:
    assert "no two dots in a row" in faults(MINIMAL.replace("project: p", "project: a..b"))
