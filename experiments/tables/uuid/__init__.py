"""MoRA's Table 2: UUID pairs."""
