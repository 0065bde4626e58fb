"""What methods share: settings and budgets, and the tokens that they return."""
