"""Miss rate, AP, error analysis and significance; without torch."""
