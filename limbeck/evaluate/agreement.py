"""Agreement: how faithfully the student repeats the teacher, right or wrong."""

from __future__ import annotations

from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.measure import Measure
from limbeck.functional import metrics


@evaluations.register(
    "agreement",
    title="Fidelity to the teacher: equal predictions, and the divergence of the predicted distributions",
    measures=(
        Measure("agreement.top1", "Agreement", "fraction", "higher", "How often student and teacher name one class."),
        Measure(
            "agreement.kl_teacher_student", "KL to teacher", "number", "lower", "Mean KL(teacher ‖ student), nats."
        ),
    ),
)
def agreement(subject: Subject) -> Results:
    """Returns ``top1``, both divergences in nats, and who is right where; or a ``note`` where there is no teacher."""
    student, teacher = subject.logits("student"), subject.logits("teacher")
    if student is None or teacher is None:
        return {"note": subject.absence()}
    who = metrics.contingency(student, teacher, subject.labels)
    return {
        "top1": metrics.agreement(student, teacher).item(),
        "kl_teacher_student": metrics.predictive_divergence(teacher, student).item(),
        "kl_student_teacher": metrics.predictive_divergence(student, teacher).item(),
        "right": {name: cell.item() for name, cell in who._asdict().items()},
    }
