"""How values show in a notebook."""

from __future__ import annotations

import numpy as np
import pytest

import bayeslabels as bl


@pytest.mark.parametrize("what", ["stars", "labels", "posterior", "result"])
def test_shown_in_a_notebook(what, training, trained, spectra):
    values = {
        "stars": (training, ["40 stars", "flux", "TEFF, LOGG"]),
        "labels": (training["labels"], ["<td>TEFF</td><td>K</td>", "<td>40</td>"]),
        "posterior": (trained, ["Posterior of Cannon"]),
        "result": (
            bl.infer(trained, spectra, progress=False),
            ["StarPosterior of 40 stars", "TEFF [K]", "35 more rows"],
        ),
    }
    value, said = values[what]
    html = value._repr_html_()
    assert html.count("<table>") == html.count("</table>") == 1
    for text in said:
        assert text in html


def test_names_of_files_are_text_and_a_column_without_a_number_is_shown():
    block = bl.Block(np.full((3, 1), np.nan), 0.1, names=("<script>",))
    html = bl.Stars(flux=block)._repr_html_()
    assert "<script>" not in html
    assert "nan" in block._repr_html_()
