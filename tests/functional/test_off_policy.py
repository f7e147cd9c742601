from __future__ import annotations

import numpy as np
import pytest

from limbeck.functional.off_policy import Threshold, fresh_share, origin, raised


def test_the_threshold_grows_with_a_loss_that_worsens_however_slowly_and_never_falls():
    threshold, seen = Threshold(), []
    for loss in (2.0, 2.04, 2.08, 2.12, 2.16, 1.0, 2.3):
        threshold = raised(threshold, loss)
        seen.append(threshold)
    assert [round(t.value, 1) for t in seen] == [0.0, 0.0, 0.0, 0.1, 0.1, 0.1, 0.2]
    assert [t.reference for t in seen] == [2.0, 2.0, 2.0, 2.12, 2.12, 2.12, 2.3]
    for loss in range(3, 40):
        threshold = raised(threshold, float(loss))
    assert threshold.value == 1.0


def test_never_and_always_are_reached():
    chances = np.linspace(0.0, 0.999, 50)
    assert {origin(u, 0.0, share=1.0, room=True) for u in chances} == {"data"}
    assert {origin(u, 1.0, share=1.0, room=True) for u in chances} == {"generate"}
    assert {origin(u, 1.0, share=0.0, room=False) for u in chances} == {"replay"}


@pytest.mark.parametrize(("share", "ends"), [("decreasing", (1, 0)), ("constant", (0.5, 0.5)), ("increasing", (0, 1))])
def test_parts_of_new_and_old_text_are_as_asked(share, ends):
    assert (fresh_share(share, 0.0), fresh_share(share, 1.0)) == ends
    chances = np.random.default_rng(0).random(4000)
    for fraction in (0.0, 0.25, 1.0):
        part = fresh_share(share, fraction)
        found = [origin(u, 0.4, share=part, room=False) for u in chances]
        own = [o for o in found if o != "data"]
        assert len(own) / len(found) == pytest.approx(0.4, abs=0.03)
        assert own.count("generate") / len(own) == pytest.approx(part, abs=0.03)
    # As long as the buffer has room nothing is replayed.
    assert "replay" not in [origin(u, 0.4, share=0.0, room=True) for u in chances]
    with pytest.raises(ValueError, match="unknown share"):
        fresh_share("more", 0.5)
