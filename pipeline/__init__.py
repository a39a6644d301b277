"""The workstation side: train, quantize once, export, verify, package."""

__version__ = "0.1.0"
