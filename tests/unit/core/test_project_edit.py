"""A project file is changed in single values, and otherwise stays as people wrote it."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from visionloop.errors import ConfigError
from visionloop.project import parse_project
from visionloop.project_edit import with_values

FASHION = Path(__file__).parents[3] / "projects/fashion/project.yaml"
NEW = {"instances": 2, "queue_delay_us": 500}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a: 1\n", "a: 1\n\nserving: { instances: 2, queue_delay_us: 500 }\n"),
        ("serving:\na: 1\n", "serving: { instances: 2, queue_delay_us: 500 }\na: 1\n"),
        ("serving: {}  # none\na: 1\n", "serving: { instances: 2, queue_delay_us: 500 }  # none\na: 1\n"),
        (
            "serving: { threads: 1, instances: 1 }  # why\na: 1\n",
            "serving: { threads: 1, instances: 2, queue_delay_us: 500 }  # why\na: 1\n",
        ),
        (
            "serving:\n  instances: 1  # one\n  threads: 1\n\n# next\na: 1\n",
            "serving:\n  instances: 2  # one\n  threads: 1\n  queue_delay_us: 500\n\n# next\na: 1\n",
        ),
        (
            "serving:\n    threads: 1  # last\na: 1",
            "serving:\n    threads: 1  # last\n    instances: 2\n    queue_delay_us: 500\na: 1",
        ),
        ("serving:\n  threads: 1  # end", "serving:\n  threads: 1  # end\n  instances: 2\n  queue_delay_us: 500"),
    ],
)
def test_every_way_to_write_a_section(before: str, after: str) -> None:
    assert with_values(before, "serving", NEW) == after
    assert with_values(after, "serving", NEW) == after


def test_the_example_project_changes_in_one_line() -> None:
    before = FASHION.read_text()
    after = with_values(before, "serving", {"threads": 2, "queue_delay_us": 500})
    changed = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert len(changed) == 1
    serving = parse_project(after, FASHION).serving
    assert (serving.threads, serving.queue_delay_us, serving.timeout_ms) == (2, 500, 10_000)


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "no YAML"), ("- a\n", "no mapping"), ("a: 1\nserving: 3\n", "line 2")]
)
def test_what_is_no_project_file_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        with_values(text, "serving", NEW)


names = st.sampled_from(["instances", "threads", "queue_delay_us", "timeout_ms"])
sections = st.dictionaries(names, st.integers(0, 9999))


@given(sections, st.dictionaries(names, st.integers(0, 9999), min_size=1), st.booleans(), st.booleans())
def test_all_else_stays(had: dict[str, int], new: dict[str, int], flow: bool, last: bool) -> None:
    other = {"project": "p", "list": [{"a": 1}, {"b": [2, 3]}]}
    document = {**other, "serving": had} if last else {"serving": had, **other}
    text = yaml.safe_dump(document, sort_keys=False, default_flow_style=None if flow else False)
    assert yaml.safe_load(with_values(text, "serving", new)) == {**document, "serving": {**had, **new}}
