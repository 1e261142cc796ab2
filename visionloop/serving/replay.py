"""The shadow: what the champion was asked in production is asked of the candidate, and the answers are held together.

Pure: answers in, evidence and verdict out. Nothing of it reaches a client.
"""

from collections.abc import Mapping

import numpy as np

from visionloop.project import Release as Policy
from visionloop.records import ShadowEvidence
from visionloop.serving.captured import Matrix
from visionloop.serving.golden import unsound
from visionloop.serving.rollout import UNSURE, held_against
from visionloop.serving.sequential import Rate


def pair(
    champion: Mapping[str, Matrix], candidate: Mapping[str, Matrix], *, classes: int, refused: int
) -> tuple[Matrix, Matrix, int]:
    """Both models' answers [N,K] to the same images, and how many images the candidate failed; [n,K] by request id.

    A mirrored request without the candidate's answer was failed by it, or was not captured: as many were failed as the
    capture service saw errors (`refused`, in requests), so that what is merely missing is held against nobody.
    """
    both = [one for one, answers in candidate.items() if len(answers) == len(champion.get(one, ()))]
    missing = [len(answers) for one, answers in champion.items() if one not in candidate]
    failed = round(sum(missing) * min(1.0, refused / len(missing))) if missing else 0
    nothing = np.empty((0, classes), np.float32)
    return (
        np.concatenate([nothing, *(champion[one] for one in both)]),
        np.concatenate([nothing, *(candidate[one] for one in both)]),
        failed,
    )


def hold_together(champion: Matrix, candidate: Matrix, *, failed: int = 0, mirrored: int = 0) -> ShadowEvidence:
    """Evidence of answers [N,K] to the same images; `failed` images got no answer of the candidate at all.

    `mirrored` of all these images were of live requests.
    """
    sick = unsound(candidate)
    both = ~sick & ~unsound(champion)
    changed = champion[both].argmax(axis=1) != candidate[both].argmax(axis=1)
    images = len(candidate) + failed
    return ShadowEvidence(
        source="none" if images == 0 else "mirrored" if mirrored == images else "replayed",
        images=images,
        mirrored=mirrored,
        failed=failed + int(sick.sum()),
        not_finite=int((~np.isfinite(candidate).all(axis=1)).sum()),
        compared=int(both.sum()),
        changed=int(changed.sum()),
        unsure=int((candidate[both].max(axis=1) < UNSURE).sum()),
        champion_unsure=int((champion[both].max(axis=1) < UNSURE).sum()),
    )


def judge(seen: ShadowEvidence, policy: Policy) -> str | None:
    """Why the candidate may not go on; None when nothing speaks against it, which few images can hardly do."""
    text = f"of {seen.images} {_which(seen)} images the candidate"
    answered = Rate(seen.failed, seen.images)
    if held_against(answered, None, policy.max_error_rate, policy) == "worse":
        share = f" ({seen.not_finite} with NaN or infinity)" if seen.not_finite else ""
        return f"{text} has no sound answer to {seen.failed}{share}, allowed {policy.max_error_rate:.1%}"
    if held_against(Rate(seen.changed, seen.compared), None, policy.max_changed, policy) == "worse":
        return f"{text} answers {seen.changed} with another label than the champion, allowed {policy.max_changed:.1%}"
    unsure, before = Rate(seen.unsure, seen.compared), Rate(seen.champion_unsure, seen.compared)
    if held_against(unsure, before, policy.max_unsure, policy) == "worse":
        return (
            f"{text} is unsure of {seen.unsure}, the champion of {seen.champion_unsure}, "
            f"allowed {policy.max_unsure:.1%} more"
        )
    return None


def describe(seen: ShadowEvidence) -> str:
    """The evidence in one line."""
    if seen.source == "none":
        return "no live traffic to mirror, and none captured to replay"
    live, captured = f"{seen.mirrored} live images mirrored", f"{seen.images - seen.mirrored} captured images replayed"
    where = live if seen.source == "mirrored" else f"{live}, {captured}" if seen.mirrored else captured
    return (
        f"{where}: {seen.failed} without a sound answer, {seen.changed} of {seen.compared} with another label, "
        f"unsure of {seen.unsure} (champion: {seen.champion_unsure})"
    )


def _which(seen: ShadowEvidence) -> str:
    if seen.mirrored == seen.images:
        return "mirrored"
    return "mirrored and captured" if seen.mirrored else "captured"
