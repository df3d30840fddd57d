"""Miss rate, AP, error analysis and how sure a difference is. Builds on numpy, not on torch."""
