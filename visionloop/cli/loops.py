"""What `visionloop doctor` says of the projects' loops: do all servers agree about what is released?"""

from visionloop.errors import ConfigError, VisionLoopError
from visionloop.project import Project, load_project
from visionloop.settings import Settings
from visionloop.stack.status import Check


def check_loops(settings: Settings, *, mend: bool) -> list[Check]:
    """A finding per difference, or one per project that has none; nothing where no lanes are known."""
    if settings.stable_grpc is None:
        return []
    found = []
    for path in sorted(settings.projects.glob("*/project.yaml")):
        try:
            found += _project(load_project(path), settings, mend=mend)
        except ConfigError:
            continue  # `visionloop project check` tells; the others are looked at all the same
        except VisionLoopError as error:
            name = path.parent.name
            advice = "`visionloop status` says what runs"
            found.append(Check(name=name, ok=False, found=f"cannot be looked at: {error}", advice=advice))
    return found


def _project(project: Project, settings: Settings, *, mend: bool) -> list[Check]:
    from visionloop.stages import release
    from visionloop.stores import connect

    stores = connect(settings)
    differences = release.examine(project, stores)
    if not differences:
        return [Check(name=project.name, ok=True, found="records, registry, weights and lanes agree", advice="")]
    checks = []
    for difference in differences:
        mended = mend and difference.repair is not None
        if mended:
            release.repair(project, difference, stores)
        advice = difference.advice if mended or difference.repair is None else f"--repair: {difference.advice}"
        checks.append(Check(name=project.name, ok=mended, found=difference.text, advice=advice))
    return checks
