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
    labels = images.labels if images.is_labelled else None
    if labels is not None and not scores_fit(classifier(preprocessing.apply(images.images[:1])), labels[:1]):
        labels = None  # they name something else than classes of this output
    decisions = decide(
        name, lambda batch: classifier(preprocessing.apply(batch)), images.images, labels, progress=progress
    )
    return Answers(name, decisions, labels, noun_of(preprocessing))
