"""What a report says about the images that everything is measured on."""

from __future__ import annotations

from eqdeploy.data.overlap import count_common
from eqdeploy.pipeline.sources import ImageSets
from eqdeploy.progress import Progress
from eqdeploy.supernet.checkpoint import SUPERNET_FLOAT_ACCURACY, CheckpointMetadata
from eqdeploy.validation.agreement import Answers
from eqdeploy.validation.decisions import SIGNIFICANCE, binomial_tail

#: Calibration images among the judged ones from which on it is told: data sets hold some images twice.
_COMMON_SHARE = 0.1
#: Loss of accuracy of the float network against its training from which on it is told: other images of the same kind
#: may well be harder.
_ACCURACY_LOSS = 0.1


def remarks_on(
    images: ImageSets, float_answers: Answers, metadata: CheckpointMetadata, progress: Progress
) -> tuple[str, ...]:
    """Say what makes measurements on held-out images say less than they seem to.

    Told are calibration images that are judged, too, and a float network that decides far fewer images as they are
    labelled than when it was trained, as one does whose labels are counted from one.

    Args:
        images: Calibration and held-out images.
        float_answers: What the float network decides on the held-out images.
        metadata: Of the supernet.
        progress: Who is told.

    Returns:
        One sentence for each finding.
    """
    remarks: list[str] = []
    common = count_common(images.calibration.images, images.held_out.images)
    if common > _COMMON_SHARE * len(images.calibration):
        remarks.append(
            f"{common} of {len(images.calibration)} calibration images are among those that are judged: "
            "accuracy on images that are new may be lower"
        )
    trained, found = metadata.provenance.get(SUPERNET_FLOAT_ACCURACY), float_answers.accuracy
    if isinstance(trained, float) and found is not None and found.fraction < trained - _ACCURACY_LOSS:
        chance = binomial_tail(found.images - found.correct, found.images, 1.0 - trained)
        if chance < SIGNIFICANCE:
            remarks.append(
                f"the float network decides {found.fraction:.2%} of these images as they are labelled, "
                f"{trained:.2%} when it was trained: images or labels are of another kind"
            )
    for remark in remarks:
        progress.note(remark)
    return tuple(remarks)
