"""Compressed DICOM decodes to the very pixels of the uncompressed file; both ship with pydicom."""

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"],
    ids=["rle", "j2k", "jpeg-ls"],
)
def test_a_lossless_transfer_syntax_loses_nothing(name):
    plain, packed = (pydicom.dcmread(get_testdata_file(file, download=False)) for file in ("MR_small.dcm", name))
    assert packed.file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(packed.pixel_array, plain.pixel_array)


@pytest.mark.parametrize("name", ["SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_jpeg_gdcm.dcm"], ids=["baseline", "lossless"])
def test_jpeg_decodes(name):
    assert pydicom.dcmread(get_testdata_file(name, download=False)).pixel_array.std() > 0
