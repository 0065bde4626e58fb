"""Pure tensor functions: they know no model and no settings."""
