"""Many clips and questions, one after another: which are done, and what came of the others."""
