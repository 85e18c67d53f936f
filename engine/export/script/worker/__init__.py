"""The functions that a script is made of. `engine.export.script.specialize` reads them as source and imports none of them.

They are written against `engine.export.script.facts.facts`: what depends on it alone is settled when a script is written.
"""
