"""What ``python -m harness new DIR`` copies: a recipe to run at once, and the conversations that it starts with."""
