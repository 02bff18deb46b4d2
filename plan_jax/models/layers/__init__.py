"""Layers that exist because of CPUs, where flax's own take up to several times as long.

XLA's CPU backend is slow at wide convolutions and their weight gradients, at 1x1 convolutions, at
attention with heads inside of positions, at batch norm's traced gradient and at the GELU by erfc.
So these are written out here as products of matrices (Winograd's F(2x2, 3x3) among them) and sums,
with gradients of their own: reverse mode only. On GPUs and TPUs convolutions, products and
attention are left to the compiler.
"""
