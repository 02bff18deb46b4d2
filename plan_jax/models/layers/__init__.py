"""Layers whose programs and gradients are fast on CPUs too.

XLA's GPU and TPU backends need none of them. Its CPU backend takes up to several times as long for
convolutions, their weight gradients, 1x1 convolutions, attention of many heads, batch norm's traced
gradient and the GELU by erfc, so these are written out here as products of matrices (Winograd's
F(2x2, 3x3) among them), with gradients of their own: reverse mode only. Elsewhere each falls back
to what the compiler does best.
"""
