"""What is alive, by group, and the most that was alive at once."""

from engine.memory.tensors import Group, Storage


class LiveBytes:
    """Bytes that are taken and given back.

    Attributes:
        live: Bytes alive now.
        groups: `live` split by group.
        peak: Most bytes alive at once since `start_phase`.
        peak_groups: `peak` split by group.
        group: What is taken without a word about its group belongs to this one.
        sees_scratch: Whether scratch that a kernel takes within one operation counts. A dispatch mode cannot see it.
    """

    def __init__(self, *, sees_scratch: bool = True) -> None:
        self.live = 0
        self.peak = 0
        self.groups = [0] * len(Group)
        self.peak_groups = [0] * len(Group)
        self.group = Group.ACTIVATIONS
        self.sees_scratch = sees_scratch

    def allocate(self, size: int, group: Group | None = None) -> Storage:
        """Take bytes; the caller owns one reference."""
        group = self.group if group is None else group
        self.live += size
        self.groups[group] += size
        if self.live > self.peak:
            self.peak = self.live
            self.peak_groups = self.groups.copy()
        return Storage(size, group)

    def release(self, storage: Storage) -> None:
        """Give back one reference; the last one frees the bytes."""
        storage.references -= 1
        if storage.references == 0:
            self.live -= storage.size
            self.groups[storage.group] -= storage.size

    def use(self, *sizes: int, group: Group | None = None) -> None:
        """Hold scratch of these sizes, all at once, within one operation."""
        self.release(self.allocate(sum(sizes), group))

    def use_scratch(self, *sizes: int, group: Group | None = None) -> None:
        """Hold what a kernel takes for itself within one operation."""
        if self.sees_scratch:
            self.use(*sizes, group=group)

    def allocate_scratch(self, size: int, group: Group | None = None) -> Storage:
        """The same for longer than one allocation."""
        return self.allocate(size if self.sees_scratch else 0, group)

    def start_phase(self) -> None:
        """Begin to look for the peak anew."""
        self.peak = self.live
        self.peak_groups = self.groups.copy()
