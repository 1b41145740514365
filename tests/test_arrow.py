"""Tables of Arrow, and of what speaks its protocol, as `Stars`: the numbers, units and masks of the astropy table."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, Table

import bayeslabels as bl

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq


class Foreign:
    """As polars' and DuckDB's tables are: it has nothing but the protocol and names of columns."""

    def __init__(self, table):
        self.table, self.columns = table, table.column_names

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


WAYS = {"Table": lambda x: x, "RecordBatch": lambda x: x.combine_chunks().to_batches()[0], "foreign": Foreign}


@pytest.mark.parametrize("way", WAYS)
def test_arrow_tables(way):
    table = pa.table(
        {
            "id": pa.array([2**62 + 1, 2**62 + 3, 7]),
            "G": pa.array([12.5, None, 11.0]),
            "N": pa.array([1, None, 3], pa.int16()),
            "FLUX": pa.array([[1.0, 2.0], None, [3.0, None]]),
            "NAME": pa.array(["a", "bb", "c"]).dictionary_encode(),
        },
        schema=None,
    )
    table = table.set_column(1, pa.field("G", pa.float64(), metadata={"unit": "mmag"}), table["G"])
    given = WAYS[way](table)
    stars = bl.Stars.from_table(given, id="id", magnitudes=("G", "N"), flux="FLUX")
    assert stars.id.tolist() == [2**62 + 1, 2**62 + 3, 7]
    np.testing.assert_array_equal(stars.magnitudes.value, [[12.5, 1], [np.nan, np.nan], [11, 3]])
    np.testing.assert_array_equal(stars.flux.value, [[1, 2], [np.nan, np.nan], [3, np.nan]])
    assert stars.magnitudes.units[0] == "mmag"
    assert bl.Stars.from_table(given, id="NAME", magnitudes="G").id.tolist() == ["a", "bb", "c"]
    with pytest.raises(bl.BadInput, match=r"no column 'FLUXES'; did you mean 'FLUX'\?"):
        bl.Stars.from_table(given, flux="FLUXES")


def test_what_astropy_wrote_keeps_units_and_masks(tmp_path):
    """Read by Arrow alone, a masked number would be data, and mmag magnitudes."""
    table = Table({"G": MaskedColumn([12000.0, 99.0], mask=[False, True], unit="mmag")})
    table.write(tmp_path / "a.parquet")
    block = bl.Stars.from_table(pq.read_table(tmp_path / "a.parquet"), magnitudes="G", magnitudes_unit="mag").magnitudes
    np.testing.assert_allclose(block.value[:, 0], [12.0, np.nan])
    stars = bl.Stars(flux=bl.Block(np.ones((2, 3)), 0.1, unit=u.Jy), id=["a", "b"])
    stars.to_table().write(tmp_path / "b.parquet")
    back = bl.Stars.from_table(pq.read_table(tmp_path / "b.parquet"))
    assert (back.flux.units[0], back.id.tolist()) == ("Jy", ["a", "b"])


def test_a_name_that_is_not_there():
    table = {"FEH": [1.0, 2.0], "TEFF": [1.0, 2.0]}
    with pytest.raises(bl.BadInput, match=r"there is no column 'fe_h'; did you mean 'FEH'\?"):
        bl.Stars.from_table(table, labels="fe_h")
    with pytest.raises(bl.BadInput, match=r"no column 'ZZZZ'; there are 'FEH', 'TEFF'"):
        bl.Stars.from_table(table, labels="ZZZZ")
