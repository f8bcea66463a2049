# SPDX-License-Identifier: Apache-2.0
"""Loaded by `custom_pipeline="<this folder or repository>"`; the pipeline is in the file beside it."""

from .pipeline_zerostereo import ZeroStereoPipeline

__all__ = ["ZeroStereoPipeline"]
