"""The functions that a script is made of. `engine.export.script.specialize` reads them as source and imports none of them.

They use `engine.export.script.facts.facts`, an example that is replaced when a script is written.
"""
