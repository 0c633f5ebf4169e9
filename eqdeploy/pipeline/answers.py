"""What networks decide on stored images."""

from __future__ import annotations

from eqdeploy.data import InputPreprocessing, LabelledImages
from eqdeploy.data.inputs import noun_of
from eqdeploy.progress import Progress
from eqdeploy.validation.accuracy import Classifier, decide, scores_fit
from eqdeploy.validation.agreement import Answers

FLOAT, SIMULATED, EXPORTED = "float", "simulated", "exported"


def answer(
    name: str, classifier: Classifier, images: LabelledImages, preprocessing: InputPreprocessing, progress: Progress
) -> Answers:
    """Decisions of one network on stored images, labelled or not.

    Args:
        name: ``float``, ``simulated`` or ``exported``.
        classifier: Takes preprocessed images.
        images: Images as stored; they are preprocessed batch by batch.
        preprocessing: What the network reads.
        progress: Listener.
    """
    reason = images.why_no_accuracy
    if reason is None and not scores_fit(classifier(preprocessing.apply(images.images[:1])), images.labels[:1]):
        reason = "the labels are no classes of the network's output"
    labels = images.labels if reason is None else None
    decisions = decide(
        name, lambda batch: classifier(preprocessing.apply(batch)), images.images, labels, progress=progress
    )
    return Answers(name, decisions, labels, noun_of(preprocessing), reason or "")
