"""VOTable: as archives write it, and as nobody should: XML that asks for other files, or for more than there is."""

from __future__ import annotations

import base64
import gzip
import struct
import time

import numpy as np
import pytest
from astropy import units as u

import bayeslabels as bl
from bayeslabels.files.tables import read_table

LONG = 4611686018427387905  # as a float it is its neighbours, too
FIELDS = """
<FIELD name="source_id" datatype="long"/>
<FIELD name="logg" datatype="float" unit="log(cm.s**-2)"/>
<FIELD name="mh" datatype="double" unit="'dex'"/>
<FIELD name="pmra" datatype="double" unit="mas.yr**-1"/>
<FIELD name="G" datatype="double" unit="mag"><VALUES null="99"/></FIELD>
<FIELD name="n_obs" datatype="short"><VALUES null="-32768"/></FIELD>
<FIELD name="flux" datatype="float" arraysize="2"/>
<FIELD name="name" datatype="char" arraysize="*"/>"""


def document(fields=FIELDS, data="", table="", head="", version="1.4"):
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{head}<VOTABLE version="{version}" '
        f'xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><INFO name="QUERY_STATUS" value="OK"/><RESOURCE type="results">'
        f"<TABLE {table}>{fields}<DATA>{data}</DATA></TABLE></RESOURCE></VOTABLE>"
    ).encode()


def cells(*row):
    return "<TR>" + "".join(f"<TD>{x}</TD>" for x in row) + "</TR>"


TABLEDATA = (
    "<TABLEDATA>" + cells(LONG, 2.5, -0.5, 3.25, 12.0, 7, "1 2", "a")
    + cells(LONG + 2, "", "", "", 99, -32768, "1 NaN", "b&amp;c") + "</TABLEDATA>"
)  # fmt: skip


def binary(kind):
    """The same two rows; in BINARY2 each begins with a bit per field that says what is null."""
    rows = b""
    empty = (0.0 if kind == "BINARY2" else np.nan,) * 3
    for mask, numbers, flux, name in (
        (0b00000000, (LONG, 2.5, -0.5, 3.25, 12.0, 7), (1, 2), b"a"),
        (0b01110000, (LONG + 2, *empty, 99.0, -32768), (1, np.nan), b"b&c"),
    ):
        rows += bytes([mask]) * (kind == "BINARY2") + struct.pack(">qfdddh", *numbers) + struct.pack(">2f", *flux)
        rows += struct.pack(">i", len(name)) + name
    return f'<{kind}><STREAM encoding="base64">{base64.b64encode(rows).decode()}</STREAM></{kind}>'


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("data", [TABLEDATA, binary("BINARY"), binary("BINARY2")], ids=["text", "binary", "binary2"])
def test_tables_of_archives(tmp_path, data, packed):
    """Units, nulls, vectors, texts and long ids of every encoding; gzipped where the name does not say so."""
    path = tmp_path / "gaia.vot"
    path.write_bytes(gzip.compress(document(data=data)) if packed else document(data=data))
    table = read_table(path)
    assert table.meta == {"QUERY_STATUS": "OK"}
    assert table["source_id"].tolist() == [LONG, LONG + 2]
    assert [table[x].unit for x in ("logg", "mh", "pmra")] == [u.dex(u.cm / u.s**2), u.dex, u.mas / u.yr]
    stars = bl.Stars.from_table(
        table, id="name", x=("logg", "mh", "pmra"), magnitudes=("G", "n_obs"), flux="flux",
    )  # fmt: skip
    np.testing.assert_array_equal(stars.x.value, [[2.5, -0.5, 3.25], [np.nan] * 3])
    np.testing.assert_array_equal(stars.magnitudes.value, [[12.0, 7.0], [np.nan] * 2])
    np.testing.assert_array_equal(stars.flux.value, [[1, 2], [1, np.nan]])
    assert stars.id.tolist() == ["a", "b&c"]


def test_which_table(tmp_path):
    """The first that has rows; or that of a number or name."""
    one = '<TABLE name="{}"><FIELD name="x" datatype="double"/><DATA><TABLEDATA>{}</TABLEDATA></DATA></TABLE>'
    tables = one.format("none", "") + one.format("some", cells(1)) + one.format("more", cells(2) + cells(3))
    (tmp_path / "t.xml").write_text(f'<VOTABLE version="1.4"><RESOURCE>{tables}</RESOURCE></VOTABLE>')
    lengths = [len(read_table(tmp_path / "t.xml", hdu)) for hdu in (None, 0, 2, "more")]
    assert lengths == [1, 0, 2, 2]
    with pytest.raises(bl.BadInput, match=r"some.*more"):
        read_table(tmp_path / "t.xml", "other")
    (tmp_path / "t.xml").write_text('<VOTABLE version="1.4"><RESOURCE/></VOTABLE>')
    with pytest.raises(bl.BadInput, match="without a table"):
        read_table(tmp_path / "t.xml")


def test_lists_of_one_length_are_vectors(tmp_path):
    fields = '<FIELD name="f" datatype="double" arraysize="*"/><FIELD name="s" datatype="unicodeChar" arraysize="*"/>'
    rows = cells("1 2 3", "α") + cells("", "") + cells("4 NaN 6", "c")
    (tmp_path / "t.vot").write_bytes(document(fields, f"<TABLEDATA>{rows}</TABLEDATA>"))
    table = read_table(tmp_path / "t.vot")
    np.testing.assert_array_equal(table["f"], [[1, 2, 3], [np.nan] * 3, [4, np.nan, 6]])
    assert table["s"].tolist() == ["α", "", "c"]
    (tmp_path / "t.vot").write_bytes(document(fields, f"<TABLEDATA>{rows}{cells('1', 'd')}</TABLEDATA>"))
    with pytest.raises(bl.BadInput, match="length"):
        read_table(tmp_path / "t.vot")


X = '<FIELD name="x" datatype="double"/>'
SECRET = "the words of another file"
BOMB = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 30}">' for i in range(8))
ASKS = "<TABLEDATA><TR><TD>&e;</TD></TR></TABLEDATA>"
WORD = '<FIELD name="x" datatype="char" arraysize="2"/>'
HOSTILE = {
    "external entity": document(X, ASKS, head='<!DOCTYPE V [<!ENTITY e SYSTEM "{}">]>'),
    "parameter entity": document(X, TABLEDATA, head='<!DOCTYPE V [<!ENTITY % e SYSTEM "{}"> %e;]>'),
    "external DTD": document(X, ASKS, head='<!DOCTYPE V SYSTEM "{}">'),
    "entities of entities": document(X, "<TABLEDATA><TR><TD>&a8;</TD></TR></TABLEDATA>",
                                     head=f'<!DOCTYPE V [<!ENTITY a0 "1">{BOMB}]>'),
    "data elsewhere": document(X, '<BINARY><STREAM href="file://{}"/></BINARY>'),
    "data elsewhere, twice": document(X, '<BINARY2><STREAM href="file://{}" encoding="gzip"/></BINARY2>'),
    "FITS elsewhere": document(X, '<FITS extnum="1"><STREAM href="file://{}"/></FITS>'),
    "Parquet elsewhere": document(X, '<PARQUET type="VOTable-remote-file"><STREAM href="file://{}"/></PARQUET>'),
    "elements without end": document(X, "<RESOURCE>" * 5000 + "</RESOURCE>" * 5000),
    "more rows than bytes": document(X, "<TABLEDATA/>", table='nrows="99999999999"'),
    "a negative number of rows": document(X, "<TABLEDATA/>", table='nrows="-5"'),
    "wide rows": document('<FIELD name="x" datatype="double" arraysize="99999x99999"/>', "<TABLEDATA/>"),
    "text of a width": document('<FIELD name="x" datatype="char" arraysize="9999999999"/>', "<TABLEDATA/>"),
    "half a stream": document(X, '<BINARY><STREAM encoding="base64">AAAAAAAAAAAAAA==</STREAM></BINARY>', 'nrows="2"'),
    "no base64": document(X, '<BINARY><STREAM encoding="base64">????</STREAM></BINARY>', 'nrows="1"'),
    "a text of negative length": document('<FIELD name="x" datatype="char" arraysize="*"/>',
                                 '<BINARY><STREAM encoding="base64">/////w==</STREAM></BINARY>', 'nrows="1"'),
    "words for numbers": document('<FIELD name="x" datatype="long"/>', f"<TABLEDATA>{cells('many')}</TABLEDATA>"),
    "integers that do not fit": document('<FIELD name="x" datatype="int"/>', f"<TABLEDATA>{cells(LONG)}</TABLEDATA>"),
    "texts that do not fit": document(WORD, f"<TABLEDATA>{cells('abc')}</TABLEDATA>"),
    "too many cells": document(X, f"<TABLEDATA>{cells(1, 2)}</TABLEDATA>"),
    "too few cells": document(X + X.replace("x", "y"), f"<TABLEDATA>{cells(1)}</TABLEDATA>"),
    "a type of its own": document('<FIELD name="x" datatype="quaternion"/>', f"<TABLEDATA>{cells(1)}</TABLEDATA>"),
    "no fields": document("", "<TABLEDATA/>"),
    "another document": b"<html><body>503 Service Unavailable</body></html>",
    "an error of the archive": b'<VOTABLE><RESOURCE><INFO name="QUERY_STATUS" value="ERROR"/></RESOURCE></VOTABLE>',
    "another encoding": "<VOTABLE/>".encode("utf-16")[:-1],
    "half": document(data=TABLEDATA)[:-60],
}  # fmt: skip


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_and_damaged_files_are_bad_input(tmp_path, how):
    (tmp_path / "other").write_text(SECRET)
    (tmp_path / "t.xml").write_bytes(HOSTILE[how].replace(b"{}", str(tmp_path / "other").encode()))
    before = time.monotonic()
    with pytest.raises(bl.BadInput, match=r"t\.xml") as found:
        read_table(tmp_path / "t.xml")
    assert SECRET not in str(found.value)
    assert time.monotonic() - before < 5
