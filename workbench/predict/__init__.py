"""What a network can gain from 2:4, predicted from shapes, measured tables and a roofline."""

from workbench.predict.devices import device

__all__ = ["device"]
