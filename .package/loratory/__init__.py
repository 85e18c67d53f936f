"""Loratory as one package, whose parts are the folders at the top of the repository."""
