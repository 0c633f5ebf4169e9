"""What networks decide on stored images."""

from __future__ import annotations

from eqdeploy.data import LabelledImages, Preprocessing
from eqdeploy.progress import Progress
from eqdeploy.validation.accuracy import Classifier, decide
from eqdeploy.validation.agreement import Answers

FLOAT, SIMULATED, EXPORTED = "float", "simulated", "exported"


def answer(
    name: str, classifier: Classifier, images: LabelledImages, preprocessing: Preprocessing, progress: Progress
) -> Answers:
    """Decisions of one network on stored images, labelled or not.

    Args:
        name: ``float``, ``simulated`` or ``exported``.
        classifier: Takes preprocessed images.
        images: Images as stored; they are preprocessed batch by batch.
        preprocessing: What the network reads.
        progress: Listener.
    """
    labels = images.labels if images.is_labelled else None
    decisions = decide(
        name, lambda batch: classifier(preprocessing.apply(batch)), images.images, labels, progress=progress
    )
    return Answers(name, decisions, labels)
