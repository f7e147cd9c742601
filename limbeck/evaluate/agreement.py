"""Agreement: how faithfully the student repeats the teacher, right or wrong."""

from __future__ import annotations

from limbeck.evaluate.base import Results, Subject, evaluations, numbers
from limbeck.evaluate.measure import Measure
from limbeck.functional import fidelity, metrics
from limbeck.hyperparameters import Positive

_TOP = (3, 5)


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
def agreement(subject: Subject, *, temperature: Positive = 1.0) -> Results:
    """Returns agreement, divergences in nats, and who is right where; or a ``note`` where there is no teacher.

    ``on_teacher_errors`` says how often the student repeats the teacher's errors, and ``expected`` how often guesses
    drawn from both distributions would agree: agreement alone rises with accuracy.

    Args:
        subject: what is judged.
        temperature: divides the logits before distributions are compared.
    """
    student, teacher = subject.logits("student"), subject.logits("teacher")
    if student is None or teacher is None:
        return {"note": subject.absence()}
    who = metrics.contingency(student, teacher, subject.labels)
    return {
        "top1": metrics.agreement(student, teacher).item(),
        **{f"top{k}": fidelity.top_k_agreement(student, teacher, k=k).item() for k in _TOP if k < student.shape[1]},
        "on_teacher_errors": numbers([fidelity.agreement_on_errors(student, teacher, subject.labels).item()])[0],
        "expected": fidelity.expected_agreement(student, teacher, temperature=temperature).item(),
        "total_variation": fidelity.total_variation(student, teacher, temperature=temperature).item(),
        "kl_teacher_student": metrics.predictive_divergence(teacher, student, temperature=temperature).item(),
        "kl_student_teacher": metrics.predictive_divergence(student, teacher, temperature=temperature).item(),
        "temperature": temperature,
        "right": {name: cell.item() for name, cell in who._asdict().items()},
    }
