"""Miss rate and average precision; numpy only, no model and no logger is known here."""
