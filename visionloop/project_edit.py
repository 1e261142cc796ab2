"""Changes single values of a project file and leaves every other character, comments above all, as people wrote it."""

from collections.abc import Mapping

import yaml

from visionloop.errors import ConfigError

INDENT = 2


def with_values(text: str, section: str, values: Mapping[str, int | float | str]) -> str:
    """The text of a project file with these values in one of its top-level sections.

    A key that is there gets the new value in its place; the others come behind the section's last key. Raises
    ConfigError for a text that is no YAML mapping, and where the section is something else than a mapping.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"the project file is no YAML: {error}") from None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError("the project file is no mapping")
    found = next((value for key, value in root.value if key.value == section), None)
    if found is None:
        return f"{text.rstrip()}\n\n{section}: {_flow(values)}\n"
    if _is_empty(found):
        return _replaced(text, found, _flow(values))
    if not isinstance(found, yaml.MappingNode):
        raise ConfigError(f"line {found.start_mark.line + 1}: expected {section} to be a mapping")
    if not found.value:
        return _replaced(text, found, _flow(values))
    known = {key.value: value for key, value in found.value}
    new = {name: value for name, value in values.items() if name not in known}
    edits = [
        (known[name].start_mark.index, known[name].end_mark.index, _shown(values[name]))
        for name in values
        if name in known
    ]
    if new:
        end = found.value[-1][1].end_mark.index
        if not found.flow_style:  # behind the comment of its line
            line_end = text.find("\n", end)
            end = len(text) if line_end < 0 else line_end
        edits.append((end, end, _more(found, new)))
    for start, end, value in sorted(edits, reverse=True):
        text = text[:start] + value + text[end:]
    return text


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _replaced(text: str, node: yaml.Node, value: str) -> str:
    before = text[: node.start_mark.index]
    return f"{before}{'' if before.endswith(' ') else ' '}{value}{text[node.end_mark.index :]}"


def _more(section: yaml.MappingNode, values: Mapping[str, int | float | str]) -> str:
    """What comes behind the last value of a section that is written in braces, or one key a line."""
    if section.flow_style:
        return "".join(f", {name}: {_shown(value)}" for name, value in values.items())
    indent = " " * section.value[0][0].start_mark.column
    return "".join(f"\n{indent}{name}: {_shown(value)}" for name, value in values.items())


def _flow(values: Mapping[str, int | float | str]) -> str:
    return "{ " + ", ".join(f"{name}: {_shown(value)}" for name, value in values.items()) + " }"


def _shown(value: int | float | str) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=10_000)).removesuffix("...\n").strip()
