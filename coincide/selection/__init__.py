"""From clusters to a coreset: transferability, density, budgets, picks (paper section 3.3)."""
