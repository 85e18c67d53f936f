"""`python -m tests.models.make_inventories`: the inventories of the catalogue, for the package.

Run it after the catalogue, the inventory or the version of transformers has changed.
"""

import importlib.metadata
import zipfile

from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.models.catalog import list_catalog
from loratory.engine.models.inventory_cache import SHIPPED, inventory_name

_TIME = (2020, 1, 1, 0, 0, 0)  # the same content gives the same archive


def main() -> None:
    """Write the archive."""
    configs = {inventory_name(entry.config): entry.config for entry in list_catalog()}
    with zipfile.ZipFile(SHIPPED, "w") as archive:
        archive.comment = importlib.metadata.version("transformers").encode()
        for name, config in sorted(configs.items()):
            text = inventory_of(config).model_dump_json(exclude_defaults=True)
            archive.writestr(zipfile.ZipInfo(name, _TIME), text, zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    main()
