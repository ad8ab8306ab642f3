"""2:4 sparse matrix products: packed weights, fused epilogues, honest dispatch."""
