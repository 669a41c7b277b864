"""EAM: blind super-resolution with a frozen SD3 diffusion transformer and a trained LR control stream."""

__version__ = "0.7.0"
