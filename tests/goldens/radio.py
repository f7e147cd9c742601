"""Adapters of radio frames and their distillation."""

from __future__ import annotations

from typing import Any

import numpy as np

from goldens.drive import batch_of, total
from goldens.replay import Case, gradients, replays
from limbeck.data.modulation import as_iq, constellation, frequency_shift_keyed, received, root_raised_cosine, shaped
from limbeck.methods.base import build_method
from limbeck.signals import Signals, as_term


def _complex(case: Case, name: str) -> np.ndarray:
    real, imaginary = case.input(name).numpy()
    return real + 1j * imaginary


def _rows(values: np.ndarray) -> np.ndarray:
    return np.stack([values.real, values.imag])


@replays("ClST/SKD: signal KD loss and a RadioML-like I/Q generator", "clst-skd")
def clst_skd(case: Case) -> dict[str, Any]:
    config = case.config
    samples, start = config["sps"], config["span_symbols"] * config["sps"]
    taps = root_raised_cosine(samples=samples, rolloff=config["rolloff"], span=config["span_symbols"])
    results: dict[str, Any] = {"out.rrc_taps": taps}
    for name in config["mods"]:
        points = constellation(name)
        signal = shaped(points[case.input(f"{name}_symbols").numpy()], taps, samples=samples)
        offset, phase = case.input(f"{name}_cfo_phase").tolist()
        heard = received(
            signal, _complex(case, f"{name}_taps"), _complex(case, f"{name}_noise"), offset=offset, phase=phase,
            snr_db=config["snr_db"], window=slice(start, start + config["length"]),
        )  # fmt: skip
        results |= {
            f"out.{name}_constellation": _rows(points),
            f"out.{name}_tx": _rows(signal),
            f"out.{name}_iq_unit_power": as_iq(heard),
            f"out.{name}_iq_radioml_norm": as_iq(heard, by_magnitude=True),
        }
    bits = case.input("cpfsk_bits").numpy()
    results["out.cpfsk_iq"] = _rows(frequency_shift_keyed(bits, index=config["cpfsk_h"], samples=samples))

    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    method = build_method("kd", temperature=config["temperature"])
    method.weights.update(ce=1 - config["alpha"], kd=config["alpha"])
    terms = method(batch_of(case.input("labels")), student=Signals(logits=student), teacher=Signals(logits=teacher))
    loss = total(method, terms)
    return {
        **results,
        "out.loss": loss,
        "out.ce": as_term(terms["ce"]).mean(),
        "out.kl_T2": as_term(terms["kd"]).mean(),
        **gradients(loss, {"student_logits": student}),
    }
