"""Loratory in a Hugging Face Space: making one, and what is different inside."""
