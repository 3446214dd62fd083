"""Pieces: how much of a weight or of activations is held wider than it is stored at a time, on CPUs, whatever they can do."""

PANEL_BYTES = 2**19  # of a weight in 16 bits
LEAST_ROWS = 64  # of a panel: products of fewer are slow
PIECE = 2**15  # elements that become fp32 and something else again
LEAST_PIECES = 8  # of a small tensor, so that it needs little more than it takes
PRODUCT = 2**16  # elements of a wide product
LEAST_TOKENS = 64  # of a wide product: with fewer, reading the weight again takes longer than multiplying it


def panel_rows(out_features: int, in_features: int) -> int:
    """Rows of a weight that are unpacked to 16 bits at a time."""
    return min(out_features, max(LEAST_ROWS, PANEL_BYTES // (2 * in_features)))


def piece_rows(rows: int, features: int) -> int:
    """Rows of a tensor, [rows, features], that are widened at a time."""
    return max(1, min(PIECE // features, -(-rows // LEAST_PIECES)))


def product_tokens(out_features: int) -> int:
    """Tokens whose product is wide at a time, before it is rounded."""
    return max(LEAST_TOKENS, PRODUCT // out_features)
