"""Append-only rows named by (spec, image digest), in HDF5 on disk or in memory."""
